"""The estimator: variable projection for starts, then a batched Newton polish of a Huber objective on log residuals.

The objective is a sum, never a mean, and is measured in units of delta^2, so that stopping rules mean the same for any
number of points. One solver serves many starts of one table and many resamples of it: the batch is the first axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array, Law

HUBER_DELTA = 1e-3
"""Log residual at which squared loss turns absolute: Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3."""

_BATCH_CELLS = 60_000
"""Entries (batch x points) solved together: small enough for a core's cache."""


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

    def rows(self, index: NDArray[np.int64] | slice) -> Problem:
        """The same problem for some members of the batch."""
        return Problem(
            law=self.law,
            log_x=self.log_x,
            log_y=self.log_y if len(self.log_y) == 1 else self.log_y[index],
            weights=self.weights if len(self.weights) == 1 else self.weights[index],
            low=self.low if self.low.ndim == 1 else self.low[index],
            high=self.high if self.high.ndim == 1 else self.high[index],
        )


def polish(problem: Problem, theta: Array, delta: float = HUBER_DELTA, max_steps: int = 200) -> tuple[Array, Array]:
    """Minimise the summed Huber objective from each row of `theta`; returns (theta, objective).

    delta shrinks from 0.1 in factors of ten, each stage started at the one before: far from the optimum the absolute
    regime gives Newton no curvature.
    """
    size = max(1, _BATCH_CELLS // problem.log_x.shape[0])
    solved, values = np.array(theta, dtype=float), np.zeros(len(theta))
    for start in range(0, len(theta), size):
        chunk = slice(start, start + size)
        part, current = problem.rows(chunk), solved[chunk]
        for stage in (100.0, 10.0):
            current, _ = _newton(part, current, stage * delta, 30, 1e-4)
        solved[chunk], values[chunk] = _newton(part, current, delta, max_steps, 1e-13)
    return solved, values


def _newton(problem: Problem, theta: Array, delta: float, max_steps: int, tolerance: float) -> tuple[Array, Array]:
    """Damped Newton in a box, one damping a row; stops a row when its step promises less than `tolerance`."""
    theta = np.clip(theta, problem.low, problem.high)
    value, gradient, hessian = _expand(problem, theta, delta)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    for _ in range(max_steps):
        part = problem.rows(active)
        step, promised = _step(theta[active], gradient[active], hessian[active], damping[active], part)
        done = promised <= tolerance * (value[active] + 1e-2 * delta**2)
        trial = np.clip(theta[active] + step, part.low, part.high)
        new_value, new_gradient, new_hessian = _expand(part, trial, delta)
        better = new_value < value[active]
        moved = active[better]
        theta[moved], value[moved] = trial[better], new_value[better]
        gradient[moved], hessian[moved] = new_gradient[better], new_hessian[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 6)
        active = active[~(done | (damping[active] > 1e12))]
        if not len(active):
            break
    return theta, value


def _expand(problem: Problem, theta: Array, delta: float) -> tuple[Array, Array, Array]:
    """Objective (batch,), gradient (batch, p) and Hessian (batch, p, p), analytic.

    With shares w of the terms in y, d log y = w.T and d2 log y = T'(diag(w) - w w')T for the design T.
    """
    T = problem.law.design(problem.log_x)
    z = np.matmul(theta[None], np.swapaxes(T, 1, 2))
    top = z.max(axis=0)
    shares = np.exp(z - top)
    total = shares.sum(axis=0)
    shares /= total
    residual = problem.log_y - (top + np.log(total))
    psi = np.clip(residual, -delta, delta)
    value = np.sum(problem.weights * np.abs(psi) * (np.abs(residual) - 0.5 * np.abs(psi)), axis=-1)
    pull = problem.weights * psi
    curve = problem.weights * (np.abs(residual) < delta) + pull
    batch, p = theta.shape
    gradient, hessian = np.zeros((batch, p)), np.zeros((batch, p, p))
    for k in range(len(T)):
        used = np.flatnonzero(T[k].any(axis=0))
        gradient[:, used] -= (pull * shares[k]) @ T[k][:, used]
        for m in range(k, len(T)):
            other = np.flatnonzero(T[m].any(axis=0))
            mass = curve * shares[k] * shares[m] - (pull * shares[k] if m == k else 0.0)
            products = (T[k][:, used, None] * T[m][:, None, other]).reshape(len(T[k]), -1)
            block = (mass @ products).reshape(batch, len(used), len(other))
            hessian[:, used[:, None], other[None]] += block
            if m != k:
                hessian[:, other[:, None], used[None]] += np.swapaxes(block, 1, 2)
    return value, gradient, hessian


def _step(theta: Array, gradient: Array, hessian: Array, damping: Array, problem: Problem) -> tuple[Array, Array]:
    """A descent step and the decrease it promises; entries held at a bound by the gradient stay there."""
    held = ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))
    gradient = np.where(held, 0.0, gradient)
    p = theta.shape[1]
    hessian = np.where(held[:, :, None] | held[:, None, :], 0.0, hessian)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    scale = np.abs(hessian[:, np.arange(p), np.arange(p)]).max(axis=1, keepdims=True) + 1e-300
    curvature = np.maximum(np.abs(eigenvalues), 1e-14 * scale) + damping[:, None] * scale
    along = np.einsum("bpq,bp->bq", vectors, gradient)
    step = -np.einsum("bpq,bq->bp", vectors, along / curvature)
    return np.clip(step, -3.0, 3.0), 0.5 * np.sum(along**2 / (curvature - damping[:, None] * scale + 1e-300), axis=1)


def projected_starts(problem: Problem, num_starts: int) -> Array:
    """Starts by variable projection: at each point of a grid of exponents, coefficients by non-negative least squares.

    The best local minima of the grid come first, the rest are spread over the grid's better half, so that agreement
    between starts says something. Returns theta of shape (num_starts, p) in the problem's (centred) variables.
    """
    law = problem.law
    axes = [np.geomspace(0.01, 3.0, 64 if len(law.exponents) == 1 else 22)] * len(law.exponents)
    grid = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=-1)
    y = np.exp(problem.log_y[0])
    terms = np.exp(-grid[:, None, :] * problem.log_x[None])
    columns = np.concatenate([np.ones_like(terms[..., :1]), terms], axis=-1) if law.floor else terms
    coefficients, errors = _non_negative(columns / y[:, None], problem.weights[0])
    chosen = _spread(errors.reshape([len(a) for a in axes]), num_starts)
    smallest = y.min() * 1e-3
    theta = np.concatenate([np.log(np.maximum(coefficients[chosen], smallest)), grid[chosen]], axis=-1)
    return np.clip(theta, problem.low, problem.high)


def _non_negative(columns: Array, weights: Array) -> tuple[Array, Array]:
    """Least squares of 1 on columns (batch, n, q), coefficients non-negative, by trying every support (q <= 3)."""
    q = columns.shape[-1]
    gram = np.einsum("bnq,n,bnr->bqr", columns, weights, columns)
    moment = np.einsum("bnq,n->bq", columns, weights)
    best, errors = np.zeros((len(columns), q)), np.full(len(columns), np.inf)
    for count in range(1, q + 1):
        for support in combinations(range(q), count):
            index = np.array(support)
            block = gram[:, index[:, None], index[None]]
            ridge = 1e-14 * np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(count)
            solution = np.linalg.solve(block + ridge, moment[:, index, None])[..., 0]
            error = float(weights.sum()) - np.sum(solution * moment[:, index], axis=1)
            better = (solution >= 0).all(axis=1) & (error < errors)
            errors[better] = error[better]
            best[better] = 0.0
            best[np.ix_(better, index)] = solution[better]
    return best, errors


def _spread(errors: Array, count: int) -> Array:
    """Flat indices: the grid's local minima, best first, then every so-many-th of its better half."""
    padded = np.pad(errors, 1, constant_values=np.inf)
    centre = tuple(slice(1, -1) for _ in errors.shape)
    lowest = np.ones(errors.shape, dtype=bool)
    for axis in range(errors.ndim):
        for shift in (-1, 1):
            lowest &= errors <= np.roll(padded, shift, axis=axis)[centre]
    flat, order = errors.ravel(), np.argsort(errors, axis=None)
    minima = [i for i in order if lowest.ravel()[i]][: max(1, count // 2)]
    half = order[np.isfinite(flat[order])][: max(count, len(order) // 2)]
    others = half[np.linspace(0, len(half) - 1, count).round().astype(int)]
    return np.array(list(dict.fromkeys([*minima, *others]))[:count])
