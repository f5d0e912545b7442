"""Budgets as whole steps: FLOPs <-> samples <-> steps, and the batch size that goes with them."""

from __future__ import annotations

import math

from models.config import preset
from models.cost import Precision
from orchestrator.planning.devices import Device, training_flops_per_second
from orchestrator.spec.recipe import PowerBatch

MAX_BATCH = 1e15
"""What no rule goes beyond: such a batch is more than any budget pays for, and is refused as that."""


def steps_of_flops(budget_flops: float, flops_per_sample: float, batch_size: int) -> int:
    """The number of optimizer steps whose training FLOPs are nearest to `budget_flops`; 0 if less than one fits."""
    exact = budget_flops / (flops_per_sample * batch_size)
    return round(exact) if exact >= 1 else 0


def steps_of_samples(budget_samples: float, batch_size: int) -> int:
    """The number of whole optimizer steps within `budget_samples`; 0 if less than one fits."""
    return math.floor(budget_samples / batch_size)


def flops_of_hours(hours: float, device: Device, precision: Precision) -> float:
    """Training FLOPs of so many hours of one device (of one core of a CPU) at its speed on a large model, DiT-XL/2.

    One speed for all sizes, so that a budget is the same FLOPs for each; 12 digits, as identities hang on it.
    """
    speed, _ = training_flops_per_second(
        device, preset("XL/2"), precision, micro_batch=128, activation_checkpointing=False
    )
    return float(f"{hours * 3600 * speed:.12g}")


def batch_size_of(rule: int | PowerBatch, samples: float, flops: float) -> int:
    """The batch size of a budget of about `samples`, that is `flops`: fixed, or by its rule."""
    if isinstance(rule, int):
        return rule
    exact = min(MAX_BATCH, rule.coefficient * (samples if rule.of == "samples" else flops) ** rule.exponent)
    batch = max(1, round(exact / rule.multiple_of)) * rule.multiple_of
    return max(rule.at_least, min(batch, rule.at_most or batch))


def cooldown_start(steps: int, cooldown: float) -> int:
    """The step after which a run of `steps` cools down over the share `cooldown` of its steps, which is never none."""
    return steps - max(1, round(cooldown * steps))
