"""The learning rate of a step, as a function of samples seen."""

from __future__ import annotations

import math

from orchestrator.spec.trial import CooldownSchedule, Schedule


def rate_scale(schedule: Schedule, samples: int, batch_size: int) -> float:
    """The learning rate of the step at `samples`, over the base rate.

    Warmup rises to 1 with its last step. A cooldown begins at 1 and falls over its steps, so that a further step after
    its last one would have rate 0: no step is wasted.
    """
    if isinstance(schedule, CooldownSchedule) and samples >= schedule.start:
        x = (samples - schedule.start) / (schedule.end - schedule.start)
        return 1.0 - (x if schedule.shape == "linear" else math.sqrt(x))
    warmup = schedule.warmup_samples
    return min(1.0, (samples + batch_size) / warmup) if warmup else 1.0
