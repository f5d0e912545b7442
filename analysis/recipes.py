"""The named ways in which a law may be estimated and its intervals made."""

from __future__ import annotations

from typing import Literal

from analysis.solver import HUBER_DELTA, LEAST_SQUARES

Recipe = Literal["varpro", "least-squares", "hoffmann"]
IntervalMethod = Literal["auto", "pairs", "residual", "wild", "profile", "delta"]


def delta_of(recipe: Recipe) -> float:
    """Huber threshold of a recipe's objective on log residuals."""
    return LEAST_SQUARES if recipe == "least-squares" else HUBER_DELTA
