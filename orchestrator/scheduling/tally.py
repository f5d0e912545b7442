"""What a driver has had trained of its plan, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.planning.plan import Plan
from orchestrator.scheduling.backend import Progress
from orchestrator.spec.trial import Trial

BELIEVED = 30.0
"""Seconds of a run after which what it shows of its pace weighs as much as the plan."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Some training: what it is, and what the plan says it takes."""

    flops: float = 0.0
    seconds: float = 0.0
    """Of a gang, as planned: its share of the trial's, evaluations included."""

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, seconds=self.seconds + other.seconds)

    def __sub__(self, other: Work) -> Work:
        return Work(flops=self.flops - other.flops, seconds=self.seconds - other.seconds)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a sweep is; fields as in `Snapshot`."""

    flops_done: float
    flops_here: float
    seconds_left: float | None


class Tally:
    """Counts training in FLOPs and in the plan's seconds: sizes differ in FLOP/s, and the plan knows about how much.

    Args:
        plan: what is to be trained.
        reached: samples up to which a trial need not be trained any more.
    """

    def __init__(self, plan: Plan, reached: Callable[[Trial], int]) -> None:
        self._gangs = plan.gangs
        self._trials = {trial.trial_id: trial for trial in plan.trials}
        own = {trial.trial_id: max(1, trial.last - plan.start(trial)) for trial in plan.trials}
        self._seconds = {trial.trial_id: plan.seconds(trial) / own[trial.trial_id] for trial in plan.trials}
        self._planned = sum((self._work(trial, own[trial.trial_id]) for trial in plan.trials), Work())
        self._before = sum((self._work(trial, reached(trial) - trial.first) for trial in plan.trials), Work())
        self._ended = self._lost = Work()
        self._since: float | None = None
        """`time.monotonic()` at which training began, if what was seen first of it went as planned."""

    def end(self, trial: Trial, samples: int, kept: int) -> None:
        """Count an attempt that has ended: the samples that it trained, and those of them that stay."""
        self._ended += self._work(trial, samples)
        self._lost += self._work(trial, samples - kept)

    def standing(self, running: Iterable[Progress]) -> Standing:
        """As it is now, with what is being trained."""
        current = sum((self._work(self._trials[p.trial_id], p.samples - p.samples_start) for p in running), Work())
        done, here = self._before + self._ended - self._lost + current, self._ended + current
        if here.flops <= 0:
            return Standing(flops_done=done.flops, flops_here=here.flops, seconds_left=None)
        now = time.monotonic()
        if self._since is None:
            self._since = now - here.seconds / self._gangs
        left = seconds_left((self._planned - done).seconds, here.seconds, now - self._since, self._gangs)
        return Standing(flops_done=done.flops, flops_here=here.flops, seconds_left=left)

    def _work(self, trial: Trial, samples: int) -> Work:
        return Work(flops=samples * trial.flops_per_sample, seconds=samples * self._seconds[trial.trial_id])


def seconds_left(left: float, here: float, seconds: float, gangs: int) -> float:
    """Until all is done, if what is left goes at the pace so far.

    Args:
        left: planned seconds of a gang that are left.
        here: those that were done here, in
        seconds: so many seconds on
        gangs: so many gangs side by side. The plan is believed as if it had come true for BELIEVED seconds before.
    """
    return max(0.0, left) * (seconds + BELIEVED) / (here + gangs * BELIEVED)
