"""The best learning rate: at each width a quadratic in log rate, and the optima as a power of the width.

Near its minimum log loss = c0 + c1 u + c2 u^2 with u = log rate, and the rate of least loss is rate* = K width^p. Under
µP p should be 0 (Yang et al. 2022, arXiv 2203.03466, section 4). What identifies it: at least 3 rates that trained at
each width, the best of them with a neighbour on either side (`analysis.rate_valley`), and for p at least 3 widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.bootstrap import Interval, interval, residual_draws
from analysis.estimate import Estimate
from analysis.frontier import Level, common_level
from analysis.laws import Array
from analysis.rate_valley import Cost, CostKind, MeasuredRates, Quadratic

NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class RateOptimum:
    """The best learning rate at one width. `reason` says why no quadratic brackets it."""

    scale: float
    """Width, or parameters where the table has no width."""
    measured: MeasuredRates
    quadratic: Quadratic | None
    """None where fewer than 3 rates lie between the cliffs."""
    coefficients: tuple[float, float, float] | None
    """Of the quadratic, constant first."""
    rate: float | None
    """The quadratic's minimum where it is bracketed; else the best rate that trained, where it was not the smallest or
    largest of all."""
    rate_ci95: Interval | None
    bracketed: bool
    reason: str | None
    moved_octaves: float | None = None
    """log2 of the best learning rate over that of the base (`base_of`)."""
    moved_ci95: Interval | None = None
    """Where both are bracketed."""
    transferred: Cost | None = None
    """What the learning rate that is best at the base costs here."""
    transferred_ci95: Interval | None = None
    """Where that rate lies within those of this quadratic, and both optima are bracketed."""

    @property
    def transferred_loss(self) -> float | None:
        """Loss at the base's best learning rate over that at the own best one, less 1; None where there is none."""
        return None if self.transferred is None else self.transferred.loss

    @property
    def transferred_by(self) -> CostKind | None:
        """What the cost was taken from."""
        return None if self.transferred is None else self.transferred.by

    @property
    def transferred_note(self) -> str | None:
        """Where runs diverged at the base's rate or beside it, and what the other neighbour costs."""
        return None if self.transferred is None else self.transferred.note

    @property
    def best_log_loss(self) -> float:
        """At the quadratic's minimum where it is bracketed, else the lowest that was measured."""
        if not self.bracketed or self.rate is None:
            return float(self.measured.log_loss.min())
        return float(np.log(self.curve(np.array([self.rate]))[0]))

    def curve(self, rates: Array) -> Array:
        """The quadratic's loss at learning rates."""
        assert self.quadratic is not None
        assert self.coefficients is not None
        u = np.log(rates) - self.quadratic.centre
        return np.exp(self.coefficients[0] + u * (self.coefficients[1] + u * self.coefficients[2]))


def base_of(optima: Sequence[RateOptimum]) -> RateOptimum | None:
    """The smallest width with a best learning rate, bracketed or not: where one would be tuned."""
    return next((optimum for optimum in optima if optimum.rate is not None), None)


@dataclass(frozen=True, kw_only=True)
class RateFit(Estimate):
    """rate* = rate_coefficient * width^rate_exponent through the optima of the widths, or why there is none."""

    variable: str
    """width, or params where the table has no width."""
    level: Level
    """The budget, or the samples, at which the rates are compared."""
    optima: list[RateOptimum]


@dataclass(frozen=True, kw_only=True)
class _Size:
    """One width on the way to its optimum."""

    measured: MeasuredRates
    quadratic: Quadratic | None
    estimate: Array
    """Coefficients of its quadratic, (1, 3)."""
    draws: Array
    """Resampled ones, (resamples, 3)."""

    @classmethod
    def of(cls, measured: MeasuredRates) -> _Size:
        quadratic = Quadratic.of(measured)
        estimate = np.full((1, 3), np.nan) if quadratic is None else quadratic.fitted(quadratic.log_loss[None])
        return cls(measured=measured, quadratic=quadratic, estimate=estimate, draws=estimate[:0])

    def log_rates(self, coefficients: Array) -> Array:
        """log of the best rate by each quadratic (batch,)."""
        assert self.quadratic is not None
        return self.quadratic.vertices(coefficients)


def fit_rates(
    rows: pd.DataFrame, diverged: pd.DataFrame | None = None, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> RateFit | None:
    """Of rows of one arm with learning_rate, loss, flops and width (or params), at the largest budget, or at equal
    samples where these are the budgets.

    None where there is no size with 3 learning rates. Intervals: residuals of all quadratics are exchanged, widened for
    the parameters that they used (`bootstrap.residual_draws`). Divergence and a jump of the loss close a valley on
    their side: where the best rate has no neighbour before them, it is the optimum, and has no interval.
    """
    variable = "width" if "width" in rows and rows["width"].notna().all() else "params"
    if "learning_rate" not in rows or not len(rows):
        return None
    level = common_level(rows, variable)
    top, lost = rows[level.among(rows)].dropna(subset="learning_rate"), _at_level(diverged, level)
    measured = []
    for scale, group in top.groupby(variable, sort=True):
        gone = lost[lost[variable] == scale] if len(lost) and variable in lost else lost
        measured.append(MeasuredRates.of(float(str(scale)), group, gone))
    sizes = [_Size.of(found) for found in measured if found is not None]
    if not sizes:
        return None
    sizes = _drawn(sizes, num_resamples, seed)
    fit = RateFit(
        variable=variable,
        level=level,
        optima=_optima(sizes),
        params={},
        outcome="too_few_points",
        reason=None,
        num_points=sum(len(size.quadratic.u) for size in sizes if size.quadratic is not None),
        rule=f"95% percentile bootstrap, {num_resamples} resamples of the residuals of all quadratics",
    )
    return _with_drift(fit, sizes)


def _at_level(diverged: pd.DataFrame | None, level: Level) -> pd.DataFrame:
    if diverged is None or not len(diverged) or diverged[level.column].isna().any():
        return pd.DataFrame({"learning_rate": pd.Series(dtype=float)})
    return diverged[level.among(diverged, within=0.1)]


def _drawn(sizes: list[_Size], num_resamples: int, seed: int) -> list[_Size]:
    """The sizes with their draws; without them where no degree of freedom is left to know the noise from."""
    quadratics = [(k, s.quadratic, s.estimate) for k, s in enumerate(sizes) if s.quadratic is not None]
    num_points = sum(len(quadratic.u) for _, quadratic, _ in quadratics)
    if not num_resamples or num_points <= 3 * len(quadratics):
        return sizes
    residuals = np.concatenate([q.log_loss - q.values(c)[0] for _, q, c in quadratics])
    units = np.arange(num_points, dtype=np.int64)
    noise = residual_draws(residuals, units, 3 * len(quadratics), num_resamples, np.random.default_rng(seed))
    ends = np.cumsum([len(q.u) for _, q, _ in quadratics])
    result = list(sizes)
    for (k, quadratic, estimate), end in zip(quadratics, ends, strict=True):
        shaken = quadratic.values(estimate) + noise[:, end - len(quadratic.u) : end]
        result[k] = replace(sizes[k], draws=quadratic.fitted(shaken))
    return result


def _optima(sizes: list[_Size]) -> list[RateOptimum]:
    """The optimum of each width, and what the base's best rate costs there."""
    alone = [_optimum(size) for size in sizes]
    base = base_of(alone)
    if base is None:
        return alone
    of_base = next(size for size, optimum in zip(sizes, alone, strict=True) if optimum is base)
    return [_beside(optimum, size, base, of_base) for optimum, size in zip(alone, sizes, strict=True)]


def _optimum(size: _Size) -> RateOptimum:
    """Of one width, without what it is beside the base's."""
    measured, quadratic, (c0, c1, c2) = size.measured, size.quadratic, size.estimate[0]
    bracketed = quadratic is not None and quadratic.is_bracketed and bool(np.isfinite(size.log_rates(size.estimate)[0]))
    rate = float(measured.rates[measured.best]) if measured.is_inner else None
    return RateOptimum(
        scale=measured.scale,
        measured=measured,
        quadratic=quadratic,
        coefficients=None if quadratic is None else (float(c0), float(c1), float(c2)),
        rate=float(np.exp(size.log_rates(size.estimate)[0])) if bracketed else rate,
        rate_ci95=interval(np.exp(size.log_rates(size.draws))) if bracketed else None,
        bracketed=bracketed,
        reason=None if bracketed else measured.unbracketed(),
    )


def _beside(optimum: RateOptimum, size: _Size, base: RateOptimum, of_base: _Size) -> RateOptimum:
    """An optimum with how far it lies from the base's, and what the base's rate costs."""
    assert base.rate is not None
    moved = None if optimum.rate is None else float(np.log2(optimum.rate / base.rate))
    both = optimum.bracketed and base.bracketed
    shift = interval((size.log_rates(size.draws) - of_base.log_rates(of_base.draws)) / np.log(2)) if both else None
    cost, band = _cost(optimum, size, base.rate), None
    if both and cost is not None and cost.by == "quadratic":
        assert size.quadratic is not None
        band = interval(size.quadratic.cost(size.draws, of_base.log_rates(of_base.draws)))
        if band is not None and shift is not None and shift[0] <= 0 <= shift[1]:
            band = (0.0, band[1])  # the two rates may be one; a cost is never below 0
    return replace(optimum, moved_octaves=moved, moved_ci95=shift, transferred=cost, transferred_ci95=band)


def _cost(optimum: RateOptimum, size: _Size, rate: float) -> Cost | None:
    """Of a learning rate: by the quadratic within its rates, by what was measured beyond them, and by the quadratic
    again beyond all that was measured."""
    quadratic, log_rate = size.quadratic, float(np.log(rate))
    by_quadratic = None
    if optimum.bracketed and quadratic is not None:
        by_quadratic = float(quadratic.cost(size.estimate, np.array([log_rate]))[0])
        if quadratic.covers(log_rate):
            return Cost(by_quadratic, "quadratic")
    measured = size.measured.cost(rate, optimum.best_log_loss)
    if measured is not None:
        return replace(measured, at_least=optimum.rate is None)
    return None if by_quadratic is None else Cost(by_quadratic, "extrapolation")


def _with_drift(fit: RateFit, sizes: list[_Size]) -> RateFit:
    """The line of log rate* on log width, over the widths whose optimum is bracketed."""
    used = [size for size, optimum in zip(sizes, fit.optima, strict=True) if optimum.bracketed]
    if len(used) < 2:
        return replace(fit, reason=f"{len(used)} of {len(sizes)} sizes have a bracketed best learning rate; it needs 2")
    x = np.log(np.array([size.measured.scale for size in used]))
    lever = (x - x.mean()) / np.sum((x - x.mean()) ** 2)

    def line(coefficients: list[Array]) -> dict[str, Array]:
        rates = np.stack([size.log_rates(c) for size, c in zip(used, coefficients, strict=True)])
        slope = lever @ rates
        return {"rate_coefficient": np.exp(rates.mean(axis=0) - slope * x.mean()), "rate_exponent": slope}

    params = {name: float(values[0]) for name, values in line([size.estimate for size in used]).items()}
    enough = len(used) > 2
    reason = None if enough else "2 bracketed optima: a line through two points, with nothing left to check it"
    return replace(
        fit,
        params=params,
        outcome="converged" if enough else "too_few_points",
        reason=reason,
        draws=line([size.draws for size in used]) if len(used[0].draws) else {},
    )
