"""How laws are estimated for a table: the options, and the one place where they reach the fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import pandas as pd

from analysis.fitting import NUM_RESAMPLES, Fit, fit_law, fit_power
from analysis.isoflop import IsoflopFit, fit_isoflop
from analysis.laws import Array, Law
from analysis.recipes import IntervalMethod, Recipe, delta_of

Floor = Literal["free", "zero"] | float

BESIDE = 400
"""Resamples of what stands beside the fit that was asked for: back-tests, other approaches."""

RECIPES: tuple[str, ...] = get_args(Recipe)
INTERVALS: tuple[str, ...] = get_args(IntervalMethod)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a law is estimated and its intervals are made; `floor` is free, zero, or the value that it is held at.

    Raises:
        ValueError: an option is none of its values.
    """

    recipe: Recipe = "varpro"
    interval: IntervalMethod = "auto"
    floor: Floor = "free"
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("recipe", self.recipe, RECIPES), ("interval", self.interval, INTERVALS)):
            if value not in known:
                raise ValueError(f"there is no {name} {value!r}; wanted one of {', '.join(known)}.")
        if isinstance(self.floor, str) and self.floor not in ("free", "zero"):
            raise ValueError(f"floor must be free, zero or a number; got {self.floor!r}.")
        if not isinstance(self.floor, str) and not 0 <= self.floor < float("inf"):
            raise ValueError(f"floor must be a number from 0 on; got {self.floor}.")
        if self.num_resamples < 0 or 0 < self.num_resamples < 40:
            raise ValueError(
                f"resamples must be 0 (no intervals) or at least 40; got {self.num_resamples}. "
                "Percentiles of fewer say nothing."
            )

    @property
    def delta(self) -> float:
        """Huber threshold of the objective on log residuals."""
        return delta_of(self.recipe)

    def beside(self, num_points: int, most: int = BESIDE) -> Options:
        """The same with fewer resamples, for what stands beside a fit: at most `most`, and 100 for 10,000 points."""
        fewer = min(most, self.num_resamples, max(100, 1_000_000 // max(1, num_points)))
        return replace(self, num_resamples=fewer)


def estimate_power(flops: Array, y: Array, trials: object, options: Options, sd: Array | None = None) -> Fit:
    """y = A * C^-beta + floor, with the floor that the options ask for; `sd` is the standard deviation of each y."""
    return fit_power(flops, y, trials=trials, floor=options.floor, sd=sd, **_of_laws(options))


def estimate_law(law: Law, x: Array, y: Array, trials: object, options: Options, sd: Array | None = None) -> Fit:
    """A law of points; x of shape (n, variables)."""
    return fit_law(law, x, y, trials=trials, sd=sd, **_of_laws(options))


def sd_of(frame: pd.DataFrame) -> Array | None:
    """The standard deviations of the losses, where the table names a column of them."""
    return frame["sd"].to_numpy(dtype=float) if "sd" in frame else None


def estimate_isoflop(frame: pd.DataFrame, options: Options, min_budgets: int = 2) -> IsoflopFit:
    """N*(C) and D*(C) through the minima of isoFLOP profiles; a parabola has one recipe and no floor."""
    return fit_isoflop(frame, min_budgets=min_budgets, num_resamples=options.num_resamples, seed=options.seed)


def _of_laws(options: Options) -> dict[str, Any]:
    return {
        "num_resamples": options.num_resamples,
        "seed": options.seed,
        "recipe": options.recipe,
        "interval": options.interval,
    }
