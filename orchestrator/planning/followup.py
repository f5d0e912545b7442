"""Specs that follow a sweep up: one arm at one learning rate, other sizes and budgets, the recipe unchanged.

Everything that is part of a trial's identity stays, so that a follow-up goes on from what its sweep has stored.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.configs.base import ModelConfig
from orchestrator.planning.plan import expand
from orchestrator.planning.variants import Variant, Variants
from orchestrator.spec.options import SIZE_FIELDS
from orchestrator.spec.recipe import PowerBatch, WarmupStableDecay
from orchestrator.spec.source import Problem, Source
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trial import Trial

MAX_RUNGS = 24
"""About how many sizes are considered beside those of the sweep."""
BEYOND = 1.5
"""Sizes are considered from the smallest width over this to the largest times this."""
BUDGET_RATIO = 1.5
"""Of neighbouring budgets that are considered."""
MIN_STEPS = 100
"""Optimizer steps before which nothing new is measured, unless the sweep itself measures earlier."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One arm of a sweep at one learning rate: what a follow-up builds on."""

    sweep: Sweep
    source: Source
    variant: Variant
    learning_rate: float

    @property
    def cooldown(self) -> float:
        """Share of a budget that is spent in its cooldown; 0 under a constant schedule."""
        schedule = self.variant.training.schedule
        return schedule.cooldown if isinstance(schedule, WarmupStableDecay) else 0.0

    def trials(self) -> list[Trial]:
        """The sweep's own trials of the arm at the learning rate."""
        return [
            trial
            for trial in expand(self.sweep, self.source)
            if trial.arm == self.variant.label and trial.optimizer.learning_rate == self.learning_rate
        ]

    def spec(
        self,
        name: str,
        question: str,
        sizes: Sequence[Mapping[str, Any]],
        budgets: Mapping[str, Sequence[float]],
        seeds: Sequence[int],
        constraints: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A whole spec, without includes: `sizes` in full, and for each its `budgets` in FLOPs.

        `constraints` are added to those of the sweep, which hold for a follow-up as well.
        """
        data = copy.deepcopy(self.source.data)
        data |= {"name": name, "question": question, "seeds": list(seeds)}
        data["models"] = {**data["models"], "sizes": [dict(size) for size in sizes]}
        data["arms"] = {self.variant.arm: self._arm(data["arms"][self.variant.arm])}
        data["budgets"] = {"flops": {size: list(values) for size, values in budgets.items()}}
        if self.sweep.budgets.max_epochs is not None:
            data["budgets"]["max_epochs"] = self.sweep.budgets.max_epochs
        data["constraints"] = [*self.sweep.constraints, *constraints]
        data["axes"] = {axis: [self._value(axis)] for axis in self.sweep.axes}
        if self._images is not None:
            distance = {**data["evaluation"]["distance"], "images": self._images}
            data["evaluation"] = {**data["evaluation"], "distance": distance}
        return {key: value for key, value in data.items() if value or key not in ("constraints", "axes")}

    @cached_property
    def _images(self) -> int | None:
        """Generated images of a distance, as the sweep can afford them: with other budgets a follow-up would choose
        another number, and all of its trials would be others. None where no distance is measured."""
        own = self.trials()
        distance = own[0].evaluation.distance if own else None
        return None if distance is None else distance.images

    def _arm(self, section: Mapping[str, Any] | None) -> dict[str, Any]:
        arm = dict(section or {})
        if isinstance(arm.get("models"), dict):
            arm["models"] = {key: value for key, value in arm["models"].items() if key != "sizes"}
        own = self.sweep.arms[self.variant.arm].axes
        if own:
            arm["axes"] = {axis: [self._value(axis)] for axis in own}
        if not any(_is_rate(axis) for axis in self.variant.axes):
            arm["learning_rate"] = self.learning_rate
        return arm

    def _value(self, axis: str) -> Any:
        return self.learning_rate if _is_rate(axis) else self.variant.axes.get(axis)


def _is_rate(axis: str) -> bool:
    return axis.split(".")[-1] == "learning_rate"


def variants_of(sweep: Sweep, arm: str | None) -> list[Variant]:
    """The variants of an arm, as results name it: one, or one a learning rate where that is an axis.

    Raises:
        ValueError: there is no such arm, or there are several and none is named; or its budgets do not share
            trajectories, as their batch sizes differ.
    """
    problems: list[Problem] = []
    found = Variants(sweep, problems).all()
    labels = list(dict.fromkeys(variant.label for variant in found))
    if arm is None and len(labels) > 1:
        raise ValueError(f"sweep {sweep.name} has several arms: {', '.join(labels)}. Say which with --arm.")
    label = labels[0] if arm is None else arm
    if label not in labels:
        raise ValueError(f"sweep {sweep.name} has no arm {label!r}; wanted one of {', '.join(labels)}")
    chosen = [variant for variant in found if variant.label == label]
    if isinstance(chosen[0].training.batch_size, PowerBatch):
        raise ValueError(
            f"arm {label} has a batch size by budget, so that its budgets are not milestones of one trajectory; "
            "follow-ups are for one batch size. Give training.batch_size as a number."
        )
    return chosen


def sweep_of(data: Mapping[str, Any], path: Path, text: str = "") -> tuple[Sweep, Source]:
    """A sweep from plain data, as if `path` held it."""
    return Sweep.model_validate(data), Source(path, text, dict(data), {})


# Sizes.


def listed(name: str, config: ModelConfig) -> dict[str, Any]:
    """A size as a spec lists it."""
    return {"name": name} | {key: getattr(config, key) for key in SIZE_FIELDS if hasattr(config, key)}


def rungs(known: Mapping[str, ModelConfig]) -> list[dict[str, Any]]:
    """Sizes to consider, as a spec lists them: those `known`, and others between and around them by the same rule.

    Widths grow with heads of one size and the depth that neighbours suggest; of one width, depths grow. Where sizes
    follow no such rule they are the known ones alone.
    """
    found = [listed(name, config) for name, config in known.items()]
    shapes = {(config.width, config.depth) for config in known.values()}
    widths = sorted({width for width, _ in shapes})
    config = next(iter(known.values()))
    if any(other.resized(width=config.width, depth=config.depth) != config for other in known.values()):
        return found
    if len(widths) == len(shapes):
        depths = [depth for _, depth in sorted(shapes)]
        new = [(width, _depth_of(width, widths, depths)) for width in _steps(widths, config.width_step)]
    elif len(widths) == 1:
        new = [(widths[0], depth) for depth in _steps(sorted({depth for _, depth in shapes}), 1)]
    else:
        return found
    names, varied = set(known), len({depth for _, depth in shapes}) > 1
    for width, depth in new:
        if (width, depth) not in shapes:
            deep, plain = f"w{width}d{depth}", f"w{width}"
            name = next(n for n in ([] if varied else [plain]) + [deep, f"{deep}x"] if n not in names)
            names.add(name)
            found.append(listed(name, config.resized(width=width, depth=depth)))
    return sorted(found, key=lambda size: (size["width"], size["depth"]))


def _steps(known: Sequence[int], step: int) -> list[int]:
    """Multiples of `step` from below the least to beyond the largest: all, or about `MAX_RUNGS` evenly in logs."""
    low, high = max(1, math.ceil(known[0] / BEYOND / step)), math.floor(known[-1] * BEYOND / step)
    if high - low < MAX_RUNGS:
        return [step * count for count in range(low, high + 1)]
    ratio = (high / low) ** (1 / (MAX_RUNGS - 1))
    return sorted({step * round(low * ratio**count) for count in range(MAX_RUNGS)})


def _depth_of(width: int, widths: Sequence[int], depths: Sequence[int]) -> int:
    """The depth that all have; else by linear interpolation between the known, and beyond them at the last's aspect."""
    if len(set(depths)) == 1:
        return depths[0]
    if width <= widths[0] or width >= widths[-1]:
        end = 0 if width <= widths[0] else -1
        return max(1, round(depths[end] * width / widths[end]))
    above = next(index for index, known in enumerate(widths) if known >= width)
    share = (width - widths[above - 1]) / (widths[above] - widths[above - 1])
    return round(depths[above - 1] + share * (depths[above] - depths[above - 1]))


# Budgets and seeds.


def budget_grid(known: Sequence[float], cap: float) -> list[float]:
    """Budgets to consider: the known ones, others where they are far apart, and further ones up to `cap` FLOPs."""
    known = sorted(known)
    grid = list(known)
    for low, high in itertools.pairwise(known):
        parts = round(math.log(high / low) / math.log(BUDGET_RATIO))
        grid += [_rounded(low * (high / low) ** (part / parts)) for part in range(1, parts)]
    largest = known[-1]
    while largest * BUDGET_RATIO <= cap:
        largest = _rounded(largest * BUDGET_RATIO)
        grid.append(largest)
    return sorted(set(grid))


def _rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def seeds_of(sweep: Sweep, num_seeds: int) -> list[int]:
    """The first seeds of a sweep, and further ones where it has fewer."""
    further = (seed for seed in range(num_seeds + len(sweep.seeds)) if seed not in sweep.seeds)
    found = list(sweep.seeds)
    while len(found) < num_seeds:
        found.append(next(further))
    return found[:num_seeds]


def seed_constraints(wanted: Mapping[tuple[str, int], Collection[float]]) -> list[str]:
    """Conditions under which each (size, seed) goes to its own largest budget and no further.

    `wanted` has the FLOPs of its cells. Smaller budgets of its size lie on the way: they cost nothing.
    """
    sizes = list(dict.fromkeys(size for size, _ in wanted))
    seeds = {seed for _, seed in wanted}
    conditions = []
    for size in sizes:
        tops = {seed: max(budgets) for (other, seed), budgets in wanted.items() if other == size}
        if set(tops) != seeds or len(set(tops.values())) > 1:
            allowed = [f"seed == {seed} and flops < {top * 1.001:.6g}" for seed, top in sorted(tops.items())]
            conditions.append(f"size != '{size}' or {' or '.join(allowed)}")
    return conditions


def candidate_constraints(ground: Ground, own: Sequence[Trial], max_epochs: float) -> list[str]:
    """Conditions that anything new has to meet: steps enough, beyond the warmup, within the data's epochs if any."""
    warmup = ground.variant.training.warmup_samples
    fewest = min(trial.milestones[0] // trial.batch_size for trial in own if trial.milestones)
    steps = max(10, min(MIN_STEPS, fewest))
    conditions = [f"steps >= {steps}", f"samples >= {2 * warmup}"]
    return conditions if math.isinf(max_epochs) else [*conditions, f"epochs <= {max_epochs:.12g}"]
