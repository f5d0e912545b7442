"""The law of repeated data: samples seen again are worth less, and so are parameters beyond what the data can use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analysis.laws import Array, Law, SurfaceLaw, rise_together

RATE_RANGE = (0.05, 1e4)
"""Range of R_D and R_N: below, a first repeat is worth nothing; above, thousands are worth as much as new samples."""

_SURFACE = SurfaceLaw()


@dataclass(frozen=True)
class RepeatedLaw(Law):
    """L = E + A / N'^alpha + B / D'^beta, with N' and D' what parameters and samples are worth.

    Muennighoff et al. 2023, arXiv 2305.16264, section 3.1 and equations 5 and 6. Of D samples, U of them unique,
    D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)); of N parameters, U_N of them best for U samples by the law itself (their
    appendix A, at C = 6 N D), N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N)). Samples seen once and parameters up to
    U_N are worth themselves.
    """

    name = "repeated"
    equation = "L = E + A / N'^alpha + B / D'^beta, with N', D' discounted by R_N, R_D"
    variables = ("params", "samples", "unique_samples")
    coefficients = ("A", "B")
    exponents = ("alpha", "beta")
    pairs = ((0, 0), (1, 1))
    floor = "E"
    rates: ClassVar[tuple[str, ...]] = ("R_D", "R_N")
    params = ("E", "A", "B", "alpha", "beta", "R_D", "R_N")
    identified_by = "runs that see their samples more than twice over, and some of more parameters than those can use"

    def shortfall(self, x: Array) -> str | None:
        """As of a surface; one number of unique samples will do."""
        distinct = len(np.unique(x, axis=0))
        if distinct < self.min_points:
            return f"{self.equation} needs {self.min_points} distinct points; there are {distinct}"
        return _SURFACE.shortfall(x[:, :2])

    def bounds(self, log_y: Array) -> tuple[Array, Array]:
        low, high = super().bounds(log_y)
        low[-2:], high[-2:] = np.log(RATE_RANGE)
        return low, high

    def centre(self, log_x: Array) -> Array:
        """Samples and unique samples are one unit, and measured from one centre."""
        mean = log_x.mean(axis=0)
        mean[2] = mean[1]
        return np.asarray(mean)

    def log_y(self, theta: Array, log_x: Array) -> Array:
        return np.asarray(np.logaddexp.reduce(self._terms(theta, log_x)[0], axis=0))

    def gradient(self, theta: Array, log_x: Array) -> Array:
        """The terms' shares of y through the terms' own derivatives."""
        z, derivatives = self._terms(theta, log_x)
        shares = np.exp(z - np.logaddexp.reduce(z, axis=0))
        return np.einsum("kbn,kbnp->bnp", shares, derivatives)

    def _terms(self, theta: Array, log_x: Array) -> tuple[Array, Array]:
        """Logs of the three terms, (3, batch, n), and their derivatives by theta, (3, batch, n, 7)."""
        e, a, b, alpha, beta, r_d, r_n = (theta[:, [k]] for k in range(7))
        n, d = log_x[:, 0], log_x[:, 1]
        u = np.minimum(log_x[:, 2], d)
        data, by_rate_d, _ = _worth(d[None], u[None], np.exp(r_d))
        best = (np.log(alpha) + a - np.log(beta) - b + beta * u) / alpha
        size, by_rate_n, by_best = _worth(n[None], best, np.exp(r_n))
        z = np.stack([np.broadcast_to(e, size.shape), a - alpha * size, b - beta * data])
        D = np.zeros((*z.shape, 7))
        D[0, ..., 0] = D[1, ..., 1] = D[2, ..., 2] = 1.0
        D[1, ..., 3], D[2, ..., 4] = -size, -data
        D[2, ..., 5], D[1, ..., 6] = -beta * by_rate_d, -alpha * by_rate_n
        through = -alpha * by_best  # the first term's dependence on log U_N, which four parameters make
        for k, slope in ((1, 1.0), (2, -1.0), (3, 1 / alpha - best), (4, u - 1 / beta)):
            D[1, ..., k] += through * slope / alpha
        return z, D

    def starts(self, log_x: Array, log_y: Array, weights: Array, count: int) -> Array:
        """A surface's starts with the samples' worth at each of several rates; parameters undiscounted."""
        found = []
        for rate in (1.0, 4.0, 15.0, 60.0):
            d = log_x[:, 1]
            worth = _worth(d[None], np.minimum(log_x[:, 2], d)[None], np.array([[rate]]))[0][0]
            some = _SURFACE.starts(np.stack([log_x[:, 0], worth], axis=1), log_y, weights, max(1, count // 4))
            found.append(np.column_stack([some, np.full((len(some), 2), np.log([rate, 10.0]))]))
        return np.concatenate(found)

    def blind_spot(self, x: Array, params: dict[str, float]) -> str | None:
        epochs = x[:, 1] / np.minimum(x[:, 2], x[:, 1])
        if np.sum(epochs > 2) < 3:
            return (
                f"R_D is not identified: {int(np.sum(epochs > 2))} runs see their samples more than twice; it needs 3"
            )
        A, B, alpha, beta = (params[name] for name in ("A", "B", "alpha", "beta"))
        best = (alpha * A / (beta * B)) ** (1 / alpha) * np.minimum(x[:, 1], x[:, 2]) ** (beta / alpha)
        large = int(np.sum(x[:, 0] > 2 * best))
        if large < 3:
            words = "more than twice the parameters that are best for their unique samples"
            return f"R_N is not identified: {large} runs have {words}; it needs 3"
        return rise_together(x[:, :2], self.variables[:2])


def _worth(log_total: Array, log_unique: Array, rate: Array) -> tuple[Array, Array, Array]:
    """log of unique + unique * R (1 - exp(-(total/unique - 1) / R)), and its derivatives by log R and log unique.

    Where the total is no more than the unique, it is worth itself.
    """
    repeats = np.expm1(np.clip(log_total - log_unique, 0.0, 700.0))
    decay = np.exp(-repeats / rate)
    worth = rate * (1 - decay)
    repeated = repeats > 0
    value = np.where(repeated, log_unique + np.log1p(worth), log_total)
    by_rate = np.where(repeated, (worth - repeats * decay) / (1 + worth), 0.0)
    by_unique = np.where(repeated, 1 - decay * (1 + repeats) / (1 + worth), 0.0)
    return value, by_rate, by_unique
