"""The points of a fit in centred logs, which is what the solver works in, and how far they scatter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.laws import TINY, Array, Law
from analysis.solver import Problem

LEAST_SCALE = 1e-6
"""Smallest scatter of log y that is believed: the share of y at which a term counts as absent."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Logs of x (n, variables) and y (n,), less their centres, and the trial that each point belongs to."""

    law: Law
    log_x: Array
    log_y: Array
    x_mean: Array
    y_mean: float
    trials: NDArray[np.int64]
    """0, 1, 2, ... for each point."""
    noise: Array
    """Standard deviation of log y at each point over the geometric mean of all, (n,): 1 where none is known."""
    held_floor: float | None = None
    """Value at which the law's floor is held, in units of y."""

    @classmethod
    def of(
        cls,
        law: Law,
        x: Array,
        y: Array,
        trials: object = None,
        held_floor: float | None = None,
        sd: Array | None = None,
    ) -> Points:
        """Points as they stand in a table, `sd` the standard deviations of y in its units, of which ratios count.

        A point that repeats one of its own trial is dropped.
        """
        units = trial_index(trials, len(y))
        log_sd = np.zeros(len(y)) if sd is None else np.log(np.asarray(sd, dtype=float) / y)
        if trials is not None:
            _, first = np.unique(np.column_stack([units, x, y]), axis=0, return_index=True)
            kept = np.sort(first)
            x, y, units, log_sd = x[kept], y[kept], units[kept], log_sd[kept]
        log_x, log_y = np.log(x), np.log(y)
        x_mean, y_mean = law.centre(log_x), float(log_y.mean())
        return cls(
            law=law,
            log_x=log_x - x_mean,
            log_y=log_y - y_mean,
            x_mean=x_mean,
            y_mean=y_mean,
            trials=units,
            noise=np.exp(log_sd - log_sd.mean()),
            held_floor=held_floor,
        )

    def __len__(self) -> int:
        return len(self.log_y)

    @property
    def num_trials(self) -> int:
        return int(self.trials.max()) + 1

    @property
    def num_free(self) -> int:
        """Parameters that are estimated."""
        return self.law.num_params - (self.held_floor is not None)

    def problem(self, log_y: Array | None = None, weights: Array | None = None) -> Problem:
        """To minimise: of the points' own losses, or of a batch of losses or weights (batch, n)."""
        low, high = self.law.bounds(self.log_y)
        if self.held_floor is not None:
            low[0] = high[0] = np.log(max(self.held_floor, TINY)) - self.y_mean
        log_y = self.log_y[None] if log_y is None else log_y
        weights = np.ones((1, len(self))) if weights is None else weights
        return Problem(
            law=self.law, log_x=self.log_x, log_y=log_y, weights=weights, low=low, high=high, noise=self.noise
        )

    def params(self, theta: Array) -> dict[str, Array]:
        """Reported parameters from centred theta (..., p)."""
        return self.law.to_params(self.law.shift(theta, self.x_mean, self.y_mean))

    def theta(self, params: dict[str, float]) -> Array:
        """Centred theta (p,) from reported parameters."""
        return self.law.shift(self.law.to_theta(params), -self.x_mean, -self.y_mean)

    def fitted(self, theta: Array) -> Array:
        """Centred log y of the law at theta (p,), shape (n,)."""
        return np.asarray(self.law.log_y(theta[None], self.log_x)[0])

    def residuals(self, theta: Array) -> Array:
        """Log residuals of theta (p,), each over its point's `noise`, shape (n,)."""
        return np.asarray((self.log_y - self.fitted(theta)) / self.noise)

    def first_order(self, theta: Array, delta: float) -> Array:
        """First-order change of theta (p,) that each point makes by being there, shape (n, p).

        The infinitesimal jackknife of an M-estimator (Hampel, Ronchetti, Rousseeuw and Stahel 1986, section 6.3). Few
        points lie within a small Huber threshold, so the curvature takes their expected share under normal residuals.
        """
        r = self.residuals(theta)
        J = self.law.gradient(theta[None], self.log_x)[0] / self.noise[:, None]
        scale = max(1.4826 * float(np.median(np.abs(r))), 1e-12)
        share = special.erf(delta / scale / np.sqrt(2))
        psi = np.clip(r, -delta, delta)
        return np.asarray((psi[:, None] * J) @ np.linalg.pinv(share * J.T @ J))

    def uncentred(self) -> Points:
        """The same with log x from 0, where every reported parameter is an entry of theta (or its log, up to a shift).

        The floor and the coefficients keep their shift by the mean of log y.
        """
        zero = np.zeros_like(self.x_mean)
        return replace(self, log_x=self.log_x + self.x_mean, x_mean=zero)


def trial_index(trials: object, n: int) -> NDArray[np.int64]:
    """Trials as 0, 1, 2, ...; without any, each row is its own."""
    if trials is None:
        return np.arange(n, dtype=np.int64)
    return np.unique(np.asarray(trials).astype(str), return_inverse=True)[1].astype(np.int64)


def scale_of(residuals: Array, num_params: int) -> float:
    """Robust standard deviation of residuals, of which as many as there are parameters may be zero by construction."""
    size = np.sort(np.abs(residuals))[min(num_params, len(residuals) - 1) :]
    spread = 1.4826 * float(np.median(size))
    clipped = np.clip(residuals, -3 * spread, 3 * spread)
    return max(float(np.sqrt(np.sum(clipped**2) / max(1, len(residuals) - num_params))), LEAST_SCALE)


def covariance(points: Points, theta: Array, delta: float) -> Array:
    """Covariance (p, p) of an M-estimate, to first order; rows and columns of held entries are 0.

    (J'J)^-1 E[psi^2] / E[psi']^2 with psi' its expectation under normal noise (Huber 1981, Robust Statistics, section
    7.6). Points are taken as independent: where trials have several, see `analysis.trial_effects`.
    """
    J = points.law.gradient(theta[None], points.log_x)[0] / points.noise[:, None]
    low, high = points.problem().low, points.problem().high
    free = (theta > low + 1e-9) & (theta < high - 1e-9)
    J = J[:, free]
    r = points.residuals(theta)
    inside = float(special.erf(delta / scale_of(r, points.num_free) / np.sqrt(2)))
    psi = np.clip(r, -delta, delta)
    norm = np.linalg.norm(J, axis=0)
    bread = np.linalg.pinv((J / norm).T @ (J / norm), hermitian=True) / np.outer(norm, norm)
    n, p = len(r), points.num_free
    found = np.zeros((len(theta), len(theta)))
    found[np.ix_(free, free)] = bread * float(np.mean(psi**2)) / inside**2 * n / max(1, n - p)
    return found
