"""The figures of a fitted table, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.allocation import CostRelation
from analysis.backtest import largest_budget, split_power
from analysis.fitting import Fit
from analysis.isoflop import IsoflopFit
from analysis.law_plots import (
    backtest_of_law,
    backtest_of_minima,
    backtest_of_surface,
    bootstrap_cloud,
    exponents_side_by_side,
    residual_panels,
    surface_contours,
)
from analysis.learning_rate import RateFit
from analysis.plots import floor_profile, isoflop_curves, loss_against_compute, optimum_against_compute
from analysis.rate_plots import learning_rate_fans
from analysis.result import Result
from analysis.transfer import RateTransfer, as_transfer

Drawn = Iterator[tuple[str, Callable[[], Figure]]]


def figures_of(result: Result, kinds: Sequence[str] | None) -> dict[str, Figure]:
    """Figures of `result` by kind, all or those of `kinds`; the first of all shows the law itself.

    Raises:
        ValueError: there is nothing fitted to draw, or no figure of a kind.
    """
    makers = dict(_makers(result))
    if not makers:
        raise ValueError(f"there is no fit to draw: {result.fit.reason}.")
    for kind in kinds or ():
        if kind not in makers:
            raise ValueError(f"this fit has no figure {kind!r}; it has {', '.join(makers)}.")
    return {kind: make() for kind, make in makers.items() if kinds is None or kind in kinds}


def _makers(result: Result) -> Drawn:
    if isinstance(result.fit, IsoflopFit):
        yield from _of_isoflop(result, result.fit)
    elif isinstance(result.fit, RateFit):
        yield "law", lambda: learning_rate_fans([transfer_of(result)])
    elif result.fit.succeeded and result.law == "power":
        yield from _of_power(result, result.fit)
    elif result.fit.succeeded:
        yield from _of_surface(result, result.fit)
    approaches = result.approaches
    if approaches is not None and len(approaches.found) > 1:
        yield "approaches", lambda: exponents_side_by_side(approaches, title="N* by each approach")


def transfer_of(result: Result) -> RateTransfer:
    """A learning-rate fit as its figure takes it."""
    assert isinstance(result.fit, RateFit)
    arms = result.table.arms
    return as_transfer(result.fit, arms[0] if len(arms) == 1 else "all rows")


def quantity_words(result: Result) -> str:
    return {"loss": "validation loss", "fid": "FID", "fd": "Frechet distance"}[result.quantity]


def _missed(result: Result) -> str:
    """What stands beside a curve that runs beyond the data: how far the back-test was off."""
    missed = ", ".join(f"{test.what} {test.error:+.1%}" for test in result.backtests)
    return f"back-test, largest budget left out: {missed}" if missed else "no back-test: too few budgets"


def _of_power(result: Result, fit: Fit) -> Drawn:
    words, rows, every = quantity_words(result), result.rows, result.table.frame
    flops, loss = rows["flops"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    every = every[(every["flops"] > 0) & (every["loss"] > 0)]
    name = "law" if len(rows) == len(every) else "best run of each budget"
    lost = result.table.diverged if "flops" in result.table.diverged else None

    def law() -> Figure:
        return loss_against_compute(
            {name: (every, rows, fit)},
            title=f"{words[0].upper()}{words[1:]} against compute",
            quantity=words,
            diverged=lost,
            words=_missed(result),
        )

    yield "law", law
    columns = {n: rows[n].to_numpy(dtype=float) for n in ("params", "samples", "flops") if n in rows}
    yield "residuals", lambda: residual_panels(columns, np.log(loss / fit.predict(flops)), quantity=words)
    if fit.profile is not None:
        yield "floor", lambda: floor_profile({words: fit}, title="Is there a floor?", quantity=words)
    drawn = fit if fit.floor_identified or fit.free is None else fit.free
    if drawn.draws:
        pair = ("beta", "floor") if "floor" in drawn.draws else ("beta", "A")
        yield "cloud", lambda: bootstrap_cloud(drawn.draws, drawn.params, *pair, title="Resampled laws")
    test = next((t for t in result.backtests if t.by == "power law"), None)
    if test is not None:
        yield "backtest", lambda: backtest_of_law(rows, split_power(flops), test, title="Back-test", quantity=words)


def _of_surface(result: Result, fit: Fit) -> Drawn:
    rows, words = result.rows, quantity_words(result)
    x = [rows[name].to_numpy(dtype=float) for name in fit.law.variables]
    loss = rows["loss"].to_numpy(dtype=float)
    yield (
        "law",
        lambda: surface_contours(
            rows, fit, CostRelation.of(rows), title="Fitted surface", quantity=words, words=_missed(result)
        ),
    )
    columns = {n: rows[n].to_numpy(dtype=float) for n in ("params", "samples", "flops")}
    yield "residuals", lambda: residual_panels(columns, np.log(loss / fit.predict(*x)), quantity=words)
    if fit.profile is not None:
        yield "floor", lambda: floor_profile({words: fit}, title="Is E identified?", quantity=words)
    if fit.draws:
        pair = fit.law.exponents[:2] if len(fit.law.exponents) > 1 else (fit.law.exponents[0], fit.law.params[0])
        yield "cloud", lambda: bootstrap_cloud(fit.draws, fit.params, pair[0], pair[1], title="Resampled exponents")
    test = next((t for t in result.backtests if t.by == "surface" and t.what == result.quantity), None)
    if test is not None:
        held = largest_budget(rows).to_numpy()
        yield "backtest", lambda: backtest_of_surface(x, loss, held, test, title="Back-test", quantity=words)


def _of_isoflop(result: Result, fit: IsoflopFit) -> Drawn:
    rows, lost = result.rows, result.table.diverged
    shown = lost if len(lost) and "params" in lost else None
    yield "law", lambda: isoflop_curves(rows, fit, title="Loss at equal compute", diverged=shown)
    if not fit.params:
        return
    for letter, words in (("N", "parameters"), ("D", "samples")):
        yield (
            f"optimum-{letter}",
            lambda letter=letter, words=words: optimum_against_compute(  # type: ignore[misc]
                {"minima": fit}, letter, title=f"Compute-optimal {words}", words=_missed(result)
            ),
        )
    if fit.draws:
        estimate = {
            "N_exponent": fit.params["N_exponent"],
            "log10 N_coefficient": np.log10(fit.params["N_coefficient"]),
        }
        draws = {"N_exponent": fit.draws["N_exponent"], "log10 N_coefficient": np.log10(fit.draws["N_coefficient"])}
        yield "cloud", lambda: bootstrap_cloud(draws, estimate, *estimate, title="Resampled N*(C)")
    test = next((t for t in result.backtests if t.by == "parabola"), None)
    if test is not None:
        yield "backtest", lambda: backtest_of_minima(fit, test, title="Back-test of N*(C)")
