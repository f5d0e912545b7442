"""IsoFLOP profiles: at each budget a parabola (and a cubic) in log N, its minimum, and power laws through the minima.

Hoffmann et al. 2022, arXiv 2203.15556, section 3.2 (approach 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.bootstrap import Interval, interval, pair_weights, residual_draws, tail_factor
from analysis.estimate import Estimate
from analysis.fitting import NUM_RESAMPLES
from analysis.frontier import budget_of
from analysis.laws import Array
from analysis.points import trial_index
from analysis.uncertainty import Method, enough_for_pairs, words_of
from analysis.valleys import MIN_SIZES, Profile, Windows, noise_of

MIN_BUDGETS = 2
MIN_SCATTER = 4
"""Fewest minima whose scatter about their line says something of their noise."""


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The minimum of one budget's profile. `reason` says why it is not bracketed by the sizes that were run."""

    flops: float
    params: float | None
    samples: float | None
    loss: float | None
    bracketed: bool
    reason: str | None
    num_points: int
    num_sizes: int
    sizes: tuple[float, float]
    """Smallest and largest N in the parabola, in parameters."""
    coefficients: tuple[float, float, float]
    """Loss = c0 + c1 u + c2 u^2 with u = log N - `centre`."""
    centre: float
    cubic_params: float | None
    """Minimum of the cubic within the sizes run; None where it has none or there are too few sizes."""
    params_ci95: Interval | None = None

    def curve(self, params: Array) -> Array:
        """The parabola's loss at N."""
        u = np.log(params) - self.centre
        return self.coefficients[0] + u * (self.coefficients[1] + u * self.coefficients[2])


@dataclass(frozen=True, kw_only=True)
class IsoflopFit(Estimate):
    """N* = N_coefficient * C^N_exponent and D* = D_coefficient * C^D_exponent, or why there are none."""

    minima: list[Minimum]
    cubic_exponent: float | None = None

    @property
    def bracketed(self) -> list[Minimum]:
        return [m for m in self.minima if m.bracketed]

    def optimum(self, letter: str, flops: float | Array) -> Array:
        """N* (`letter` N) or D* (D) at a budget in FLOPs."""
        return np.asarray(self.params[f"{letter}_coefficient"] * np.asarray(flops) ** self.params[f"{letter}_exponent"])

    def optimum_interval(self, letter: str, flops: float | Array) -> tuple[Array, Array] | None:
        """95% interval of N* or D* at a budget."""
        if not self.draws or interval(self.draws[f"{letter}_exponent"]) is None:
            return None
        logs = np.log(np.asarray(flops, dtype=float))[..., None]
        exponent, coefficient = self.draws[f"{letter}_exponent"], self.draws[f"{letter}_coefficient"]
        low, high = np.nanpercentile(np.exp(np.log(coefficient) + exponent * logs), [2.5, 97.5], axis=-1)
        return low, high

    def drawn_ratio(self, flops: float) -> Array:
        """Resampled D* / N* at a budget in FLOPs."""
        exponent = self.draws["D_exponent"] - self.draws["N_exponent"]
        return np.asarray(self.draws["D_coefficient"] / self.draws["N_coefficient"] * flops**exponent)


def fit_isoflop(
    frame: pd.DataFrame, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0, min_budgets: int = MIN_BUDGETS
) -> IsoflopFit:
    """Fit a table with params, samples, flops and loss (and budget_flops, trial_id where there are any).

    Budgets with fewer than 3 sizes are left out. ValueError when fewer than `min_budgets` remain: see `check_design`.
    """
    whole = check_design(frame, min_budgets)
    cost = _CostPerSample.of(whole)
    budgets = [
        (Windows.of(group), Profile.of(group).cubic_minimum()) for _, group in whole.groupby("budget", sort=True)
    ]
    windows = [window for window, _ in budgets]
    minima = [_minimum(window.usual, cost, cubic) for window, cubic in budgets]
    used = [i for i, m in enumerate(minima) if m.bracketed]
    log_n, rule = np.full((num_resamples, len(minima)), np.nan), ""
    if num_resamples:
        log_n, rule = _over_windows(windows, num_resamples, seed)
    if num_resamples and _has_noise(windows):
        minima = [
            replace(m, params_ci95=interval(np.exp(log_n[:, i]))) if m.bracketed else m for i, m in enumerate(minima)
        ]
    outcome, reason = _outcome(len(used), len(minima))
    fit = IsoflopFit(minima=minima, params={}, outcome=outcome, reason=reason, num_points=len(whole), rule=rule)
    if len(used) < 2:
        return fit
    flops = np.array([minima[i].flops for i in used])
    best = np.array([minima[i].params for i in used], dtype=float)
    drawn = None
    if num_resamples and (_has_noise(windows) or len(used) >= MIN_SCATTER):
        drawn = log_n[:, used] + _own_scatter(np.log(flops), np.log(best), log_n[:, used], seed)
    elif num_resamples:
        fit = replace(fit, rule="no intervals: 3 sizes a budget, and fewer than 4 budgets, leave no noise to be seen")
    return replace(
        fit,
        params={name: float(values[0]) for name, values in _lines(flops, best[None], cost).items()},
        draws={} if drawn is None else _lines(flops, np.exp(drawn), cost),
        cubic_exponent=_cubic_exponent(minima),
    )


def _has_noise(windows: list[Windows]) -> bool:
    """Whether the parabolas leave a degree of freedom from which their noise is known."""
    return sum(len(window.usual) for window in windows) > MIN_SIZES * len(windows)


def _outcome(bracketed: int, budgets: int) -> tuple[str, str | None]:
    if bracketed < 2:
        return "too_few_points", f"{bracketed} of {budgets} budgets have a bracketed minimum; a law needs 2"
    if bracketed == 2:
        return "too_few_points", "2 bracketed minima: a line through two points, with nothing left to check it"
    return "converged", None


def check_design(frame: pd.DataFrame, min_budgets: int = MIN_BUDGETS) -> pd.DataFrame:
    """The rows in budgets of at least 3 sizes, with their `budget`. ValueError with too few."""
    budgets = budget_of(frame)
    if budgets.isna().mean() > 0.5:
        raise ValueError(
            "isoflop needs runs at shared budgets; these FLOPs form a continuum, not groups within 10%. "
            "Give a budget_flops column, or fit --law surface."
        )
    keyed = frame.assign(budget=budgets).dropna(subset="budget")
    sizes = keyed.groupby("budget")["params"].nunique()
    usable = sizes[sizes >= MIN_SIZES].index
    if len(usable) < min_budgets:
        got = ", ".join(f"{budget:.3g} FLOPs: {count}" for budget, count in sizes.head(8).items())
        raise ValueError(
            f"isoflop needs at least {min_budgets} budget{'s' if min_budgets > 1 else ''} with at least {MIN_SIZES} "
            f"sizes each; got {len(usable)} of {len(sizes)} (sizes at {got or 'no budget'}). "
            "Run more sizes at each budget, or fit --law power."
        )
    return keyed[keyed["budget"].isin(usable)]


def _minimum(group: pd.DataFrame, cost: _CostPerSample, cubic: float | None) -> Minimum:
    profile = Profile.of(group)
    c = profile.parabola()
    convex = c[2] > 0
    u = -c[1] / (2 * c[2]) if convex else np.nan
    reason = None
    if not convex:
        reason = "the profile does not curve upwards"
    elif u <= profile.u.min():
        reason = "the minimum lies below the smallest size near it"
    elif u >= profile.u.max():
        reason = "the minimum lies above the largest size near it"
    budget = float(group["budget"].iloc[0])
    params = float(np.exp(u + profile.centre)) if convex and abs(u) < 50 else None
    sizes = np.exp(profile.u + profile.centre)
    return Minimum(
        flops=budget,
        params=params,
        samples=budget / float(cost.flops_per_sample(params)) if params else None,
        loss=float(c[0] + u * (c[1] + u * c[2])) if params else None,
        bracketed=reason is None,
        reason=reason,
        num_points=len(group),
        num_sizes=int(group["params"].nunique()),
        sizes=(float(sizes.min()), float(sizes.max())),
        coefficients=(float(c[0]), float(c[1]), float(c[2])),
        centre=profile.centre,
        cubic_params=cubic,
    )


def _cubic_exponent(minima: list[Minimum]) -> float | None:
    found = [(m.flops, m.cubic_params) for m in minima if m.bracketed and m.cubic_params]
    if len(found) < 2:
        return None
    x, y = np.log(np.array(found, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


@dataclass(frozen=True, kw_only=True)
class _CostPerSample:
    """log(FLOPs per sample) as a quadratic in log N over the table: exact for 6 N, smooth for a ladder of sizes."""

    polynomial: np.polynomial.Polynomial

    @classmethod
    def of(cls, frame: pd.DataFrame) -> _CostPerSample:
        logs = np.log(frame["params"].to_numpy(dtype=float))
        cost = np.log((frame["flops"] / frame["samples"]).to_numpy(dtype=float))
        degree = min(2, len(np.unique(logs)) - 1)
        return cls(polynomial=np.polynomial.Polynomial.fit(logs, cost, degree))

    def flops_per_sample(self, params: float | Array) -> Array:
        return np.asarray(np.exp(self.polynomial(np.log(params))))


def _lines(flops: Array, params: Array, cost: _CostPerSample) -> dict[str, Array]:
    """Least-squares lines of log N* and log D* on log C, for params of shape (batch, budgets); NaN has no weight."""
    x = np.log(flops)
    known = np.isfinite(params)
    log_n = np.log(np.where(known, params, 1.0))
    log_d = x - np.log(cost.flops_per_sample(np.where(known, params, np.exp(np.mean(log_n[known])))))
    result: dict[str, Array] = {}
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean_x = np.where(known, x, 0.0).sum(axis=1) / count
        dx = np.where(known, x - mean_x[:, None], 0.0)
        for letter, y in (("N", log_n), ("D", log_d)):
            slope = (dx * y).sum(axis=1) / np.where(count >= 2, (dx**2).sum(axis=1), np.nan)
            level = np.where(known, y, 0.0).sum(axis=1) / count
            result[f"{letter}_exponent"] = slope
            result[f"{letter}_coefficient"] = np.exp(level - slope * mean_x)
    return result


def _over_windows(windows: list[Windows], num_resamples: int, seed: int) -> tuple[Array, str]:
    """Resampled log N* of each budget, (resamples, budgets), NaN where not bracketed; and the rule in words.

    Half of the resamples are of the window that the estimate takes; a quarter each are moved by what a narrower, and by
    what a wider one makes of the minima: what the choice of a window does to them is in the intervals.
    """
    drawn, rule = _resampled_minima(pd.concat([window.usual for window in windows]), num_resamples, seed)
    usual, narrow, wide = (
        np.array([_vertex(getattr(window, name)) for window in windows]) for name in ("usual", "narrow", "wide")
    )
    moved = [np.nan_to_num(other - usual) for other in (narrow, wide)]
    if not np.any(moved):
        return drawn, rule
    shifts = np.stack([*moved, np.zeros_like(usual), np.zeros_like(usual)])
    chosen = np.random.default_rng([seed, 2]).integers(len(shifts), size=num_resamples)
    return drawn + shifts[chosen], f"{rule}; half of them moved as a narrower or a wider window moves the minima"


def _vertex(group: pd.DataFrame) -> float:
    """log N* of one budget's rows; NaN where it is not bracketed."""
    profile = Profile.of(group)
    return float(profile.vertices(profile.parabola()[None])[0])


def _resampled_minima(frame: pd.DataFrame, num_resamples: int, seed: int) -> tuple[Array, str]:
    """Resampled log N* of each budget for the rows of one window, and the rule in words."""
    rng = np.random.default_rng(seed)
    profiles = [Profile.of(group) for _, group in frame.groupby("budget", sort=True)]
    ordered = pd.concat([group for _, group in frame.groupby("budget", sort=True)])
    trials = trial_index(ordered.get("trial_id"), len(ordered))
    smallest = min(len(p.u) for p in profiles)
    enough = enough_for_pairs(int(trials.max()) + 1, 3 * len(profiles)) and smallest >= 8
    rule: Method = "pairs" if enough else "residual"
    fitted = np.concatenate([profile.parabola() @ profile.powers for profile in profiles])
    loss = ordered["loss"].to_numpy(dtype=float)
    if rule == "pairs":
        weights, losses = pair_weights(trials, num_resamples, rng), np.repeat(loss[None], num_resamples, axis=0)
    else:
        noise = noise_of(ordered)
        residuals = (loss - fitted) / fitted / noise
        drawn = residual_draws(residuals, trials, 3 * len(profiles), num_resamples, rng)
        weights, losses = np.ones((num_resamples, len(loss))), fitted * (1 + drawn * noise)
    ends = np.cumsum([len(p.u) for p in profiles])
    log_n = np.full((num_resamples, len(profiles)), np.nan)
    for i, (profile, end) in enumerate(zip(profiles, ends, strict=True)):
        part = slice(int(end) - len(profile.u), int(end))
        log_n[:, i] = profile.vertices(profile.parabolas(losses[:, part], weights[:, part]))
    return log_n, words_of(rule, int(trials.max()) + 1, num_resamples)


def _own_scatter(log_c: Array, log_n: Array, drawn: Array, seed: int) -> Array:
    """Noise (resamples, budgets) for the scatter of the minima about their line that their valleys' noise leaves open.

    The variance between studies of DerSimonian and Laird 1986, Control. Clin. Trials 7, with budgets as studies; for
    the few budgets from which it is known, by Student's t. None below 4 budgets, whose scatter says nothing.
    """
    budgets = len(log_c)
    if budgets < MIN_SCATTER:
        return np.zeros_like(drawn)
    slope, level = np.polyfit(log_c - log_c.mean(), log_n, 1)
    about = float(np.sum((log_n - level - slope * (log_c - log_c.mean())) ** 2)) / (budgets - 2)
    known = np.isfinite(drawn).sum(axis=0) > 1
    explained = float(np.mean(np.nanvar(drawn[:, known], axis=0))) if known.any() else 0.0
    own = np.sqrt(max(0.0, about - explained)) * tail_factor(budgets - 2, budgets)
    return own * np.random.default_rng([seed, 1]).standard_normal(drawn.shape)
