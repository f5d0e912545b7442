"""Two real drivers on one cluster: the one of higher priority is let in as the other's trials end."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from faults_oracle import SPEC

from orchestrator.results.store import read_attempts, read_measurements

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def spec(folder: Path, name: str, seeds: list[int], priority: int) -> Path:
    sweep = yaml.safe_load(SPEC.read_text())
    compute = {**sweep["compute"], "priority": priority, "checkpoint_minutes": 1, "hang_minutes": 5}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**sweep, "name": name, "seeds": seeds, "compute": compute}))
    return path


def test_the_sweep_of_higher_priority_goes_first_and_the_other_goes_on_after_it(rig, tmp_path):
    low = rig.drive(spec(tmp_path, "low", [0, 1, 2, 3], 0), tmp_path / "low")
    low.until(lambda: len({trace.pid for trace in rig.traces() if trace.reached > trace.start}) == 2)
    high = rig.drive(spec(tmp_path, "high", [4, 5], 5), tmp_path / "high")
    assert high.wait(300) == 0, high.output
    assert low.wait(300) == 0, low.output
    assert "sweep high runs on the same cluster, at priority 5" in low.output
    assert "sweep low runs on the same cluster, at priority 0" in high.output

    mine, theirs = read_attempts(tmp_path / "low"), read_attempts(tmp_path / "high")
    assert set(mine["outcome"]) == set(theirs["outcome"]) == {"completed"}, "nobody is interrupted for it"
    first, last = theirs["started_at"].min(), theirs["started_at"].max()
    between = mine[(mine["started_at"] > first) & (mine["started_at"] < last)]
    assert len(between) <= 1, "one that began before it was heard of; the rest waited"
    assert (mine["started_at"] > last).any(), "it went on"
    assert len(read_measurements(tmp_path / "low")) == 24
    assert len(read_measurements(tmp_path / "high")) == 12
