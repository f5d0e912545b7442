"""One measurement that a sweep asks for, before trials are made of them."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.planning.sizes import SizedModel
from orchestrator.planning.variants import Variant
from orchestrator.spec.source import Problem


class Target(NamedTuple):
    """Where a size is measured for one budget, under one recipe."""

    samples: int
    batch_size: int
    budget: float | None
    """The FLOPs asked for; None where samples were."""
    branch: int | None = None
    """Samples at which its cooldown begins; None under a constant schedule."""
    problem: Problem | None = None
    """Why it cannot be; told unless the constraints leave its cells out."""


class Cell(NamedTuple):
    """One measurement that the sweep asks for."""

    variant: Variant
    model: SizedModel
    learning_rate: float
    seed: int
    target: Target
