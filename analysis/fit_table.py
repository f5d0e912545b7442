"""Fit a law to a table, with all that says how far to believe it: `ditlaw fit`, and the Python API below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.allocation import Allocation, CostRelation, allocate_isoflop, allocate_power, allocate_surface
from analysis.approaches import Approaches, approaches
from analysis.backtest import Backtest, backtest_frontier, backtest_isoflop, backtest_power, backtest_surface
from analysis.bootstrap import Interval
from analysis.bracketing import lost_settings, with_brackets
from analysis.estimating import Options, estimate_isoflop, estimate_law, estimate_power, sd_of
from analysis.fitting import NUM_RESAMPLES, Fit
from analysis.frontier import best_learning_rates, budget_of, frontier, is_isoflop, with_sound_sizes
from analysis.influence import Influence, isoflop_influence, law_influence
from analysis.isoflop import IsoflopFit
from analysis.kaplan import KaplanLaw
from analysis.laws import Law, SurfaceLaw, TiedLaw
from analysis.learning_rate import fit_rates
from analysis.loading import Table, load_table
from analysis.points import scale_of
from analysis.repetition import RepeatedLaw
from analysis.result import EXTRAPOLATION, Result

POINT_LAWS: dict[str, Law] = {law.name: law for law in (SurfaceLaw(), TiedLaw(), KaplanLaw(), RepeatedLaw())}
"""Laws of params and samples (and unique samples), by name."""

LAWS = ("power", *POINT_LAWS, "isoflop", "learning-rate")


def fit_table(
    path: Path | str | pd.DataFrame,
    law: str,
    columns: Mapping[str, str] | None = None,
    target_flops: float | None = None,
    *,
    arm: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Fit `law` (one of `LAWS`) to the table at `path`; returns the object of `fit --json`.

    `columns` maps params, samples, flops, loss to names in the table (guessed where absent); `arm` selects one of our
    arms. `target_flops` adds the allocation there. Floats are full precision; what is unknown is None; nothing is NaN.
    Raises ValueError with what was got, what is wanted and a remedy.
    """
    check_request(law, target_flops)
    table = load_table(path, columns, arm)
    return fit_loaded(table, law, target_flops, Options(num_resamples=num_resamples)).to_dict()


def check_request(law: str, target_flops: float | None) -> None:
    """ValueError for a law that there is not, or a target that is no positive number."""
    if law not in LAWS:
        raise ValueError(f"there is no law {law!r}; the laws are {', '.join(LAWS)}.")
    if target_flops is not None and not (math.isfinite(target_flops) and target_flops > 0):
        raise ValueError(f"target FLOPs must be a positive number; got {target_flops}.")


def fit_loaded(table: Table, law: str, target_flops: float | None = None, options: Options | None = None) -> Result:
    """Fit a law to a loaded table. ValueError where it does not hold what the law needs."""
    check_request(law, target_flops)
    options = options or Options()
    if law in POINT_LAWS:
        if options.floor != "free":
            raise ValueError(f"floor {options.floor!r} is of a power law; a {law} has its own constant.")
        return _of_points(table, POINT_LAWS[law], target_flops, options)
    if law == "learning-rate":
        return _rates(table, target_flops, options)
    return (_power if law == "power" else _isoflop)(table, target_flops, options)


def _power(table: Table, target: float | None, options: Options) -> Result:
    frame, warnings = _rows(table, "flops", "loss")
    frame = with_sound_sizes(_at_best_rates(frame, warnings), warnings)
    rows = _power_rows(frame, warnings)
    flops, loss = rows["flops"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    if len(np.unique(flops)) < 3:
        raise ValueError(
            f"a power law needs at least 3 different budgets; got {len(np.unique(flops))} "
            f"({', '.join(f'{c:.3g}' for c in np.unique(flops))} FLOPs). Run more budgets."
        )
    trials = None if len(rows) < len(frame) else rows.get("trial_id")
    sd = sd_of(rows)
    fit = estimate_power(flops, loss, trials, options, sd)
    _warn_noise(fit, flops[:, None], loss, sd, warnings)
    if not fit.floor_identified and options.floor == "free":
        warnings.append(f"no floor is reported: {fit.floor_reason}")
    _warn_fit(fit.outcome, fit.reason, warnings)
    if len(rows) < 6:
        left = len(rows) - len(fit.params)
        warnings.append(f"only {len(rows)} points: intervals rest on {left} degree{'s' * (left != 1)} of freedom")
    backtests = [backtest_power(flops, loss, trials, options=options, quantity=table.quantity, sd=sd)]
    backtests += [backtest_frontier(frame)] if {"params", "samples"} <= set(frame) else []
    params: dict[str, float | None] = {"A": None, "beta": None, "floor": None} | fit.params
    if options.floor in ("zero", 0.0):
        params["floor"] = 0.0
    grouped = rows.drop(columns="trial_id", errors="ignore") if trials is None else rows
    return _result(
        table,
        rows,
        law="power",
        equation="y = A * C^-beta + floor",
        fit=fit,
        params=params,
        ci95=dict.fromkeys(params) | fit.ci95,
        allocation=allocate_power(fit, frame, target),
        approaches=_approaches(frame, options),
        backtests=backtests,
        influence=law_influence(fit, flops[:, None], loss, grouped, options.delta, sd),
        options=options,
        warnings=warnings,
        more={"floor_identified": bool(fit.floor_identified)},
    )


def _power_rows(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """The best run of each budget where budgets hold several sizes, else every row."""
    if not is_isoflop(frame):
        if "params" in frame and frame["params"].nunique() > 2 and len(frontier(frame)) < len(frame) / 2:
            warnings.append(
                "most runs are beaten by a cheaper one: a law through all of them is not that of the best runs"
            )
        return frame
    best = frontier(frame)
    warnings.append(f"fitted to the best run of each of {len(best)} budgets ({len(frame)} rows in the table)")
    return best


def _of_points(table: Table, law: Law, target: float | None, options: Options) -> Result:
    """A law of params and samples (and whatever other columns it reads)."""
    frame, warnings = _rows(table, *dict.fromkeys([*law.variables, "flops", "loss"]))
    frame = _at_best_rates(frame, warnings)
    _check_spread(law, frame)
    x, loss = frame[list(law.variables)].to_numpy(dtype=float), frame["loss"].to_numpy(dtype=float)
    sd = sd_of(frame)
    fit = estimate_law(law, x, loss, frame.get("trial_id"), options, sd)
    _warn_noise(fit, x, loss, sd, warnings)
    _warn_fit(fit.outcome, fit.reason, warnings)
    allocation = Allocation(approach=law.name, flops=target)
    beside = None
    if fit.succeeded:
        cost = CostRelation.of(frame)
        if cost.spread > 0.1:
            warnings.append(
                "FLOPs per sample are not one power of params "
                f"(off by up to a factor of {1 + cost.spread:.3g}): N* and D* are rough"
            )
        allocation = allocate_surface(fit, cost, target)
        beside = approaches(frame, surface=(fit, allocation), options=options)
    params: dict[str, float | None] = dict.fromkeys(law.params) | fit.params
    return _result(
        table,
        frame,
        law=law.name,
        equation=law.equation,
        fit=fit,
        params=params,
        ci95=dict.fromkeys(params) | fit.ci95,
        allocation=allocation,
        approaches=beside,
        backtests=backtest_surface(law, frame, options=options, quantity=table.quantity),
        influence=law_influence(fit, x, loss, frame, options.delta, sd),
        options=options,
        warnings=warnings,
    )


def _check_spread(law: Law, frame: pd.DataFrame) -> None:
    """ValueError where there are too few values of a variable, or too few settings, for the law."""
    for name in ("params", "samples"):
        got = frame[name].nunique()
        if got < 3:
            raise ValueError(
                f"a {law.name} needs at least 3 different {name}; got {got}. Run more, or fit --law power."
            )
    points = len(frame[list(law.variables)].drop_duplicates())
    if points < law.min_points:
        raise ValueError(
            f"a {law.name} needs at least {law.min_points} different ({', '.join(law.variables)}); got {points}. "
            "Run more sizes or budgets, or fit --law power."
        )


def _isoflop(table: Table, target: float | None, options: Options) -> Result:
    for name, usual in (("recipe", "varpro"), ("interval", "auto"), ("floor", "free")):
        if getattr(options, name) != usual:
            got = getattr(options, name)
            raise ValueError(f"isoflop is parabolas by least squares and has no {name}; got {got!r}.")
    frame, warnings = _rows(table, "params", "samples", "flops", "loss")
    if frame["censored"].any():
        warnings.append(
            f"{int(frame['censored'].sum())} rows that ended before their budget not fitted: of their loss there only "
            "a bound is known"
        )
        frame = frame[~frame["censored"]]
    frame = _at_best_rates(frame, warnings)
    frame, told = with_brackets(frame, table.diverged)
    warnings += told
    fit = estimate_isoflop(frame, options)
    _warn_fit(fit.outcome, fit.reason, warnings)
    if fit.num_points < len(frame):
        warnings.append(f"{len(frame) - fit.num_points} rows at budgets with fewer than 3 sizes not used")
    for m in fit.minima:
        if not m.bracketed:
            warnings.append(
                f"budget {m.flops:.3g} FLOPs left out of N*(C): {m.reason} ({m.sizes[0]:.3g} to {m.sizes[1]:.3g})"
            )
    names = ("N_exponent", "N_coefficient", "D_exponent", "D_coefficient")
    params: dict[str, float | None] = dict.fromkeys(names) | fit.params
    minima = [{"flops": m.flops, "params": m.params, "loss": m.loss, "bracketed": m.bracketed} for m in fit.minima]
    return _result(
        table,
        frame,
        law="isoflop",
        equation="N* = N_coefficient * C^N_exponent, D* = D_coefficient * C^D_exponent",
        fit=fit,
        params=params,
        ci95=dict.fromkeys(params) | fit.ci95,
        allocation=allocate_isoflop(fit, target),
        approaches=_approaches(frame, options, fit),
        backtests=[_minima_backtest(frame), _minima_loss_backtest(fit, table.quantity)],
        influence=isoflop_influence(fit, frame.assign(budget=budget_of(frame))),
        options=options,
        warnings=warnings,
        more={"minima": minima},
    )


def _rates(table: Table, target: float | None, options: Options) -> Result:
    """The best learning rate by width, and its drift."""
    for name, usual in (("recipe", "varpro"), ("interval", "auto"), ("floor", "free")):
        if getattr(options, name) != usual:
            got = getattr(options, name)
            raise ValueError(f"learning-rate is quadratics by least squares and has no {name}; got {got!r}.")
    if target is not None:
        raise ValueError("learning-rate gives no N* or loss at a target; fit power, surface or isoflop for those.")
    frame, warnings = _rows(table, "params", "flops", "loss")
    if "sd" in frame:
        warnings.append("the noise of single losses is not used: a quadratic takes every learning rate alike")
    fit = fit_rates(frame, table.diverged, num_resamples=options.num_resamples, seed=options.seed)
    if fit is None:
        raise ValueError(
            "learning-rate needs at least 3 learning rates at one size and budget; wanted a column learning_rate "
            "with a sweep of them. Run more learning rates."
        )
    _warn_fit(fit.outcome, fit.reason, warnings)
    for o in fit.optima:
        if not o.bracketed:
            warnings.append(f"{fit.variable} {o.scale:.4g} left out of the drift: {o.reason}")
    params: dict[str, float | None] = dict.fromkeys(("rate_coefficient", "rate_exponent")) | fit.params
    own = ("scale", "rate", "rate_ci95", "bracketed", "reason")
    names = (*own, "moved_octaves", "moved_ci95", *(f"transferred_{name}" for name in ("loss", "ci95", "by", "note")))
    return _result(
        table,
        frame,
        law="learning-rate",
        equation=f"rate* = rate_coefficient * {fit.variable}^rate_exponent",
        fit=fit,
        params=params,
        ci95=dict.fromkeys(params) | fit.ci95,
        allocation=Allocation(approach="learning-rate"),
        approaches=None,
        backtests=[],
        influence=[],
        options=options,
        warnings=warnings,
        more={"optima": [{name: getattr(o, name) for name in names} for o in fit.optima], "variable": fit.variable},
    )


def _rows(table: Table, *wanted: str) -> tuple[pd.DataFrame, list[str]]:
    frame, said = table.rows(*wanted)
    warnings = [*table.warnings, *said]
    lost = lost_settings(frame, table.diverged) if "flops" in frame and "params" in frame else table.diverged.iloc[:0]
    if len(lost):
        settings = ", ".join(f"{row.params:.3g} at {row.flops:.3g}" for row in lost.head(6).itertuples())
        more = ", ..." if len(lost) > 6 else ""
        what = "1 size and budget" if len(lost) == 1 else f"{len(lost)} sizes and budgets"
        warnings.append(f"{what} at which every run diverged (params at FLOPs: {settings}{more})")
    return frame, warnings


def _result(
    table: Table,
    rows: pd.DataFrame,
    *,
    allocation: Allocation,
    approaches: Approaches | None,
    backtests: Sequence[Backtest | None],
    influence: list[Influence],
    warnings: list[str],
    ci95: dict[str, Interval | None],
    **rest: Any,
) -> Result:
    """Put together, with what the parts have to say said in the warnings."""
    tests = [test for test in backtests if test is not None]
    if approaches is not None and approaches.agree is False:
        warnings.append(approaches.verdict)
    for test in tests:
        if test.covered is False and abs(test.error) > 1e-3:
            warnings.append(f"{test.sentence()}, outside its interval")
    for one in influence:
        if one.breaks(ci95.get(one.exponent)):
            warnings.append(f"{one.sentence()}: one of {one.num_trials} carries it out of its 95% interval")
    _warn_extrapolation(allocation.flops, rows["flops"].to_numpy(dtype=float), tests, warnings)
    return Result(
        table=table,
        rows=rows,
        allocation=allocation,
        approaches=approaches,
        backtests=tests,
        influence=influence,
        warnings=warnings,
        ci95=ci95,
        **rest,
    )


def _at_best_rates(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    best = best_learning_rates(frame) if "flops" in frame else frame
    if len(best) < len(frame):
        warnings.append(
            f"{len(frame) - len(best)} rows at other than the best learning rate of their size and budget not fitted"
        )
    return best


def _warn_fit(outcome: str, reason: str | None, warnings: list[str]) -> None:
    if outcome != "converged":
        warnings.append(f"{outcome.replace('_', ' ')}: {reason}")


def _warn_noise(fit: Fit, x: np.ndarray, y: np.ndarray, sd: np.ndarray | None, warnings: list[str]) -> None:
    """Where residuals scatter by more, or less, than the table's own noise says."""
    if sd is None or not fit.succeeded:
        return
    scatter = scale_of(np.log(y / fit.predict(*x.T)) * y / sd, len(fit.params))
    if not 0.5 < scatter < 2:
        warnings.append(
            f"residuals scatter {scatter:.3g} times as far as the column of standard deviations says: "
            "its ratios weigh the rows, and the intervals follow the scatter"
        )


def _warn_extrapolation(target: float | None, flops: np.ndarray, tests: list[Backtest], warnings: list[str]) -> None:
    largest, smallest = float(flops.max()), float(flops.min())
    if target is not None and target < smallest / EXTRAPOLATION:
        warnings.append(
            f"the target is {smallest / target:.3g} times less than the smallest budget ({smallest:.3g} FLOPs): no "
            "back-test speaks for a law there; are the target and the table in the same unit?"
        )
    if target is not None and target > EXTRAPOLATION * largest:
        errors = ", ".join(f"{test.what} by {test.error:+.1%}" for test in tests)
        proof = (
            f"; without the largest budget, the fit missed {errors} there" if errors else "; no back-test was possible"
        )
        warnings.append(
            f"the target is {target / largest:.3g} times the largest budget ({largest:.3g} FLOPs): "
            f"beyond {EXTRAPOLATION:g} times an extrapolation is a guess, whatever its interval{proof}"
        )


def _approaches(frame: pd.DataFrame, options: Options, isoflop: IsoflopFit | None = None) -> Approaches | None:
    """Every approach to N*(C), where the table has what they need."""
    if not {"params", "samples", "flops"} <= set(frame) or not is_isoflop(frame):
        return None
    if not (frame[["params", "samples"]] > 0).all(axis=None):
        return None
    return approaches(frame, isoflop=isoflop, options=options)


def _minima_backtest(frame: pd.DataFrame) -> Backtest | None:
    """Of N*(C), where the rows are an isoFLOP design."""
    try:
        return backtest_isoflop(frame) if is_isoflop(frame) else None
    except ValueError:
        return None


def _minima_loss_backtest(fit: IsoflopFit, quantity: str) -> Backtest | None:
    """Of the loss at the minima, by a power law through them."""
    points = [(m.flops, m.loss) for m in fit.bracketed if m.loss is not None]
    if len(points) < 4:
        return None
    flops, loss = np.array(points, dtype=float).T
    return backtest_power(flops, loss, quantity=quantity)
