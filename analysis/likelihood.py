"""Profile likelihood: what other values of one parameter the data do not refuse, the other parameters following.

Residuals count as Huber(1.345 s), with s their scale at the fit, so that outliers neither make nor break an interval;
the statistic is the rho test's, scaled by E[psi^2] / E[psi'] of the residuals themselves (Hampel, Ronchetti, Rousseeuw
and Stahel 1986, Robust Statistics, section 7.2), and held against F(1, n - p). Where no residual is beyond 1.345 s it
is the likelihood ratio's (Venzon and Moolgavkar 1988, Appl. Statist. 37).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.laws import Array
from analysis.points import LEAST_SCALE, Points, covariance, scale_of
from analysis.solver import Problem, polish

EFFICIENT = 1.345
"""Huber threshold in standard deviations at which 95% of least squares' efficiency is left (Huber 1981)."""

_MAX_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The statistic of one table of points, and the estimate that it is measured from."""

    points: Points
    theta: Array
    """Where the summed Huber(1.345 s) is least, (p,)."""
    least: float
    scale: float
    """s, in log y."""
    unit: float
    """What half a unit of the statistic is, in the objective: the sum of psi^2 over n - p, over the mean of psi'."""

    @classmethod
    def of(cls, points: Points, theta: Array) -> Likelihood:
        """From an estimate in its neighbourhood."""
        s = scale_of(points.residuals(theta), points.num_free)
        solved, value = polish(points.problem(), theta[None], delta=EFFICIENT * s, near=True)
        residuals = points.residuals(solved[0])
        psi = np.clip(residuals, -EFFICIENT * s, EFFICIENT * s)
        inside = max(float(np.mean(psi == residuals)), 0.5)
        unit = max(float(np.sum(psi**2)) / _dof(points) / inside, LEAST_SCALE**2)
        return cls(points=points, theta=solved[0], least=float(value[0]), scale=s, unit=unit)

    @property
    def dof(self) -> int:
        return _dof(self.points)

    @property
    def threshold(self) -> float:
        """Above it a value is refused at 5%."""
        return float(special.fdtri(1, self.dof, 0.95))

    def statistic(self, problem: Problem, starts: Array) -> tuple[Array, Array]:
        """F ratio of each row of `starts` solved within its box against the least, and the solutions."""
        solved, value = polish(problem, starts, delta=EFFICIENT * self.scale, max_steps=60, near=True, again=False)
        return 2 * np.maximum(value - self.least, 0.0) / self.unit, solved


def _dof(points: Points) -> int:
    return max(1, len(points) - points.num_free)


def held(problem: Problem, column: NDArray[np.intp], values: Array) -> Problem:
    """The problem with entry column[i] of theta held at values[i], one row of the batch each."""
    low, high = (np.repeat(bound[None], len(values), axis=0) for bound in (problem.low, problem.high))
    rows = np.arange(len(values))
    low[rows, column] = high[rows, column] = values
    return replace(problem, low=low, high=high)


def profile_intervals(points: Points, theta: Array) -> dict[str, tuple[float, float]]:
    """95% interval of each reported parameter by its profile; a side that is never refused ends at the bound.

    Both sides of all parameters are followed at once: a bracket, then regula falsi on the statistic's root, which is
    nearly linear.
    """
    raw = points.uncentred()
    start = points.law.shift(theta, points.x_mean, 0.0)
    likelihood = Likelihood.of(raw, start)
    free = np.arange(1 if points.held_floor is not None else 0, len(start))
    spread = covariance(raw, likelihood.theta, EFFICIENT * likelihood.scale)
    variance = np.maximum(np.diag(spread), 1e-12)
    column, side = np.repeat(free, 2), np.tile([-1.0, 1.0], len(free))
    path = side[:, None] * (spread / np.sqrt(variance)[:, None])[column]
    path[np.arange(len(column)), column] = side * np.sqrt(variance[column])
    ends = _crossings(likelihood, _wide(raw.problem()), column, path)
    low, high = likelihood.theta.copy(), likelihood.theta.copy()
    low[free], high[free] = np.minimum(ends[::2], start[free]), np.maximum(ends[1::2], start[free])
    below, above = raw.params(low), raw.params(high)
    own = [name for name in points.law.params if name not in points.law.entangled]
    return {name: (float(below[name]), float(above[name])) for name in own}


def _wide(problem: Problem) -> Problem:
    """Bounds that do not bind coefficients: with log x uncentred their logs are anywhere."""
    coefficients = np.zeros(len(problem.low), dtype=bool)
    first = 1 if problem.law.floor else 0
    coefficients[first : first + len(problem.law.coefficients)] = True
    return replace(
        problem,
        low=np.where(coefficients, problem.low - 200.0, problem.low),
        high=np.where(coefficients, problem.high + 200.0, problem.high),
    )


def _crossings(likelihood: Likelihood, problem: Problem, column: NDArray[np.intp], path: Array) -> Array:
    """Where the statistic crosses its threshold on the way from the estimate, or the bound where it does not.

    `path` (paths, p) is how theta moves, to first order, while the entry column[i] moves by a standard deviation.
    """
    rows, threshold = np.arange(len(column)), likelihood.threshold
    step = path[rows, column]
    bound = np.where(step < 0, problem.low[column], problem.high[column])
    inside, outside = likelihood.theta[column].copy(), np.full(len(column), np.nan)
    root_inside, root_outside = np.zeros(len(column)), np.full(len(column), np.nan)
    theta = np.repeat(likelihood.theta[None], len(column), axis=0)
    reach = np.full(len(column), np.sqrt(threshold))
    for _ in range(_MAX_STEPS):
        share = (np.sqrt(threshold) - root_inside[rows]) / (root_outside[rows] - root_inside[rows])
        between = inside[rows] + np.clip(share, 0.1, 0.9) * (outside[rows] - inside[rows])
        ahead = inside[rows] + reach[rows] * step[rows]
        ahead = np.where(step[rows] < 0, np.maximum(ahead, bound[rows]), np.minimum(ahead, bound[rows]))
        value = np.where(np.isfinite(between), between, ahead)
        start = theta[rows] + ((value - inside[rows]) / step[rows])[:, None] * path[rows]
        F, solved = likelihood.statistic(held(problem, column[rows], value), start)
        refused = threshold < F
        kept, left = rows[~refused], rows[refused]
        inside[kept], root_inside[kept], theta[kept] = value[~refused], np.sqrt(F[~refused]), solved[~refused]
        outside[left], root_outside[left] = value[refused], np.sqrt(F[refused])
        reach[rows] *= 1.5
        close = (np.abs(np.sqrt(F / threshold) - 1) < 0.01) | (~refused & (value == bound[rows]))
        inside[rows[close]] = value[close]
        rows = rows[~close]
        if not len(rows):
            break
    return inside
