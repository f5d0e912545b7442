"""Whether an attempt is still the one that its trial is trained by."""

from __future__ import annotations

from orchestrator.results.location import Location
from orchestrator.results.logs import log_of


class Superseded(Exception):
    """Another attempt of the same trial has begun: this one must not write any more."""


def check_standing(results: Location, trial_id: str, attempt: int) -> None:
    """Raise Superseded if the driver, having lost sight of an attempt, has begun another one."""
    if log_of(results, trial_id, attempt + 1).exists():
        raise Superseded(f"attempt {attempt} has been taken for dead and replaced; it ends here")
