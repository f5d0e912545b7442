"""Gangs of several workers: one of them is killed, then all at once, on real Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from faults_oracle import SPEC

from orchestrator.faults import points
from orchestrator.faults.comparison import forgotten, problems
from orchestrator.faults.points import Fault
from orchestrator.results.store import read_attempts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def spec(tmp_path) -> Path:
    """The soak's sweep with one trial, on one gang of two workers on two nodes."""
    sweep = yaml.safe_load(SPEC.read_text())
    sweep["models"]["sizes"] = sweep["models"]["sizes"][:1]
    sweep["seeds"], sweep["compute"] = [0], {**sweep["compute"], "gangs": 1, "workers": 2}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def test_a_gang_of_two_goes_on_after_losing_one_worker_and_then_both(rig, spec, tmp_path):
    undisturbed, results = tmp_path / "undisturbed" / "soak", tmp_path / "broken" / "soak"
    whole = rig.drive(spec, undisturbed)
    assert whole.wait(300) == 0, whole.output
    rig.forget()

    points.arm(rig.faults, Fault(point="step.inside", occurrence=30))
    driver = rig.drive(spec, results)
    driver.until(lambda: any(t.attempt == 1 and t.reached > t.start + 80 for t in rig.traces()))
    both = rig.workers()
    assert len(both) == 2
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(300) == 0, driver.output

    assert problems(results, undisturbed) == []
    assert forgotten(rig.traces()) == []
    attempts = read_attempts(results)
    assert list(attempts["outcome"]) == ["failed", "failed", "completed"]
    assert attempts["gang"].nunique() == 3, "the survivor of a gang is not used again"
