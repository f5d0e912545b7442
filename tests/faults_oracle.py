"""What the tests of faults share: the undisturbed run that every disturbed one is held against."""

from __future__ import annotations

from pathlib import Path

from orchestrator.faults.comparison import forgotten, problems
from orchestrator.faults.rig import Rig

SPEC = Path("sweeps/soak.yaml")


def assert_unharmed(rig: Rig, results: Path, undisturbed: Path, damaged: tuple[str, ...] = ()) -> None:
    """Byte-identical data, each milestone once, and nothing trained again that a checkpoint held."""
    assert problems(results, undisturbed) == []
    assert forgotten(rig.traces(), excused=damaged) == []
