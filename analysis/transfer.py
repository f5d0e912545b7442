"""Learning-rate transfer: the best learning rate of each width, its drift, and the loss that a transferred one costs.

At each width the log of the loss is a quadratic in the log of the learning rate near its minimum; the optima drift as a
power of the width. Under µP the drift should be nil (Yang et al. 2022, arXiv 2203.03466, section 4).
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.bootstrap import Interval, interval, residual_draws
from analysis.frontier import budget_of
from analysis.laws import Array
from analysis.magnitudes import with_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_RATES = 3
NEAREST = 5
"""Learning rates, those of lowest loss around the best, that a quadratic goes through."""
NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class RateOptimum:
    """The best learning rate at one width. `reason` says why it is not bracketed by the rates that trained."""

    scale: float
    """Width, or parameters where the table has no width."""
    rates: Array
    """Learning rates that the quadratic goes through, ascending."""
    losses: Array
    """Mean loss over seeds at each, of the same shape."""
    coefficients: tuple[float, float, float]
    """log loss = c0 + c1 u + c2 u^2 with u = log rate - `centre`."""
    centre: float
    rate: float | None
    rate_ci95: Interval | None
    bracketed: bool
    reason: str | None
    transferred_loss: float | None
    """Loss at the learning rate that is best at the base, over the loss at the best one, less 1."""
    transferred_ci95: Interval | None
    transferred_measured: bool
    """Whether the base's learning rate lies within the rates of this quadratic; else the cost is an extrapolation."""

    def curve(self, rates: Array) -> Array:
        """The quadratic's loss at learning rates."""
        u = np.log(rates) - self.centre
        return np.exp(self.coefficients[0] + u * (self.coefficients[1] + u * self.coefficients[2]))


@dataclass(frozen=True, kw_only=True)
class RateTransfer:
    """How the best learning rate of an arm moves with width (or with parameters) at one budget."""

    arm: str
    variable: str
    """width or params."""
    flops: float
    optima: list[RateOptimum]
    drift_per_doubling: float | None
    """Change of log2 of the best learning rate when the width doubles: 0 transfers, -1 halves it."""
    drift_ci95: Interval | None
    reason: str | None

    @property
    def base(self) -> RateOptimum | None:
        """The smallest width whose optimum is bracketed: where a learning rate would be tuned."""
        return next((o for o in self.optima if o.bracketed), None)

    @property
    def transfers(self) -> bool | None:
        """Whether the drift's interval holds 0; None where there is none."""
        return None if self.drift_ci95 is None else self.drift_ci95[0] <= 0 <= self.drift_ci95[1]

    def plot(self) -> Figure:
        """Loss against learning rate by width, and the optima against width."""
        from analysis.law_plots import learning_rate_fans

        return learning_rate_fans([self])

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in self.sentences()) + "</ul>"

    def sentences(self) -> list[str]:
        """What was found, in words."""
        if self.drift_per_doubling is None:
            return [f"{self.arm}: no drift of the best learning rate: {self.reason}"]
        band = f" (95% {self.drift_ci95[0]:+.3f} to {self.drift_ci95[1]:+.3f})" if self.drift_ci95 else ""
        said = [
            f"{self.arm}: per doubling of {self.variable} the best learning rate moves by "
            f"{self.drift_per_doubling:+.3f} octaves{band}, a factor of {2**self.drift_per_doubling:.3f}"
        ]
        base = self.base
        for optimum in self.optima:
            if base is not None and optimum is not base and optimum.transferred_loss is not None:
                cost, sure = optimum.transferred_loss, optimum.transferred_ci95
                spread = f" (95% {sure[0]:.2%} to {sure[1]:.2%})" if sure else ""
                beyond = "" if optimum.transferred_measured else ", an extrapolation"
                said.append(
                    f"{self.arm}: at {self.variable} {with_unit(optimum.scale)} the best rate of "
                    f"{with_unit(base.scale)}, {base.rate:.3g}, costs {cost:.2%} of loss{spread}{beyond}"
                )
        return said


@dataclass(frozen=True, kw_only=True)
class _Valley:
    """The points of one width: u = log rate - centre, log loss averaged over seeds, and what diverged beyond them."""

    scale: float
    u: Array
    log_loss: Array
    centre: float
    lost_above: float | None
    """Smallest learning rate beyond the points at which every run diverged."""

    @classmethod
    def of(cls, scale: float, rows: pd.DataFrame, lost: pd.DataFrame) -> _Valley | None:
        mean = np.log(rows["loss"]).groupby(rows["learning_rate"]).mean()
        beyond = lost.loc[lost["learning_rate"] > mean.index.max(), "learning_rate"] if len(lost) else ()
        best = int(mean.to_numpy().argmin())
        low = int(np.clip(best - NEAREST // 2, 0, max(0, len(mean) - NEAREST)))
        near = mean.iloc[low : low + NEAREST]
        if len(near) < MIN_RATES:
            return None
        logs = np.log(near.index.to_numpy(dtype=float))
        return cls(
            scale=scale,
            u=logs - logs.mean(),
            log_loss=near.to_numpy(dtype=float),
            centre=float(logs.mean()),
            lost_above=float(min(beyond)) if len(beyond) else None,
        )

    def quadratics(self, log_loss: Array) -> Array:
        """Least-squares coefficients (batch, 3), constant first, of log losses (batch, rates)."""
        return np.asarray(log_loss @ np.linalg.pinv(np.vander(self.u, 3, increasing=True)).T)

    def optima(self, coefficients: Array) -> Array:
        """log of the best learning rate of each quadratic (batch,); NaN where it is not within the rates."""
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -coefficients[:, 1] / (2 * coefficients[:, 2])
            inside = (coefficients[:, 2] > 0) & (u > self.u.min()) & (u < self.u.max())
        return np.where(inside, u + self.centre, np.nan)

    def cost(self, coefficients: Array, log_rate: Array) -> Array:
        """Loss at a learning rate over the loss at the minimum, less 1; (batch,) for both arguments (batch, ...)."""
        u = log_rate - self.centre
        best = self.optima(coefficients) - self.centre
        return np.asarray(np.expm1(coefficients[:, 1] * (u - best) + coefficients[:, 2] * (u**2 - best**2)))


def learning_rate_transfer(
    rows: pd.DataFrame, arm: str, diverged: pd.DataFrame | None = None, *, num_resamples: int = NUM_RESAMPLES
) -> RateTransfer | None:
    """Of one arm's rows with learning_rate, loss, flops and width (or params), at the largest budget.

    None where there is no size with 3 learning rates. Intervals: residuals of all quadratics are exchanged, widened for
    the parameters that they used (`bootstrap.residual_draws`). A rate beyond which every run diverged closes a valley
    on that side: the optimum is then the best rate that trained, and has no interval.
    """
    variable = "width" if "width" in rows and rows["width"].notna().all() else "params"
    if "learning_rate" not in rows or not len(rows):
        return None
    budgets = budget_of(rows)
    at = float(budgets.max())
    top, lost = rows[budgets >= at * 0.999], _at_budget(diverged, at)
    valleys = []
    for scale, group in top.groupby(variable, sort=True):
        gone = lost[lost[variable] == scale] if len(lost) and variable in lost else lost
        valleys.append(_Valley.of(float(str(scale)), group.dropna(subset="learning_rate"), gone))
    found = [valley for valley in valleys if valley is not None]
    if not found:
        return None
    estimates = [v.quadratics(v.log_loss[None]) for v in found]
    drawn = _drawn(found, estimates, num_resamples)
    return _transfer(arm, variable, at, found, estimates, drawn)


def _at_budget(diverged: pd.DataFrame | None, flops: float) -> pd.DataFrame:
    if diverged is None or not len(diverged) or diverged["flops"].isna().any():
        return pd.DataFrame({"learning_rate": pd.Series(dtype=float)})
    return diverged[(budget_of(diverged) / flops - 1).abs() < 0.1]


def _drawn(valleys: list[_Valley], estimates: list[Array], num_resamples: int) -> list[Array]:
    """Resampled coefficients of each width, (resamples, 3)."""
    fitted = [c @ np.vander(v.u, 3, increasing=True).T for v, c in zip(valleys, estimates, strict=True)]
    residuals = np.concatenate([v.log_loss - f[0] for v, f in zip(valleys, fitted, strict=True)])
    units = np.arange(len(residuals), dtype=np.int64)
    rng = np.random.default_rng(0)
    if len(residuals) <= 3 * len(valleys):
        return [np.repeat(c, num_resamples, axis=0) * np.nan for c in estimates]  # no degree of freedom is left
    noise = residual_draws(residuals, units, 3 * len(valleys), num_resamples, rng)
    ends = np.cumsum([len(v.u) for v in valleys])
    return [v.quadratics(f + noise[:, end - len(v.u) : end]) for v, f, end in zip(valleys, fitted, ends, strict=True)]


def _transfer(
    arm: str, variable: str, flops: float, valleys: list[_Valley], estimates: list[Array], drawn: list[Array]
) -> RateTransfer:
    inside = [bool(np.isfinite(v.optima(c)[0])) for v, c in zip(valleys, estimates, strict=True)]
    base = inside.index(True) if any(inside) else None
    optima = []
    for k, (valley, estimate, draws) in enumerate(zip(valleys, estimates, drawn, strict=True)):
        cost = cost_band = None
        measured = False
        if base is not None and inside[k]:
            rate = valleys[base].optima(estimates[base])
            cost = float(valley.cost(estimate, rate)[0])
            moved = interval(valley.optima(draws) - valleys[base].optima(drawn[base]))
            cost_band = interval(valley.cost(draws, valleys[base].optima(drawn[base])))
            if cost_band is not None and moved is not None and moved[0] <= 0 <= moved[1]:
                cost_band = (0.0, cost_band[1])  # the two rates may be one; a cost is never below 0
            measured = bool(valley.u.min() <= rate[0] - valley.centre <= valley.u.max())
        optima.append(_optimum(valley, estimate[0], draws, cost, cost_band, measured))
    drift, band, reason = _drift(valleys, estimates, drawn, inside)
    return RateTransfer(
        arm=arm, variable=variable, flops=flops, optima=optima, drift_per_doubling=drift, drift_ci95=band, reason=reason
    )


def _optimum(
    valley: _Valley, c: Array, draws: Array, cost: float | None, cost_band: Interval | None, measured: bool
) -> RateOptimum:
    log_rate = float(valley.optima(c[None])[0])
    inside = bool(np.isfinite(log_rate))
    reason = None
    rate = float(np.exp(log_rate)) if inside else None
    if not inside and valley.lost_above is not None and valley.log_loss.argmin() == len(valley.u) - 1:
        rate = float(np.exp(valley.u[-1] + valley.centre))
        reason = f"the best rate that trained is the last before divergence, at {valley.lost_above:.3g}"
    elif not inside:
        side = "largest" if valley.log_loss.argmin() >= len(valley.u) / 2 else "smallest"
        reason = f"the loss still falls at the {side} learning rate"
    return RateOptimum(
        scale=valley.scale,
        rates=np.exp(valley.u + valley.centre),
        losses=np.exp(valley.log_loss),
        coefficients=(float(c[0]), float(c[1]), float(c[2])),
        centre=valley.centre,
        rate=rate,
        rate_ci95=interval(np.exp(valley.optima(draws))) if inside else None,
        bracketed=inside,
        reason=reason,
        transferred_loss=cost,
        transferred_ci95=cost_band,
        transferred_measured=measured,
    )


def _drift(
    valleys: list[_Valley], estimates: list[Array], drawn: list[Array], inside: list[bool]
) -> tuple[float | None, Interval | None, str | None]:
    """Slope of log2 of the best rate on log2 of the width, over the widths whose optimum is bracketed."""
    used = [k for k, yes in enumerate(inside) if yes]
    if len(used) < 2:
        return None, None, f"{len(used)} of {len(valleys)} sizes have a bracketed best learning rate; it needs 2"
    x = np.log(np.array([valleys[k].scale for k in used]))
    lever = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    slope = float(sum(w * valleys[k].optima(estimates[k])[0] for w, k in zip(lever, used, strict=True)))
    slopes = np.sum([w * valleys[k].optima(drawn[k]) for w, k in zip(lever, used, strict=True)], axis=0)
    return slope, interval(slopes), None
