"""The named points: nothing where none is armed, once where one is, and a ledger that tells the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from orchestrator.faults import points
from orchestrator.faults.points import DAY, POINTS, Fault

KILLED = """
import time
from orchestrator.faults import points
points.begin("aaaa", 3, 64)
for step in range(1, 10):
    points.reach("step.before")
    time.sleep(0.1)
    points.reach("step.after", 64 + 8 * step)
    if step == 2:
        points.reach("checkpoint.saved", 80)
"""
CLOCK = """
import time
from orchestrator.faults import points
from orchestrator.results import store
before = store._now().timestamp()
points.begin("aaaa", 0, 0)
points.reach("step.after", 8)
print(before - store._now().timestamp())
"""


@pytest.fixture
def armoury(tmp_path, monkeypatch):
    monkeypatch.setenv(points.FOLDER, str(tmp_path))
    yield tmp_path
    monkeypatch.delenv(points.FOLDER)
    points.begin("", 0, 0)


def test_without_the_variable_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(points.FOLDER, raising=False)
    points.arm(tmp_path, Fault(point="step.before", action="raise"))
    points.begin("aaaa", 0, 0)
    for point in POINTS:
        points.reach(point)
    assert len(points.armed(tmp_path)) == 1
    assert points.ledger(tmp_path) == []


def test_a_fault_strikes_once_at_its_trial_and_occurrence(armoury):
    points.arm(armoury, Fault(point="step.inside", action="raise", occurrence=3, trial_id="bbbb"))
    points.begin("aaaa", 0, 0)
    for _ in range(5):
        points.reach("step.inside")
    points.begin("bbbb", 0, 0)
    points.reach("step.inside")
    points.reach("step.before")
    points.reach("step.inside")
    with pytest.raises(RuntimeError, match=r"a fault was injected at step\.inside"):
        points.reach("step.inside")
    points.reach("step.inside")
    assert [fault.trial_id for fault in points.fired(armoury)] == ["bbbb"]
    assert points.armed(armoury) == []


def test_the_ledger_of_a_killed_process_is_exact(tmp_path):
    points.arm(tmp_path, Fault(point="step.before", action="kill", occurrence=6))
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, points.FOLDER: str(tmp_path)}, check=False)
    assert done.returncode == -9
    (trace,) = points.ledger(tmp_path)
    assert trace[:5] == ("aaaa", 3, 64, 64 + 5 * 8, 80)
    assert 0.2 <= trace.unsaved_seconds < 10, "two of the three steps since the checkpoint"


def test_a_clock_jumps_in_its_process_only(tmp_path):
    points.arm(tmp_path, Fault(point="step.after", action="clock"))
    done = subprocess.run(
        [sys.executable, "-c", CLOCK], env={**os.environ, points.FOLDER: str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(DAY, abs=10)
    assert datetime.now(UTC).year > 2000
