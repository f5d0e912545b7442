"""Whether the data identify a law's constant term: its profile, and the reasons to refuse it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import Interval
from analysis.laws import TINY, Array
from analysis.likelihood import EFFICIENT, Likelihood, held
from analysis.points import Points, covariance
from analysis.solver import Problem

NUM_FLOORS = 17
NEARBY = np.linspace(-3.0, 3.0, 13)
"""Standard deviations of the log floor about the estimate at which it is held as well: the profile turns there."""
FAR = 8.0
"""Thresholds above which a floor is refused beyond doubt, and those beyond it with it."""


@dataclass(frozen=True, kw_only=True)
class FloorProfile:
    """How well each fixed floor fits: `statistic` is an F ratio against the best floor, refused above `threshold`."""

    floors: Array
    statistic: Array
    threshold: float
    interval: Interval
    """Floors that the data do not refuse at 95%."""


def profile_floor(points: Points, theta: Array, num_floors: int = NUM_FLOORS) -> FloorProfile:
    """Refit with the floor fixed at values from 0 to the smallest y, and compare as `analysis.likelihood` does.

    `theta` (p,) is the estimate, whose floor is one of the values; where it lies above the smallest y, values go on
    beyond it.
    """
    likelihood = Likelihood.of(points, theta)
    problem = points.problem()
    smallest = float(np.exp(points.log_y.min()))
    fitted, likeliest = (
        float(np.exp(t)) if t > problem.low[0] + 1e-6 else 0.0 for t in (theta[0], likelihood.theta[0])
    )
    if max(fitted, likeliest) > smallest:  # points below the floor are outliers
        smallest = max(1.05 * fitted, 1.05 * likeliest, float(np.exp(np.quantile(points.log_y, 0.1))))
    steps = np.linspace(0.0, 1.0, num_floors)[:-1]
    spread = float(np.sqrt(covariance(points, likelihood.theta, EFFICIENT * likelihood.scale)[0, 0]))
    near = likeliest * np.exp(min(spread, 1.0) * NEARBY)
    floors = np.concatenate([smallest * (1 - (1 - steps) ** 2), near, [fitted, likeliest]])
    floors = np.unique(np.minimum(floors, smallest * 0.9999))
    logs = np.maximum(np.log(np.maximum(floors, TINY)), problem.low[0])
    middle = int(np.searchsorted(floors, min(likeliest, smallest * 0.9999) * (1 - 1e-12)))
    statistic = _followed(likelihood, problem, logs, middle)
    unit = float(np.exp(points.y_mean))
    kept = floors[statistic <= likelihood.threshold]
    bounds = (float(kept.min()) * unit, float(kept.max()) * unit) if len(kept) else (fitted * unit, fitted * unit)
    return FloorProfile(floors=floors * unit, statistic=statistic, threshold=likelihood.threshold, interval=bounds)


def _followed(likelihood: Likelihood, problem: Problem, logs: Array, middle: int) -> Array:
    """The statistic at each log floor, solved outwards from the likeliest, which is at `middle`."""
    middle = min(middle, len(logs) - 1)
    below = _along(likelihood, problem, logs[middle::-1])
    return np.concatenate([below[::-1], _along(likelihood, problem, logs[middle:])[1:]])


def _along(likelihood: Likelihood, problem: Problem, logs: Array) -> Array:
    """The statistic at log floors that lead away from the likeliest, each solved from its neighbour.

    Once it is FAR above the threshold it is followed no further, and stays what it was.
    """
    statistic, theta = np.zeros(len(logs)), likelihood.theta[None]
    for k, value in enumerate(logs):
        if k and statistic[k - 1] > FAR * likelihood.threshold:
            statistic[k] = statistic[k - 1]
            continue
        rows = held(problem, np.zeros(1, dtype=np.intp), np.array([value]))
        (statistic[k],), theta = likelihood.statistic(rows, theta)
    return statistic


def flat_to_zero(profile: FloorProfile) -> bool:
    """Whether a law without a floor fits as well."""
    return float(profile.statistic[0]) <= profile.threshold


def compared(profile: FloorProfile) -> str:
    """The statistic without a floor, in words."""
    return f"F = {float(profile.statistic[0]):.2g}, refused above {profile.threshold:.3g}"


def why_refused(profile: FloorProfile, band: Interval | None, smallest: float) -> str | None:
    """Why a power law's floor is not believed; None where it is. `band` is its interval, `smallest` the least y."""
    if flat_to_zero(profile):
        return f"its profile is flat down to 0: a law without a floor fits as well ({compared(profile)})"
    if band is not None and band[0] < 1e-3 * smallest:
        return f"its 95% interval reaches 0 ({band[0]:.3g} to {band[1]:.3g})"
    return None
