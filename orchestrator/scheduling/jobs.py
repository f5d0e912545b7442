"""From a plan to the scheduler's jobs: the shape of each trial's gang, how long it takes, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.planning.plan import Plan
from orchestrator.planning.priorities import priorities_of
from orchestrator.scheduling.backend import GangShape
from orchestrator.scheduling.state import Job, Kind, Policy
from orchestrator.spec.compute import Compute
from orchestrator.spec.trial import Trial


def jobs_of(
    plan: Plan, packs: Iterable[tuple[Trial, ...]], waits: Callable[[Trial], bool], priority: int | None = None
) -> list[Job]:
    """The jobs of some trials of a plan, in their order: one for each pack, which goes by the name of its first member.

    Args:
        plan: gives the estimated seconds and the gangs.
        packs: those to run, each with the trials that are trained together with it (`planning.packing`).
        waits: whether a branch still lacks the checkpoint with which it begins.
        priority: of the sweep, in the place of compute.priority.

    Raises:
        ValueError: a condition of compute.priorities cannot be worked out.
    """
    packs = list(packs)
    trials = [pack[0] for pack in packs]
    after: dict[tuple[str, int], float] = {}
    for trial in trials:
        if trial.trunk is not None and waits(trial):
            point = trial.trunk, trial.first
            after[point] = max(after.get(point, 0.0), plan.seconds(trial))
    compute = plan.sweep.compute
    if priority is not None:
        compute = compute.model_copy(update={"priority": priority})
    priorities = priorities_of(compute, trials)
    rows = zip(packs, plan.seconds_of(packs), priorities, strict=True)
    return [_job(plan, pack[0], seconds, waits, after, number) for pack, seconds, number in rows]


def _job(
    plan: Plan,
    trial: Trial,
    seconds: float,
    waits: Callable[[Trial], bool],
    after: dict[tuple[str, int], float],
    priority: int,
) -> Job:
    share = [(point - trial.first) / (trial.last - trial.first) for point in trial.branch_points]
    chains = [
        part * seconds + after.get((trial.trial_id, point), 0.0)
        for point, part in zip(trial.branch_points, share, strict=True)
    ]
    return Job(
        trial_id=trial.trial_id,
        kind=Kind(plan.sweep.name, GangShape.of(plan.sweep.compute, trial.num_workers)),
        seconds=seconds,
        chain=max(chains, default=None),
        first=trial.first,
        last=trial.last,
        priority=priority,
        waits_for=(trial.trunk, trial.first) if trial.trunk is not None and waits(trial) else None,
    )


def policy_of(compute: Compute) -> Policy:
    """What a sweep says of retries; and ask for one gang more than fits, for an autoscaler to see."""
    return Policy(
        max_failures=compute.retries,
        backoff_seconds=compute.backoff_seconds,
        recycle_after=compute.recycle_after,
        ahead=True,
    )
