"""The best learning rate: at each width a quadratic in log rate, and the optima as a power of the width.

Near its minimum log loss = c0 + c1 u + c2 u^2 with u = log rate, and the rate of least loss is rate* = K width^p. Under
µP p should be 0 (Yang et al. 2022, arXiv 2203.03466, section 4). What identifies it: at least 3 rates that trained at
each width, the best of them with a neighbour on either side, and for p at least 3 widths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.bootstrap import Interval, interval, residual_draws
from analysis.estimate import Estimate
from analysis.frontier import Level, common_level
from analysis.laws import Array

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
    moved_octaves: float | None
    """log2 of the best learning rate over that of the base, the smallest width whose optimum is bracketed."""
    moved_ci95: Interval | None
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
class RateFit(Estimate):
    """rate* = rate_coefficient * width^rate_exponent through the optima of the widths, or why there is none."""

    variable: str
    """width, or params where the table has no width."""
    level: Level
    """The budget, or the samples, at which the rates are compared."""
    optima: list[RateOptimum]


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


def fit_rates(
    rows: pd.DataFrame, diverged: pd.DataFrame | None = None, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> RateFit | None:
    """Of rows of one arm with learning_rate, loss, flops and width (or params), at the largest budget, or at equal
    samples where these are the budgets.

    None where there is no size with 3 learning rates. Intervals: residuals of all quadratics are exchanged, widened for
    the parameters that they used (`bootstrap.residual_draws`). A rate beyond which every run diverged closes a valley
    on that side: the optimum is then the best rate that trained, and has no interval.
    """
    variable = "width" if "width" in rows and rows["width"].notna().all() else "params"
    if "learning_rate" not in rows or not len(rows):
        return None
    level = common_level(rows, variable)
    top, lost = rows[level.among(rows)], _at_level(diverged, level)
    valleys = []
    for scale, group in top.groupby(variable, sort=True):
        gone = lost[lost[variable] == scale] if len(lost) and variable in lost else lost
        valleys.append(_Valley.of(float(str(scale)), group.dropna(subset="learning_rate"), gone))
    found = [valley for valley in valleys if valley is not None]
    if not found:
        return None
    estimates = [v.quadratics(v.log_loss[None]) for v in found]
    drawn = _drawn(found, estimates, num_resamples, seed) if num_resamples else [c * np.nan for c in estimates]
    optima = _optima(found, estimates, drawn)
    fit = RateFit(
        variable=variable,
        level=level,
        optima=optima,
        params={},
        outcome="too_few_points",
        reason=None,
        num_points=sum(len(v.u) for v in found),
        rule=f"95% percentile bootstrap, {num_resamples} resamples of the residuals of all quadratics",
    )
    return _with_drift(fit, found, estimates, drawn if num_resamples else [])


def _at_level(diverged: pd.DataFrame | None, level: Level) -> pd.DataFrame:
    if diverged is None or not len(diverged) or diverged[level.column].isna().any():
        return pd.DataFrame({"learning_rate": pd.Series(dtype=float)})
    return diverged[level.among(diverged, within=0.1)]


def _drawn(valleys: list[_Valley], estimates: list[Array], num_resamples: int, seed: int) -> list[Array]:
    """Resampled coefficients of each width, (resamples, 3)."""
    fitted = [c @ np.vander(v.u, 3, increasing=True).T for v, c in zip(valleys, estimates, strict=True)]
    residuals = np.concatenate([v.log_loss - f[0] for v, f in zip(valleys, fitted, strict=True)])
    units = np.arange(len(residuals), dtype=np.int64)
    rng = np.random.default_rng(seed)
    if len(residuals) <= 3 * len(valleys):
        return [np.repeat(c, num_resamples, axis=0) * np.nan for c in estimates]  # no degree of freedom is left
    noise = residual_draws(residuals, units, 3 * len(valleys), num_resamples, rng)
    ends = np.cumsum([len(v.u) for v in valleys])
    return [v.quadratics(f + noise[:, end - len(v.u) : end]) for v, f, end in zip(valleys, fitted, ends, strict=True)]


def _optima(valleys: list[_Valley], estimates: list[Array], drawn: list[Array]) -> list[RateOptimum]:
    """The optimum of each width, and what the base's best rate costs there."""
    inside = [bool(np.isfinite(v.optima(c)[0])) for v, c in zip(valleys, estimates, strict=True)]
    base = inside.index(True) if any(inside) else None
    optima = []
    for k, (valley, estimate, draws) in enumerate(zip(valleys, estimates, drawn, strict=True)):
        cost = cost_band = moved = shift = None
        measured = False
        if base is not None and inside[k]:
            rate = valleys[base].optima(estimates[base])
            cost = float(valley.cost(estimate, rate)[0])
            shift = float(valley.optima(estimate)[0] - rate[0]) / np.log(2)
            moved = interval(valley.optima(draws) - valleys[base].optima(drawn[base]))
            cost_band = interval(valley.cost(draws, valleys[base].optima(drawn[base])))
            if cost_band is not None and moved is not None and moved[0] <= 0 <= moved[1]:
                cost_band = (0.0, cost_band[1])  # the two rates may be one; a cost is never below 0
            measured = bool(valley.u.min() <= rate[0] - valley.centre <= valley.u.max())
        found = _optimum(valley, estimate[0], draws)
        optima.append(
            replace(
                found,
                moved_octaves=shift,
                moved_ci95=None if moved is None else (moved[0] / np.log(2), moved[1] / np.log(2)),
                transferred_loss=cost,
                transferred_ci95=cost_band,
                transferred_measured=measured,
            )
        )
    return optima


def _optimum(valley: _Valley, c: Array, draws: Array) -> RateOptimum:
    """Of one width, without what it is beside the base's."""
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
        moved_octaves=None,
        moved_ci95=None,
        transferred_loss=None,
        transferred_ci95=None,
        transferred_measured=False,
    )


def _with_drift(fit: RateFit, valleys: list[_Valley], estimates: list[Array], drawn: list[Array]) -> RateFit:
    """The line of log rate* on log width, over the widths whose optimum is bracketed."""
    used = [k for k, optimum in enumerate(fit.optima) if optimum.bracketed]
    if len(used) < 2:
        return replace(
            fit, reason=f"{len(used)} of {len(valleys)} sizes have a bracketed best learning rate; it needs 2"
        )
    x = np.log(np.array([valleys[k].scale for k in used]))
    lever = (x - x.mean()) / np.sum((x - x.mean()) ** 2)

    def line(coefficients: list[Array]) -> dict[str, Array]:
        rates = np.stack([valleys[k].optima(coefficients[k]) for k in used])
        slope = lever @ rates
        return {"rate_coefficient": np.exp(rates.mean(axis=0) - slope * x.mean()), "rate_exponent": slope}

    params = {name: float(values[0]) for name, values in line(estimates).items()}
    enough = len(used) > 2
    reason = None if enough else "2 bracketed optima: a line through two points, with nothing left to check it"
    return replace(
        fit,
        params=params,
        outcome="converged" if enough else "too_few_points",
        reason=reason,
        draws=line(drawn) if drawn else {},
    )
