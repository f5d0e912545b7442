"""What the tests of faults share: the undisturbed run that every disturbed one is held against."""

from __future__ import annotations

from pathlib import Path

from orchestrator.faults.comparison import forgotten, problems, unsaved
from orchestrator.faults.rig import Rig
from orchestrator.planning.plan import make

SPEC = Path("sweeps/soak.yaml")
CHECKPOINT_SECONDS = 60 * make(SPEC).sweep.compute.checkpoint_minutes


def assert_unharmed(rig: Rig, results: Path, undisturbed: Path, damaged: tuple[str, ...] = ()) -> None:
    """Byte-identical data, each milestone once, nothing trained twice that a checkpoint held, and those in time."""
    assert problems(results, undisturbed) == []
    assert forgotten(rig.traces(), excused=damaged) == []
    assert unsaved(rig.traces(), CHECKPOINT_SECONDS) == [], "a fault costs at most one interval, and one step"
