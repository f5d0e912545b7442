"""Planted laws: a surface that is taken as true, with noise, on the cells of a plan. No pandas, no scipy: plans ask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array

SURFACE = ("E", "A", "B", "alpha", "beta")
"""Names of a surface's parameters. Derivatives here are by (log E, log A, log B, alpha, beta), in this order."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Relative standard deviations of a measured loss around its law."""

    seed: float = 0.005
    """Between trials, shared by all milestones of one trial: they are measured on one trajectory."""
    measurement: float = 0.002
    """Between the milestones of one trial, independent by cell."""

    def __post_init__(self) -> None:
        for name in ("seed", "measurement"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} noise is {getattr(self, name)}; wanted a share of the loss, 0 or more")
        if not self.seed + self.measurement > 0:
            raise ValueError("a law without any noise has no interval; wanted seed or measurement above 0")

    def of_huber(self, delta: float) -> Noise:
        """The noise with which least squares errs as much as a Huber estimate of threshold `delta` does with this one.

        The asymptotic covariance of an M-estimate is (J'J)^-1 J'WJ (J'J)^-1, W_ij = E[psi(r_i) psi(r_j)] / E[psi']^2
        (Huber 1981, Robust Statistics, section 7.6): for normal residuals W has one value on the diagonal and one
        between the milestones of a trial, and far below `delta` they are the variances themselves.
        """
        total = math.hypot(self.seed, self.measurement)
        k = delta / total
        inside = math.erf(k / math.sqrt(2))
        density = math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi)
        diagonal = total**2 * (inside - 2 * k * density + k**2 * (1 - inside))
        between = min(self._shared_psi(delta), diagonal)
        return Noise(seed=math.sqrt(between) / inside, measurement=math.sqrt(diagonal - between) / inside)

    def _shared_psi(self, delta: float) -> float:
        """E[psi(r_i) psi(r_j)] of two milestones of a trial: given the trial's noise they are independent."""
        z = np.linspace(-8, 8, 2001)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        centre, tau = self.seed * z, max(self.measurement, 1e-6 * delta)
        a, b = (-delta - centre) / tau, (delta - centre) / tau
        below, above = _normal_cdf(a), 1 - _normal_cdf(b)
        bend = (np.exp(-(a**2) / 2) - np.exp(-(b**2) / 2)) / math.sqrt(2 * math.pi)
        mean = delta * (above - below) + centre * (1 - above - below) + tau * bend
        return float(np.sum(density * mean**2) * (z[1] - z[0]))


def _normal_cdf(x: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """FLOPs = coefficient * params^exponent * samples, fitted to the cells of one model family."""

    coefficient: float
    exponent: float

    @classmethod
    def of(cls, params: Array, flops_per_sample: Array) -> CostLine:
        """Through sizes and their training FLOPs of one sample, both of shape (sizes,)."""
        log_n, log_cost = np.log(params), np.log(flops_per_sample)
        spread = log_n - log_n.mean()
        square = float(spread @ spread)
        exponent = float(spread @ log_cost / square) if square > 0 else 1.0
        return cls(coefficient=float(np.exp(log_cost.mean() - exponent * log_n.mean())), exponent=exponent)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Cells of one arm at one learning rate a size. Every array has one entry a cell."""

    params: Array
    """N, in the definition that the fits use (without embedding tables)."""
    samples: Array
    """D, samples seen."""
    flops: Array
    """Training FLOPs up to the cell."""
    trial: NDArray[np.int64]
    """Which trajectory the cell lies on: 0, 1, 2, ..."""
    budget_flops: Array
    """The FLOPs that were asked for; NaN where the plan asked for samples."""

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in ("params", "samples", "flops", "trial", "budget_flops")}
        if len(lengths) != 1:
            raise ValueError(f"cells have arrays of {sorted(lengths)} entries; wanted one entry a cell in each")
        for name in ("params", "samples", "flops"):
            values = getattr(self, name)
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name} of the cells must be positive and finite; got {values.min()} as the least")

    def __len__(self) -> int:
        return len(self.params)

    @property
    def cost(self) -> CostLine:
        """The cost of these cells' sizes."""
        return CostLine.of(self.params, self.flops / self.samples)


@dataclass(frozen=True, kw_only=True)
class PlantedLaw:
    """L = E + A / N^alpha + B / D^beta, N in parameters, D in samples (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2).

    The exponents default to those of Hoffmann et al. as corrected by Besiroglu et al. 2024, arXiv 2404.10102; where a
    study has its own fit, take that.
    """

    E: float
    A: float
    B: float
    alpha: float = 0.348
    beta: float = 0.366

    def __post_init__(self) -> None:
        for name in SURFACE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a planted law is {getattr(self, name)}; wanted a finite number above 0")

    @classmethod
    def anchored(
        cls,
        params: float,
        samples: float,
        cost: CostLine,
        *,
        alpha: float = 0.348,
        beta: float = 0.366,
        floor_share: float = 0.5,
        loss: float = 1.0,
    ) -> PlantedLaw:
        """The law that is at its best at (params, samples) for the FLOPs spent there, with `loss` there.

        `floor_share` is the share of E in it. A grid is laid around the expected optimum, so a plan without
        measurements is judged by the law whose optimum lies in the grid's middle.
        """
        reducible = loss * (1 - floor_share)
        share = cost.exponent * beta / (alpha + cost.exponent * beta)  # alpha A N^-alpha = x beta B D^-beta
        return cls(
            E=loss * floor_share,
            A=reducible * share * params**alpha,
            B=reducible * (1 - share) * samples**beta,
            alpha=alpha,
            beta=beta,
        )

    @classmethod
    def around(cls, cells: Cells, *, alpha: float = 0.348, beta: float = 0.366, floor_share: float = 0.5) -> PlantedLaw:
        """The law `anchored` at the middle of the sizes and of the FLOPs of `cells` (both in logs)."""
        params = math.sqrt(cells.params.min() * cells.params.max())
        flops = math.sqrt(cells.flops.min() * cells.flops.max())
        cost = cells.cost
        samples = flops / (cost.coefficient * params**cost.exponent)
        return cls.anchored(params, samples, cost, alpha=alpha, beta=beta, floor_share=floor_share)

    def loss(self, params: float | Array, samples: float | Array) -> Array:
        """The law at N, D."""
        return np.asarray(self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(samples, -self.beta))

    def sensitivity(self, params: float | Array, samples: float | Array) -> Array:
        """d log L / d (log E, log A, log B, alpha, beta), shape (..., 5)."""
        n, d = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(samples, dtype=float))
        terms = np.stack([np.full(n.shape, self.E), self.A * n**-self.alpha, self.B * d**-self.beta], axis=-1)
        shares = terms / terms.sum(axis=-1, keepdims=True)
        return np.concatenate([shares, -shares[..., 1:] * np.log(np.stack([n, d], axis=-1))], axis=-1)

    def exponents(self, cost: CostLine) -> tuple[float, float]:
        """Exponents of N* and D* in compute (arXiv 2203.15556, eq. 4, where the cost's exponent is 1)."""
        total = self.alpha + cost.exponent * self.beta
        return self.beta / total, self.alpha / total

    def optimum(self, cost: CostLine, flops: float | Array) -> tuple[Array, Array]:
        """N* and D* at a budget."""
        log_budget = np.log(np.asarray(flops, dtype=float) / cost.coefficient)
        ratio = math.log(self.alpha * self.A) - math.log(cost.exponent * self.beta * self.B)
        log_n = (ratio + self.beta * log_budget) / (self.alpha + cost.exponent * self.beta)
        return np.exp(log_n), np.exp(log_budget - cost.exponent * log_n)

    def exponent_sensitivity(self, cost: CostLine) -> Array:
        """Derivatives of the exponent of N*, shape (5,)."""
        square = (self.alpha + cost.exponent * self.beta) ** 2
        return np.array([0.0, 0.0, 0.0, -self.beta, self.alpha]) / square

    def optimum_sensitivity(self, cost: CostLine, flops: float) -> Array:
        """Derivatives of log N* at a budget, shape (5,). Those of log D* are -(the cost's exponent) times these.

        Those of the log loss there are `sensitivity` at the optimum: moving along the budget changes nothing there.
        """
        n, d = self.optimum(cost, flops)
        total = self.alpha + cost.exponent * self.beta
        by_alpha, by_beta = 1 / self.alpha - float(np.log(n)), -1 / self.beta + float(np.log(d))
        return np.array([0.0, 1.0, -1.0, by_alpha, by_beta]) / total

    def simulate(self, cells: Cells, noise: Noise, num_tables: int, rng: np.random.Generator) -> Array:
        """Losses of `num_tables` studies of the same cells, shape (tables, cells): exact, times log-normal noise."""
        num_trials = int(cells.trial.max()) + 1
        seeds = rng.standard_normal((num_tables, num_trials), dtype=np.float32)[:, cells.trial]
        own = rng.standard_normal((num_tables, len(cells)), dtype=np.float32)
        return np.asarray(self.loss(cells.params, cells.samples) * np.exp(noise.seed * seeds + noise.measurement * own))
