"""Leave the largest budget out, predict it from the others, and compare."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.allocation import Allocation, CostRelation, allocate_power, allocate_surface
from analysis.bootstrap import Interval
from analysis.estimating import BESIDE, Options, estimate_isoflop, estimate_law, estimate_power, sd_of
from analysis.fitting import Fit
from analysis.frontier import budget_of, is_isoflop
from analysis.isoflop import IsoflopFit, Minimum, check_design, fit_isoflop
from analysis.laws import Array, Law, PowerLaw
from analysis.magnitudes import scientific, with_unit

NO_FIT = Fit(law=PowerLaw(), params={}, outcome="too_few_points", reason=None, num_points=0)
"""Stands for no law of the loss: N* by the best runs needs the runs alone."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """A prediction of the largest budget from the smaller ones. `ratio` is predicted over observed."""

    what: str
    flops: float
    observed: float
    predicted: float
    ci95: Interval | None
    observed_ci95: Interval | None = None
    """Of N*, which is itself an estimate; None for a measurement."""
    by: str
    """The approach that predicts: power law, surface, parabola, the best runs."""
    num_points: int = 1
    """Measurements at the largest budget that `observed` is the (geometric) mean of."""
    fit: Fit | IsoflopFit | None = field(default=None, repr=False, compare=False)
    """The fit of the smaller budgets; None where N* comes from the runs alone."""

    @property
    def ratio(self) -> float:
        return self.predicted / self.observed

    @property
    def error(self) -> float:
        """Relative error of the prediction: 0.02 is 2% too high."""
        return self.ratio - 1

    @property
    def covered(self) -> bool | None:
        """Whether the 95% interval of the law holds the observation, or meets its interval where it has one.

        A measurement has none: a law's interval is without the noise of a single run.
        """
        if self.ci95 is None:
            return None
        low, high = self.observed_ci95 or (self.observed, self.observed)
        return self.ci95[0] <= high and low <= self.ci95[1]

    def to_dict(self) -> dict[str, object]:
        """Everything but the fit."""
        values = {name: value for name, value in vars(self).items() if name != "fit"}
        return values | {"error": self.error, "covered": self.covered}

    def sentence(self) -> str:
        show = with_unit if self.what == "N*" else "{:.4g}".format
        band = f" (95% {show(self.ci95[0])} to {show(self.ci95[1])})" if self.ci95 else ""
        return (
            f"back-test: without the largest budget ({scientific(self.flops)} FLOPs) the {_NOUN[self.by]} {self.what} "
            f"{show(self.predicted)}{band} there; found {show(self.observed)} ({self.error:+.1%})"
        )


_NOUN = {
    "power law": "law predicts",
    "surface": "surface predicts",
    "parabola": "parabolas predict",
    "the best runs": "best runs predict",
}


def largest_budget(frame: pd.DataFrame) -> pd.Series:
    """Which rows are at the largest budget; without shared budgets the tenth of the rows with the most FLOPs."""
    if is_isoflop(frame):
        budgets = budget_of(frame)
        return pd.Series(budgets >= budgets.max() * 0.999, index=frame.index)
    return frame["flops"] >= frame["flops"].quantile(0.9) / 1.001


def split_power(flops: Array) -> NDArray[np.bool_]:
    """Which points are at the largest budget of a power law, shape (n,)."""
    return np.asarray(flops >= flops.max() / 1.1)


def backtest_power(
    flops: Array,
    y: Array,
    trials: object = None,
    num_resamples: int = BESIDE,
    *,
    options: Options | None = None,
    quantity: str = "loss",
    sd: Array | None = None,
) -> Backtest | None:
    """Of a power law; None where fewer than 3 smaller budgets remain. `sd` is the standard deviation of each y."""
    flops, y = np.asarray(flops, dtype=float), np.asarray(y, dtype=float)
    options = (options or Options()).beside(len(y), num_resamples)
    largest = split_power(flops)
    fit = _smaller_power(flops, y, trials, options, sd)
    if fit is None:
        return None
    at = float(np.exp(np.log(flops[largest]).mean()))
    band = fit.predict_interval(at)
    return Backtest(
        what=quantity,
        flops=at,
        observed=float(y[largest].mean()),
        predicted=float(fit.predict(at)),
        ci95=None if band is None else (float(band[0]), float(band[1])),
        by="power law",
        fit=fit,
        num_points=int(largest.sum()),
    )


def _smaller_power(flops: Array, y: Array, trials: object, options: Options, sd: Array | None = None) -> Fit | None:
    """The power law of all but the largest budget; None where fewer than 3 remain or it cannot be fitted."""
    kept = ~split_power(flops)
    if len(np.unique(flops[kept])) < 3:
        return None
    units = None if trials is None else np.asarray(trials)[kept]
    fit = estimate_power(flops[kept], y[kept], units, options, None if sd is None else sd[kept])
    return fit if fit.succeeded else None


def backtest_surface(
    law: Law, frame: pd.DataFrame, *, options: Options | None = None, quantity: str = "loss"
) -> list[Backtest]:
    """Of a law of params and samples: the mean loss over the runs of the largest budget; none with too few others.

    For the surface, where the largest budget's isoFLOP minimum is bracketed, N* there as well. The interval of the loss
    is the mean of the runs' intervals, whose errors go together: it is not narrower than it should be.
    """
    options = (options or Options()).beside(len(frame), BESIDE)
    largest = largest_budget(frame)
    rest, held = frame[~largest], frame[largest]
    trials = rest.get("trial_id")
    x = rest[list(law.variables)].to_numpy(dtype=float)
    if len(rest) < law.min_points or not len(held):
        return []
    fit = estimate_law(law, x, rest["loss"].to_numpy(dtype=float), trials, options, sd_of(rest))
    if not fit.succeeded or fit.outcome in ("not_identified", "at_bound"):
        return []
    at = [held[name].to_numpy(dtype=float) for name in law.variables]
    band = fit.predict_interval(*at)
    loss = Backtest(
        what=quantity,
        flops=_mean(held["flops"].to_numpy(dtype=float)),
        observed=_mean(held["loss"].to_numpy(dtype=float)),
        predicted=_mean(fit.predict(*at)),
        ci95=None if band is None else (_mean(band[0]), _mean(band[1])),
        by="surface",
        fit=fit,
        num_points=len(held),
    )
    minimum = _last_minimum(frame) if law.name == "surface" else None
    if minimum is None:
        return [loss]
    return [loss, _of_minimum(minimum, allocate_surface(fit, CostRelation.of(rest), minimum.flops), "surface")]


def backtest_frontier(frame: pd.DataFrame) -> Backtest | None:
    """Of N* by the best runs of the smaller budgets, held against the isoFLOP minimum of the largest."""
    minimum = _last_minimum(frame)
    if minimum is None:
        return None
    rest = frame[budget_of(frame) < minimum.flops * 0.999]
    allocation = allocate_power(NO_FIT, rest, minimum.flops)
    return None if allocation.params is None else _of_minimum(minimum, allocation, "the best runs")


def _last_minimum(frame: pd.DataFrame) -> Minimum | None:
    """The isoFLOP minimum of the largest budget; None where it is not bracketed."""
    try:
        minima = fit_isoflop(frame, num_resamples=200, min_budgets=1).minima if is_isoflop(frame) else []
    except ValueError:
        return None
    return minima[-1] if minima and minima[-1].bracketed else None


def _of_minimum(minimum: Minimum, allocation: Allocation, by: str) -> Backtest:
    assert minimum.params is not None
    assert allocation.params is not None
    return Backtest(
        what="N*",
        flops=minimum.flops,
        observed=minimum.params,
        predicted=allocation.params,
        ci95=allocation.ci95.get("params"),
        observed_ci95=minimum.params_ci95,
        by=by,
        num_points=minimum.num_points,
    )


def _mean(values: Array) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(values).mean()))


def backtest_isoflop(frame: pd.DataFrame, num_resamples: int = BESIDE) -> Backtest | None:
    """Of N*(C): the largest bracketed budget from the smaller ones; None where fewer than 2 of those remain."""
    keyed = frame.assign(budget=budget_of(frame))
    whole = fit_isoflop(keyed, num_resamples=200, min_budgets=1)
    if len(whole.bracketed) < 3:
        return None
    last = whole.bracketed[-1]
    try:
        rest = check_design(keyed[keyed["budget"] < last.flops * 0.999])
        fit = estimate_isoflop(rest, Options().beside(len(rest), num_resamples))
    except ValueError:
        return None
    if not fit.params or last.params is None:
        return None
    band = fit.optimum_interval("N", last.flops)
    return Backtest(
        what="N*",
        flops=last.flops,
        observed=last.params,
        predicted=float(fit.optimum("N", last.flops)),
        ci95=None if band is None else (float(band[0]), float(band[1])),
        observed_ci95=last.params_ci95,
        by="parabola",
        fit=fit,
        num_points=last.num_points,
    )
