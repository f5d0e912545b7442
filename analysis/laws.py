"""What a law is, and the laws that are sums of powers over a constant floor.

A sum of powers is y = floor + sum_k coefficient_k * x_k^(-exponent_k), so log y is a log-sum-exp of functions linear in
theta = (log floor, log coefficients, exponents): Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3, equation 10.
Laws that are no such sum are in `analysis.kaplan` and `analysis.repetition`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from analysis.projection import LEAST_SHARE, best_coefficients, exponent_axis, project, refine, spread

Array = NDArray[np.float64]

EXPONENT_BOUNDS = (1e-3, 4.0)
"""Range of every exponent: below it a term is a constant, above it a step."""

LOG_COEFFICIENT_RANGE = 14.0
"""How far (natural log) below the smallest y a term is followed; beyond it the term is absent (1e-6 of y)."""

TINY = 1e-300
"""Stands for 0 where its logarithm is taken."""

MIN_VALUES = 3
"""Fewest different values of a variable: two cannot tell a power from any other line through them."""


class Law(ABC):
    """A functional form: its names, its equation, log y with its gradient, bounds, and what identifies it.

    theta holds the logs of the floor and of the coefficients, then the exponents, then the `rates` (as logs).
    """

    name: str
    equation: str
    variables: tuple[str, ...]
    """Columns that x_k are read from."""
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """For each coefficient, which variable its term reads and which exponent it takes."""
    floor: str | None
    """Name of the constant term; None where the law has none."""
    params: tuple[str, ...]
    """Names in the order in which they are reported."""
    identified_by: str
    """What runs a table needs for this law, in words."""
    entangled: ClassVar[tuple[str, ...]] = ()
    """Parameters that follow from several entries of theta: a profile of one entry says nothing of them."""
    rates: ClassVar[tuple[str, ...]] = ()
    """Further positive parameters, in the units of no variable."""

    @property
    def min_points(self) -> int:
        """Fewest distinct points a fit is attempted with: one more than there are parameters."""
        return self.num_params + 1

    @property
    def num_params(self) -> int:
        return len(self.theta_names)

    @property
    def theta_names(self) -> tuple[str, ...]:
        """Names of theta's entries, in order."""
        return ((self.floor,) if self.floor else ()) + self.coefficients + self.exponents + self.rates

    @property
    def logged(self) -> NDArray[np.bool_]:
        """Which entries of theta are logs of parameters, shape (p,)."""
        return np.array([name not in self.exponents for name in self.theta_names])

    @abstractmethod
    def log_y(self, theta: Array, log_x: Array) -> Array:
        """Log of the law, shape (batch, n), for theta of shape (batch, p) and log_x of shape (n, variables)."""

    @abstractmethod
    def gradient(self, theta: Array, log_x: Array) -> Array:
        """d log y / d theta, shape (batch, n, p)."""

    @abstractmethod
    def starts(self, log_x: Array, log_y: Array, weights: Array, count: int) -> Array:
        """`count` thetas to solve from, (count, p), for centred logs of the points; the likeliest first."""

    def bounds(self, log_y: Array) -> tuple[Array, Array]:
        """Box of theta for centred variables: terms between 1e-6 of the smallest y and e^10 of the largest.

        A floor may lie above a tenth of the points: one loss that is wrong by a factor does not bind it.
        """
        low = np.full(self.num_params, float(log_y.min()) - LOG_COEFFICIENT_RANGE)
        high = np.full(self.num_params, float(log_y.max()) + 10.0)
        if self.floor:
            high[0] = float(np.quantile(log_y, 0.1)) + 0.5
        exponents = self._slice(self.exponents)
        low[exponents], high[exponents] = EXPONENT_BOUNDS
        return low, high

    def _slice(self, names: tuple[str, ...]) -> slice:
        """Where consecutive names stand in theta."""
        first = self.theta_names.index(names[0])
        return slice(first, first + len(names))

    def centre(self, log_x: Array) -> Array:
        """What log x is measured from while it is fitted, shape (variables,)."""
        return np.asarray(log_x.mean(axis=0))

    def shift(self, theta: Array, x_mean: Array, y_mean: float) -> Array:
        """Theta of the law in log x and log y, from theta of the law in (log x - x_mean) and (log y - y_mean)."""
        theta = np.array(theta, dtype=float)
        offset = 1 if self.floor else 0
        first = self._slice(self.exponents).start
        theta[..., : offset + len(self.coefficients)] += y_mean
        for k, (variable, exponent) in enumerate(self.pairs):
            theta[..., offset + k] += theta[..., first + exponent] * x_mean[variable]
        return theta

    def to_params(self, theta: Array) -> dict[str, Array]:
        """Reported parameters (out of their logs) from theta of shape (..., p)."""
        with np.errstate(over="ignore"):
            values = np.where(self.logged, np.exp(np.asarray(theta, dtype=float)), theta)
        named = dict(zip(self.theta_names, np.moveaxis(values, -1, 0), strict=True))
        return {name: np.asarray(named[name]) for name in self.params}

    def to_theta(self, params: dict[str, float] | dict[str, Array]) -> Array:
        """Theta of shape (..., p) from reported parameters; a coefficient or floor of 0 has the log of TINY."""
        values = np.stack([np.asarray(params[name], dtype=float) for name in self.theta_names], axis=-1)
        return np.where(self.logged, np.log(np.maximum(values, TINY)), values)

    def predict(self, params: dict[str, float] | dict[str, Array], x: tuple[float | Array, ...]) -> Array:
        """y at x, one argument a variable: of their shape, with the shape of the parameters behind it."""
        theta = self.to_theta(params)
        columns = [np.log(np.asarray(value, dtype=float)) for value in np.broadcast_arrays(*x)]
        log_x = np.stack([column.ravel() for column in columns], axis=-1)
        with np.errstate(over="ignore"):
            y = np.exp(self.log_y(theta.reshape(-1, self.num_params), log_x))
        return np.asarray(y.T.reshape(columns[0].shape + theta.shape[:-1]))

    def shortfall(self, x: Array) -> str | None:
        """Why x of shape (n, variables) cannot identify the law; None where it may."""
        distinct = len(np.unique(x, axis=0))
        if distinct < self.min_points:
            return f"{self.equation} needs {self.min_points} distinct points; there are {distinct}"
        for k, name in enumerate(self.variables):
            values = len(np.unique(x[:, k]))
            if values < MIN_VALUES:
                return f"{self.equation} needs {MIN_VALUES} different values of {name}; there are {values}"
        return None

    def blind_spot(self, x: Array, params: dict[str, float]) -> str | None:
        """Why, at the fitted parameters, these points do not identify them all; None where they do."""
        del params
        return rise_together(x, self.variables) if len(self.variables) > 1 else None


def rise_together(x: Array, names: tuple[str, ...]) -> str | None:
    """That all variables lie along one line, in words; None where they do not."""
    centred = np.log(x) - np.log(x).mean(axis=0)
    if np.linalg.svd(centred, compute_uv=False)[-1] >= 0.02 * np.sqrt(len(x)):
        return None
    return (
        f"{' and '.join(names)} do not vary apart, as one is a power of the other, and their terms cannot be told "
        "apart; vary one while the other stays"
    )


class PowerSum(Law):
    """A floor and terms coefficient * x^-exponent: log y is a log-sum-exp of functions linear in theta."""

    def design(self, log_x: Array) -> Array:
        """T of shape (components, n, p) with z = T theta the logs of the terms. `log_x` has shape (n, variables)."""
        n, offset = len(log_x), 1 if self.floor else 0
        first = self._slice(self.exponents).start
        T = np.zeros((offset + len(self.coefficients), n, self.num_params))
        if self.floor:
            T[0, :, 0] = 1.0
        for k, (variable, exponent) in enumerate(self.pairs):
            T[offset + k, :, offset + k] = 1.0
            T[offset + k, :, first + exponent] = -log_x[:, variable]
        return T

    def log_y(self, theta: Array, log_x: Array) -> Array:
        return np.asarray(np.logaddexp.reduce([theta @ T.T for T in self.design(log_x)], axis=0))

    def gradient(self, theta: Array, log_x: Array) -> Array:
        """The terms' shares of y through the design."""
        T = self.design(log_x)
        z = np.stack([theta @ component.T for component in T])
        shares = np.exp(z - np.logaddexp.reduce(z, axis=0))
        return np.einsum("kbn,knp->bnp", shares, T)

    def starts(self, log_x: Array, log_y: Array, weights: Array, count: int) -> Array:
        """By variable projection: on a grid of the exponents, then each start to its least-squares optimum."""
        axis = exponent_axis(len(self.exponents))
        terms: list[tuple[int | None, Array]] = [(None, np.ones((1, len(log_y))))] if self.floor else []
        terms += [(e, np.exp(-np.outer(axis, log_x[:, variable]))) for variable, e in self.pairs]
        _, errors = project(terms, np.exp(log_y), weights)
        chosen = np.stack([axis[i] for i in np.unravel_index(spread(errors, count), errors.shape)], axis=1)

        def columns(exponents: Array) -> tuple[Array, Array]:
            return self._columns(exponents, log_x)

        y = np.exp(log_y)
        exponents = refine(columns, chosen, y, weights, *EXPONENT_BOUNDS)
        best = best_coefficients(columns(exponents)[0], y, weights)
        return np.concatenate([np.log(np.maximum(best, LEAST_SHARE * y.min())), exponents], axis=1)

    def _columns(self, exponents: Array, log_x: Array) -> tuple[Array, Array]:
        """The terms without their coefficients (batch, n, q), and their slopes by each exponent (batch, n, q, e)."""
        offset = 1 if self.floor else 0
        shape = (len(exponents), len(log_x), offset + len(self.pairs))
        terms, slopes = np.ones(shape), np.zeros((*shape, len(self.exponents)))
        for k, (variable, e) in enumerate(self.pairs):
            terms[..., offset + k] = np.exp(-exponents[:, [e]] * log_x[:, variable])
            slopes[..., offset + k, e] = -log_x[:, variable] * terms[..., offset + k]
        return terms, slopes


@dataclass(frozen=True)
class PowerLaw(PowerSum):
    """y = A * C^-beta + floor, of loss or Frechet distance against compute."""

    has_floor: bool = True
    name = "power"
    variables = ("flops",)
    coefficients = ("A",)
    exponents = ("beta",)
    pairs = ((0, 0),)
    identified_by = "3 budgets; 5 for a floor, the largest of them where the law has begun to bend towards it"

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
class SurfaceLaw(PowerSum):
    """L = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, arXiv 2203.15556, equation 2."""

    name = "surface"
    equation = "L = E + A / N^alpha + B / D^beta"
    variables = ("params", "samples")
    coefficients = ("A", "B")
    exponents = ("alpha", "beta")
    pairs = ((0, 0), (1, 1))
    floor = "E"
    params = ("E", "A", "B", "alpha", "beta")
    identified_by = "sizes and samples that vary apart from one another, 3 values of each and 6 settings"


@dataclass(frozen=True)
class TiedLaw(PowerSum):
    """L = E + A / N^alpha + B / D^alpha: one exponent for both, so that N* and D* grow as C^0.5 where C is k N D.

    Muennighoff et al. 2023, arXiv 2305.16264, section 3.2, tie them so.
    """

    name = "tied"
    equation = "L = E + A / N^alpha + B / D^alpha"
    variables = ("params", "samples")
    coefficients = ("A", "B")
    exponents = ("alpha",)
    pairs = ((0, 0), (1, 0))
    floor = "E"
    params = ("E", "A", "B", "alpha")
    identified_by = "sizes and samples that vary apart from one another, 3 values of each and 5 settings"
