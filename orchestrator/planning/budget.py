"""Budgets as whole steps: FLOPs <-> samples <-> steps."""

from __future__ import annotations


def steps_of_flops(budget_flops: float, flops_per_sample: float, batch_size: int) -> int:
    """The number of optimizer steps whose training FLOPs are nearest to `budget_flops`; 0 if less than one fits."""
    exact = budget_flops / (flops_per_sample * batch_size)
    return round(exact) if exact >= 1 else 0


def steps_of_samples(budget_samples: int, batch_size: int) -> int:
    """The number of whole optimizer steps within `budget_samples`; 0 if less than one fits."""
    return budget_samples // batch_size
