"""How the intervals of a fit are made: pairs, residual and wild bootstraps, the delta method, and which by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.bootstrap import pair_weights, residual_draws, tail_factor, wild_draws
from analysis.laws import Array
from analysis.likelihood import EFFICIENT, Likelihood
from analysis.points import Points, covariance
from analysis.solver import polish
from analysis.trial_effects import trial_effects

Method = Literal["pairs", "residual", "wild", "profile", "delta"]

MIN_TRIALS_FOR_PAIRS = 20
"""Fewest independent runs of which some may be left out by a draw, and for each parameter:"""
MIN_TRIALS_PER_PARAM = 5

MOST_CELLS = 4_000_000
"""Resamples times points beyond which fewer resamples are drawn, though never fewer than:"""
LEAST_RESAMPLES = 200
MOST_POINTS = MOST_CELLS // LEAST_RESAMPLES
"""Points beyond which pairs are drawn to first order: refits of so many points take minutes, and differ by nothing."""

_WORDS = {
    "pairs": "drawn whole, with replacement",
    "residual": "whose residuals are exchanged",
    "wild": "each run's residuals with a random sign",
}


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Resampled thetas, centred, (resamples, p), and how they were made, in words."""

    theta: Array
    words: str
    is_normal: bool = False
    """Whether they are normal about the estimate, not refits."""


def choose_method(num_trials: int, num_params: int, num_points: int) -> Method:
    """Which method makes the intervals where none is asked for.

    `pairs` with at least 20 runs and 5 a parameter: it asks nothing of the noise. With fewer, leaving some out widens
    intervals; then the `profile` where every run is one point, and `delta`, which knows what runs share, where they
    have several: a profile takes points as independent. docs/coverage.md has what each holds.
    """
    if enough_for_pairs(num_trials, num_params):
        return "pairs"
    return "profile" if num_trials == num_points else "delta"


def enough_for_pairs(num_trials: int, num_params: int) -> bool:
    """At least 20 runs, and 5 a parameter."""
    return num_trials >= max(MIN_TRIALS_FOR_PAIRS, MIN_TRIALS_PER_PARAM * num_params)


def words_of(method: Method, num_trials: int, num_resamples: int) -> str:
    """A bootstrap in words, for people."""
    return f"95% percentile bootstrap, {num_resamples} resamples of {num_trials} independent runs ({_WORDS[method]})"


def resamples_for(asked: int, num_points: int) -> int:
    """As many as asked for, but of big tables at most 4 million points drawn in all, and no fewer than 200."""
    return min(asked, max(LEAST_RESAMPLES, MOST_CELLS // max(1, num_points)))


def resample(points: Points, theta: Array, method: Method, asked: int, delta: float, seed: int) -> Draws:
    """Refits of resampled points from the estimate `theta` (p,); of the profile's, those of the delta method."""
    rng, num = np.random.default_rng(seed), resamples_for(asked, len(points))
    if method in ("profile", "delta"):
        centre, steps, words = _normal_steps(points, theta, delta, method, num, rng)
        within = _inside(centre, steps, points.problem().low, points.problem().high)
        return Draws(theta=centre + steps * within, words=words, is_normal=True)
    if method == "pairs" and len(points) > MOST_POINTS:
        steps = _first_order(points, theta, delta, asked, rng)
        within = _inside(theta, steps, points.problem().low, points.problem().high)
        words = f"95% of pairs to first order: normal, with the covariance by {points.num_trials} independent runs"
        return Draws(theta=theta + steps * within, words=words, is_normal=True)
    fitted, residuals = points.fitted(theta), points.residuals(theta)
    if method == "pairs":
        problem = points.problem(weights=pair_weights(points.trials, num, rng))
    elif method == "residual":
        drawn = residual_draws(residuals, points.trials, points.num_free, num, rng)
        problem = points.problem(log_y=fitted + drawn * points.noise)
    else:
        drawn = wild_draws(residuals, points.trials, points.num_free, num, rng)
        problem = points.problem(log_y=fitted + drawn * points.noise)
    solved, _ = polish(problem, np.repeat(theta[None], num, axis=0), delta=delta, near=True)
    words = words_of(method, points.num_trials, num)
    if num < asked:
        words += f"; {asked} were asked for, {MOST_CELLS:.0e} points are drawn at most"
    return Draws(theta=solved, words=words)


def _normal_steps(
    points: Points, theta: Array, delta: float, method: Method, num: int, rng: np.random.Generator
) -> tuple[Array, Array, str]:
    """A centre (p,), steps from it (num, p) as the delta method has them, and it in words.

    Where trials have several points they are of `analysis.trial_effects`; else, for a profile, of the estimate that its
    likelihood has, and otherwise of the estimate itself.
    """
    if points.num_trials < len(points):
        effects = trial_effects(points, theta, delta)
        known = effects.dof[np.isfinite(effects.dof)]
        dof = f"{known.min():.3g} to {known.max():.3g} degrees of freedom" if len(known) else "no parameter is free"
        runs = f"an effect of each of {points.num_trials} runs"
        if points.num_trials == 1:
            runs = "one run alone: what another would differ by is not in it"
        return theta, effects.steps(num, rng), f"95% Student t ({dof}), with {runs}"
    if method == "profile":
        likelihood = Likelihood.of(points, theta)
        theta, delta = likelihood.theta, EFFICIENT * likelihood.scale
    values, vectors = np.linalg.eigh(covariance(points, theta, delta))
    wide = tail_factor(len(points) - points.num_free, points.num_trials)
    root = wide * vectors * np.sqrt(np.maximum(values, 0.0))
    words = "95% by the delta method: normal, from the curvature at the estimate"
    return theta, rng.standard_normal((num, len(theta))) @ root.T, words


def _first_order(points: Points, theta: Array, delta: float, num: int, rng: np.random.Generator) -> Array:
    """Steps (num, p) from the estimate as pairs of runs make them where their number is large: normal, with the sum
    over runs of the squared first-order moves that each one makes (White 1980, Econometrica 48; by clusters Liang and
    Zeger 1986, Biometrika 73)."""
    moves = points.first_order(theta, delta)
    by_run = np.stack([np.bincount(points.trials, move) for move in moves.T], axis=1)
    values, vectors = np.linalg.eigh(by_run.T @ by_run)
    wide = tail_factor(len(points) - points.num_free, points.num_trials)
    return np.asarray(rng.standard_normal((num, len(theta))) @ (wide * vectors * np.sqrt(np.maximum(values, 0.0))).T)


def _inside(theta: Array, steps: Array, low: Array, high: Array) -> Array:
    """How far each step may go before it leaves the box, (num, 1): at most whole.

    Parameters are shortened together. One by one they would lose what binds them, and with it every prediction.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(steps > 0, (high - theta) / steps, np.where(steps < 0, (low - theta) / steps, np.inf))
    return np.clip(room.min(axis=1, keepdims=True), 0.0, 1.0)
