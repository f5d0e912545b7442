"""The answer of a sweep in sentences, with intervals. Sentences hold markup: they are made for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from analysis.bootstrap import Interval
from analysis.comparison import Comparison
from analysis.findings import ArmFindings, Findings
from analysis.fitting import Fit
from analysis.magnitudes import coefficient, scientific, with_unit
from analysis.report_page import escape
from analysis.report_transfer import transfer_answer


def answer(findings: Findings) -> list[str]:
    """What the sweep found, most important first. Always at least one sentence."""
    best = findings.best
    if not len(findings.measurements):
        planned = findings.plan.get("num_trials")
        trials = f" {planned} trials are planned." if planned else ""
        return [f"<strong>No measurement is in yet.</strong>{trials} Run the sweep, then write this report again."]
    if best is None:
        return ["<strong>Every trial diverged</strong>: there is no loss to fit. The reasons stand in the table below."]
    rates = transfer_answer(findings)
    if rates and _asks_for_rates(findings, best):
        alone = [replace(comparison, compute=None, reason=None) for comparison in findings.comparisons]
        return [*rates, f"{_best_run(best)}.", *map(compared, alone)]
    said = [*_headline(findings, best), *rates, *_size(best), _law("loss", best.law)]
    if best.distance is not None:
        said.append(_law(best.distance.name, best.distance.law))
    return [*said, *map(compared, findings.comparisons)]


def _asks_for_rates(findings: Findings, arm: ArmFindings) -> bool:
    """Whether rates are all that sizes were compared by: with one budget each, they say nothing of sizes or compute."""
    budgets = findings.measurements.groupby(["arm", "size"])["budget_flops"].nunique()
    return bool((budgets <= 1).all()) and (arm.isoflop is None or not arm.isoflop.params)


Prediction = tuple[float, Interval | None]


def prediction(arm: ArmFindings, flops: float) -> dict[str, Prediction]:
    """What an arm's laws say of a budget: `params`, `samples`, `loss`, `distance`, each with its interval, as known."""
    said: dict[str, Prediction] = {}
    fit = arm.isoflop
    if fit is not None and fit.params:
        for name, letter in (("params", "N"), ("samples", "D")):
            said[name] = float(fit.optimum(letter, flops)), _pair(fit.optimum_interval(letter, flops))
    laws = {"loss": arm.law} | ({"distance": arm.distance.law} if arm.distance is not None else {})
    for name, law in laws.items():
        if law.succeeded:
            said[name] = float(law.predict(flops)), _pair(law.predict_interval(flops))
    return said


def _pair(band: object) -> Interval | None:
    return (float(band[0]), float(band[1])) if isinstance(band, tuple) else None


def _headline(findings: Findings, arm: ArmFindings) -> list[str]:
    """The answer to the question in a sentence: size, data, loss and distance at the target, with intervals."""
    flops, fit = findings.target_flops, arm.isoflop
    if flops is None or fit is None or not fit.params:
        return []
    said = prediction(arm, flops)
    parts = [f"{_valued(said['params'], with_unit)} parameters, {_valued(said['samples'], with_unit)} samples"]
    results = [f"loss {_valued(said['loss'], _digits)}"] if "loss" in said else []
    if arm.distance is not None and "distance" in said:
        results.append(f"{escape(arm.distance.name)} {_valued(said['distance'], _digits)}")
    law = arm.distance.law if arm.distance is not None and arm.distance.law.succeeded else arm.law
    if law.succeeded:
        floor = f"floor {law.params['floor']:.3g}" if law.floor_identified else "floor not identified"
        results.append(floor)
    text = "; ".join([*parts, *results])
    return [f"At <strong>{scientific(flops)} FLOPs</strong>, {escape(arm.arm)}: {text}.{_beyond(arm, flops)}"]


def _beyond(arm: ArmFindings, flops: float) -> str:
    """What is an extrapolation at a budget, in words: N* and D* may be one where the loss is not."""
    runs = flops / arm.largest_run
    minima = flops / (arm.largest_minimum or flops)
    far = f"{minima:.3g} times the largest budget whose minimum is bracketed"
    if runs > 1.05:
        also = f", and {far}" if minima / runs > 1.05 else ""
        return f" An extrapolation: {runs:.3g} times the largest budget run{also}."
    return f" N* and D* are extrapolations: {far}." if minima > 1.05 else ""


def _valued(value: Prediction, show: Callable[[float], str]) -> str:
    number, band = value
    inside = f" [{show(band[0])}, {show(band[1])}]" if band else ""
    return f"<strong>{show(number)}</strong>{inside}"


def _digits(value: float) -> str:
    return f"{value:.3g}"


def _size(arm: ArmFindings) -> list[str]:
    fit = arm.isoflop
    if fit is None or not fit.params:
        single = [m for m in fit.bracketed if m.params and m.loss] if fit is not None else []
        if single:
            return [_single_budget(arm, single[0].flops, float(single[0].params or 0), single[0].params_ci95)]
        return [f"{_best_run(arm)}. No N*(C) is fitted: {escape(arm.isoflop_reason)}."]
    n, d = fit.params["N_exponent"], fit.params["D_exponent"]
    others = {"cubics": fit.cubic_exponent, "the surface": arm.surface_exponent[0] if arm.surface_exponent else None}
    told = " and ".join(f"{value:.3f} by {name}" for name, value in others.items() if value is not None)
    aside = f" Other approaches give {told}." if told else ""
    return [
        f"<strong>Best size: N* ∝ C<sup>{n:.3f}</sup></strong>{_band(fit.ci95.get('N_exponent'))} ({escape(arm.arm)}, "
        f"{len(fit.bracketed)} of {len(fit.minima)} budgets bracketed): ten times the compute wants {10**n:.2g} times "
        f"the parameters.{aside}",
        f"<strong>Best data: D* ∝ C<sup>{d:.3f}</sup></strong>{_band(fit.ci95.get('D_exponent'))}: ten times the "
        f"compute wants {10**d:.2g} times the samples.",
    ]


def _best_run(arm: ArmFindings) -> str:
    row = arm.trained.sort_values("loss").iloc[0]
    return (
        f"<strong>Best run: {escape(row['arm'])} {escape(row['size'])}</strong> ({with_unit(row['params'])} "
        f"parameters, {with_unit(row['samples'])} samples, {scientific(row['flops'])} FLOPs), loss {row['loss']:.4g}"
    )


def _single_budget(arm: ArmFindings, flops: float, params: float, band: Interval | None) -> str:
    return (
        f"<strong>Best size at {scientific(flops)} FLOPs: {with_unit(params)} parameters</strong>{_range(band)} "
        f"({escape(arm.arm)}). One budget with a bracketed minimum gives no N*(C): run more budgets."
    )


def _law(what: str, fit: Fit) -> str:
    what = escape(what)
    name = what[0].upper() + what[1:]
    if not fit.succeeded:
        return f"<strong>No {what} law</strong>: {escape(fit.reason)}."
    law = f"{coefficient(fit.params['A'])} · C<sup>−{fit.params['beta']:.3g}</sup>"
    either = "" if fit.floor_identified else ", with or without a floor"
    beta = fit.ci95.get("beta")
    band = f" (exponent 95% {beta[0]:.3g} to {beta[1]:.3g}{either})" if beta else ""
    if fit.floor_identified:
        floor = f"{fit.params['floor']:.3g}"
        return f"<strong>{name} = {floor} + {law}</strong>{band}: a floor is identified{_band(fit.ci95.get('floor'))}."
    low, high = fit.ci95.get("floor") or (0.0, 0.0)
    open_floors = f": anything from {low:.2g} to {high:.2g} is compatible with the data" if high > 0 else ""
    return f"<strong>{name} = {law}</strong> if there is no floor{band}. None is identified{open_floors}."


def compared(comparison: Comparison) -> str:
    """Which of two arms is ahead. A compute multiplier decides where there is one: it has each arm at its best size."""
    needs, equal = _needs(comparison), _at_equal_size(comparison)
    first, second = escape(comparison.first), escape(comparison.second)
    if not needs and not equal:
        why = f", and there is no compute multiplier: {escape(comparison.reason)}" if comparison.reason else ""
        return f"{first} and {second} share no size and budget{why}. They are not compared."
    by_compute, by_size = _side_of_multiplier(comparison), _side_of_difference(comparison)
    if needs and equal and by_compute.ahead != by_size.ahead:
        apart = by_compute.clear or by_size.clear
        verdict = (
            f"Which of {first} and {second} is ahead depends on how they are compared"
            if apart
            else f"{first} and {second} are not clearly apart"
        )
        return f"<strong>{verdict}.</strong> At equal size and budget {first} has {equal}. {needs}"
    side = by_compute if needs else by_size
    verdict = f"<strong>{first} {side.verb} {second}</strong>"
    if not equal:
        return f"{verdict}: {needs[0].lower()}{needs[1:]} They share no size and budget."
    count = comparison.wins if by_size.ahead else comparison.losses
    return f"{verdict} at {count} of {len(comparison.pairs)} sizes and budgets: {equal}. {needs}".rstrip()


class _Side(NamedTuple):
    """Whether the first of two arms is ahead, and whether its interval is on that side too."""

    ahead: bool
    clear: bool

    @property
    def verb(self) -> str:
        return ("beats" if self.ahead else "loses to") if self.clear else ("is ahead of" if self.ahead else "is behind")


def _side_of_multiplier(comparison: Comparison) -> _Side:
    low, high = comparison.multiplier_ci95 or (1.0, 1.0)
    return _Side((comparison.multiplier or 1.0) > 1, low > 1 or high < 1)


def _side_of_difference(comparison: Comparison) -> _Side:
    band = comparison.mean_difference_ci95
    return _Side((comparison.mean_difference or 0.0) < 0, band is not None and band[0] * band[1] > 0)


def _at_equal_size(comparison: Comparison) -> str:
    """The mean difference in words; empty without a pair."""
    gap, band = comparison.mean_difference, comparison.mean_difference_ci95
    if gap is None:
        return ""
    spread = ""
    if band is not None:
        unclear = "" if _side_of_difference(comparison).clear else ", so not clearly"
        spread = f" (95% {100 * band[0]:+.1f}% to {100 * band[1]:+.1f}%{unclear})"
    return f"{abs(gap):.1%} {'lower' if gap < 0 else 'higher'} {escape(comparison.quantity)} on average{spread}"


def _needs(comparison: Comparison) -> str:
    """The compute multiplier in a sentence; empty without one."""
    if comparison.multiplier is None or comparison.at_flops is None:
        return ""
    return (
        f"To {escape(comparison.first)}'s {escape(comparison.quantity)} at {scientific(comparison.at_flops)} FLOPs, "
        f"{escape(comparison.second)} needs "
        f"<strong>{comparison.factor} times the compute</strong>{comparison.factor_band}."
    )


def _band(band: Interval | None) -> str:
    return f" (95% {band[0]:.3g} to {band[1]:.3g})" if band else ""


def _range(band: object) -> str:
    if not isinstance(band, tuple):
        return ""
    return f" ({with_unit(float(band[0]))} to {with_unit(float(band[1]))})"
