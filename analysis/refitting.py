"""Solve a fitted law again for other weights or other losses, many at once, each from the estimate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.fitting import Fit
from analysis.laws import Array
from analysis.points import Points
from analysis.solver import HUBER_DELTA, polish


class Refitter:
    """A fitted law with its points: x of shape (n, variables) and y of shape (n,), all positive.

    `delta` is the Huber threshold of the fit's objective (a large one is least squares).
    """

    def __init__(self, fit: Fit, x: Array, y: Array, delta: float = HUBER_DELTA, sd: Array | None = None) -> None:
        self.law, self.delta = fit.law, delta
        self.points = Points.of(fit.law, x, y, sd=sd)
        self.log_x, self.log_y = self.points.log_x, self.points.log_y
        self.theta = self.points.theta(fit.params)

    def solve(self, weights: Array | None = None, log_y: Array | None = None) -> dict[str, Array]:
        """Parameters, each of shape (batch,), for weights (batch, n) or for centred log losses (batch, n)."""
        problem = self.points.problem(log_y, weights)
        batch = max(len(problem.log_y), len(problem.weights))
        theta, _ = polish(problem, np.repeat(self.theta[None], batch, axis=0), delta=self.delta, near=True)
        return self.points.params(theta)

    @property
    def fitted(self) -> Array:
        """Centred log losses of the law at the points, shape (n,)."""
        return self.points.fitted(self.theta)

    @property
    def residuals(self) -> Array:
        """Log residuals over their noise, shape (n,)."""
        return self.points.residuals(self.theta)

    def one_step(self) -> dict[str, Array]:
        """First-order change of each exponent when a row is left out, shape (n,)."""
        moved = -self.points.first_order(self.theta, self.delta)
        names = self.law.theta_names
        return {name: moved[:, names.index(name)] for name in self.law.exponents}


def rows_by_unit(units: NDArray[np.int64]) -> Array:
    """Which rows belong to which unit, shape (units, n), 1 or 0."""
    return (units[None] == np.arange(int(units.max()) + 1)[:, None]).astype(float)
