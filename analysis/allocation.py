"""What a law says at a budget: parameters, samples and loss, each with an interval, from each approach."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import special

from analysis.bootstrap import Interval, interval, reaching
from analysis.fitting import NUM_RESAMPLES, Fit, fit_power
from analysis.frontier import budget_of, frontier, is_isoflop
from analysis.isoflop import IsoflopFit
from analysis.laws import Array


@dataclass(frozen=True, kw_only=True)
class CostRelation:
    """FLOPs = coefficient * N^params_exponent * D over a table: 6 N D is coefficient 6, exponent 1.

    A DiT's training FLOPs are not 6 N D (adaLN holds a third of the parameters and runs once an image), so the
    relation is measured from the table's own FLOPs. `spread` is the largest relative deviation of a row from it.
    """

    coefficient: float
    params_exponent: float
    spread: float

    @classmethod
    def of(cls, frame: pd.DataFrame) -> CostRelation:
        log_n = np.log(frame["params"].to_numpy(dtype=float))
        log_cost = np.log((frame["flops"] / frame["samples"]).to_numpy(dtype=float))
        slope, level = np.polyfit(log_n, log_cost, 1) if np.ptp(log_n) > 0 else (1.0, float(np.mean(log_cost - log_n)))
        spread = float(np.max(np.abs(np.expm1(log_cost - level - slope * log_n))))
        return cls(coefficient=float(np.exp(level)), params_exponent=float(slope), spread=spread)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """N* and D* as powers of compute, and their values at a target budget; what is unknown is None."""

    approach: str
    N_exponent: float | None = None
    D_exponent: float | None = None
    flops: float | None = None
    params: float | None = None
    samples: float | None = None
    loss: float | None = None
    samples_per_param: float | None = None
    """D* / N*: tokens per parameter where samples are tokens."""
    ci95: dict[str, Interval | None] = field(default_factory=dict)


def surface_optimum(
    params: dict[str, float] | dict[str, Array], cost: CostRelation, flops: float | Array
) -> dict[str, Array]:
    """Minimise E + A/N^alpha + B/D^beta at coefficient * N^x * D = flops, in closed form.

    With x = 1, coefficient = 6 this is Hoffmann et al. 2022, arXiv 2203.15556, equation 4.
    """
    E, A, B, alpha, beta = (np.asarray(params[name]) for name in ("E", "A", "B", "alpha", "beta"))
    x = cost.params_exponent
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        log_budget = np.log(flops / cost.coefficient)
        log_n = (np.log(alpha * A) - np.log(x * beta * B) + beta * log_budget) / (alpha + x * beta)
        log_d = log_budget - x * log_n
        return {
            "N_exponent": beta / (alpha + x * beta),
            "D_exponent": alpha / (alpha + x * beta),
            "params": np.exp(log_n),
            "samples": np.exp(log_d),
            "samples_per_param": np.exp(log_d - log_n),
            "loss": E + A * np.exp(-alpha * log_n) + B * np.exp(-beta * log_d),
        }


def law_optimum(
    name: str, params: dict[str, float] | dict[str, Array], cost: CostRelation, flops: float | Array
) -> dict[str, Array]:
    """`surface_optimum` of a law by its name: a tied law has one exponent, a repeated one no repeats at its optimum.

    Kaplan's is a power, alpha_D, of a surface without a floor (arXiv 2001.08361, equation 1.5).
    """
    if name == "tied":
        return surface_optimum({**params, "beta": params["alpha"]}, cost, flops)  # type: ignore[arg-type]
    if name != "kaplan":
        return surface_optimum(params, cost, flops)
    N_c, D_c, alpha, gamma = (np.asarray(params[n], dtype=float) for n in ("N_c", "D_c", "alpha_N", "alpha_D"))
    one, p = np.ones_like(N_c), alpha / gamma
    with np.errstate(over="ignore"):
        bracket = {"E": 0 * one, "A": np.exp(p * np.log(N_c)), "B": D_c, "alpha": p, "beta": one}
    found = surface_optimum(bracket, cost, flops)
    return found | {"loss": found["loss"] ** gamma}


def allocate_surface(fit: Fit, cost: CostRelation, target_flops: float | None) -> Allocation:
    """The allocation of a fitted surface, or of another law of params and samples; empty of a degenerate one."""
    if not fit.succeeded or fit.is_degenerate:
        return Allocation(approach=fit.law.name, flops=target_flops)
    names = ("N_exponent", "D_exponent") + (("params", "samples", "samples_per_param", "loss") if target_flops else ())
    at = target_flops or 1.0
    values = law_optimum(fit.law.name, fit.params, cost, at)
    draws = fit.follow(lambda params: law_optimum(fit.law.name, dict(params), cost, at)) if fit.draws else {}
    return Allocation(
        approach=fit.law.name,
        flops=target_flops,
        ci95={name: reaching(interval(draws[name]), float(values[name])) if draws else None for name in names},
        **{name: float(values[name]) for name in names},
    )


def allocate_isoflop(fit: IsoflopFit, target_flops: float | None) -> Allocation:
    """The allocation of fitted isoFLOP minima; the loss by a power law through the minima's losses."""
    if not fit.params:
        return Allocation(approach="isoflop", flops=target_flops)
    ci95: dict[str, Interval | None] = {name: fit.ci95[name] for name in ("N_exponent", "D_exponent")}
    values = {name: fit.params[name] for name in ci95}
    if target_flops:
        for name, letter in (("params", "N"), ("samples", "D")):
            values[name] = float(fit.optimum(letter, target_flops))
            ci95[name] = _pair(fit.optimum_interval(letter, target_flops))
        values["samples_per_param"] = values["samples"] / values["params"]
        ci95["samples_per_param"] = interval(fit.drawn_ratio(target_flops)) if fit.draws else None
        flops, losses = np.array([[m.flops, m.loss] for m in fit.bracketed], dtype=float).T
        law = fit_power(flops, losses, num_resamples=NUM_RESAMPLES if fit.draws else 0)
        if law.succeeded:
            values["loss"] = float(law.predict(target_flops))
            ci95["loss"] = _pair(law.predict_interval(target_flops))
    return Allocation(approach="isoflop", flops=target_flops, ci95=ci95, **values)


def allocate_power(fit: Fit, frame: pd.DataFrame, target_flops: float | None) -> Allocation:
    """Loss at the target by the power law; N*, D* by the best run of each budget (arXiv 2203.15556, section 3.1)."""
    ci95: dict[str, Interval | None] = {}
    values: dict[str, float] = {}
    if is_isoflop(frame) and "samples" in frame:
        best = frontier(frame)
        for name, letter in (("params", "N"), ("samples", "D")):
            line = _line(
                best["flops"].to_numpy(dtype=float),
                best[name].to_numpy(dtype=float),
                target_flops,
                _coarseness(frame, best),
            )
            if line is not None:
                values[f"{letter}_exponent"], ci95[f"{letter}_exponent"] = line[0]
                if target_flops:
                    values[name], ci95[name] = line[1]
    if target_flops and fit.succeeded:
        values["loss"] = float(fit.predict(target_flops))
        ci95["loss"] = _pair(fit.predict_interval(target_flops))
    return Allocation(approach="power", flops=target_flops, ci95=ci95, **values)


def _coarseness(frame: pd.DataFrame, best: pd.DataFrame) -> float:
    """Standard deviation of log N* that the spacing of the sizes leaves open: a best run's N* is within half a step."""
    keyed = frame.assign(budget=budget_of(frame))
    steps = []
    for params, budget in zip(best["params"], budget_of(frame)[best.index], strict=True):
        here = np.log(np.sort(keyed.loc[keyed["budget"] == budget, "params"].unique()))
        gaps = np.abs(here - np.log(params))
        steps += list(np.sort(gaps[gaps > 0])[:2])
    return float(np.median(steps) / np.sqrt(12)) if steps else 0.0


def _line(
    x: Array, y: Array, at: float | None, least: float
) -> tuple[tuple[float, Interval], tuple[float, Interval]] | None:
    """Slope of log y on log x and y at a point, each with its Student t 95% interval; None below 3 points.

    `least` is the standard deviation of log y that is there in any case.
    """
    if len(x) < 3:
        return None
    u = np.log(x) - np.log(x).mean()
    v = np.log(y)
    slope, level = float(u @ v / (u @ u)), float(v.mean())
    scatter = max(np.sqrt(np.sum((v - level - slope * u) ** 2) / (len(x) - 2)), least)
    scale = scatter * float(special.stdtrit(len(x) - 2, 0.975))
    wide = float(scale / np.sqrt(u @ u))
    distance = float(np.log(at) - np.log(x).mean()) if at else 0.0
    middle, half = level + slope * distance, float(scale * np.sqrt(1 / len(x) + distance**2 / (u @ u)))
    value = (float(np.exp(middle)), (float(np.exp(middle - half)), float(np.exp(middle + half))))
    return (slope, (slope - wide, slope + wide)), value


def _pair(band: tuple[Array, Array] | None) -> Interval | None:
    return None if band is None else (float(band[0]), float(band[1]))
