"""`ditlaw fit`: a table in, one object out; and the same for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.allocation import Allocation, CostRelation, allocate_isoflop, allocate_power, allocate_surface
from analysis.backtest import Backtest, backtest_isoflop, backtest_power
from analysis.bootstrap import Interval
from analysis.fitting import NUM_RESAMPLES, Fit, fit_law, fit_power
from analysis.frontier import best_learning_rates, frontier, is_isoflop
from analysis.isoflop import IsoflopFit, fit_isoflop
from analysis.laws import SurfaceLaw
from analysis.loading import Table, load_table

WANTED = {
    "power": ("flops", "loss"),
    "surface": ("params", "samples", "flops", "loss"),
    "isoflop": ("params", "samples", "flops", "loss"),
}


def fit_table(
    path: Path,
    law: str,
    columns: Mapping[str, str] | None = None,
    target_flops: float | None = None,
    *,
    arm: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Fit `law` (power, surface or isoflop) to the table at `path`; returns the object of `fit --json`.

    `columns` maps params, samples, flops, loss to names in the table (guessed where absent); `arm` selects one of our
    arms. `target_flops` adds the allocation there. Floats are full precision; what is unknown is None; nothing is NaN.
    Raises ValueError with what was got, what is wanted and a remedy.
    """
    if law not in WANTED:
        raise ValueError(f"there is no law {law!r}; the laws are {', '.join(WANTED)}.")
    if target_flops is not None and not (math.isfinite(target_flops) and target_flops > 0):
        raise ValueError(f"target FLOPs must be a positive number; got {target_flops}.")
    table = load_table(Path(path), WANTED[law], columns, arm)
    if not len(table.frame):
        raise ValueError(f"{path} has no rows to fit: {'; '.join(table.warnings) or 'it is empty'}.")
    result = {"power": _power, "surface": _surface, "isoflop": _isoflop}[law](table, target_flops, num_resamples)
    return _plain(result)


def _power(table: Table, target: float | None, num_resamples: int) -> dict[str, Any]:
    warnings = list(table.warnings)
    frame = _at_best_rates(table.frame, warnings)
    rows = _power_rows(frame, warnings)
    flops, loss = rows["flops"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    if len(np.unique(flops)) < 3:
        raise ValueError(
            f"a power law needs at least 3 different budgets; got {len(np.unique(flops))} "
            f"({', '.join(f'{c:.3g}' for c in np.unique(flops))} FLOPs). Run more budgets."
        )
    trials = None if len(rows) < len(frame) else rows.get("trial_id")
    fit = fit_power(flops, loss, trials=trials, num_resamples=num_resamples)
    if not fit.floor_identified:
        warnings.append(f"no floor is reported: {fit.floor_reason}")
    _warn_fit(fit.outcome, fit.reason, warnings)
    if len(rows) < 6:
        warnings.append(f"only {len(rows)} points: the interval is a residual bootstrap and may be too narrow")
    _warn_backtest(backtest_power(flops, loss, trials), warnings)
    _warn_extrapolation(target, flops, warnings)
    params = {"A": None, "beta": None, "floor": None} | fit.params
    ci95 = dict.fromkeys(params) | fit.ci95
    allocation = allocate_power(fit, frame, target)
    return _result("power", params, ci95, fit, allocation, warnings, floor_identified=bool(fit.floor_identified))


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


def _surface(table: Table, target: float | None, num_resamples: int) -> dict[str, Any]:
    warnings = list(table.warnings)
    frame = _at_best_rates(table.frame, warnings)
    for name in ("params", "samples"):
        got = frame[name].nunique()
        if got < 3:
            raise ValueError(f"a surface needs at least 3 different {name}; got {got}. Run more, or fit --law power.")
    points = len(frame[["params", "samples"]].drop_duplicates())
    if points < SurfaceLaw().min_points:
        raise ValueError(
            f"a surface needs at least {SurfaceLaw().min_points} different (params, samples); got {points}. "
            "Run more sizes or budgets, or fit --law power."
        )
    x = frame[["params", "samples"]].to_numpy(dtype=float)
    trials = frame.get("trial_id")
    fit = fit_law(SurfaceLaw(), x, frame["loss"].to_numpy(dtype=float), trials=trials, num_resamples=num_resamples)
    _warn_fit(fit.outcome, fit.reason, warnings)
    cost = CostRelation.of(frame)
    if cost.spread > 0.1:
        warnings.append(
            f"FLOPs per sample are not one power of params (off by up to {cost.spread:.0%}): N* and D* are rough"
        )
    allocation = allocate_surface(fit, cost, target)
    _warn_extrapolation(target, frame["flops"].to_numpy(dtype=float), warnings)
    if is_isoflop(frame):
        _warn_isoflop_disagrees(allocation, frame, warnings)
    params = dict.fromkeys(SurfaceLaw().params) | fit.params
    return _result("surface", params, dict.fromkeys(params) | fit.ci95, fit, allocation, warnings)


def _isoflop(table: Table, target: float | None, num_resamples: int) -> dict[str, Any]:
    warnings = list(table.warnings)
    frame = _at_best_rates(table.frame, warnings)
    fit = fit_isoflop(frame, num_resamples=num_resamples)
    _warn_fit(fit.outcome, fit.reason, warnings)
    if fit.num_points < len(frame):
        warnings.append(f"{len(frame) - fit.num_points} rows at budgets with fewer than 3 sizes not used")
    for m in fit.minima:
        if not m.bracketed:
            warnings.append(
                f"budget {m.flops:.3g} FLOPs left out of N*(C): {m.reason} ({m.sizes[0]:.3g} to {m.sizes[1]:.3g})"
            )
    _warn_estimators(fit, frame, warnings)
    _warn_backtest(backtest_isoflop(frame), warnings)
    _warn_extrapolation(target, np.array([m.flops for m in fit.minima]), warnings)
    params: dict[str, float | None] = dict.fromkeys(("N_exponent", "N_coefficient", "D_exponent", "D_coefficient"))
    minima = [{"flops": m.flops, "params": m.params, "loss": m.loss, "bracketed": m.bracketed} for m in fit.minima]
    ci95 = dict.fromkeys(params) | fit.ci95
    return _result("isoflop", params | fit.params, ci95, fit, allocate_isoflop(fit, target), warnings, minima=minima)


def _result(
    law: str,
    params: Mapping[str, float | None],
    ci95: Mapping[str, Interval | None],
    fit: Fit | IsoflopFit,
    allocation: Allocation,
    warnings: list[str],
    **more: Any,
) -> dict[str, Any]:
    names = ["N_exponent", "D_exponent"] + (["flops", "params", "samples", "loss"] if allocation.flops else [])
    intervals = {name: allocation.ci95.get(name) for name in names if name != "flops"}
    return {
        "law": law,
        "params": dict(params),
        "ci95": dict(ci95),
        "outcome": fit.outcome,
        "starts_agree": fit.starts_agree,
        "num_points": fit.num_points,
        "allocation": {name: getattr(allocation, name) for name in names} | {"ci95": intervals},
        **more,
        "warnings": warnings,
    }


def _at_best_rates(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    best = best_learning_rates(frame)
    if len(best) < len(frame):
        warnings.append(
            f"{len(frame) - len(best)} rows at other than the best learning rate of their size and budget not fitted"
        )
    return best


def _warn_fit(outcome: str, reason: str | None, warnings: list[str]) -> None:
    if outcome != "converged":
        warnings.append(f"{outcome.replace('_', ' ')}: {reason}")


def _warn_backtest(test: Backtest | None, warnings: list[str]) -> None:
    if test is not None and test.covered is False and abs(test.ratio - 1) > 1e-3:
        warnings.append(f"{test.sentence()}, outside its interval")


def _warn_extrapolation(target: float | None, flops: np.ndarray, warnings: list[str]) -> None:
    largest = float(flops.max())
    if target is not None and target > 10 * largest:
        warnings.append(
            f"the target is {target / largest:.3g} times the largest budget ({largest:.3g} FLOPs): "
            "beyond 10 times an extrapolation is a guess, whatever its interval"
        )


def _warn_estimators(fit: IsoflopFit, frame: pd.DataFrame, warnings: list[str]) -> None:
    """Say so when the cubic or the surface gives another exponent than the parabola."""
    band = fit.ci95.get("N_exponent")
    if not fit.params or band is None:
        return
    others = {"cubic": fit.cubic_exponent}
    x = frame[["params", "samples"]].to_numpy(dtype=float)
    surface = fit_law(SurfaceLaw(), x, frame["loss"].to_numpy(dtype=float), num_resamples=0)
    if surface.outcome == "converged":
        others["surface"] = allocate_surface(surface, CostRelation.of(frame), None).N_exponent
    for name, value in others.items():
        if value is not None and not band[0] - 1e-9 <= value <= band[1] + 1e-9:
            warnings.append(
                f"estimators disagree: N* exponent {fit.params['N_exponent']:.4g} by parabola "
                f"(95% {band[0]:.4g} to {band[1]:.4g}), {value:.4g} by {name}"
            )


def _warn_isoflop_disagrees(allocation: Allocation, frame: pd.DataFrame, warnings: list[str]) -> None:
    band = allocation.ci95.get("N_exponent")
    try:
        other = fit_isoflop(frame, num_resamples=0)
    except ValueError:
        return
    if band is None or not other.params or len(other.bracketed) < 3:
        return
    value = other.params["N_exponent"]
    if not band[0] - 1e-9 <= value <= band[1] + 1e-9:
        warnings.append(
            f"estimators disagree: N* exponent {allocation.N_exponent:.4g} by surface "
            f"(95% {band[0]:.4g} to {band[1]:.4g}), {value:.4g} by isoFLOP parabolas"
        )


def _plain(value: Any) -> Any:
    """Python values only, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_fit(result: Mapping[str, Any]) -> str:
    """The result of `fit_table` as a short page for a terminal."""
    lines = [
        f"{_EQUATIONS[result['law']]}",
        f"{result['num_points']} points, {result['outcome'].replace('_', ' ')}" + _agree(result),
    ]
    lines += ["", *_rows(result["params"], result["ci95"])]
    if result["law"] == "power":
        lines.append("  floor identified: " + ("yes" if result["floor_identified"] else "no"))
    allocation = result["allocation"]
    names = [n for n in ("N_exponent", "D_exponent", "params", "samples", "loss") if allocation.get(n) is not None]
    if names and (result["law"] != "isoflop" or "flops" in allocation):
        at = f" at {allocation['flops']:.4g} FLOPs" if "flops" in allocation else ""
        lines += ["", f"compute-optimal{at}", *_rows({n: allocation[n] for n in names}, allocation["ci95"])]
    if result.get("minima"):
        lines += ["", f"  {'budget':>10}  {'N*':>10}  {'loss':>10}"]
        lines += [
            f"  {m['flops']:>10.4g}  {_number(m['params']):>10}  {_number(m['loss']):>10}"
            + ("" if m["bracketed"] else "  not bracketed")
            for m in result["minima"]
        ]
    if result["warnings"]:
        lines += [""] + [f"! {warning}" for warning in result["warnings"]]
    return "\n".join(lines)


_EQUATIONS = {
    "power": "loss = A * C^-beta + floor",
    "surface": "loss = E + A / N^alpha + B / D^beta",
    "isoflop": "N* = N_coefficient * C^N_exponent, D* = D_coefficient * C^D_exponent",
}


def _agree(result: Mapping[str, Any]) -> str:
    share = result["starts_agree"]
    return "" if share is None else f", {share:.0%} of starts agree"


def _rows(values: Mapping[str, float | None], ci95: Mapping[str, Any]) -> list[str]:
    width = max(len(name) for name in values)
    return [f"  {name:<{width}}  {_number(value):>10}" + _band(ci95.get(name)) for name, value in values.items()]


def _band(band: Any) -> str:
    return f"  95% {_number(band[0])} to {_number(band[1])}" if band else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
