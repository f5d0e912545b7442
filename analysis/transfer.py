"""Two arms against each other: loss at the same size and budget, and how much compute one saves over the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from analysis.bootstrap import Interval, interval
from analysis.fitting import Fit
from analysis.frontier import budget_of
from analysis.laws import Array


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One size at one budget in two arms, each at its best learning rate, mean over seeds."""

    size: str
    params: float
    flops: float
    loss: float
    other_loss: float
    learning_rate: float | None
    other_learning_rate: float | None

    @property
    def difference(self) -> float:
        """Loss of the first arm less that of the second: negative where the first is better."""
        return self.loss - self.other_loss


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arm `first` against arm `second`."""

    first: str
    second: str
    pairs: list[Pair]
    mean_difference: float | None
    """Mean relative difference of loss over the pairs: negative where the first is better."""
    mean_difference_ci95: Interval | None
    """Student t over sizes (budgets of one size share a trajectory)."""
    multiplier: float | None
    """FLOPs the second arm needs over those the first needs, to the same loss."""
    multiplier_ci95: Interval | None
    at_loss: float | None

    @property
    def wins(self) -> int:
        return sum(pair.difference < 0 for pair in self.pairs)


def best_cells(frame: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Per size and budget the lowest mean loss over seeds: columns params, loss, rate (the learning rate)."""
    rows = frame[frame["arm"] == arm]
    rate = rows["learning_rate"] if "learning_rate" in rows else pd.Series(np.nan, index=rows.index)
    size = rows["size"] if "size" in rows else rows["params"].map("{:.3g}".format)
    keyed = rows.assign(budget=budget_of(rows).round(-3), rate=rate, size=size).dropna(subset="budget")
    means = keyed.groupby(["size", "budget", "rate"], dropna=False)[["params", "loss"]].mean().reset_index()
    return means.loc[means.groupby(["size", "budget"])["loss"].idxmin()].set_index(["size", "budget"])


def compare_arms(frame: pd.DataFrame, first: str, second: str, laws: dict[str, Fit] | None = None) -> Comparison:
    """Compare two arms of a table with arm, params, flops, loss (and size, budget_flops, learning_rate).

    `laws` gives each arm's power law through the best run of each budget; without both there is no multiplier.
    """
    one, two = best_cells(frame, first), best_cells(frame, second)
    pairs = [
        Pair(
            size=str(key[0]),
            params=float(one.loc[key, "params"]),
            flops=float(key[1]),
            loss=float(one.loc[key, "loss"]),
            other_loss=float(two.loc[key, "loss"]),
            learning_rate=_rate(one.loc[key, "rate"]),
            other_learning_rate=_rate(two.loc[key, "rate"]),
        )
        for key in one.index.intersection(two.index)
    ]
    pairs.sort(key=lambda pair: (pair.flops, pair.params))
    mean, band = _mean_by_size(pairs)
    multiplier, multiplier_band, loss = _multiplier(frame, first, second, laws or {})
    return Comparison(
        first=first,
        second=second,
        pairs=pairs,
        mean_difference=mean,
        mean_difference_ci95=band,
        multiplier=multiplier,
        multiplier_ci95=multiplier_band,
        at_loss=loss,
    )


def _rate(value: object) -> float | None:
    rate = float(str(value))
    return rate if np.isfinite(rate) else None


def _mean_by_size(pairs: list[Pair]) -> tuple[float | None, Interval | None]:
    if not pairs:
        return None, None
    frame = pd.DataFrame({"size": [p.size for p in pairs], "gap": [p.loss / p.other_loss - 1 for p in pairs]})
    means = frame.groupby("size")["gap"].mean().to_numpy()
    if len(means) < 3:
        return float(means.mean()), None
    half = float(special.stdtrit(len(means) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(means)))
    return float(means.mean()), (float(means.mean()) - half, float(means.mean()) + half)


def _multiplier(
    frame: pd.DataFrame, first: str, second: str, laws: dict[str, Fit]
) -> tuple[float | None, Interval | None, float | None]:
    """C_second / C_first at the loss that the worse arm reaches at the largest budget both ran."""
    one, two = laws.get(first), laws.get(second)
    if one is None or two is None or not one.succeeded or not two.succeeded:
        return None, None, None
    top = float(frame.groupby("arm")["flops"].max()[[first, second]].min())
    loss = float(max(one.predict(top), two.predict(top)))
    ratio = flops_for(two, two.params, loss) / flops_for(one, one.params, loss)
    if not np.isfinite(ratio):
        return None, None, loss
    band = None
    if one.draws and two.draws:
        band = interval(np.asarray(flops_for(two, two.draws, loss) / flops_for(one, one.draws, loss)))
    return float(ratio), band, loss


def flops_for(fit: Fit, params: dict[str, float] | dict[str, Array], loss: float) -> Array:
    """C at which a power law reaches `loss`; NaN where its floor is above it."""
    floor = np.asarray(params["floor"]) if fit.law.floor else np.asarray(0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        gap = np.where(loss > floor, loss - floor, np.nan)
        return np.asarray(np.exp((np.log(params["A"]) - np.log(gap)) / np.asarray(params["beta"])))
