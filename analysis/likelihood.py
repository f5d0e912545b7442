"""Profile likelihood: what other values of one parameter the data do not refuse, the other parameters following.

Residuals count as Huber(1.345 s), with s their scale at the fit, so that outliers neither make nor break an interval;
the statistic is the rho test's (Hampel, Ronchetti, Rousseeuw and Stahel 1986, Robust Statistics, section 7.2), held
against F(1, n - p). With normal noise it is the likelihood ratio's (Venzon and Moolgavkar 1988, Appl. Statist. 37).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.laws import Array
from analysis.points import Points, scale_of
from analysis.solver import Problem, polish

EFFICIENT = 1.345
"""Huber threshold in standard deviations at which 95% of least squares' efficiency is left (Huber 1981)."""

_MAX_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The statistic of one table of points, and the estimate that it is measured from."""

    points: Points
    theta: Array
    """Where the summed Huber(1.345 s) is least, (p,)."""
    least: float
    scale: float
    """s, in log y."""

    @classmethod
    def of(cls, points: Points, theta: Array) -> Likelihood:
        """From an estimate in its neighbourhood."""
        s = scale_of(points.log_y - points.fitted(theta), points.num_free)
        solved, value = polish(points.problem(), theta[None], delta=EFFICIENT * s, near=True)
        return cls(points=points, theta=solved[0], least=float(value[0]), scale=s)

    @property
    def dof(self) -> int:
        return max(1, len(self.points) - self.points.num_free)

    @property
    def threshold(self) -> float:
        """Above it a value is refused at 5%."""
        return float(special.fdtri(1, self.dof, 0.95))

    def statistic(self, problem: Problem, starts: Array) -> tuple[Array, Array]:
        """F ratio of each row of `starts` solved within its box against the least, and the solutions."""
        solved, value = polish(problem, starts, delta=EFFICIENT * self.scale, max_steps=60, near=True, again=False)
        return 2 * np.maximum(value - self.least, 0.0) / self.scale**2, solved


def held(problem: Problem, column: Array, values: Array) -> Problem:
    """The problem with entry column[i] of theta held at values[i], one row of the batch each."""
    low, high = (np.repeat(bound[None], len(values), axis=0) for bound in (problem.low, problem.high))
    rows = np.arange(len(values))
    low[rows, column] = high[rows, column] = values
    return replace(problem, low=low, high=high)


def profile_intervals(points: Points, theta: Array) -> dict[str, tuple[float, float]]:
    """95% interval of each reported parameter by its profile; a side that is never refused ends at the bound.

    Both sides of all parameters are followed at once, by a bracket and then regula falsi.
    """
    raw = points.uncentred()
    start = points.law.shift(theta, points.x_mean, 0.0)
    likelihood = Likelihood.of(raw, start)
    problem = _wide(raw.problem())
    free = [k for k in range(len(start)) if not (k == 0 and points.held_floor is not None)]
    column = np.repeat(free, 2)
    side = np.tile([-1.0, 1.0], len(free))
    ends = _crossings(likelihood, problem, column, side)
    low, high = likelihood.theta.copy(), likelihood.theta.copy()
    low[free], high[free] = np.minimum(ends[::2], start[free]), np.maximum(ends[1::2], start[free])
    below, above = raw.params(low), raw.params(high)
    return {name: (float(below[name]), float(above[name])) for name in points.law.params}


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


def _crossings(likelihood: Likelihood, problem: Problem, column: Array, side: Array) -> Array:
    """Where the statistic crosses its threshold on each side of each entry, or the bound where it does not."""
    centre, threshold = likelihood.theta[column], likelihood.threshold
    bound = np.where(side < 0, problem.low[column], problem.high[column])
    inside, outside = centre.copy(), np.full(len(column), np.nan)
    f_inside, f_outside = np.full(len(column), -threshold), np.full(len(column), np.nan)
    step = 1e-3 + 0.02 * np.abs(centre)
    starts = np.repeat(likelihood.theta[None], len(column), axis=0)
    active = np.ones(len(column), dtype=bool)
    for _ in range(_MAX_STEPS):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        bracketed = np.isfinite(outside[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = np.sqrt(f_inside[rows] + threshold), np.sqrt(f_outside[rows] + threshold)
            share = (np.sqrt(threshold) - weight[0]) / (weight[1] - weight[0])
        share = np.clip(np.nan_to_num(share, nan=0.5), 0.05, 0.95)
        ahead = inside[rows] + side[rows] * step[rows]
        ahead = np.where(side[rows] < 0, np.maximum(ahead, bound[rows]), np.minimum(ahead, bound[rows]))
        value = np.where(bracketed, inside[rows] + share * (outside[rows] - inside[rows]), ahead)
        F, solved = likelihood.statistic(held(problem, column[rows], value), starts[rows])
        refused = threshold < F
        kept, left = rows[~refused], rows[refused]
        inside[kept], f_inside[kept], starts[kept] = value[~refused], F[~refused] - threshold, solved[~refused]
        outside[left], f_outside[left] = value[refused], F[refused] - threshold
        step[rows] *= 2
        done = np.abs(F - threshold) < 0.02 * threshold
        done |= ~refused & (value == bound[rows])
        done |= np.abs(outside[rows] - inside[rows]) < 1e-10 * (1 + np.abs(inside[rows]))
        active[rows[done]] = False
    return inside
