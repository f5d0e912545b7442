"""Resampling: which rule is used, the resamples themselves, and percentile intervals.

Points of one trial are not independent (they are milestones of one trajectory), so trials are drawn, never rows of a
trial. Where trials are few, dropping some would change what the design can identify: residuals are drawn instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.laws import Array

Interval = tuple[float, float]

MIN_TRIALS_FOR_PAIRS = 20


def choose_rule(trials: NDArray[np.int64], num_params: int) -> str:
    """`pairs` (trials drawn with replacement) with at least 20 trials and 5 a parameter, else `residuals`."""
    return "pairs" if len(np.unique(trials)) >= max(MIN_TRIALS_FOR_PAIRS, 5 * num_params) else "residuals"


def describe_rule(rule: str, num_trials: int, num_resamples: int) -> str:
    """The rule in words, for people."""
    what = "drawn whole, with replacement" if rule == "pairs" else "few, so their residuals are exchanged"
    return f"95% percentile bootstrap, {num_resamples} resamples of {num_trials} independent runs ({what})"


def pair_weights(trials: NDArray[np.int64], num_resamples: int, rng: np.random.Generator) -> Array:
    """How often each row is drawn when whole trials are drawn with replacement, shape (resamples, n)."""
    num_trials = int(trials.max()) + 1
    counts = rng.multinomial(num_trials, np.full(num_trials, 1 / num_trials), size=num_resamples)
    return counts.astype(float)[:, trials]


def residual_draws(
    residuals: Array, trials: NDArray[np.int64], num_params: int, num_resamples: int, rng: np.random.Generator
) -> Array:
    """Residuals to add to fitted values, shape (resamples, n).

    Each trial is given the residuals of a trial drawn at random, milestone by milestone, all with one random sign: what
    is common to a trial stays common, and no trial keeps its own misfit. Residuals are widened for the degrees of
    freedom that the fit used, by sqrt(n / dof), and for the few trials their scale is known from, by Student's t.
    """
    n, num_trials = len(residuals), int(trials.max()) + 1
    dof = max(1, n - num_params)
    rows = [np.flatnonzero(trials == trial) for trial in range(num_trials)]
    order = np.empty(n, dtype=np.int64)
    for index in rows:
        order[index] = np.arange(len(index))
    longest = max(len(index) for index in rows)
    by_trial = np.stack([residuals[np.resize(index, longest)] for index in rows])
    drawn = rng.integers(num_trials, size=(num_resamples, num_trials))
    sign = rng.choice([-1.0, 1.0], size=(num_resamples, num_trials))
    noise = by_trial[drawn[:, trials], order] * sign[:, trials]
    tail = special.stdtrit(max(2, min(dof, num_trials - 2)), 0.975) / special.ndtri(0.975)
    return np.asarray(noise * np.sqrt(n / dof) * tail)


def interval(draws: Array) -> Interval | None:
    """Percentile 95% interval; None when fewer than half of the resamples gave a value."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < max(20, len(draws) // 2):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def intervals(draws: Mapping[str, Array]) -> dict[str, Interval | None]:
    """The interval of each name."""
    return {name: interval(values) for name, values in draws.items()}
