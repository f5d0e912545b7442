"""What may be run next and what is known already, as a design sees it: sizes, budgets, trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.planted import Cells, CostLine

Trajectory = tuple[int, int]
"""A trial, as a design knows it: the index of its size on the ladder, and that of its seed."""

EXTENSION = 1.1
"""A trial is extended to at least this multiple of what it was trained for."""

NUM_MILESTONES = (1, 2, 3, 5)
"""How many milestones a trajectory may be given, from its end down."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Sizes that may be trained, each in `num_seeds` seeds, and the samples at which they may be measured."""

    params: Array
    """N of each size, ascending, shape (sizes,)."""
    flops_per_sample: Array
    """Training FLOPs of one sample of each size, shape (sizes,)."""
    samples: Array
    """D of each size at each budget, ascending along budgets, shape (sizes, budgets); NaN where it may not be run."""
    num_seeds: int = 1
    cooldown: float = 0.0
    """Share of each budget that is spent after branching off the trunk (warmup-stable-decay); 0: budgets are prefixes
    of one trajectory."""

    @classmethod
    def of_budgets(cls, params: Array, flops_per_sample: Array, budgets: Array, num_seeds: int = 1) -> Ladder:
        """Every size at every budget in FLOPs."""
        samples = budgets / flops_per_sample[:, None]
        return cls(params=params, flops_per_sample=flops_per_sample, samples=samples, num_seeds=num_seeds)

    @cached_property
    def flops(self) -> Array:
        """Training FLOPs of each size up to each budget, shape (sizes, budgets)."""
        return np.asarray(self.samples * self.flops_per_sample[:, None])

    @cached_property
    def cost(self) -> CostLine:
        return CostLine.of(self.params, self.flops_per_sample)

    @cached_property
    def middle(self) -> tuple[float, float]:
        """Mean log N and log D: where coefficients can be told from exponents."""
        return float(np.log(self.params).mean()), float(np.nanmean(np.log(self.samples)))

    def price(self, size: int, budgets: Sequence[int], trained: float) -> float:
        """Training FLOPs of measuring a size at some budgets, where its trajectory was `trained` to already.

        Trunks keep no checkpoint once their branches are measured, so with cooldowns nothing is saved.
        """
        flops = self.flops[size, list(budgets)]
        if self.cooldown == 0:
            return float(flops[-1] - trained)
        return float((1 - self.cooldown) * flops[-1] + self.cooldown * flops.sum())

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        return [(size, seed) for size in range(len(self.params)) for seed in range(self.num_seeds)]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured cells, and the trajectory of each of their trials: None where a trial cannot be extended."""

    cells: Cells
    trajectories: tuple[Trajectory | None, ...]

    @cached_property
    def trained(self) -> dict[Trajectory, float]:
        """FLOPs that each trajectory was trained for."""
        flops = np.zeros(len(self.trajectories))
        np.maximum.at(flops, self.cells.trial, self.cells.flops)
        return {t: float(f) for t, f in zip(self.trajectories, flops, strict=True) if t is not None}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A trajectory measured at some budgets: what a design chooses among."""

    trajectory: int
    """Index in `Ladder.trajectories`."""
    budgets: tuple[int, ...]
    """Indices on the ladder, ascending."""
    flops: float
    """Training FLOPs that it costs."""


def options(ladder: Ladder, measured: Measured | None) -> list[Option]:
    """Every trajectory to every budget beyond what it was trained for, measured there and at some before."""
    trained = measured.trained if measured else {}
    found = []
    for index, trajectory in enumerate(ladder.trajectories):
        flops = ladder.flops[trajectory[0]]
        already = trained.get(trajectory, 0.0)
        allowed = np.flatnonzero(flops > EXTENSION * already)  # NaN is not
        ends = range(1, len(allowed) + 1)
        for budgets in sorted({tuple(allowed[max(0, end - m) : end].tolist()) for end in ends for m in NUM_MILESTONES}):
            found.append(Option(trajectory=index, budgets=budgets, flops=ladder.price(trajectory[0], budgets, already)))
    return found


def trial_rows(trial: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each trial 0, 1, 2, ..."""
    return [np.flatnonzero(trial == index) for index in range(int(trial.max()) + 1)]
