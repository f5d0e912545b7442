"""The counters of a training trajectory: what a checkpoint keeps beside tensors, and when a trial has diverged."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

RUNNING_STEPS = 50
"""The running training loss averages over about so many steps."""
GRACE_STEPS = 20
"""Steps before a rise of the loss counts as divergence."""
CONTROL_SECONDS = 1.0
"""How late the workers of a larger gang may hear that they are to stop, where steps are no longer than that."""
CONTROL_STEPS = 16
"""The most steps between two such moments: where steps are short they would cost more than that."""


@dataclass
class Counters:
    """Losses so far, updated once a step and in order, so that they do not depend on when anyone looks."""

    steps: int = 0
    running_loss: float | None = None
    lowest_loss: float = math.inf
    window_sum: float = 0.0
    window_steps: int = 0
    wall_seconds: float = 0.0
    diverged: str | None = None

    def add(self, loss: float, batch_size: int, factor: float) -> None:
        """Take in one step's training loss; from the first sign of divergence on, nothing changes any more."""
        if self.diverged is not None:
            return
        self.steps += 1
        if not math.isfinite(loss):
            self.diverged = f"training loss is {loss} at {self.steps * batch_size} samples"
            return
        weight = max(1 / self.steps, 1 / RUNNING_STEPS)
        self.running_loss = (
            loss if self.running_loss is None else self.running_loss + weight * (loss - self.running_loss)
        )
        self.window_sum += loss
        self.window_steps += 1
        # From the first step on: a trial that explodes at once must not become its own yardstick.
        self.lowest_loss = min(self.lowest_loss, self.running_loss)
        if self.steps > GRACE_STEPS and self.running_loss > factor * self.lowest_loss:
            self.diverged = (
                f"training loss rose to {self.running_loss:.4g} at {self.steps * batch_size} samples, "
                f"more than {factor:g} x its lowest, {self.lowest_loss:.4g}"
            )

    def close_window(self) -> float | None:
        """The mean loss since the last point of the curve, and begin the next."""
        mean = self.window_sum / self.window_steps if self.window_steps else None
        self.window_sum, self.window_steps = 0.0, 0
        return mean

    def as_json(self) -> dict[str, Any]:
        """Plain values that JSON gives back exactly."""
        return {**asdict(self), "lowest_loss": None if math.isinf(self.lowest_loss) else self.lowest_loss}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counters:
        """The inverse of `as_json`."""
        lowest = values["lowest_loss"]
        return cls(**{**values, "lowest_loss": math.inf if lowest is None else lowest})


class Control:
    """When the workers of a larger gang next agree on stopping or saving: after about CONTROL_SECONDS' worth of steps.

    Every worker counts the same steps; how fast they are only rank 0 says, and the others hear of it as they agree.
    """

    def __init__(self) -> None:
        self.steps_apart = 1
        """What rank 0 takes for right; others may find other numbers."""
        self._next = self._at = 0
        self._when = 0.0

    def begin(self, steps: int, now: float) -> None:
        """Training begins or goes on after `steps` steps; the first look comes after one more."""
        self._next, self._at, self._when = steps + 1, steps, now

    def is_due(self, steps: int) -> bool:
        """Whether to agree after `steps` steps."""
        return steps >= self._next

    def agreed(self, steps: int, steps_apart: int, now: float) -> None:
        """They have agreed after `steps` steps that the next time is `steps_apart` later, by rank 0's word."""
        seconds = max((now - self._when) / max(1, steps - self._at), 1e-9)
        self.steps_apart = max(1, min(CONTROL_STEPS, int(CONTROL_SECONDS / seconds)))
        self._next, self._at, self._when = steps + steps_apart, steps, now


def is_curve_step(step: int) -> bool:
    """Whether the training curve has a point after `step` steps: each of the first 32, then 32 an octave."""
    return step % (1 << max(0, step.bit_length() - 6)) == 0
