"""Budgets as whole steps: FLOPs <-> samples <-> steps, and the batch size that goes with them."""

from __future__ import annotations

import math

from orchestrator.spec.recipe import PowerBatch


def steps_of_flops(budget_flops: float, flops_per_sample: float, batch_size: int) -> int:
    """The number of optimizer steps whose training FLOPs are nearest to `budget_flops`; 0 if less than one fits."""
    exact = budget_flops / (flops_per_sample * batch_size)
    return round(exact) if exact >= 1 else 0


def steps_of_samples(budget_samples: float, batch_size: int) -> int:
    """The number of whole optimizer steps within `budget_samples`; 0 if less than one fits."""
    return math.floor(budget_samples / batch_size)


def batch_size_of(rule: int | PowerBatch, samples: float, flops: float) -> int:
    """The batch size of a budget of about `samples`, that is `flops`: fixed, or by its rule."""
    if isinstance(rule, int):
        return rule
    exact = rule.coefficient * (samples if rule.of == "samples" else flops) ** rule.exponent
    batch = max(1, round(exact / rule.multiple_of)) * rule.multiple_of
    return max(rule.at_least, min(batch, rule.at_most or batch))


def cooldown_start(steps: int, cooldown: float) -> int:
    """The step after which a run of `steps` cools down over the share `cooldown` of its steps, which is never none."""
    return steps - max(1, round(cooldown * steps))
