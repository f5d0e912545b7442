"""The functional forms: sums of power-law terms over a constant floor.

Every law here is y = floor + sum_k coefficient_k * x_k^(-exponent_k), so log y is a log-sum-exp of functions linear in
theta = (log floor, log coefficients, exponents): Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3, equation 10.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENT_BOUNDS = (1e-3, 4.0)
"""Range of every exponent: below it a term is a constant, above it a step."""

LOG_COEFFICIENT_RANGE = 14.0
"""How far (natural log) below the smallest y a term is followed; beyond it the term is absent (1e-6 of y)."""


class Law(ABC):
    """A functional form: its names, its equation, and log y with its derivatives."""

    name: str
    equation: str
    variables: tuple[str, ...]
    """Columns that x_k are read from."""
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    floor: str | None
    """Name of the constant term; None where the law has none."""
    params: tuple[str, ...]
    """Names in the order in which they are reported."""

    @property
    @abstractmethod
    def min_points(self) -> int:
        """Fewest distinct points a fit is attempted with."""

    @property
    def num_params(self) -> int:
        return len(self.theta_names)

    @property
    def theta_names(self) -> tuple[str, ...]:
        """Names of theta's entries, in order: floor, coefficients (both as logs), exponents."""
        return ((self.floor,) if self.floor else ()) + self.coefficients + self.exponents

    def design(self, log_x: Array) -> Array:
        """T of shape (components, n, p) with z = T theta the logs of the terms. `log_x` has shape (n, variables)."""
        n, terms, offset = len(log_x), len(self.exponents), 1 if self.floor else 0
        T = np.zeros((offset + terms, n, self.num_params))
        if self.floor:
            T[0, :, 0] = 1.0
        for k in range(terms):
            T[offset + k, :, offset + k] = 1.0
            T[offset + k, :, offset + terms + k] = -log_x[:, k]
        return T

    def log_y(self, theta: Array, log_x: Array) -> Array:
        """Log of the law, shape (batch, n), for theta of shape (batch, p)."""
        return np.logaddexp.reduce(np.einsum("knp,bp->kbn", self.design(log_x), theta), axis=0)

    def gradient(self, theta: Array, log_x: Array) -> Array:
        """d log y / d theta, shape (batch, n, p): the terms' shares of y through the design."""
        T = self.design(log_x)
        z = np.einsum("knp,bp->kbn", T, theta)
        shares = np.exp(z - np.logaddexp.reduce(z, axis=0))
        return np.einsum("kbn,knp->bnp", shares, T)

    def bounds(self, log_y: Array) -> tuple[Array, Array]:
        """Box of theta for centred variables: terms between 1e-6 of the smallest y and e^10 of the largest."""
        low = np.full(self.num_params, float(log_y.min()) - LOG_COEFFICIENT_RANGE)
        high = np.full(self.num_params, float(log_y.max()) + 10.0)
        if self.floor:
            high[0] = float(log_y.min()) + 0.5
        low[-len(self.exponents) :], high[-len(self.exponents) :] = EXPONENT_BOUNDS
        return low, high

    def shift(self, theta: Array, x_mean: Array, y_mean: float) -> Array:
        """Theta of the law in log x and log y, from theta of the law in (log x - x_mean) and (log y - y_mean)."""
        theta = np.array(theta, dtype=float)
        terms, offset = len(self.exponents), 1 if self.floor else 0
        theta[..., : offset + terms] += y_mean
        theta[..., offset : offset + terms] += theta[..., offset + terms :] * x_mean
        return theta

    def to_params(self, theta: Array) -> dict[str, Array]:
        """Reported parameters (coefficients and floor out of their logs) from theta of shape (..., p)."""
        logs = set(self.coefficients) | ({self.floor} if self.floor else set())
        values = dict(zip(self.theta_names, np.moveaxis(np.asarray(theta, dtype=float), -1, 0), strict=True))
        with np.errstate(over="ignore"):
            return {name: np.exp(values[name]) if name in logs else values[name] for name in self.params}


@dataclass(frozen=True)
class PowerLaw(Law):
    """y = A * C^-beta + floor, of loss or Frechet distance against compute."""

    has_floor: bool = True
    name = "power"
    variables = ("flops",)
    coefficients = ("A",)
    exponents = ("beta",)

    @property
    def equation(self) -> str:  # type: ignore[override]
        return "y = A * C^-beta + floor" if self.has_floor else "y = A * C^-beta"

    @property
    def floor(self) -> str | None:  # type: ignore[override]
        return "floor" if self.has_floor else None

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("A", "beta", "floor") if self.has_floor else ("A", "beta")

    @property
    def min_points(self) -> int:
        return 5 if self.has_floor else 3


@dataclass(frozen=True)
class SurfaceLaw(Law):
    """L = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, arXiv 2203.15556, equation 2."""

    name = "surface"
    equation = "L = E + A / N^alpha + B / D^beta"
    variables = ("params", "samples")
    coefficients = ("A", "B")
    exponents = ("alpha", "beta")
    floor = "E"
    params = ("E", "A", "B", "alpha", "beta")

    @property
    def min_points(self) -> int:
        return 6
