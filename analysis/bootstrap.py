"""Resamples of points, and percentile intervals.

Points of one trial are not independent (they are milestones of one trajectory), so trials are drawn, never rows of a
trial; and where residuals are exchanged or given signs, a trial's stay together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.laws import Array

Interval = tuple[float, float]


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
    is common to a trial stays common, and no trial keeps its own misfit. They are `widened`.
    """
    n, num_trials = len(residuals), int(trials.max()) + 1
    rows = [np.flatnonzero(trials == trial) for trial in range(num_trials)] if num_trials < n else trials[:, None]
    order = np.zeros(n, dtype=np.int64)
    if num_trials < n:
        for index in rows:
            order[index] = np.arange(len(index))
    longest = max(len(index) for index in rows)
    by_trial = np.stack([residuals[np.resize(index, longest)] for index in rows])
    drawn = rng.integers(num_trials, size=(num_resamples, num_trials))
    sign = rng.choice([-1.0, 1.0], size=(num_resamples, num_trials))
    noise = by_trial[drawn[:, trials], order] * sign[:, trials]
    return np.asarray(noise * widened(n, num_params, num_trials))


def wild_draws(
    residuals: Array, trials: NDArray[np.int64], num_params: int, num_resamples: int, rng: np.random.Generator
) -> Array:
    """Each trial's own residuals with one random sign (Wu 1986, Ann. Statist. 14; by clusters Cameron, Gelbach and
    Miller 2008, Rev. Econ. Statist. 90), shape (resamples, n): noise that differs from trial to trial stays so.

    A random sign also suits absolute errors (Feng, He and Hu 2011, Biometrika 98). They are `widened`.
    """
    num_trials = int(trials.max()) + 1
    sign = rng.choice([-1.0, 1.0], size=(num_resamples, num_trials))
    return np.asarray(residuals * sign[:, trials] * widened(len(residuals), num_params, num_trials))


def widened(num_points: int, num_params: int, num_trials: int) -> float:
    """Factor on residuals for the degrees of freedom that a fit used, sqrt(n / dof), and for the few trials from which
    their scale is known (`tail_factor`)."""
    dof = max(1, num_points - num_params)
    return float(np.sqrt(num_points / dof)) * tail_factor(dof, num_trials)


def tail_factor(dof: int, num_trials: int) -> float:
    """Student's t over the normal at 97.5%, with no more degrees of freedom than trials less 2."""
    return float(special.stdtrit(max(2, min(dof, num_trials - 2)), 0.975) / special.ndtri(0.975))


def interval(draws: Array) -> Interval | None:
    """Percentile 95% interval; None when fewer than half of the resamples gave a value."""
    finite = draws[np.isfinite(draws)]
    if len(finite) < max(20, len(draws) // 2):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def reaching(band: Interval | None, value: float | None) -> Interval | None:
    """An interval that holds its estimate: where resamples lie to one side of it, it reaches to it."""
    return band if band is None or value is None else (min(band[0], value), max(band[1], value))


def intervals(draws: Mapping[str, Array]) -> dict[str, Interval | None]:
    """The interval of each name."""
    return {name: interval(values) for name, values in draws.items()}
