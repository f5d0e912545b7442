"""Leave the largest budget out, predict it from the others, and compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.bootstrap import Interval
from analysis.fitting import fit_power
from analysis.frontier import budget_of
from analysis.isoflop import check_design, fit_isoflop
from analysis.laws import Array
from analysis.magnitudes import scientific, with_unit


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """A prediction of the largest budget from the smaller ones. `ratio` is predicted over observed."""

    what: str
    flops: float
    observed: float
    predicted: float
    ci95: Interval | None

    @property
    def ratio(self) -> float:
        return self.predicted / self.observed

    @property
    def covered(self) -> bool | None:
        """Whether the 95% interval of the law (without the noise of the observation) holds the observation."""
        return None if self.ci95 is None else self.ci95[0] <= self.observed <= self.ci95[1]

    def sentence(self) -> str:
        show = with_unit if self.what == "N*" else "{:.4g}".format
        band = f" (95% {show(self.ci95[0])} to {show(self.ci95[1])})" if self.ci95 else ""
        return (
            f"back-test: without the largest budget ({scientific(self.flops)} FLOPs) the law predicts {self.what} "
            f"{show(self.predicted)}{band} there; found {show(self.observed)} ({self.ratio - 1:+.1%})"
        )


def backtest_power(flops: Array, y: Array, trials: object = None, num_resamples: int = 400) -> Backtest | None:
    """Of a power law; None where fewer than 3 smaller budgets remain."""
    flops, y = np.asarray(flops, dtype=float), np.asarray(y, dtype=float)
    largest = flops >= flops.max() / 1.1
    if len(np.unique(flops[~largest])) < 3:
        return None
    kept = None if trials is None else np.asarray(trials)[~largest]
    fit = fit_power(flops[~largest], y[~largest], trials=kept, num_resamples=num_resamples)
    if not fit.succeeded:
        return None
    at = float(np.exp(np.log(flops[largest]).mean()))
    band = fit.predict_interval(at)
    return Backtest(
        what="loss",
        flops=at,
        observed=float(y[largest].mean()),
        predicted=float(fit.predict(at)),
        ci95=None if band is None else (float(band[0]), float(band[1])),
    )


def backtest_isoflop(frame: pd.DataFrame, num_resamples: int = 400) -> Backtest | None:
    """Of N*(C): the largest bracketed budget from the smaller ones; None where fewer than 2 of those remain."""
    keyed = frame.assign(budget=budget_of(frame))
    whole = fit_isoflop(keyed, num_resamples=0, min_budgets=1)
    if len(whole.bracketed) < 3:
        return None
    last = whole.bracketed[-1]
    try:
        rest = check_design(keyed[keyed["budget"] < last.flops * 0.999])
        fit = fit_isoflop(rest, num_resamples=num_resamples)
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
    )
