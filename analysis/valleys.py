"""One budget's isoFLOP profile near its minimum: which sizes are in it, and parabolas and a cubic through them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws import Array

MIN_SIZES = 3
"""Fewest sizes that a parabola goes through."""
NEAR = 1.35
"""A parabola is the profile's shape near its minimum: sizes whose loss is beyond this multiple of the lowest are not in
it, but for the 4 nearest."""
FURTHER = 1.7
"""The same multiple for the wider window in which the minimum is looked for as well."""
MIN_NEAR = 4
NARROW = 2 / 3
"""Share of the window's sizes that a narrower one has."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Points of one budget, with u = log N - centre."""

    u: Array
    centre: float
    loss: Array
    precision: Array
    """Weight of each point: 1 where the table has no noise of its rows."""

    @classmethod
    def of(cls, group: pd.DataFrame) -> Profile:
        logs = np.log(group["params"].to_numpy(dtype=float))
        loss = group["loss"].to_numpy(dtype=float)
        precision = noise_of(group) ** -2.0
        return cls(u=logs - logs.mean(), centre=float(logs.mean()), loss=loss, precision=precision)

    @property
    def powers(self) -> Array:
        """1, u, u^2 at each point, (3, n)."""
        return np.vander(self.u, 3, increasing=True).T

    def parabola(self) -> Array:
        """Least-squares coefficients (3,) of the points themselves."""
        return np.asarray(self.parabolas(self.loss[None], np.ones((1, len(self.u))))[0])

    def parabolas(self, loss: Array, weights: Array) -> Array:
        """Coefficients (batch, 3) of the weighted least-squares parabola; NaN where fewer than 3 sizes have weight."""
        X, weights = self.powers.T, weights * self.precision
        gram = np.einsum("bn,np,nq->bpq", weights, X, X)
        moment = np.einsum("bn,np->bp", weights * loss, X)
        sizes = np.unique(self.u, return_inverse=True)[1]
        present = np.stack([(weights[:, sizes == k] > 0).any(axis=1) for k in range(sizes.max() + 1)]).sum(axis=0)
        gram = np.where(present[:, None, None] >= MIN_SIZES, gram, np.eye(3))
        solved = np.linalg.solve(gram, moment[..., None])[..., 0]
        return np.where(present[:, None] >= MIN_SIZES, solved, np.nan)

    def vertices(self, coefficients: Array) -> Array:
        """log N* of parabolas (batch, 3); NaN where there is no minimum within the sizes run."""
        _, c1, c2 = np.moveaxis(coefficients, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            u = -c1 / (2 * c2)
            inside = (c2 > 0) & (u > self.u.min()) & (u < self.u.max())
        return np.where(inside, u + self.centre, np.nan)

    def cubic_minimum(self) -> float | None:
        """N at the cubic's minimum within the sizes; needs 5 sizes, so that a degree of freedom is left."""
        if len(np.unique(self.u)) < 5:
            return None
        root = np.sqrt(self.precision)
        cubic = np.polynomial.Polynomial.fit(self.u, self.loss, 3, domain=[-1, 1], window=[-1, 1], w=root)
        roots = cubic.deriv().roots()
        real = roots[np.abs(roots.imag) < 1e-9].real
        inside = [r for r in real if self.u.min() < r < self.u.max() and cubic.deriv(2)(r) > 0]
        return float(np.exp(inside[0] + self.centre)) if inside else None


def noise_of(frame: pd.DataFrame) -> Array:
    """Relative standard deviation of the loss of each row over their geometric mean: 1 without a column `sd`."""
    if "sd" not in frame:
        return np.ones(len(frame))
    logs = np.log((frame["sd"] / frame["loss"]).to_numpy(dtype=float))
    return np.asarray(np.exp(logs - logs.mean()))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The rows of one budget around its lowest loss, in three windows of which each holds the one before."""

    narrow: pd.DataFrame
    usual: pd.DataFrame
    wide: pd.DataFrame

    @classmethod
    def of(cls, group: pd.DataFrame) -> Windows:
        """The sizes beside the best, then outwards by loss: to NEAR, to NARROW of those, and to FURTHER.

        At least MIN_NEAR sizes are in each where there are as many.
        """
        mean = group.groupby("params")["loss"].mean()
        sizes, loss = mean.index.to_numpy(), mean.to_numpy()
        spans, climbs = _outwards(loss)

        def until(ratio: float) -> int:
            """How many of the spans: the sizes beyond are MIN_NEAR or more away and worse than `ratio`."""
            num = 1
            while num < len(spans) and (climbs[num] <= ratio or spans[num - 1][1] - spans[num - 1][0] + 1 < MIN_NEAR):
                num += 1
            return num

        def rows(num: int) -> pd.DataFrame:
            low, high = spans[num - 1]
            return group[group["params"].between(sizes[low], sizes[high])]

        usual = until(NEAR)
        least = max(MIN_NEAR, math.ceil(NARROW * (spans[usual - 1][1] - spans[usual - 1][0] + 1)))
        narrow = next(k + 1 for k, (low, high) in enumerate(spans) if high - low + 1 >= least or k + 1 == usual)
        return cls(narrow=rows(narrow), usual=rows(usual), wide=rows(until(FURTHER)))


def _outwards(loss: Array) -> tuple[list[tuple[int, int]], list[float]]:
    """First and last index of ever wider spans around the lowest loss, and the loss that each adds over the lowest."""
    best = int(loss.argmin())
    spans, climbs = [(max(0, best - 1), min(len(loss) - 1, best + 1))], [1.0]
    while spans[-1] != (0, len(loss) - 1):
        low, high = spans[-1]
        below = loss[low - 1] if low > 0 else np.inf
        above = loss[high + 1] if high < len(loss) - 1 else np.inf
        spans.append((low - 1, high) if below <= above else (low, high + 1))
        climbs.append(float(min(below, above) / loss.min()))
    return spans, climbs
