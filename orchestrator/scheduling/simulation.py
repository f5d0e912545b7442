"""The scheduler against a simulated cluster: how long a study takes, what faults cost it, and how busy the cluster is.

The scheduler is the real one; only what it acts on is made up. Trials take what the plan estimates. Nodes fail as a
Poisson process and come back after a while; what an attempt has done since its last checkpoint is then lost. Events are
taken from a heap in the order of time, so that days of thousands of GPUs pass in seconds; the same seed gives the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from orchestrator.scheduling import scheduler
from orchestrator.scheduling.backend import (
    AttemptEnded,
    CheckpointSaved,
    Event,
    GangLost,
    GangReady,
    GangShape,
    Node,
    NodeAdded,
    NodeDraining,
    NodeLost,
)
from orchestrator.scheduling.capacity import Cluster, Placement
from orchestrator.scheduling.scheduler import Tick
from orchestrator.scheduling.state import (
    Action,
    Job,
    Limit,
    Policy,
    RunTrial,
    StartGang,
    State,
    StopAttempt,
    StopGang,
    opening,
)
from orchestrator.scheduling.study import Faults, Moment, Outcome, Span, Work, lower_bound

HOUR = 3600.0


def simulate(
    works: Sequence[Work],
    nodes: Sequence[Node],
    *,
    faults: Faults | None = None,
    limits: Mapping[str, Limit] | None = None,
    policy: Policy | None = None,
    seed: int = 0,
) -> Outcome:
    """Run trials on a simulated cluster to their end.

    Args:
        works: the trials, of one sweep or several (`works_of`).
        nodes: the cluster.
        faults: what goes wrong; by default nothing.
        limits: by sweep; one that is not named takes what it gets.
        policy: of the scheduler; `startup_seconds` is also what a gang's start takes here.
        seed: of failures, preemptions and noise.

    Raises:
        ValueError: there is no work, a trial is in it twice, or a gang does not fit the cluster.
    """
    _check(works, nodes)
    return _Simulation(works, nodes, faults or Faults(), limits or {}, policy or Policy(), seed).run()


class _Attempt(NamedTuple):
    """What runs on a gang."""

    number: int
    trial_id: str
    start: float
    share: float
    """Share of the trial's work with which it began."""
    seconds: float
    """What the whole trial takes."""
    placement: Placement


class _Due(NamedTuple):
    """What will come of an attempt, unless its gang is lost before: it passes a branch point, is done, or has saved."""

    gang: str
    number: int
    what: Literal["passed", "completed", "stopped"]
    samples: int = 0


class _Strike(NamedTuple):
    """A node will go: this one, or any."""

    cause: Literal["failure", "preemption"]
    node: str | None = None


class _Simulation:
    """The made-up cluster: what is due and when, what runs, and the books."""

    def __init__(
        self,
        works: Sequence[Work],
        nodes: Sequence[Node],
        faults: Faults,
        limits: Mapping[str, Limit],
        policy: Policy,
        seed: int,
    ) -> None:
        self.works = {work.job.trial_id: work for work in works}
        self.nodes, self.faults, self.policy = list(nodes), faults, policy
        self.up = {node.name: node for node in nodes}
        self.bound = lower_bound([work.job for work in works], nodes, limits)
        self.device: Literal["GPU", "CPU"] = "GPU" if any(w.job.kind.shape.gpus_per_worker for w in works) else "CPU"
        self.devices_up = sum(map(self._of_node, nodes))
        self.random = random.Random(seed)
        self.seconds = {trial_id: self._noisy(work.job.seconds) for trial_id, work in self.works.items()}
        self.order = itertools.count()
        self.due: list[tuple[float, int, _Due | _Strike | GangReady | NodeAdded]] = []
        self.gangs: dict[str, GangShape] = {}
        self.running: dict[str, _Attempt] = {}
        self.shares: dict[str, float] = {}
        self.busy = self.held = self.lost = self.flops_wasted = self.last_start = 0.0
        self.count: Counter[str] = Counter()
        self.unfinished = Counter(work.job.kind.sweep for work in works)
        self.sweep_seconds: dict[str, float] = {}
        self.spans: list[Span] = []
        self.moments: list[Moment] = []
        self.state = opening([work.job for work in works], Cluster.of(nodes), limits, policy)

    def run(self) -> Outcome:
        """Take event after event until everything has ended."""
        self._plan_strike("failure")
        self._plan_strike("preemption")
        self._act(scheduler.begin(self.state))
        self._note()
        while not self.state.finished:
            wakes = self.state.wakes_at
            if self.due and self.due[0][0] < wakes:
                time, _, event = heapq.heappop(self.due)
                self._tell(Tick(time))
                self._happen(event)
            else:
                assert wakes < math.inf, "nothing is due, and work is left"
                self._tell(Tick(wakes))
            self._note()
        return self._outcome()

    # What happens.

    def _happen(self, event: _Due | _Strike | GangReady | NodeAdded) -> None:
        match event:
            case _Due():
                self._advance(event)
            case _Strike():
                self._strike(event)
            case NodeAdded(node=node):
                self.up[node.name] = node
                self.devices_up += self._of_node(node)
                self._tell(event)
            case GangReady():
                self._tell(event)

    def _advance(self, due: _Due) -> None:
        """An attempt comes to where it was expected to come; one that was lost before does not."""
        attempt = self.running.get(due.gang)
        if attempt is None or attempt.number != due.number:
            return
        work = self.works[attempt.trial_id]
        if due.what == "passed":
            self._tell(CheckpointSaved(trial_id=attempt.trial_id, samples=due.samples))
            return
        share = 1.0 if due.what == "completed" else self._reached(attempt)
        self._end(due.gang, due.what, share)
        if due.what == "completed":
            self._complete(work.job.kind.sweep)
        self._tell_saved(work, share)
        number, trial_id = attempt.number, attempt.trial_id
        self._tell(AttemptEnded(gang=due.gang, trial_id=trial_id, attempt=number, outcome=due.what, reason=None))

    def _complete(self, sweep: str) -> None:
        self.unfinished[sweep] -= 1
        if not self.unfinished[sweep]:
            self.sweep_seconds[sweep] = self.state.now

    def _strike(self, strike: _Strike) -> None:
        """A node goes, or is said to go soon; one that is away cannot."""
        if strike.node is None:
            self._plan_strike(strike.cause)
        name = strike.node or self._any_node(strike.cause)
        if name not in self.up:
            return
        if strike.node is None and strike.cause == "preemption" and self.faults.notice_seconds > 0:
            self._tell(NodeDraining(node=name))
            self._at(self.faults.notice_seconds, strike._replace(node=name))
            return
        self.count[strike.cause] += 1
        self._lose(name)

    def _lose(self, name: str) -> None:
        """A node goes, and its gangs with it: what they have done since their last checkpoint is lost."""
        node = self.up.pop(name)
        self.devices_up -= self._of_node(node)
        self._at(HOUR * self.faults.repair_hours, NodeAdded(node=node))
        gangs = [gang.name for gang in scheduler.gangs_on(self.state, name)]
        self._tell(NodeLost(node=name))
        for gang in gangs:
            if gang in self.running:
                self._lose_attempt(gang)
            self._tell(GangLost(gang=gang, reason=f"node {name} is gone"))

    def _lose_attempt(self, gang: str) -> None:
        attempt = self.running[gang]
        work = self.works[attempt.trial_id]
        kept = self._kept(work, attempt)
        lost = self._reached(attempt) - kept
        self.lost += lost * attempt.seconds * self._of_shape(work.job.kind.shape)
        self.flops_wasted += lost * work.flops
        self._end(gang, "lost", kept)
        self._tell_saved(work, kept)

    def _reached(self, attempt: _Attempt) -> float:
        """The share of its trial that is done now."""
        return min(1.0, attempt.share + (self.state.now - attempt.start) / attempt.seconds)

    def _kept(self, work: Work, attempt: _Attempt) -> float:
        """The share of its trial at its last checkpoint: at a stop, or when it was time for one."""
        reached, every = self._reached(attempt), work.checkpoint_seconds / attempt.seconds
        passed = [share for stop in work.stops if (share := _share(work.job, stop)) <= reached]
        last = max([attempt.share, *passed])
        return last + math.floor((reached - last) / every) * every

    # What the scheduler wants.

    def _tell(self, event: Event | Tick) -> None:
        self.count["events"] += 1
        self._act(scheduler.step(self.state, event))

    def _tell_saved(self, work: Work, share: float) -> None:
        samples = work.job.first + int(share * (work.job.last - work.job.first))
        self._tell(CheckpointSaved(trial_id=work.job.trial_id, samples=samples))

    def _act(self, stepped: tuple[State, list[Action]]) -> None:
        self.state, actions = stepped
        for action in actions:
            match action:
                case StartGang(gang, shape):
                    self.count["gangs"] += 1
                    self.gangs[gang] = shape
                    self.held += self._of_shape(shape)
                    self._at(self.policy.startup_seconds, GangReady(gang=gang))
                case StopGang(gang):
                    self.held -= self._of_shape(self.gangs.pop(gang))
                case RunTrial(gang, trial_id):
                    self._begin(gang, self.works[trial_id])
                case StopAttempt(gang):
                    self._at(0.0, _Due(gang, self.running[gang].number, "stopped"))

    def _begin(self, gang: str, work: Work) -> None:
        job, state = work.job, self.state
        seconds, share = self.seconds[job.trial_id], self.shares.get(job.trial_id, 0.0)
        self.last_start = state.now if job.trial_id not in self.shares else self.last_start
        self.shares[job.trial_id] = share
        self.count["attempts"] += 1
        number = self.count["attempts"]
        self.running[gang] = _Attempt(number, job.trial_id, state.now, share, seconds, state.gangs[gang].placement)
        self.busy += self._of_shape(job.kind.shape)
        for point in {state.blocked[b][1] for b in state.branches.get(job.trial_id, ()) if b in state.blocked}:
            self._at((_share(job, point) - share) * seconds, _Due(gang, number, "passed", point))
        self._at((1.0 - share) * seconds, _Due(gang, number, "completed"))

    def _end(self, gang: str, outcome: Literal["completed", "stopped", "lost"], share: float) -> None:
        """An attempt is over, with `share` of its trial's work kept."""
        attempt = self.running.pop(gang)
        self.shares[attempt.trial_id] = share
        self.count[outcome] += 1
        self.busy -= self._of_shape(self.gangs[gang])
        span = Span(attempt.trial_id, gang, attempt.placement, attempt.start, self.state.now, outcome)
        self.spans.append(span)

    # The cluster.

    def _at(self, wait: float, event: _Due | _Strike | GangReady | NodeAdded) -> None:
        heapq.heappush(self.due, (self.state.now + max(0.0, wait), next(self.order), event))

    def _plan_strike(self, cause: Literal["failure", "preemption"]) -> None:
        """The next one, as in a Poisson process over all nodes; it passes those by that are away."""
        if cause == "failure":
            per_second = sum(_failing(node) for node in self.nodes) / (self.faults.mtbf_hours * HOUR)
        else:
            per_second = len(self.nodes) * self.faults.preemptions_per_day / (24 * HOUR)
        if per_second > 0:
            self._at(self.random.expovariate(per_second), _Strike(cause))

    def _any_node(self, cause: Literal["failure", "preemption"]) -> str:
        weights = [_failing(node) for node in self.nodes] if cause == "failure" else None
        return self.random.choices(self.nodes, weights)[0].name

    def _noisy(self, seconds: float) -> float:
        """With noise of mean 1."""
        sigma = self.faults.noise
        return max(1e-6, seconds * (self.random.lognormvariate(-(sigma**2) / 2, sigma) if sigma else 1.0))

    def _of_node(self, node: Node) -> float:
        return node.gpus if self.device == "GPU" else node.cpus

    def _of_shape(self, shape: GangShape) -> float:
        return shape.gpus if self.device == "GPU" else shape.cpus

    # The books.

    def _note(self) -> None:
        state = self.state
        moment = Moment(state.now, self.devices_up, self.held, self.busy, state.num_waiting)
        if self.moments and self.moments[-1].time == state.now:
            self.moments.pop()
        self.moments.append(moment)

    def _outcome(self) -> Outcome:
        end, count = self.state.now, self.count
        spent = [0.0, 0.0, 0.0]
        for now, then in itertools.pairwise(self.moments):
            for index, devices in enumerate((now.up, now.held, now.busy)):
                spent[index] += devices * (then.time - now.time)
        return Outcome(
            seconds=end,
            bound=self.bound,
            device=self.device,
            available=spent[0],
            held=spent[1],
            busy=spent[2],
            lost=self.lost,
            flops=sum(work.flops for work in self.works.values()),
            flops_wasted=self.flops_wasted,
            trials=sum(1 + len(work.mates) for work in self.works.values()),
            packs=len(self.works),
            attempts=count["attempts"],
            attempts_lost=count["lost"],
            gangs=count["gangs"],
            failures=count["failure"],
            preemptions=count["preemption"],
            last_start=self.last_start,
            sweep_seconds=self.sweep_seconds,
            events=count["events"],
            spans=self.spans,
            moments=self.moments,
        )


def _check(works: Sequence[Work], nodes: Sequence[Node]) -> None:
    cluster = Cluster.of(nodes)
    if not works:
        raise ValueError("there is no trial to simulate; wanted at least one")
    seen: dict[str, str] = {}
    for work in works:
        for trial_id in (work.job.trial_id, *work.mates):
            sweep = work.job.kind.sweep
            if trial_id in seen:
                both = f"{seen[trial_id]} and {sweep}"
                raise ValueError(f"trial {trial_id} is in {both}; wanted it once. Drop one of them.")
            seen[trial_id] = sweep
    for kind in {work.job.kind: None for work in works}:
        if cluster.span(kind.shape) is None:
            shape = kind.shape
            raise ValueError(
                f"sweep {kind.sweep} needs gangs of {shape.workers} workers with {shape.gpus_per_worker:g} GPUs and "
                f"{shape.cpus_per_worker:g} CPUs each; the cluster has {cluster.gpus:g} GPUs and {cluster.cpus:g} CPUs "
                f"on {len(nodes)} nodes. Simulate a larger one, or lower compute.workers."
            )


def _share(job: Job, samples: int) -> float:
    """The share of a job's work at `samples`."""
    return (samples - job.first) / (job.last - job.first)


def _failing(node: Node) -> float:
    """Parts of a node that may fail: its GPUs, or the whole of one that has none."""
    return node.gpus or 1.0
