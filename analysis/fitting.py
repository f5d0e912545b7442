"""Fit a law to points: estimate, outcome, uncertainty, and whether the data identify its floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.bootstrap import Interval
from analysis.estimate import Estimate
from analysis.floors import FloorProfile, compared, flat_to_zero, profile_floor, why_refused
from analysis.laws import EXPONENT_BOUNDS, TINY, Array, Law, PowerLaw, PowerSum, rise_together
from analysis.likelihood import profile_intervals
from analysis.points import Points
from analysis.projection import hoffmann_starts, projected_starts
from analysis.recipes import IntervalMethod, Recipe, delta_of
from analysis.solver import HUBER_DELTA, Problem, objective, polish
from analysis.uncertainty import Method, choose_method, resample

NUM_RESAMPLES = 1000
NUM_STARTS = 12
MOST_START_POINTS = 10_000
"""Of more, an even choice serves to find the starts; all count in what is minimised from there."""
NUM_GRID_STARTS = 100
"""Of the grid of Hoffmann et al., those of lowest objective that are solved."""


@dataclass(frozen=True, kw_only=True)
class Fit(Estimate):
    """An estimate of a law, or why there is none."""

    law: Law
    objective: float | None = None
    is_degenerate: bool = False
    """Whether a term vanished, an exponent ended at its bound, or terms cannot be told apart: no N* follows from it."""
    bands: dict[str, Interval] = field(default_factory=dict)
    """95% intervals of parameters that come from no draws: those of profiles."""
    is_normal: bool = False
    """Whether `draws` are normal about the estimate: what follows from them then holds to first order only."""
    floor_identified: bool | None = None
    floor_reason: str | None = None
    profile: FloorProfile | None = None
    free: Fit | None = None
    """Where the floor was refused: the fit that had one."""

    @property
    def ci95(self) -> dict[str, Interval | None]:
        """95% interval of each parameter.

        Where a floor was refused, the others' intervals cover the law with and without one, and the floor's is what its
        profile leaves open: the exponent is only as well known as the floor is.
        """
        values = super().ci95 | self.bands
        if self.free is not None and self.free.draws:
            others = self.free.ci95
            values = {name: _hull(band, others[name]) for name, band in values.items()}
        if self.floor_identified is False and self.profile is not None:
            values["floor"] = self.profile.interval
        return values

    def predict(self, *x: float | Array) -> Array:
        """The law at x (one argument a variable), in units of y."""
        return self.law.predict(self.params, x)

    def predict_interval(self, *x: float | Array) -> tuple[Array, Array] | None:
        """95% interval of the law at x; where a floor was refused it covers the law with and without one."""
        if not self.draws:
            return None
        fits = [self] if self.free is None or not self.free.draws else [self, self.free]
        bands = [np.nanpercentile(f.follow(f._at(x))["y"], [2.5, 97.5], axis=-1) for f in fits]
        return np.min([b[0] for b in bands], axis=0), np.max([b[1] for b in bands], axis=0)

    def _at(self, x: tuple[float | Array, ...]) -> Callable[[Mapping[str, Any]], dict[str, Array]]:
        return lambda params: {"y": self.law.predict(dict(params), x)}

    def follow(self, of: Callable[[Mapping[str, Any]], Mapping[str, Array]]) -> dict[str, Array]:
        """What follows from each draw, of shape (..., draws), where `of` takes parameters to positive quantities.

        Of normal draws it is the delta method, in logs: one far from the estimate would bend away from where the law
        holds its parameters together.
        """
        if not self.is_normal:
            return dict(of(self.draws))
        step, middle = 1e-5, {name: np.log(value) for name, value in of(self.params).items()}
        total = {
            name: value[..., None] + np.zeros(len(next(iter(self.draws.values())))) for name, value in middle.items()
        }
        for param, value in self.params.items():
            linear = param in self.law.exponents
            moved = of(self.params | {param: value + step if linear else value * (1 + step)})
            drawn = self.draws[param]
            away = drawn - value if linear else np.log(np.maximum(drawn, TINY) / max(value, TINY))
            for name, before in middle.items():
                total[name] = total[name] + ((np.log(moved[name]) - before) / step)[..., None] * away
        with np.errstate(over="ignore"):
            return {name: np.exp(value) for name, value in total.items()}


def _hull(one: Interval | None, two: Interval | None) -> Interval | None:
    return (min(one[0], two[0]), max(one[1], two[1])) if one and two else one


def fit_law(
    law: Law,
    x: Array,
    y: Array,
    *,
    trials: object = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    recipe: Recipe = "varpro",
    interval: IntervalMethod = "auto",
    floor: float | None = None,
    sd: Array | None = None,
    identify: bool = True,
) -> Fit:
    """Fit `law` to x of shape (n, variables) and y of shape (n,), all positive.

    Args:
        law: the form; `floor` holds its constant term at a value.
        trials: which points come of one training run; each its own by default.
        num_resamples: of the intervals; 0 gives none.
        seed: of the resamples.
        recipe: `varpro` minimises the sum of Huber(1e-3) of log residuals from variable-projection starts; `hoffmann`
            the same from the grid of Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3, with intervals from pairs as
            Besiroglu et al. 2024, arXiv 2404.10102, have them; `least-squares` the squares of log residuals.
        interval: how intervals are made; `auto` as `analysis.uncertainty.choose_method` says.
        sd: standard deviation of each y, in its units: a point counts by the share of it that is noise. Only their
            ratios matter; how large the noise is, residuals tell.
        identify: whether to ask if the data identify a law of several variables, which takes longer than the estimate.

    A fit that cannot be made is returned as a value: too few points, or one y at all of them, leave `params` empty.

    Raises:
        ValueError: recipe hoffmann of a law that is no sum of powers.
    """
    missing = law.shortfall(x)
    if missing:
        return Fit(law=law, params={}, outcome="too_few_points", reason=missing, num_points=len(y))
    points = Points.of(law, x, y, trials, floor, sd)
    problem, delta = points.problem(), delta_of(recipe)
    starts = _starts(points, problem, recipe)
    if np.ptp(points.log_y) < 1e-12:
        alike = f"y is {y[0]:.6g} at every point: nothing falls"
        return Fit(law=law, params={}, outcome="not_identified", reason=alike, num_points=len(y))
    thetas, objectives = _solve_once(problem, starts, delta)
    best = int(np.argmin(objectives))
    close = objectives <= objectives[best] * (1 + 1e-6) + 1e-6 * HUBER_DELTA**2
    degenerate = _degenerate(points, thetas[best], problem)
    outcome, reason = _outcome(points, thetas[best], problem, float(close.mean()))
    fit = Fit(
        law=law,
        params={name: float(value) for name, value in points.params(thetas[best]).items()},
        outcome="at_bound" if degenerate else outcome,
        reason=degenerate or reason,
        is_degenerate=degenerate is not None,
        starts_agree=float(close.mean()),
        num_points=len(points),
        objective=float(objectives[best]),
    )
    if num_resamples:
        method = _method(points, recipe, interval)
        fit = _with_draws(fit, points, thetas[best], method, num_resamples, seed, delta)
    return _check_identification(fit, points, thetas[best], x) if identify and len(law.variables) > 1 else fit


def _starts(points: Points, problem: Problem, recipe: Recipe) -> Array:
    if recipe != "hoffmann":
        return projected_starts(problem.thinned(MOST_START_POINTS), NUM_STARTS)
    if not isinstance(points.law, PowerSum):
        raise ValueError(f"recipe 'hoffmann' is of sums of powers; {points.law.equation} is none. Use varpro.")
    grid = points.law.shift(hoffmann_starts(points.law), -points.x_mean, -points.y_mean)
    grid = np.clip(grid, problem.low, problem.high)
    return grid[np.argsort(objective(problem, grid, HUBER_DELTA), kind="stable")[:NUM_GRID_STARTS]]


def _solve_once(problem: Problem, starts: Array, delta: float) -> tuple[Array, Array]:
    """Every start polished; starts that have met are polished once."""
    _, first, where = np.unique(np.round(starts, 3), axis=0, return_index=True, return_inverse=True)
    thetas, objectives = polish(problem, starts[first], delta, again=False)
    where = where.ravel()
    return thetas[where], objectives[where]


def _method(points: Points, recipe: Recipe, interval: IntervalMethod) -> Method:
    if interval != "auto":
        return interval
    return "pairs" if recipe == "hoffmann" else choose_method(points.num_trials, points.num_free, len(points))


def _degenerate(points: Points, theta: Array, problem: Problem) -> str | None:
    """That an exponent, a rate or a term ended at the edge of the box, in words; None where all lie within."""
    law, edge = points.law, _at_edge(points, theta, problem)
    exponents = [name for name in edge if name in law.exponents]
    if exponents:
        low, high = EXPONENT_BOUNDS
        flat = all(theta[law.theta_names.index(name)] < 2 * low for name in exponents)
        why = ": y does not fall as a power there" if flat else ""
        return f"{', '.join(exponents)} ended at the edge of {low:g} to {high:g}{why}"
    rates = [name for name in edge if name in law.rates]
    if rates:
        return f"{', '.join(rates)} ended at the edge of its range"
    terms = [name for name in edge if name in law.coefficients]
    return f"the term with {', '.join(terms)} vanished" if terms else None


def _at_edge(points: Points, theta: Array, problem: Problem) -> list[str]:
    ends = zip(points.law.theta_names, theta, problem.low, problem.high, strict=True)
    return [name for name, t, a, b in ends if b > a and (t - a < 1e-6 or b - t < 1e-6)]


def _outcome(points: Points, theta: Array, problem: Problem, agree: float) -> tuple[str, str | None]:
    """Whether the floor lies inside its range, and whether starts found the optimum together."""
    law = points.law
    if law.floor in _at_edge(points, theta, problem) and len(law.variables) > 1:
        where = "0" if theta[0] - problem.low[0] < 1e-6 else "the largest value that the points leave it"
        return "at_bound", f"{law.floor} ended at {where}"
    if agree < 0.2:
        return "starts_disagree", f"only {agree:.0%} of the starts reached the best optimum"
    return "converged", None


def _with_draws(
    fit: Fit, points: Points, theta: Array, method: Method, num_resamples: int, seed: int, delta: float
) -> Fit:
    """The fit with resampled parameters, each resample solved from the estimate."""
    draws = resample(points, theta, method, num_resamples, delta, seed)
    fit = replace(fit, draws=points.params(draws.theta), rule=draws.words, is_normal=draws.is_normal)
    if method == "profile":
        words = f"95% profile likelihood of each parameter; of predictions and exponents of N* {draws.words[4:]}"
        return replace(fit, bands=profile_intervals(points, theta), rule=words)
    return fit


def fit_power(
    flops: Array,
    y: Array,
    *,
    trials: object = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    recipe: Recipe = "varpro",
    interval: IntervalMethod = "auto",
    floor: float | str = "free",
    sd: Array | None = None,
) -> Fit:
    """y = A * C^-beta + floor, or without the floor where the data do not identify one.

    A floor is refused when its profile is flat to 0, when its 95% interval reaches 0, or when there are too few points;
    `floor_reason` says which. The fit with a floor is then kept in `free`. `floor` is free, zero, or the value that it
    is held at; other arguments as for `fit_law`.
    """
    x = np.asarray(flops, dtype=float)[:, None]
    y = np.asarray(y, dtype=float)

    def fitted(law: Law, value: float | None = None) -> Fit:
        return fit_law(
            law,
            x,
            y,
            trials=trials,
            num_resamples=num_resamples,
            seed=seed,
            recipe=recipe,
            interval=interval,
            floor=value,
            sd=sd,
        )

    if floor in ("zero", 0.0):
        return fitted(PowerLaw(has_floor=False))
    if not isinstance(floor, str):
        return _held(fitted(PowerLaw(), floor), floor, float(y.min()))
    free = fitted(PowerLaw())
    profile, reason = None, free.reason
    if free.succeeded:
        points = Points.of(free.law, x, y, trials, sd=sd)
        profile = profile_floor(points, points.theta(free.params))
        reason = free.reason if free.outcome == "at_bound" else why_refused(profile, free.ci95["floor"], float(y.min()))
    if reason is None:
        return replace(free, floor_identified=True, profile=profile)
    plain = fitted(PowerLaw(has_floor=False))
    kept = free if free.outcome == "converged" else None
    return replace(plain, floor_identified=False, floor_reason=reason, profile=profile, free=kept)


def _held(fit: Fit, floor: float, smallest: float) -> Fit:
    """A floor above the smallest y leaves points that no such law reaches."""
    if floor < smallest:
        return fit
    reason = f"the floor is held at {floor:g}, and the smallest y is {smallest:.4g}: no A C^-beta lies below it"
    return replace(fit, outcome="at_bound", reason=reason)


def _check_identification(fit: Fit, points: Points, theta: Array, x: Array) -> Fit:
    """Not identified: terms that do not vary apart, a floor that may be 0, resamples that run to the bounds."""
    blind = fit.law.blind_spot(x, fit.params)
    if blind:
        apart = rise_together(x[:, :2], fit.law.variables[:2]) is None
        return replace(fit, outcome="not_identified", reason=blind, is_degenerate=fit.is_degenerate or not apart)
    if fit.outcome != "converged":
        return fit
    if fit.law.floor:
        profile = profile_floor(points, theta)
        fit = replace(fit, profile=profile)
        if flat_to_zero(profile):
            reason = f"{fit.law.floor}'s profile is flat down to 0 ({compared(profile)})"
            return replace(fit, outcome="not_identified", reason=reason)
    low, high = EXPONENT_BOUNDS
    for name in fit.law.exponents:
        draws = fit.draws.get(name, np.empty(0))
        at_edge = np.mean((draws < low * 1.01) | (draws > high * 0.99)) if len(draws) else 0
        if at_edge > 0.05:
            reason = f"{name} ran to its bounds in {at_edge:.0%} of the resamples"
            return replace(fit, outcome="not_identified", reason=reason)
    return fit
