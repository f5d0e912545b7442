"""What the driver asks of a tracker. A tracker shows a sweep; it never holds its truth, and never fails it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["completed", "stopped", "failed"]


class Tracker(Protocol):
    """Shows a sweep while it runs. No method raises or blocks on a server."""

    def start(self, plan: Mapping[str, Any], tags: Mapping[str, str] | None = None, files: Sequence[Path] = ()) -> None:
        """Begins to follow the results folder.

        `plan` is as in plan.json: `trials`, a list of objects with at least `trial_id`. `files`, the spec among them,
        are shown with the sweep.
        """

    def run_id(self, trial_id: str) -> str | None:
        """The tracker's own name for a trial, at once; None while it has none."""

    def close(self, timeout: float, outcome: Outcome = "completed") -> bool:
        """Writes what can be written within `timeout` seconds; true when all was. `outcome` is the sweep's."""
