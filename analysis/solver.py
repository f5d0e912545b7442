"""The minimiser: a batched, damped Newton method for a summed Huber objective on log residuals.

The objective is a sum, never a mean, and is measured in units of delta^2, so that stopping rules mean the same for any
number of points. One solver serves many starts of one table and many resamples of it: the batch is the first axis, cut
into pieces that fit a core's cache and shared out over the cores.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analysis.expansion import Expansion, expansion_of
from analysis.laws import Array, Law

HUBER_DELTA = 1e-3
"""Log residual at which squared loss turns absolute: Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3."""

LEAST_SQUARES = 1e3
"""A threshold on log residuals that no residual reaches."""

_BATCH_CELLS = 48_000
"""Entries (batch x points) expanded together: small enough for a core's cache."""

_STAGES = (100.0, 10.0)
"""Multiples of delta that are solved first, each from the one before: far from the optimum the absolute regime gives
Newton no curvature."""

_CAREFUL_STAGES = (100.0, 30.0, 10.0, 3.0)


def huber_sum(residuals: Array, weights: Array, delta: float) -> Array:
    """Sum over points of weight * Huber(residual), shape (batch,)."""
    inside = np.minimum(np.abs(residuals), delta)
    return np.sum(weights * inside * (np.abs(residuals) - 0.5 * inside), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Points to fit: logs of the variables (n, variables), of y (1 or batch, n), and weights (1 or batch, n)."""

    law: Law
    log_x: Array
    log_y: Array
    weights: Array
    low: Array
    high: Array
    """Box of theta, (p,) or (batch, p)."""
    noise: Array = field(default_factory=lambda: np.ones(1))
    """Relative standard deviation of each log y, (n,) or (1,): residuals and thresholds are in its units."""

    def rows(self, index: NDArray[np.int64] | slice) -> Problem:
        """The same problem for some members of the batch."""
        return Problem(
            law=self.law,
            log_x=self.log_x,
            log_y=self.log_y if len(self.log_y) == 1 else self.log_y[index],
            weights=self.weights if len(self.weights) == 1 else self.weights[index],
            low=self.low if self.low.ndim == 1 else self.low[index],
            high=self.high if self.high.ndim == 1 else self.high[index],
            noise=self.noise,
        )

    def thinned(self, most: int) -> Problem:
        """The problem of one table through `most` of its points at most, evenly chosen along the table."""
        n = self.log_x.shape[0]
        if n <= most:
            return self
        kept = np.linspace(0, n - 1, most).astype(np.int64)
        noise = self.noise if len(self.noise) == 1 else self.noise[kept]
        log_y, weights = self.log_y[:, kept], self.weights[:, kept]
        return replace(self, log_x=self.log_x[kept], log_y=log_y, weights=weights, noise=noise)

    def expansion(self, delta: float) -> Expansion:
        """Of the objective with a threshold of `delta` times the noise."""
        return expansion_of(self.law, self.log_x, delta * self.noise)


def polish(
    problem: Problem,
    theta: Array,
    delta: float = HUBER_DELTA,
    max_steps: int = 100,
    *,
    near: bool = False,
    again: bool = True,
) -> tuple[Array, Array]:
    """Minimise the summed Huber objective from each row of `theta`; returns (theta, objective).

    `near` says that the rows are near their optima, and goes without stages of larger delta; rows that find no optimum
    are then solved `again`, in more and smaller stages.
    """
    solved, values = np.array(theta, dtype=float), np.zeros(len(theta))
    blocks = -(-len(theta) * problem.log_x.shape[0] // _BATCH_CELLS)
    share = -(-len(theta) // max(1, min(num_cores(), blocks)))

    def solve(start: int) -> None:
        rows = slice(start, start + share)
        part, first = problem.rows(rows), solved[rows].copy()
        solved[rows], values[rows], found = _in_stages(part, first, delta, () if near else _STAGES, max_steps)
        lost = np.flatnonzero(~found) + start
        if len(lost) and again:
            second, value, _ = _in_stages(problem.rows(lost), theta[lost], delta, _CAREFUL_STAGES, 2 * max_steps)
            better = value < values[lost]
            solved[lost[better]], values[lost[better]] = second[better], value[better]

    starts = range(0, len(theta), share)
    if len(starts) == 1:
        solve(0)
    else:
        with ThreadPoolExecutor(max_workers=len(starts)) as pool:
            list(pool.map(solve, starts))
    return solved, values


def _in_stages(
    problem: Problem, theta: Array, delta: float, stages: tuple[float, ...], max_steps: int
) -> tuple[Array, Array, NDArray[np.bool_]]:
    for factor in stages:
        if factor * delta < 1.0:
            theta, _, _ = _newton(problem, theta, factor * delta, 30, 1e-4)
    return _newton(problem, theta, delta, max_steps, 1e-13)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def objective(problem: Problem, theta: Array, delta: float = HUBER_DELTA) -> Array:
    """The summed Huber objective at each row of theta, (batch,)."""
    return _in_blocks(problem.expansion(delta), problem, theta)[0]


def _newton(
    problem: Problem, theta: Array, delta: float, max_steps: int, tolerance: float
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Damped Newton in a box, one damping a row, until a row's step promises less than `tolerance`: with which did."""
    theta = np.clip(theta, problem.low, problem.high)
    expand = problem.expansion(delta)
    value, gradient, hessian = _in_blocks(expand, problem, theta)
    damping = np.full(len(theta), 1e-6)
    found = np.zeros(len(theta), dtype=bool)
    active = np.arange(len(theta))
    for _ in range(max_steps):
        part = problem.rows(active)
        step, promised = _step(theta[active], gradient[active], hessian[active], damping[active], part)
        done = promised <= tolerance * (value[active] + 1e-2 * delta**2)
        trial = np.clip(theta[active] + step, part.low, part.high)
        new_value, new_gradient, new_hessian = _in_blocks(expand, part, trial)
        better = new_value < value[active]
        moved = active[better]
        theta[moved], value[moved] = trial[better], new_value[better]
        gradient[moved], hessian[moved] = new_gradient[better], new_hessian[better]
        damping[active] = np.where(better, damping[active] / 8, np.maximum(damping[active] * 8, 1e-2))
        found[active[done]] = True
        active = active[~(done | (damping[active] > 1e12))]
        if not len(active):
            break
    return theta, value, found


def _in_blocks(expand: Expansion, problem: Problem, theta: Array) -> tuple[Array, Array, Array]:
    """The expansion of every row of theta, in blocks that fit the cache."""
    size = max(1, _BATCH_CELLS // problem.log_x.shape[0])
    precision = problem.noise**-2.0
    if len(theta) <= size:
        return expand(theta, problem.log_y, problem.weights * precision)
    found = []
    for start in range(0, len(theta), size):
        rows = slice(start, start + size)
        part = problem.rows(rows)
        found.append(expand(theta[rows], part.log_y, part.weights * precision))
    value, gradient, hessian = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return value, gradient, hessian


def _step(theta: Array, gradient: Array, hessian: Array, damping: Array, problem: Problem) -> tuple[Array, Array]:
    """A descent step and the decrease that it promises undamped; entries held at a bound by the gradient stay there.

    Levenberg and Marquardt's step, in units of the Hessian's diagonal, with the absolute values of its eigenvalues: a
    descent direction where it is indefinite, too.
    """
    held = ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))
    gradient = np.where(held, 0.0, gradient)
    hessian = np.where(held[:, :, None] | held[:, None, :], 0.0, hessian)
    diagonal = np.abs(np.einsum("bpp->bp", hessian))
    unit = np.sqrt(np.maximum(diagonal, 1e-4 * diagonal.max(axis=1, keepdims=True)) + 1e-300)
    eigenvalues, vectors = np.linalg.eigh(hessian / (unit[:, :, None] * unit[:, None, :]))
    along = ((gradient / unit)[:, None] @ vectors)[:, 0]
    curvature = np.maximum(np.abs(eigenvalues), 1e-14)
    with np.errstate(over="ignore"):
        step = -(vectors @ (along / (curvature + damping[:, None]))[..., None])[..., 0] / unit
        promised = 0.5 * np.sum(along**2 / curvature, axis=1)
    return np.clip(step, -3.0, 3.0), promised
