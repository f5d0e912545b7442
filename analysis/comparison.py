"""Two arms against each other: loss at the same size and budget, and what `analysis.multiplier` says of their laws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from analysis.bootstrap import Interval
from analysis.frontier import best_learning_rates, budget_of, frontier
from analysis.multiplier import EqualityTest, Multiplier, multiplier_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_RESAMPLES = 1000


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
    compute: Multiplier | None
    """None where an arm has too few budgets for a law: `reason` says so."""
    tests: list[EqualityTest] = field(default_factory=list)
    reason: str | None = None
    frontiers: dict[str, pd.DataFrame] = field(default_factory=dict)
    """The best run of each budget, by arm."""
    quantity: str = "loss"
    warnings: list[str] = field(default_factory=list)

    @property
    def wins(self) -> int:
        """Pairs where the first arm is better."""
        return sum(pair.difference < 0 for pair in self.pairs)

    @property
    def losses(self) -> int:
        """Pairs where the second arm is better."""
        return sum(pair.difference > 0 for pair in self.pairs)

    @property
    def at_flops(self) -> float | None:
        """The largest budget of the first arm at which both were run, else its largest."""
        if self.compute is None:
            return None
        return self.compute.measured[1] if self.compute.measured else float(self.frontiers[self.first]["flops"].max())

    @property
    def multiplier(self) -> float | None:
        """FLOPs the second arm needs over those the first needs, to the loss of the first at `at_flops`."""
        return None if self.compute is None else float(self.compute.value(self.at_flops or 1.0))

    @property
    def multiplier_ci95(self) -> Interval | None:
        if self.compute is None:
            return None
        low, high = self.compute.interval(self.at_flops or 1.0)
        return float(low), float(high)

    def with_warnings(self, warnings: list[str]) -> Comparison:
        return replace(self, warnings=[f"warning: {text}" for text in warnings if "several arms" not in text])

    def plot(self) -> Figure:
        """The compute multiplier against compute, with its band.

        Raises:
            ValueError: an arm has too few budgets for one.
        """
        from analysis.arm_plots import compute_multiplier

        if self.compute is None:
            raise ValueError(f"there is no compute multiplier to draw: {self.reason}.")
        return compute_multiplier([self], title=f"{self.first} against {self.second}")

    @property
    def factor(self) -> str:
        """The multiplier in words; beyond a thousandfold only that it is."""
        return "" if self.multiplier is None else _times(self.multiplier)

    @property
    def factor_band(self) -> str:
        """Its interval in brackets, and that it is an extrapolation if it is."""
        if self.compute is None or self.multiplier_ci95 is None:
            return ""
        low, high = self.multiplier_ci95
        beyond = "" if self.compute.measured else "; an extrapolation: the arms share no range of losses"
        return f" (95% {_times(low)} to {_times(high)}{beyond})"

    def sentences(self) -> list[str]:
        """What was found, in words."""
        said = []
        if self.mean_difference is not None:
            said.append(
                f"{self.first} has {abs(self.mean_difference):.2%} {'lower' if self.mean_difference < 0 else 'higher'} "
                f"{self.quantity} than {self.second} on average, and is lower at {self.wins} of {len(self.pairs)} "
                "sizes and budgets"
            )
        if self.multiplier is not None:
            said.append(
                f"{self.second} needs {self.factor} times the compute{self.factor_band} to the {self.quantity} of "
                f"{self.first} at {self.at_flops:.3g} FLOPs"
            )
        elif self.reason:
            said.append(f"no compute multiplier: {self.reason}")
        return said + [test.sentence() for test in self.tests] + self.warnings

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        import html

        items = "".join(f"<li>{html.escape(text)}</li>" for text in self.sentences())
        return f"<div><b>{html.escape(self.first)} against {html.escape(self.second)}</b><ul>{items}</ul></div>"


def best_cells(frame: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Per size and budget the lowest mean loss over seeds: columns params, loss, rate (the learning rate)."""
    rows = frame[frame["arm"] == arm]
    rate = rows["learning_rate"] if "learning_rate" in rows else pd.Series(np.nan, index=rows.index)
    size = rows["size"] if "size" in rows else rows["params"].map("{:.3g}".format)
    keyed = rows.assign(budget=budget_of(rows).round(-3), rate=rate, size=size).dropna(subset="budget")
    means = keyed.groupby(["size", "budget", "rate"], dropna=False)[["params", "loss"]].mean().reset_index()
    return means.loc[means.groupby(["size", "budget"])["loss"].idxmin()].set_index(["size", "budget"])


def compare_arms(
    frame: pd.DataFrame, first: str, second: str, *, quantity: str = "loss", num_resamples: int = NUM_RESAMPLES
) -> Comparison:
    """Compare two arms of a table with arm, params, flops, loss (and size, budget_flops, learning_rate, seed)."""
    one, two = best_cells(frame, first), best_cells(frame, second)
    pairs = [
        Pair(
            size=str(row["size"]),
            params=float(row["params"]),
            flops=float(row["budget"]),
            loss=float(row["loss"]),
            other_loss=float(row["loss_other"]),
            learning_rate=_rate(row["rate"]),
            other_learning_rate=_rate(row["rate_other"]),
        )
        for row in one.join(two, rsuffix="_other", how="inner").reset_index().to_dict("records")
    ]
    pairs.sort(key=lambda pair: (pair.flops, pair.params))
    mean, band = _mean_by_size(pairs)
    best = {arm: frontier(best_learning_rates(frame[frame["arm"] == arm])) for arm in (first, second)}
    compute, tests, reason = multiplier_of(best[first], best[second], num_resamples)
    return Comparison(
        first=first,
        second=second,
        pairs=pairs,
        mean_difference=mean,
        mean_difference_ci95=band,
        compute=compute,
        tests=tests,
        reason=reason,
        frontiers=best,
        quantity=quantity,
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


def _times(factor: float) -> str:
    if factor < 1e-3:
        return "under 0.001"
    return "over 1000" if factor > 1e3 else f"{factor:.3g}"
