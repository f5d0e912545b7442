"""What the scheduler knows and what it asks for: jobs, gangs, limits and actions, all of them values that never change.

Trials are called jobs here: a trial with what scheduling needs to know of it, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orchestrator.scheduling.backend import Claim, GangShape
from orchestrator.scheduling.capacity import Cluster, Placement
from orchestrator.scheduling.persistent import SortedMap

GangStatus = Literal["asked", "starting", "idle", "busy", "held"]
"""asked: for resources that are not there yet; held: idle, and about to make room for another gang."""


class Kind(NamedTuple):
    """Gangs that can stand in for each other: those of one sweep and shape."""

    sweep: str
    shape: GangShape


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial to run."""

    trial_id: str
    kind: Kind
    seconds: float = 0.0
    """Estimated seconds on its gang, from `first` to `last`."""
    chain: float | None = None
    """Estimated seconds until it and what branches off it are done, if more than `seconds`."""
    first: int = 0
    last: int = 1
    """Samples at which its work begins and ends."""
    priority: int = 0
    """Higher goes first."""
    waits_for: tuple[str, int] | None = None
    """The trunk, and the samples of its checkpoint, without which this job cannot begin; None once that is there."""

    @property
    def length(self) -> float:
        """Seconds by which jobs are ordered, longest first."""
        return max(self.seconds, self.chain or 0.0)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that a sweep may hold at once."""

    gangs: int | None = None
    gpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the scheduler behaves."""

    max_failures: int = 2
    """Failed attempts of a trial without a new checkpoint in between before it is given up."""
    backoff_seconds: float = 5.0
    """Wait before the first retry; each further one waits twice as long."""
    backoff_limit_seconds: float = 600.0
    """The longest wait before a retry."""
    recycle_after: int | None = None
    """Attempts after which a gang is replaced by a fresh one; None keeps it."""
    startup_seconds: float = 30.0
    """What a gang's start is expected to take."""
    idle_seconds: float = 60.0
    """How long a gang without work is kept for work that may still come; with none to come it ends at once."""
    patience: float = 0.25
    """A job waits for a warm gang rather than turn another gang out, if that costs at most this share of its time."""
    ahead: bool = False
    """Ask for one gang more than fits, so that an autoscaler sees the demand."""

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.backoff_seconds * 2.0 ** (failures - 1), self.backoff_limit_seconds)


class Gang(NamedTuple):
    """A gang as the scheduler sees it."""

    name: str
    kind: Kind
    status: GangStatus
    placement: Placement
    ends: float
    """When it is expected to be free: of a starting gang, after the job for which it is started."""
    since: float
    """When it got its status."""
    served: int = 0
    """Attempts it has run."""
    reserved: bool = False
    """Makes room for the reservation once it is free."""
    leaving: bool = False
    """Ends with its attempt: a node of it is draining, or gone."""


QueueKey = tuple[int, float, int]
"""(-priority, -length, rank): highest first, longest first, then in the order given."""


class Pool(NamedTuple):
    """The gangs of one kind, and the jobs that wait for them."""

    queue: SortedMap[QueueKey, str] = SortedMap()
    """Jobs that can begin now."""
    idle: SortedMap[tuple[float, str], None] = SortedMap()
    """(since, gang): longest idle first."""
    ends: SortedMap[tuple[float, str], None] = SortedMap()
    """(when it is expected to be free, gang) of the busy and the starting ones."""
    starting: int = 0
    unfinished: int = 0
    """Jobs without an end yet."""
    look_again: float = -math.inf
    """Before then nothing is turned out for this pool's jobs."""
    full: tuple[Cluster, frozenset[str]] | None = None
    """The cluster in which its gang found no room, and the nodes that it was to avoid: no need to look there again."""

    @property
    def uncovered(self) -> QueueKey | None:
        """The first job for which no gang is starting."""
        return self.queue.key_at(self.starting)


class Reservation(NamedTuple):
    """Room that is being made for the first job of a kind: gangs that take on only what ends in time, then go."""

    kind: Kind
    nodes: frozenset[str]
    """Where nothing else is started meanwhile."""
    gangs: tuple[str, ...]
    busy: int
    """How many of the gangs are not free yet."""
    start: float
    """When the last of them is expected to be free."""


class Use(NamedTuple):
    """What a sweep holds."""

    gangs: int = 0
    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class StartGang:
    """Start this gang."""

    gang: str
    shape: GangShape


@dataclass(frozen=True)
class RunTrial:
    """Run the next attempt of a trial on a gang."""

    gang: str
    trial_id: str


@dataclass(frozen=True)
class StopAttempt:
    """Ask a gang's attempt to save and end."""

    gang: str


@dataclass(frozen=True)
class StopGang:
    """End a gang that is not needed any more, or not to be trusted."""

    gang: str


@dataclass(frozen=True)
class RecordDiverged:
    """Enter a trial that cannot begin, because its trunk diverged, as diverged."""

    trial_id: str
    reason: str


Action = StartGang | RunTrial | StopAttempt | StopGang | RecordDiverged


class State(NamedTuple):
    """What the scheduler knows. A value: stepping from a state leaves it as it was."""

    jobs: Mapping[str, Job]
    """All of them, in the order given."""
    branches: Mapping[str, tuple[str, ...]]
    """Jobs that wait for a checkpoint, by trunk."""
    limits: Mapping[str, Limit]
    """By sweep."""
    policy: Policy
    ranks: Mapping[str, int]
    """Place of each job in the order given."""
    cluster: Cluster
    pools: Mapping[Kind, Pool]
    use: Mapping[str, Use]
    """By sweep."""
    now: float = 0.0
    """Seconds, of the last Tick."""
    gangs: SortedMap[str, Gang] = SortedMap()
    running: SortedMap[str, str] = SortedMap()
    """Trial by gang."""
    blocked: SortedMap[str, tuple[str, int]] = SortedMap()
    """Jobs that wait for a checkpoint of their trunk."""
    delayed: SortedMap[tuple[float, str], None] = SortedMap()
    """(when, trial) of those that failed and are tried again then."""
    saved: SortedMap[str, int] = SortedMap()
    """Samples of the newest checkpoint of trials that have one."""
    failures: SortedMap[str, int] = SortedMap()
    """Failed attempts by trial, since its last new checkpoint."""
    done: SortedMap[str, None] = SortedMap()
    """Trials with nothing left to do, diverged ones among them."""
    diverged: SortedMap[str, str] = SortedMap()
    """With the reason."""
    given_up: SortedMap[str, str] = SortedMap()
    """Trials that failed too often, with the last reason."""
    reservation: Reservation | None = None
    asked: str | None = None
    """The gang that was asked for ahead of its resources."""
    neighbours: tuple[Claim, ...] = ()
    """Other drivers of the cluster."""
    lacking: tuple[Claim, ...] = ()
    """Those that lack a gang for which there could be room, the most urgent first."""
    stopping: bool = False
    gangs_named: int = 0
    losses: int = 0
    """Gangs lost before they came up, in a row, while no other one was up."""
    stumbles: int = 0
    """Gangs lost before they came up since the last one did, whatever else was up."""
    starts_at: float = -math.inf
    """No gang is started before then: those before it did not come up."""
    failures_in_a_row: int = 0
    """Failed attempts since the last one that did not fail, and the last new checkpoint."""
    broken: str | None = None
    """Why the sweep is given up, if so."""

    @property
    def halted(self) -> bool:
        """Nothing is begun any more."""
        return self.stopping or self.broken is not None

    @property
    def num_waiting(self) -> int:
        """Jobs that neither run nor have ended."""
        return len(self.jobs) - len(self.running) - len(self.done) - len(self.given_up)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Those jobs, in the order given."""
        running = set(self.running.values())
        return tuple(t for t in self.jobs if t not in running and t not in self.done and t not in self.given_up)

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing will."""
        return not self.running and (self.halted or not self.num_waiting)

    @property
    def succeeded(self) -> bool:
        """Everything is measured."""
        return not self.running and not self.num_waiting and not self.given_up

    @property
    def wakes_at(self) -> float:
        """When a Tick will change something without any other event; infinity if none will."""
        times = [due for due, _ in _first(self.delayed)]
        if self.starts_at > self.now:
            times.append(self.starts_at)
        for pool in self.pools.values():
            times += [since + self.policy.idle_seconds for since, _ in _first(pool.idle)]
            if pool.look_again > self.now and pool.uncovered is not None:
                times.append(pool.look_again)
        return min(times, default=math.inf)

    @property
    def may_start(self) -> bool:
        """Whether gangs may be started now."""
        return self.now >= self.starts_at

    def seconds_left(self, trial_id: str) -> float:
        """Estimated seconds of a job from its newest checkpoint on."""
        job = self.jobs[trial_id]
        reached = max(self.saved.get(trial_id, job.first), job.first)
        return job.seconds * max(0.0, job.last - reached) / (job.last - job.first)

    def share(self, sweep: str) -> float:
        """A sweep's part of the cluster by the resource of which it holds most (dominant resource fairness, Ghodsi
        et al. 2011)."""
        use = self.use[sweep]
        return max(use.cpus / (self.cluster.cpus or 1.0), use.gpus / (self.cluster.gpus or 1.0))


def opening(
    jobs: Iterable[Job],
    cluster: Cluster,
    limits: Mapping[str, Limit] | None = None,
    policy: Policy | None = None,
    saved: Mapping[str, int] | None = None,
    failures: Mapping[str, int] | None = None,
) -> State:
    """The state before anything has happened.

    Args:
        jobs: what to run; among jobs of one priority the longest goes first, equally long ones go in this order.
        cluster: where.
        limits: of each sweep; one that is not named has none.
        policy: how.
        saved: samples of the newest checkpoint of trials that have one already.
        failures: failed attempts of trials since that; one that has none left is tried once more.

    Raises:
        ValueError: a limit allows not even one gang of a job.
    """
    by_id = {job.trial_id: job for job in jobs}
    _check_limits({job.kind for job in by_id.values()}, limits or {})
    branches: dict[str, list[str]] = {}
    blocked: SortedMap[str, tuple[str, int]] = SortedMap()
    newest: SortedMap[str, int] = SortedMap()
    pools: dict[Kind, Pool] = {}
    ranks = {trial_id: rank for rank, trial_id in enumerate(by_id)}
    for trial_id, job in by_id.items():
        pool = pools.get(job.kind, Pool())
        if job.waits_for is None:
            pool = pool._replace(queue=pool.queue.set((-job.priority, -job.length, ranks[trial_id]), trial_id))
        else:
            assert job.waits_for[0] in by_id, f"{trial_id} waits for a trunk that is not to be run"
            blocked = blocked.set(trial_id, job.waits_for)
            branches.setdefault(job.waits_for[0], []).append(trial_id)
        pools[job.kind] = pool._replace(unfinished=pool.unfinished + 1)
    for trial_id, samples in (saved or {}).items():
        newest = newest.set(trial_id, samples)
    policy, failed = policy or Policy(), SortedMap[str, int]()
    for trial_id, count in (failures or {}).items():
        if count:
            failed = failed.set(trial_id, min(count, policy.max_failures))
    return State(
        jobs=by_id,
        branches={trunk: tuple(waiting) for trunk, waiting in branches.items()},
        limits=limits or {},
        policy=policy,
        ranks=ranks,
        cluster=cluster,
        pools=pools,
        use={kind.sweep: Use() for kind in pools},
        blocked=blocked,
        saved=newest,
        failures=failed,
    )


def _check_limits(kinds: Iterable[Kind], limits: Mapping[str, Limit]) -> None:
    for sweep, shape in kinds:
        limit, gpus = limits.get(sweep, Limit()), shape.gpus
        if (limit.gangs is not None and limit.gangs < 1) or (limit.gpus is not None and limit.gpus < gpus):
            raise ValueError(
                f"sweep {sweep} may hold {limit.gangs} gangs and {limit.gpus} GPUs at once; wanted room for a gang of "
                f"{shape.workers} workers with {gpus:g} GPUs. Raise the limit."
            )


def _first(entries: SortedMap[tuple[float, str], None]) -> tuple[tuple[float, str], ...]:
    key = entries.key_at(0)
    return () if key is None else (key,)
