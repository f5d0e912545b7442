"""The fake keeps the contract of a tracker."""

from __future__ import annotations

from pathlib import Path

from orchestrator.tracking.recording import RecordingTracker
from orchestrator.tracking.tracker import Tracker


def test_remembers_what_it_was_told() -> None:
    recording = RecordingTracker()
    tracker: Tracker = recording
    assert tracker.run_id("aaaa") is None
    tracker.start({"trials": [{"trial_id": "aaaa"}]}, {"team": "laws"}, [Path("spec.yaml")])
    assert tracker.run_id("aaaa") == "run-aaaa"
    assert tracker.run_id("bbbb") is None
    assert tracker.close(1.0, "stopped")
    assert (recording.tags, recording.files, recording.outcome) == ({"team": "laws"}, [Path("spec.yaml")], "stopped")
