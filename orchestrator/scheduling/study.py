"""A simulated study: its trials, what goes wrong, what comes of it, and the time that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from orchestrator.planning.packing import packs_of
from orchestrator.planning.plan import Plan
from orchestrator.scheduling.backend import Node
from orchestrator.scheduling.capacity import Placement
from orchestrator.scheduling.jobs import jobs_of
from orchestrator.scheduling.state import Job, Limit
from orchestrator.spec.compute import Compute
from orchestrator.spec.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong. A GPU that fails takes its node away until it is repaired."""

    mtbf_hours: float = math.inf
    """Mean time between failures of one GPU (of one node, where there are no GPUs); infinity for none."""
    preemptions_per_day: float = 0.0
    """How often a node is taken away by its owner, on average."""
    notice_seconds: float = 0.0
    """How long before that the owner says so; attempts then save and end. 0: not at all."""
    repair_hours: float = 1.0
    """Until a node is back."""
    noise: float = 0.0
    """Standard deviation of the logarithm of each trial's seconds about the plan's estimate."""

    def __post_init__(self) -> None:
        wanted = {"mtbf_hours": self.mtbf_hours > 0, "repair_hours": self.repair_hours > 0}
        wanted |= {name: getattr(self, name) >= 0 for name in ("preemptions_per_day", "notice_seconds", "noise")}
        for name, sound in wanted.items():
            if not sound:
                above = "above 0" if name in ("mtbf_hours", "repair_hours") else "of at least 0"
                raise ValueError(f"{name} is {getattr(self, name):g}; wanted a number {above}")


class Work(NamedTuple):
    """A trial, or a pack of them, as the simulation sees it."""

    job: Job
    flops: float
    stops: tuple[int, ...]
    """Samples at which it saves a checkpoint whatever the time."""
    checkpoint_seconds: float
    """Longest time between two others."""
    mates: tuple[str, ...] = ()
    """Trials that are trained together with the job's."""


class Span(NamedTuple):
    """One attempt."""

    trial_id: str
    gang: str
    placement: Placement
    start: float
    end: float
    outcome: Literal["completed", "stopped", "lost"]


class Moment(NamedTuple):
    """The cluster from `time` on, until the next one; devices are GPUs, or CPUs where nobody uses a GPU."""

    time: float
    up: float
    """Devices of nodes that are there."""
    held: float
    """Devices of gangs."""
    busy: float
    """Devices of gangs that run an attempt."""
    waiting: int
    """Trials that neither run nor have ended."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it. Times in seconds, from the start of the first gang."""

    seconds: float
    """Makespan: until the last trial ended."""
    bound: float
    """No scheduler does it in less, without faults and start-up."""
    device: Literal["GPU", "CPU"]
    available: float
    """Device-seconds of the nodes that were up."""
    busy: float
    """Device-seconds of attempts."""
    lost: float
    """Device-seconds of attempts that came to nothing: after their last checkpoint."""
    held: float
    """Device-seconds of gangs, with their start-up and the time they were idle."""
    flops: float
    """Training FLOPs of the plans."""
    flops_wasted: float
    """Training FLOPs that were spent twice, or for nothing."""
    trials: int
    packs: int
    """Trials alone and packs of them."""
    attempts: int
    attempts_lost: int
    gangs: int
    """Gangs that were started."""
    failures: int
    """Nodes lost to a failure."""
    preemptions: int
    """Nodes taken away."""
    last_start: float
    """When the last trial began for the first time: from then on the cluster runs empty."""
    sweep_seconds: Mapping[str, float]
    """When each sweep was done."""
    events: int
    spans: Sequence[Span] = field(repr=False)
    moments: Sequence[Moment] = field(repr=False)

    @property
    def utilisation(self) -> float:
        """Share of the available device-seconds in which attempts ran."""
        return self.busy / self.available if self.available else 0.0

    @property
    def wasted_share(self) -> float:
        """Wasted FLOPs, of all that were spent."""
        spent = self.flops + self.flops_wasted
        return self.flops_wasted / spent if spent else 0.0


def works_of(plan: Plan, priority: int | None = None, compute: Compute | None = None) -> list[Work]:
    """The trials of a plan, all of them to be run, in packs where it asks for them.

    Args:
        plan: the sweep.
        priority: takes the place of compute.priority.
        compute: of which packs are formed; default: the plan's own.
    """
    packs = packs_of(compute or plan.sweep.compute, plan.trials)
    jobs = jobs_of(plan, packs, lambda trial: trial.trunk is not None, priority)
    return [_work(plan, pack, job) for pack, job in zip(packs, jobs, strict=True)]


def _work(plan: Plan, pack: tuple[Trial, ...], job: Job) -> Work:
    stops = {samples for trial in pack for samples in (*trial.milestones, *trial.branch_points)}
    return Work(
        job=job,
        flops=sum(map(plan.flops, pack)),
        stops=tuple(sorted(stops)),
        checkpoint_seconds=60 * plan.sweep.compute.checkpoint_minutes,
        mates=tuple(trial.trial_id for trial in pack[1:]),
    )


def lower_bound(jobs: Sequence[Job], nodes: Sequence[Node], limits: Mapping[str, Limit] | None = None) -> float:
    """Seconds in which no order of the jobs can be done, without faults and start-up.

    The most of: device-seconds over devices, for CPUs and GPUs and for what each sweep may hold; the longest chain of
    a trunk up to a branch point and the branch.
    """
    work = _device_seconds(jobs)
    bounds = [_over(work[0], sum(node.cpus for node in nodes)), _over(work[1], sum(node.gpus for node in nodes))]
    for sweep, limit in (limits or {}).items():
        mine = [job for job in jobs if job.kind.sweep == sweep]
        if limit.gangs is not None:
            bounds.append(sum(job.seconds for job in mine) / limit.gangs)
        if limit.gpus is not None:
            bounds.append(_over(_device_seconds(mine)[1], limit.gpus))
    return max([*bounds, *(job.length for job in jobs)], default=0.0)


def _device_seconds(jobs: Iterable[Job]) -> tuple[float, float]:
    """CPU-seconds and GPU-seconds of jobs."""
    cpus = gpus = 0.0
    for job in jobs:
        shape = job.kind.shape
        cpus += job.seconds * shape.cpus
        gpus += job.seconds * shape.gpus
    return cpus, gpus


def _over(work: float, rate: float) -> float:
    return work / rate if rate else (math.inf if work else 0.0)
