"""Fit a law to points: estimate, outcome, uncertainty, and whether the data identify its floor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.bootstrap import Interval, choose_rule, describe_rule, interval, intervals, pair_weights, residual_draws
from analysis.laws import EXPONENT_BOUNDS, Array, Law, PowerLaw
from analysis.solver import HUBER_DELTA, Problem, polish, projected_starts

NUM_RESAMPLES = 1000
NUM_STARTS = 16


@dataclass(frozen=True, kw_only=True)
class FloorProfile:
    """How well each fixed floor fits: `statistic` is an F ratio against the best floor, refused above `threshold`."""

    floors: Array
    statistic: Array
    threshold: float
    interval: Interval
    """Floors that the data do not refuse at 95%."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An estimate, or why there is none. `draws` holds the resampled parameters, one array of each."""

    law: Law
    params: dict[str, float]
    outcome: str
    """converged, at_bound, not_identified, starts_disagree or too_few_points."""
    reason: str | None
    starts_agree: float | None
    num_points: int
    objective: float | None = None
    draws: dict[str, Array] = field(default_factory=dict)
    rule: str = ""
    floor_identified: bool | None = None
    floor_reason: str | None = None
    profile: FloorProfile | None = None
    free: Fit | None = None
    """Where the floor was refused: the fit that had one."""

    @property
    def succeeded(self) -> bool:
        return bool(self.params)

    @property
    def ci95(self) -> dict[str, Interval | None]:
        """Percentile 95% interval of each parameter.

        Where a floor was refused, the others' intervals cover the law with and without one, and the floor's is what its
        profile leaves open: the exponent is only as well known as the floor is.
        """
        values = intervals(self.draws) if self.draws else dict.fromkeys(self.params)
        if self.free is not None and self.free.draws:
            values = {name: _hull(band, interval(self.free.draws[name])) for name, band in values.items()}
        if self.floor_identified is False and self.profile is not None:
            values["floor"] = self.profile.interval
        return values

    def predict(self, *x: float | Array) -> Array:
        """The law at x (one argument a variable), in units of y."""
        return _evaluate(self.law, self.params, x)

    def predict_interval(self, *x: float | Array) -> tuple[Array, Array] | None:
        """95% interval of the law at x; where a floor was refused it covers the law with and without one."""
        if not self.draws:
            return None
        fits = [self] if self.free is None or not self.free.draws else [self, self.free]
        bands = [np.nanpercentile(_evaluate(f.law, f.draws, x), [2.5, 97.5], axis=-1) for f in fits]
        return np.min([b[0] for b in bands], axis=0), np.max([b[1] for b in bands], axis=0)


def _hull(one: Interval | None, two: Interval | None) -> Interval | None:
    return (min(one[0], two[0]), max(one[1], two[1])) if one and two else one


def _evaluate(law: Law, params: dict[str, float] | dict[str, Array], x: tuple[float | Array, ...]) -> Array:
    """y for scalars, or with resamples along a last axis."""
    total = np.asarray(params[law.floor] if law.floor else 0.0)
    for name, exponent, value in zip(law.coefficients, law.exponents, x, strict=True):
        base = np.log(np.asarray(value, dtype=float))
        base = base[..., None] if np.ndim(params[name]) else base
        with np.errstate(over="ignore", divide="ignore"):
            total = total + np.exp(np.log(params[name]) - np.asarray(params[exponent]) * base)
    return np.asarray(total)


@dataclass(frozen=True, kw_only=True)
class _Centred:
    """Points in centred logs, which is what the solver works in."""

    law: Law
    log_x: Array
    log_y: Array
    x_mean: Array
    y_mean: float

    @classmethod
    def of(cls, law: Law, x: Array, y: Array) -> _Centred:
        log_x, log_y = np.log(x), np.log(y)
        x_mean, y_mean = log_x.mean(axis=0), float(log_y.mean())
        return cls(law=law, log_x=log_x - x_mean, log_y=log_y - y_mean, x_mean=x_mean, y_mean=y_mean)

    def problem(self, log_y: Array | None = None, weights: Array | None = None) -> Problem:
        low, high = self.law.bounds(self.log_y)
        log_y = self.log_y[None] if log_y is None else log_y
        weights = np.ones((1, len(self.log_y))) if weights is None else weights
        return Problem(law=self.law, log_x=self.log_x, log_y=log_y, weights=weights, low=low, high=high)

    def params(self, theta: Array) -> dict[str, Array]:
        return self.law.to_params(self.law.shift(theta, self.x_mean, self.y_mean))


def trial_index(trials: object, n: int) -> NDArray[np.int64]:
    """Trials as 0, 1, 2, ...; without any, each row is its own."""
    if trials is None:
        return np.arange(n, dtype=np.int64)
    return np.unique(np.asarray(trials).astype(str), return_inverse=True)[1].astype(np.int64)


def fit_law(
    law: Law, x: Array, y: Array, *, trials: object = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Fit:
    """Fit `law` to x of shape (n, variables) and y of shape (n,), all positive.

    Estimate: summed Huber(1e-3) of log residuals, from variable-projection starts (Hoffmann et al. 2022, arXiv
    2203.15556, appendix D.3; Besiroglu et al. 2024, arXiv 2404.10102). `num_resamples` 0 gives no intervals. A fit that
    cannot be made is returned as a value: too few points leave `params` empty.
    """
    n = len(y)
    missing = _too_few(law, x)
    if missing:
        return Fit(law=law, params={}, outcome="too_few_points", reason=missing, starts_agree=None, num_points=n)
    centred = _Centred.of(law, x, y)
    problem = centred.problem()
    thetas, objectives = polish(problem, projected_starts(problem, NUM_STARTS))
    best = int(np.argmin(objectives))
    close = objectives <= objectives[best] * (1 + 1e-6) + 1e-6 * HUBER_DELTA**2
    outcome, reason = _outcome(law, thetas[best], problem, float(close.mean()))
    fit = Fit(
        law=law,
        params={name: float(value) for name, value in centred.params(thetas[best]).items()},
        outcome=outcome,
        reason=reason,
        starts_agree=float(close.mean()),
        num_points=n,
        objective=float(objectives[best]),
    )
    if num_resamples:
        fit = _with_draws(fit, centred, thetas[best], trial_index(trials, n), num_resamples, seed)
    return _check_identification(fit, x, y) if law.name == "surface" else fit


def _too_few(law: Law, x: Array) -> str | None:
    distinct = len(np.unique(x, axis=0))
    if distinct < law.min_points:
        return f"{law.equation} needs {law.min_points} distinct points; there are {distinct}"
    for k, name in enumerate(law.variables):
        values = len(np.unique(x[:, k]))
        if values < 3:
            return f"{law.equation} needs 3 different values of {name}; there are {values}"
    return None


def _outcome(law: Law, theta: Array, problem: Problem, agree: float) -> tuple[str, str | None]:
    """Whether the optimum lies inside the box, and whether starts found it together."""
    low, high = problem.low, problem.high
    edge = [n for n, t, a, b in zip(law.theta_names, theta, low, high, strict=True) if t - a < 1e-6 or b - t < 1e-6]
    exponents = [name for name in edge if name in law.exponents]
    if exponents:
        return (
            "at_bound",
            f"{', '.join(exponents)} ended at the edge of {EXPONENT_BOUNDS[0]:g} to {EXPONENT_BOUNDS[1]:g}",
        )
    terms = [name for name in edge if name != law.floor]
    if terms:
        return "at_bound", f"the term with {', '.join(terms)} vanished"
    if law.floor in edge and law.name == "surface":
        return "at_bound", f"{law.floor} ended at 0"
    if agree < 0.2:
        return "starts_disagree", f"only {agree:.0%} of the starts reached the best optimum"
    return "converged", None


def _with_draws(
    fit: Fit, centred: _Centred, theta: Array, trials: NDArray[np.int64], num_resamples: int, seed: int
) -> Fit:
    """The fit with resampled parameters, each resample solved from the estimate."""
    rng = np.random.default_rng(seed)
    law, p = fit.law, fit.law.num_params
    rule = choose_rule(trials, p)
    if rule == "pairs":
        problem = centred.problem(weights=pair_weights(trials, num_resamples, rng))
    else:
        fitted = law.log_y(theta[None], centred.log_x)[0]
        noise = residual_draws(centred.log_y - fitted, trials, p, num_resamples, rng)
        problem = centred.problem(log_y=fitted + noise)
    solved, _ = polish(problem, np.repeat(theta[None], num_resamples, axis=0))
    words = describe_rule(rule, int(trials.max()) + 1, num_resamples)
    return replace(fit, draws=centred.params(solved), rule=words)


def profile_floor(law: Law, x: Array, y: Array, floor: float, num_floors: int = 25) -> FloorProfile:
    """Refit with the floor fixed at values from 0 to the smallest y, and compare by a robust F ratio.

    Residuals count as Huber(1.345 s), with s their scale at the fit, so that outliers neither make nor
    break a floor (the rho test: Hampel, Ronchetti, Rousseeuw and Stahel 1986, section 7.2). `floor` is the fitted one.
    """
    centred = _Centred.of(law, x, y)
    problem = centred.problem()
    dof = max(1, len(y) - law.num_params)
    starts = projected_starts(problem, 8)
    fitted, values = polish(problem, starts)
    s = _scale(centred.log_y - law.log_y(fitted[[np.argmin(values)]], centred.log_x)[0], law.num_params)
    smallest = float(y.min())
    steps = np.linspace(0.0, 1.0, num_floors)[:-1]
    floors = np.unique(np.append(smallest * (1 - (1 - steps) ** 2), min(max(floor, 0.0), smallest * 0.9999)))
    logs = np.maximum(np.log(np.maximum(floors, 1e-300)) - centred.y_mean, problem.low[0])
    low, high = (np.repeat(bound[None], len(floors), axis=0) for bound in (problem.low, problem.high))
    low[:, 0] = high[:, 0] = logs
    objective = np.full(len(floors), np.inf)
    for start in starts[:4]:
        thetas = np.repeat(start[None], len(floors), axis=0)
        _, found = polish(replace(problem, low=low, high=high), thetas, delta=1.345 * s)
        objective = np.minimum(objective, found)
    _, free = polish(problem, starts, delta=1.345 * s)
    statistic = 2 * np.maximum(objective - min(free.min(), objective.min()), 0.0) / s**2
    threshold = float(special.fdtri(1, dof, 0.95))
    kept = floors[statistic <= threshold]
    bounds = (float(kept.min()), float(kept.max())) if len(kept) else (floor, floor)
    return FloorProfile(floors=floors, statistic=statistic, threshold=threshold, interval=bounds)


def _scale(residuals: Array, num_params: int) -> float:
    """Robust standard deviation of residuals, of which as many as there are parameters may be zero by construction.

    Never below 1e-6, the share of y at which a term counts as absent.
    """
    size = np.sort(np.abs(residuals))[min(num_params, len(residuals) - 1) :]
    spread = 1.4826 * float(np.median(size))
    clipped = np.clip(residuals, -3 * spread, 3 * spread)
    return max(float(np.sqrt(np.sum(clipped**2) / max(1, len(residuals) - num_params))), 1e-6)


def fit_power(
    flops: Array, y: Array, *, trials: object = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Fit:
    """y = A * C^-beta + floor, or without the floor where the data do not identify one.

    A floor is refused when its profile is flat to 0, when its 95% interval reaches 0, or when there are too few points;
    `floor_reason` says which. The fit with a floor is then kept in `free`.
    """
    x = np.asarray(flops, dtype=float)[:, None]
    y = np.asarray(y, dtype=float)
    free = fit_law(PowerLaw(), x, y, trials=trials, num_resamples=num_resamples, seed=seed)
    profile, reason = None, free.reason
    if free.succeeded:
        profile = profile_floor(free.law, x, y, free.params["floor"])
        reason = _why_refused(free, profile, float(y.min()))
    if reason is None:
        return replace(free, floor_identified=True, profile=profile)
    plain = fit_law(PowerLaw(has_floor=False), x, y, trials=trials, num_resamples=num_resamples, seed=seed)
    kept = free if free.outcome == "converged" else None
    return replace(plain, floor_identified=False, floor_reason=reason, profile=profile, free=kept)


def _why_refused(fit: Fit, profile: FloorProfile, smallest: float) -> str | None:
    if fit.outcome == "at_bound":
        return fit.reason
    at_zero = float(profile.statistic[0])
    if at_zero <= profile.threshold:
        return (
            f"its profile is flat down to 0: a law without a floor fits as well "
            f"(F = {at_zero:.2g}, refused above {profile.threshold:.3g})"
        )
    band = interval(fit.draws["floor"]) if fit.draws else None
    if band is not None and band[0] < 1e-3 * smallest:
        return f"its bootstrap interval reaches 0 ({band[0]:.3g} to {band[1]:.3g})"
    return None


def _check_identification(fit: Fit, x: Array, y: Array) -> Fit:
    """A surface is not identified when N and D rise together, its floor may be 0, or resamples run to the bounds."""
    spread = np.log(x) - np.log(x).mean(axis=0)
    if np.linalg.svd(spread, compute_uv=False)[-1] < 0.02 * np.sqrt(len(y)):
        reason = "params and samples rise together, so their terms cannot be told apart; vary one while the other stays"
        return replace(fit, outcome="not_identified", reason=reason)
    if fit.outcome != "converged":
        return fit
    profile = profile_floor(fit.law, x, y, fit.params["E"])
    if profile.statistic[0] <= profile.threshold:
        reason = (
            f"E's profile is flat down to 0 (F = {profile.statistic[0]:.2g}, refused above {profile.threshold:.3g})"
        )
        return replace(fit, outcome="not_identified", reason=reason, profile=profile)
    for name in fit.law.exponents:
        draws = fit.draws.get(name, np.empty(0))
        at_edge = (
            np.mean((draws < EXPONENT_BOUNDS[0] * 1.01) | (draws > EXPONENT_BOUNDS[1] * 0.99)) if len(draws) else 0
        )
        if at_edge > 0.05:
            reason = f"{name} ran to its bounds in {at_edge:.0%} of the resamples"
            return replace(fit, outcome="not_identified", reason=reason, profile=profile)
    return replace(fit, profile=profile)
