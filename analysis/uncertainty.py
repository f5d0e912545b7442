"""How the intervals of a fit are made: pairs, residual and wild bootstraps, the delta method, and which by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.bootstrap import pair_weights, residual_draws, tail_factor, wild_draws
from analysis.laws import Array
from analysis.points import Points, covariance
from analysis.solver import polish

Method = Literal["pairs", "residual", "wild", "profile", "delta"]

MIN_TRIALS_FOR_PAIRS = 20
"""Fewest independent runs of which some may be left out by a draw, and for each parameter:"""
MIN_TRIALS_PER_PARAM = 5

MOST_CELLS = 4_000_000
"""Resamples times points beyond which fewer resamples are drawn, though never fewer than:"""
LEAST_RESAMPLES = 200

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


def choose_method(num_trials: int, num_params: int, num_points: int) -> Method:
    """Which method makes the intervals where none is asked for.

    `pairs` with at least 20 runs and 5 a parameter: it asks nothing of the noise. With fewer, leaving some out widens
    intervals; then the `profile` where every run is one point, and `residual`, by run, where runs have several: a
    profile takes points as independent. docs/coverage.md has what each holds.
    """
    if enough_for_pairs(num_trials, num_params):
        return "pairs"
    return "profile" if num_trials == num_points else "residual"


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
        words = "95% by the delta method: normal, from the curvature at the estimate"
        return Draws(theta=_normal_draws(points, theta, delta, num, rng), words=words)
    fitted = points.fitted(theta)
    residuals = points.log_y - fitted
    if method == "pairs":
        problem = points.problem(weights=pair_weights(points.trials, num, rng))
    elif method == "residual":
        problem = points.problem(log_y=fitted + residual_draws(residuals, points.trials, points.num_free, num, rng))
    else:
        problem = points.problem(log_y=fitted + wild_draws(residuals, points.trials, points.num_free, num, rng))
    solved, _ = polish(problem, np.repeat(theta[None], num, axis=0), delta=delta, near=True)
    words = words_of(method, points.num_trials, num)
    if num < asked:
        words += f"; {asked} were asked for, {MOST_CELLS:.0e} points are drawn at most"
    return Draws(theta=solved, words=words)


def _normal_draws(points: Points, theta: Array, delta: float, num: int, rng: np.random.Generator) -> Array:
    values, vectors = np.linalg.eigh(covariance(points, theta, delta))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    wide = tail_factor(len(points) - points.num_free, points.num_trials)
    draws = theta + wide * rng.standard_normal((num, len(theta))) @ root.T
    low, high = points.problem().low, points.problem().high
    return np.clip(draws, low, high)
