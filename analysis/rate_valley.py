"""The losses of one size at its learning rates: where their valley ends, its quadratic, and what a rate costs.

A quadratic in log rate describes the losses near the best one only. Below, small rates train slowly and the loss rises
smoothly; above lies instability: runs diverge, or the loss jumps and is no function of the rate any more. So a valley
ends where a run diverged, and above its best rate at a jump (`CLIFF_RISE`, `CLIFF_SLOPE`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array

MIN_RATES = 3
NEAREST = 5
"""Learning rates, those around the best, that a quadratic goes through."""
CLIFF_RISE = 0.05
"""A rate above the best is beyond a cliff if its loss is higher than the best by more than this share, and ..."""
CLIFF_SLOPE = 0.10
"""... log loss has risen by more than this an octave since the rate before: several times the slope of a valley's side,
whose losses rise by 1 or 2% in the first octave."""
FAR_RISE = 0.15
"""Rates with a loss higher than the best by more than this share say little of its surroundings: a quadratic leaves
them out, but for the neighbours of the best."""

CostKind = Literal["quadratic", "measured", "unstable", "extrapolation"]


@dataclass(frozen=True)
class Cost:
    """What a learning rate costs at a size: its loss over the best one, less 1; None where there is none to tell."""

    loss: float | None
    by: CostKind
    """quadratic: within the rates that it goes through. measured: interpolated in log rate between two neighbours.
    unstable: a neighbour diverged, or it lies beyond a cliff and all rates. extrapolation: of the quadratic, beyond all
    rates."""
    note: str | None = None
    """For `unstable`: where, and what the other neighbour costs."""
    at_least: bool = False
    """Whether the best loss is not known, as it may lie beyond the rates that were run: the cost is over the lowest."""

    def __str__(self) -> str:
        return self.told("")

    def told(self, of: str) -> str:
        """In words, with what the loss is `of` after its number."""
        if self.loss is None:
            return str(self.note)
        where = {"measured": ", between measured rates", "extrapolation": ", extrapolated"}.get(self.by, "")
        return f"{'at least ' if self.at_least else ''}{self.loss:.2%}{of}{where}"


@dataclass(frozen=True)
class Cliff:
    """The first rate beyond a valley; `rise` is its loss over the best one, less 1, or None where runs diverged."""

    rate: float
    rise: float | None

    def __str__(self) -> str:
        if self.rise is None:
            return f"divergence, at {self.rate:.3g}"
        return f"a jump of the loss by {self.rise:.0%}, at {self.rate:.3g}"


@dataclass(frozen=True, kw_only=True)
class MeasuredRates:
    """All learning rates of one size."""

    scale: float
    rates: Array
    """Those at which every run trained, ascending; at least one."""
    log_loss: Array
    """Mean over seeds at each, of the same shape."""
    diverged: Array
    """Those at which a run diverged, ascending."""

    @classmethod
    def of(cls, scale: float, rows: pd.DataFrame, lost: pd.DataFrame) -> MeasuredRates | None:
        """Of the rows that trained and those that diverged; None with fewer than 3 rates, or where none trained.

        A rate at which one seed diverged counts as diverged: its mean would be that of survivors. Where that is so of
        every rate, the survivors count.
        """
        mean = np.log(rows["loss"]).groupby(rows["learning_rate"]).mean()
        gone = np.unique(lost["learning_rate"].dropna().to_numpy(dtype=float))
        sound = mean[~_are_among(mean.index.to_numpy(dtype=float), gone)]
        sound = sound if len(sound) else mean
        rates = sound.index.to_numpy(dtype=float)
        gone = gone[~_are_among(gone, rates)]
        if not len(rates) or len(rates) + len(gone) < MIN_RATES:
            return None
        return cls(scale=scale, rates=rates, log_loss=sound.to_numpy(dtype=float), diverged=gone)

    @property
    def best(self) -> int:
        """Place of the lowest loss."""
        return int(self.log_loss.argmin())

    @property
    def rise(self) -> Array:
        """Loss over the best one, less 1."""
        return np.asarray(np.expm1(self.log_loss - self.log_loss[self.best]))

    @property
    def cliff_above(self) -> Cliff | None:
        """What ends the valley towards larger rates; None where the losses go on to the largest."""
        best = self.best
        lost = self.diverged[self.diverged > self.rates[best]]
        slope = np.diff(self.log_loss) / np.diff(np.log2(self.rates))
        jumps = np.flatnonzero((self.rise[1:] > CLIFF_RISE) & (slope > CLIFF_SLOPE)) + 1
        first = next((int(j) for j in jumps if j > best), None)
        if first is not None and not (len(lost) and lost[0] < self.rates[first]):
            return Cliff(float(self.rates[first]), float(self.rise[first]))
        return Cliff(float(lost[0]), None) if len(lost) else None

    @property
    def cliff_below(self) -> Cliff | None:
        """The largest rate below the best at which a run diverged."""
        lost = self.diverged[self.diverged < self.rates[self.best]]
        return Cliff(float(lost[-1]), None) if len(lost) else None

    @property
    def valley(self) -> slice:
        """Places of the rates that a quadratic goes through: up to `NEAREST` around the best, between the cliffs."""
        above, below, best = self.cliff_above, self.cliff_below, self.best
        first = 0 if below is None else int(np.searchsorted(self.rates, below.rate))
        end = len(self.rates) if above is None else int(np.searchsorted(self.rates, above.rate))
        low = int(np.clip(best - NEAREST // 2, first, max(first, end - NEAREST)))
        high = min(low + NEAREST, end)
        while high - low > MIN_RATES and low < best - 1 and self.rise[low] > FAR_RISE:
            low += 1
        while high - low > MIN_RATES and high > best + 2 and self.rise[high - 1] > FAR_RISE:
            high -= 1
        return slice(low, high)

    @property
    def is_inner(self) -> bool:
        """Whether rates on either side of the best were run, trained or diverged."""
        rate, every = self.rates[self.best], np.concatenate([self.rates, self.diverged])
        return bool(every.min() < rate < every.max())

    def unbracketed(self) -> str:
        """Why no quadratic gives the best rate."""
        rate, part = self.rates[self.best], self.valley
        if not self.is_inner:
            side = "smallest" if self.best == 0 and not (self.diverged < rate).any() else "largest"
            return f"the loss is lowest at the {side} learning rate that was run, {rate:.3g}"
        if self.best == part.stop - 1 and self.cliff_above is not None:
            return f"the best rate that trained is the last before {self.cliff_above}"
        if self.best == part.start and self.cliff_below is not None:
            return f"the best rate that trained is the first after {self.cliff_below}"
        return "the quadratic through the rates around the best one has no minimum among them"

    def cost(self, rate: float, bottom: float) -> Cost | None:
        """Of a learning rate, from what was measured, with `bottom` the log loss at the best one.

        None beyond all rates, where no cliff lies before it.
        """
        every = np.sort(np.concatenate([self.rates, self.diverged]))
        same = _are_among(every, np.array([rate]))
        after = int(np.searchsorted(every, rate))
        beside = every[same] if same.any() else every[max(0, after - 1) : after + 1]
        lost = beside[np.isin(beside, self.diverged)]
        trained = beside[~np.isin(beside, self.diverged)]
        costs = np.maximum(0.0, np.expm1(self.log_loss[np.isin(self.rates, trained)] - bottom))
        if len(lost):
            told = [(at, f"diverges at {at:.3g}") for at in lost]
            told += [(at, f"costs {cost:.2%} at {at:.3g}") for at, cost in zip(trained, costs, strict=True)]
            return Cost(None, "unstable", ", ".join(words for _, words in sorted(told)))
        if not same.any() and not every[0] < rate < every[-1]:
            past = rate > every[-1] and self.cliff_above is not None
            return Cost(None, "unstable", f"beyond {self.cliff_above}") if past else None
        log_loss = np.interp(np.log(rate), np.log(self.rates), self.log_loss)
        return Cost(max(0.0, float(np.expm1(log_loss - bottom))), "measured")


_SAME_RATE = 1e-3
"""Learning rates that differ by a smaller share are one."""


def _are_among(rates: Array, others: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isclose(rates[:, None], others[None], rtol=_SAME_RATE, atol=0.0).any(axis=1))


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """The rates of a valley, to which log loss = c0 + c1 u + c2 u^2 is fitted, with u = log rate - centre."""

    u: Array
    log_loss: Array
    centre: float

    @classmethod
    def of(cls, measured: MeasuredRates) -> Quadratic | None:
        """None where the valley has fewer than 3 rates."""
        logs = np.log(measured.rates[measured.valley])
        if len(logs) < MIN_RATES:
            return None
        return cls(u=logs - logs.mean(), log_loss=measured.log_loss[measured.valley], centre=float(logs.mean()))

    @property
    def is_bracketed(self) -> bool:
        """Whether the best rate has a neighbour in the valley on either side."""
        return 0 < int(self.log_loss.argmin()) < len(self.u) - 1

    def fitted(self, log_loss: Array) -> Array:
        """Least-squares coefficients (batch, 3), constant first, of log losses (batch, rates)."""
        return np.asarray(log_loss @ np.linalg.pinv(np.vander(self.u, 3, increasing=True)).T)

    def values(self, coefficients: Array) -> Array:
        """log losses (batch, rates) of quadratics (batch, 3)."""
        return np.asarray(coefficients @ np.vander(self.u, 3, increasing=True).T)

    def vertices(self, coefficients: Array) -> Array:
        """log of the best learning rate of each quadratic (batch,); NaN where it is not within the rates."""
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -coefficients[:, 1] / (2 * coefficients[:, 2])
            inside = (coefficients[:, 2] > 0) & (u > self.u.min()) & (u < self.u.max())
        return np.where(inside, u + self.centre, np.nan)

    def covers(self, log_rate: float) -> bool:
        """Whether a rate lies within those that the quadratic goes through."""
        return bool(self.u.min() <= log_rate - self.centre <= self.u.max())

    def cost(self, coefficients: Array, log_rate: Array) -> Array:
        """Loss at learning rates (batch,) over that at the minimum of each quadratic (batch, 3), less 1."""
        u = log_rate - self.centre
        best = self.vertices(coefficients) - self.centre
        return np.asarray(np.expm1(coefficients[:, 1] * (u - best) + coefficients[:, 2] * (u**2 - best**2)))
