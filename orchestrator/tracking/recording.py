"""A tracker for tests: remembers what it was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.tracking.tracker import Outcome


class RecordingTracker:
    """Implements Tracker in memory; a trial's run is named `run-<trial_id>`."""

    def __init__(self) -> None:
        self.plan: Mapping[str, Any] | None = None
        self.tags: dict[str, str] = {}
        self.files: list[Path] = []
        self.outcome: Outcome | None = None

    def start(self, plan: Mapping[str, Any], tags: Mapping[str, str] | None = None, files: Sequence[Path] = ()) -> None:
        """Remembers the plan, the tags and the files."""
        self.plan, self.tags, self.files = plan, dict(tags or {}), list(files)

    def run_id(self, trial_id: str) -> str | None:
        """`run-<trial_id>` for the trials of the plan, else None."""
        trials = self.plan["trials"] if self.plan else []
        return f"run-{trial_id}" if any(trial["trial_id"] == trial_id for trial in trials) else None

    def close(self, timeout: float, outcome: Outcome = "completed") -> bool:
        """Remembers the outcome; always true."""
        self.outcome = outcome
        return True
