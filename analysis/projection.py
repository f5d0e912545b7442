"""Starts by variable projection: at each point of a grid of exponents the coefficients by non-negative least squares.

Golub and Pereyra 1973, SIAM J. Numer. Anal. 10: a law that is linear in its coefficients has a surface of best fits
over its other parameters alone. Relative errors are projected, so that no unit matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from analysis.laws import Law
    from analysis.solver import Problem

Array = NDArray[np.float64]

_REFINEMENTS = 15

LEAST_SHARE = 0.05
"""Share of the smallest y at which a coefficient that projection finds to be 0 is started."""


def exponent_axis(num_exponents: int) -> Array:
    """The grid of one exponent; finer where there are few of them."""
    return np.geomspace(0.01, 3.0, {1: 40, 2: 14}.get(num_exponents, 8))


def projected_starts(problem: Problem, num_starts: int) -> Array:
    """Theta of shape (num_starts, p) in the problem's (centred) variables, the best local minima of the grid first."""
    weights = np.broadcast_to(problem.weights[0] / problem.noise**2, problem.log_y[0].shape)
    starts = problem.law.starts(problem.log_x, problem.log_y[0], weights, num_starts)
    return np.clip(starts, problem.low, problem.high)


def project(terms: Sequence[tuple[int | None, Array]], target: Array, weights: Array) -> tuple[Array, Array]:
    """Fit target (n,) by non-negative coefficients of terms, on a grid of exponents.

    A term is (axis, values): values of shape (points on that axis of the grid, n), or axis None and values (1, n) where
    it depends on no exponent. Axes count from 0. Returns coefficients (*grid, terms) and sums of squared relative
    errors (*grid). Sums over points are taken once for each pair of terms, not for each point of the grid.
    """
    scaled = [(axis, values / target) for axis, values in terms]
    sizes = {axis: len(values) for axis, values in terms if axis is not None}
    shape = tuple(sizes[axis] for axis in sorted(sizes))
    q = len(terms)
    gram, moment = np.empty((*shape, q, q)), np.empty((*shape, q))
    for k, (axis, values) in enumerate(scaled):
        moment[..., k] = _on_grid(values @ weights, (axis,), len(shape))
        for m in range(k, q):
            other, more = scaled[m]
            if axis == other:
                sums = _on_grid(np.einsum("an,n,an->a", values, weights, more), (axis,), len(shape))
            else:
                sums = _on_grid((values * weights) @ more.T, (axis, other), len(shape))
            gram[..., k, m] = gram[..., m, k] = sums
    flat = (gram.reshape(-1, q, q), moment.reshape(-1, q))
    coefficients, errors = _non_negative(*flat, float(weights.sum()))
    return coefficients.reshape(*shape, q), errors.reshape(shape)


def _on_grid(sums: Array, axes: tuple[int | None, ...], dims: int) -> Array:
    """Sums over the axes that they depend on, laid out so that they broadcast over the whole grid."""
    sums = sums.reshape([n for n, axis in zip(sums.shape, axes, strict=True) if axis is not None])
    known = [axis for axis in axes if axis is not None]
    if len(known) == 2 and known[0] > known[1]:
        sums, known = sums.T, known[::-1]
    return sums.reshape([sums.shape[known.index(d)] if d in known else 1 for d in range(dims)])


def _non_negative(gram: Array, moment: Array, total: float) -> tuple[Array, Array]:
    """Least squares with non-negative coefficients, by trying every support (few terms); coefficients and errors."""
    q = moment.shape[-1]
    best, errors = np.zeros_like(moment), np.full(len(moment), np.inf)
    for count in range(1, q + 1):
        for support in combinations(range(q), count):
            index = np.array(support)
            block = gram[:, index[:, None], index[None]]
            ridge = 1e-14 * np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(count)
            solution = np.linalg.solve(block + ridge, moment[:, index, None])[..., 0]
            error = total - np.sum(solution * moment[:, index], axis=1)
            better = (solution >= 0).all(axis=1) & (error < errors)
            errors[better] = error[better]
            best[better] = 0.0
            best[np.ix_(better, index)] = solution[better]
    return best, errors


Columns = Callable[[Array], tuple[Array, Array]]
"""Of exponents (batch, e): the terms (batch, n, q), and their slopes by each exponent (batch, n, q, e)."""


def refine(columns: Columns, exponents: Array, target: Array, weights: Array, low: float, high: float) -> Array:
    """Exponents (batch, e) at the least-squares optimum near each row, within low to high.

    Gauss-Newton on the projected functional (Kaufman 1975, BIT 15), with Levenberg and Marquardt's damping: the
    coefficients are solved for at each step, so that the curved valley in which a floor trades against an exponent is
    walked along, not across.
    """
    exponents, errors = exponents.copy(), np.full(len(exponents), np.inf)
    damping, step = np.full(len(exponents), 1e-3), np.zeros_like(exponents)
    for _ in range(_REFINEMENTS):
        trial = np.clip(exponents + step, low, high)
        error, gradient, hessian = _projected(columns, trial, target, weights)
        better = error < errors
        damping = np.where(better, damping / 5, damping * 8)
        if not np.isfinite(errors).all():
            slope, curve = gradient, hessian
        else:
            slope[better], curve[better] = gradient[better], hessian[better]
        settled = better & (errors - error <= 1e-6 * error)
        exponents[better], errors[better] = trial[better], error[better]
        if settled.all():
            break
        diagonal = np.einsum("bee->be", curve)
        damped = curve + (damping[:, None] * diagonal + 1e-300)[:, :, None] * np.eye(curve.shape[1])
        step = np.clip(np.linalg.solve(damped, slope[..., None])[..., 0], -0.5, 0.5)
    return exponents


def _projected(columns: Columns, exponents: Array, target: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Squared relative error with the best coefficients (batch,), minus half its gradient, and its Gauss-Newton matrix,
    by the exponents."""
    terms, slopes = columns(exponents)
    terms, slopes = terms / target[:, None], slopes / target[:, None, None]
    weighted = terms * weights[:, None]
    gram = np.swapaxes(weighted, 1, 2) @ terms
    coefficients, errors = _non_negative(gram, weighted.sum(axis=1), float(weights.sum()))
    residual = 1 - (terms @ coefficients[..., None])[..., 0]
    J = np.einsum("bnqe,bq->bne", slopes, coefficients)
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    J = J - terms @ np.linalg.solve(gram + ridge, np.swapaxes(weighted, 1, 2) @ J)
    weighted_J = J * weights[:, None]
    return errors, np.einsum("bne,bn->be", weighted_J, residual), np.swapaxes(weighted_J, 1, 2) @ J


def best_coefficients(terms: Array, target: Array, weights: Array) -> Array:
    """Non-negative coefficients (batch, q) of terms (batch, n, q)."""
    terms = terms / target[:, None]
    weighted = terms * weights[:, None]
    return _non_negative(np.swapaxes(weighted, 1, 2) @ terms, weighted.sum(axis=1), float(weights.sum()))[0]


def spread(errors: Array, count: int) -> NDArray[np.intp]:
    """Flat indices into a grid: its local minima, best first, then every so-many-th of its better half.

    The rest are there so that agreement between starts says something.
    """
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


def hoffmann_starts(law: Law) -> Array:
    """The grid of Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3, shape (starts, p), in the units of the table.

    Exponents 0 to 2 in steps of 0.5, log coefficients 0 to 25 in steps of 5, log floor -1 to 1 in steps of 0.5: 4500
    starts for a surface. Those of lowest objective are solved, see `analysis.fitting`.
    """
    axes = [np.arange(-1.0, 1.1, 0.5)] if law.floor else []
    axes += [np.arange(0.0, 25.1, 5.0)] * len(law.coefficients) + [np.arange(0.0, 2.1, 0.5)] * len(law.exponents)
    return np.array(list(product(*axes)))
