"""The scheduler as a pure machine: every schedule of events ends, and nothing is run twice at once or forgotten."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.backend import (
    AttemptEnded,
    CheckpointSaved,
    GangLost,
    GangReady,
    GangShape,
    Node,
    NodeAdded,
    NodeDraining,
    NodeLost,
)
from orchestrator.scheduling.capacity import UNITS, Cluster
from orchestrator.scheduling.scheduler import (
    MAX_FAILURES_IN_A_ROW,
    MAX_GANG_LOSSES,
    StopRequested,
    Tick,
    begin,
    gangs_on,
    step,
)
from orchestrator.scheduling.state import (
    Job,
    Kind,
    Limit,
    Policy,
    RecordDiverged,
    RunTrial,
    StartGang,
    State,
    StopAttempt,
    StopGang,
    opening,
)

ONE = GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=0)
AT_ONCE = Policy(max_failures=1, backoff_seconds=0.0)


def gpus(workers: int, each: float = 1.0) -> GangShape:
    return GangShape(workers=workers, cpus_per_worker=0.01, gpus_per_worker=each)


def job(name: str, shape: GangShape = ONE, sweep: str = "s", seconds: float = 0.0, **more: object) -> Job:
    return Job(trial_id=name, kind=Kind(sweep, shape), seconds=seconds, **more)


def state(*jobs: str | Job, gangs: int | None = 1, nodes: tuple[Node, ...] = (), policy: Policy = AT_ONCE) -> State:
    cluster = Cluster.of(nodes or [Node(name="node", cpus=100)])
    return opening([job(j) if isinstance(j, str) else j for j in jobs], cluster, {"s": Limit(gangs=gangs)}, policy)


def ended(gang: str, trial: str, outcome: str = "completed") -> AttemptEnded:
    return AttemptEnded(gang=gang, trial_id=trial, attempt=0, outcome=outcome, reason=None)


def after(now: State, *events: object) -> tuple[State, list]:
    actions: list = []
    for event in events:
        now, more = step(now, event)
        actions += more
    return now, actions


def ready(gang: str) -> GangReady:
    return GangReady(gang=gang)


def gpu_nodes(count: int, each: int = 8) -> tuple[Node, ...]:
    return tuple(Node(name=f"n{index}", cpus=100, gpus=each) for index in range(count))


def test_a_gang_is_kept_from_trial_to_trial():
    now, actions = begin(state("a", "b"))
    assert actions == [StartGang("gang-0", ONE)]
    now, actions = step(now, ready("gang-0"))
    assert actions == [RunTrial("gang-0", "a")]
    now, actions = step(now, ended("gang-0", "a"))
    assert actions == [RunTrial("gang-0", "b")]
    now, actions = step(now, ended("gang-0", "b"))
    assert (actions, now.finished, now.succeeded) == ([StopGang("gang-0")], True, True)


def test_no_more_gangs_than_work_and_than_fit():
    _, actions = begin(state("a", "b", gangs=4))
    assert actions == [StartGang("gang-0", ONE), StartGang("gang-1", ONE)]
    _, actions = begin(state("a", "b", "c", gangs=4, nodes=(Node(name="small", cpus=2),)))
    assert actions == [StartGang("gang-0", ONE), StartGang("gang-1", ONE)]


def test_one_gang_more_than_fits_is_asked_for_where_nodes_may_come():
    ahead = dataclasses.replace(AT_ONCE, ahead=True)
    now, actions = begin(state("a", "b", "c", "d", gangs=4, nodes=(Node(name="small", cpus=2),), policy=ahead))
    assert actions == [StartGang(f"gang-{index}", ONE) for index in range(3)]
    assert now.gangs["gang-2"].status == "asked"
    now, actions = step(now, NodeAdded(node=Node(name="new", cpus=1)))
    assert actions == [StartGang("gang-3", ONE)], "what was asked for fits now; the next step ahead"
    assert (now.gangs["gang-2"].status, now.gangs["gang-3"].status) == ("starting", "asked")
    now, actions = after(now, ready("gang-0"), ready("gang-1"), ready("gang-2"), ended("gang-0", "a"))
    assert actions[-2:] == [RunTrial("gang-0", "d"), StopGang("gang-3")], "nobody waits for it any more"


def test_a_lost_gang_is_replaced_and_its_trial_tried_again():
    now, _ = after(begin(state("a", "b"))[0], ready("gang-0"))
    now, actions = step(now, GangLost(gang="gang-0", reason="killed"))
    assert actions == [StopGang("gang-0"), StartGang("gang-1", ONE)]
    assert (now.waiting, dict(now.failures)) == (("a", "b"), {"a": 1})
    assert step(now, ended("gang-0", "a")) == (now, []), "too late: from a gang that is gone"


def test_a_trial_that_keeps_failing_is_given_up_and_the_rest_goes_on():
    now, _ = after(begin(state("a", "b"))[0], ready("gang-0"))
    now, actions = step(now, ended("gang-0", "a", "failed"))
    assert actions == [StopGang("gang-0"), StartGang("gang-1", ONE)]
    now, actions = step(now, ready("gang-1"))
    assert actions == [RunTrial("gang-1", "a")]
    now, _ = after(now, ended("gang-1", "a", "failed"), ready("gang-2"), ended("gang-2", "b"))
    assert (now.finished, now.succeeded, set(now.done)) == (True, False, {"b"})
    assert dict(now.given_up) == {"a": "failed"}


def test_a_retry_waits_twice_as_long_each_time_while_others_run():
    policy = Policy(max_failures=3, backoff_seconds=10, backoff_limit_seconds=15)
    now, _ = after(begin(state("a", "b", gangs=1, policy=policy))[0], ready("gang-0"))
    now, _ = after(now, ended("gang-0", "a", "failed"), ready("gang-1"))
    assert (now.running["gang-1"], now.wakes_at) == ("b", 10)
    now, actions = after(now, Tick(9.9), ended("gang-1", "b"), Tick(9.95))
    assert actions == [], "its gang is kept for the retry, which is not due"
    now, actions = step(now, Tick(10.0))
    assert actions == [RunTrial("gang-1", "a")]
    now, _ = step(now, ended("gang-1", "a", "failed"))
    assert now.wakes_at == 10 + 15, "twice as long, up to the limit"


def test_what_gets_on_between_failures_is_not_given_up():
    now, _ = begin(state("a"))
    for attempt in range(20):
        now, _ = after(now, ready(f"gang-{attempt}"), CheckpointSaved(trial_id="a", samples=attempt + 1))
        now, _ = step(now, ended(f"gang-{attempt}", "a", "failed"))
        assert not now.finished
    assert dict(now.failures) == {"a": 1}


def test_divergence_is_a_result():
    now, _ = after(begin(state("a"))[0], ready("gang-0"), ended("gang-0", "a", "diverged"))
    assert now.succeeded
    assert (set(now.done), dict(now.diverged)) == ({"a"}, {"a": "diverged"})


def test_a_stop_lets_attempts_end_and_starts_nothing():
    now, _ = after(begin(state("a", "b", gangs=2))[0], ready("gang-0"))
    now, actions = step(now, StopRequested())
    assert actions == [StopAttempt("gang-0")]
    assert step(now, StopRequested())[1] == []
    now, actions = step(now, ready("gang-1"))
    assert actions == [StopGang("gang-1")]
    now, actions = step(now, ended("gang-0", "a", "stopped"))
    assert actions == [StopGang("gang-0")]
    assert now.finished
    assert set(now.waiting) == {"a", "b"}


def test_gangs_that_never_come_up_end_the_sweep_with_the_reason():
    now, _ = begin(state("a"))
    for index in range(MAX_GANG_LOSSES):
        assert not now.finished
        now, _ = step(now, GangLost(gang=f"gang-{index}", reason="no memory"))
    assert now.finished
    assert now.broken == "no workers could be started: no memory"


def test_a_node_on_which_none_comes_up_does_not_end_what_works_elsewhere():
    policy = dataclasses.replace(AT_ONCE, backoff_seconds=1.0)
    now, _ = begin(state("a", "b", gangs=2, policy=policy))
    now, _ = step(now, ready("gang-0"))
    lost, clock, waits = "gang-1", 0.0, []
    for _ in range(6):
        now, actions = step(now, GangLost(gang=lost, reason="its worker on old has torch 2.5"))
        assert not any(isinstance(action, StartGang) for action in actions), "not at once again"
        assert now.broken is None
        waits.append(now.wakes_at - clock)
        clock = now.wakes_at
        now, actions = step(now, Tick(clock))
        (lost,) = [action.gang for action in actions if isinstance(action, StartGang)]
    assert waits == [1, 2, 4, 8, 16, 32]
    now, _ = step(now, ended("gang-0", "a"))
    now, _ = step(now, ended("gang-0", "b"))
    assert now.finished
    assert now.succeeded


def test_once_one_comes_up_the_next_is_started_at_once():
    policy = dataclasses.replace(AT_ONCE, backoff_seconds=1.0)
    now, _ = begin(state("a", "b", "c", gangs=2, policy=policy))
    now, actions = step(now, GangLost(gang="gang-0", reason="no memory"))
    assert actions == [StopGang("gang-0")]
    now, actions = step(now, ready("gang-1"))
    assert StartGang("gang-2", ONE) in actions


def test_gangs_that_never_come_up_end_the_sweep_however_many_there_are():
    now, _ = begin(state(*"abcdefgh", gangs=4))
    lost = 0
    while not now.finished:
        assert lost < MAX_GANG_LOSSES + 4
        now, _ = step(now, GangLost(gang=next(iter(now.gangs)), reason="no memory"))
        lost += 1
    assert now.broken == "no workers could be started: no memory"


def test_a_gang_that_is_replaced_does_not_make_earlier_losses_count():
    """Others were up when they were lost: what is wrong is wrong with their node."""
    now, _ = begin(state("a", "b", "c", gangs=2, policy=dataclasses.replace(AT_ONCE, recycle_after=1)))
    now, _ = step(now, ready("gang-0"))
    for _ in range(5):
        starting = next(name for name, gang in now.gangs.items() if gang.status == "starting")
        now, _ = step(now, GangLost(gang=starting, reason="old image"))
    now, _ = step(now, ended("gang-0", "a"))  # and is recycled: none is up now
    starting = next(name for name, gang in now.gangs.items() if gang.status == "starting")
    now, _ = step(now, GangLost(gang=starting, reason="old image"))
    assert now.broken is None


def test_what_fails_everywhere_ends_the_sweep_instead_of_burning_it():
    now, _ = begin(state(*(f"t{index}" for index in range(50))))
    failed = 0
    while not now.finished:
        gang = next(iter(now.gangs))
        now, _ = step(now, ready(gang))
        now, _ = step(now, ended(gang, now.running[gang], "failed"))
        failed += 1
    assert failed == MAX_FAILURES_IN_A_ROW
    assert "6 attempts failed in a row" in now.broken
    assert not now.done


def test_longest_first_and_priority_before_length():
    now, _ = begin(state(job("short", seconds=1), job("long", seconds=9), job("urgent", seconds=2, priority=1)))
    order = []
    now, actions = step(now, ready("gang-0"))
    while actions != [StopGang("gang-0")]:
        (run,) = actions
        order.append(run.trial_id)
        now, actions = step(now, ended("gang-0", run.trial_id))
    assert order == ["urgent", "long", "short"]


def test_a_branch_waits_for_its_trunks_checkpoint_and_for_no_more():
    branches = [job(f"b{point}", waits_for=("trunk", point)) for point in (10, 20)]
    now, actions = begin(state(job("trunk", seconds=9), *branches, gangs=3))
    assert actions == [StartGang("gang-0", ONE)]
    now, actions = after(now, ready("gang-0"), CheckpointSaved(trial_id="trunk", samples=5))
    assert actions == [RunTrial("gang-0", "trunk")]
    now, actions = step(now, CheckpointSaved(trial_id="trunk", samples=10))
    assert actions == [StartGang("gang-1", ONE)]
    now, actions = step(now, ready("gang-1"))
    assert actions == [RunTrial("gang-1", "b10")], "while the trunk goes on"
    now, actions = after(now, CheckpointSaved(trial_id="trunk", samples=20), ended("gang-0", "trunk"))
    assert RunTrial("gang-0", "b20") in actions


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("diverged", "its trunk trunk diverged: diverged"),
        ("failed", "its trunk trunk was given up: failed"),
        ("completed", "its trunk trunk ended without a checkpoint to begin with"),
    ],
)
def test_a_branch_ends_with_its_trunk(outcome, reason):
    waiting = [job("late", waits_for=("trunk", 20)), job("early", waits_for=("trunk", 10))]
    now, _ = begin(state(job("trunk", seconds=9), *waiting, gangs=1, policy=Policy(max_failures=0)))
    now, _ = after(now, ready("gang-0"), CheckpointSaved(trial_id="trunk", samples=10))
    now, actions = step(now, ended("gang-0", "trunk", outcome))
    assert (RecordDiverged("late", reason) in actions) == (outcome == "diverged")
    results = {**now.diverged, **now.given_up}
    assert results["late"] == reason
    assert "early" not in results, "its checkpoint is there"
    assert now.waiting == ("early",) or now.running


def test_gangs_of_different_sizes_share_a_cluster_and_warm_ones_wait_for_their_own():
    jobs = [job("big", gpus(4), seconds=100), *(job(f"s{index}", gpus(1), seconds=10) for index in range(6))]
    now, actions = begin(state(*jobs, gangs=None, nodes=gpu_nodes(1, each=6)))
    assert actions == [StartGang("gang-0", gpus(4)), StartGang("gang-1", gpus(1)), StartGang("gang-2", gpus(1))]
    now, actions = after(now, *(ready(f"gang-{index}") for index in range(3)), ended("gang-1", "s0"))
    assert actions[-1] == RunTrial("gang-1", "s2"), "the next of its own shape"
    now, actions = step(now, ended("gang-0", "big"))
    assert actions == [StopGang("gang-0"), *(StartGang(f"gang-{index}", gpus(1)) for index in (3, 4, 5))]


def test_small_trials_share_a_gpu():
    now, actions = begin(state(*(job(f"s{i}", gpus(1, each=0.3)) for i in range(9)), gangs=None, nodes=gpu_nodes(1, 2)))
    assert len(actions) == 6, "three on each of two GPUs, not seven on their sum"
    devices = [gang.placement[0].gpus[0][0] for gang in now.gangs.values()]
    assert sorted(devices) == [0, 0, 0, 1, 1, 1]


def test_a_large_gang_takes_as_few_nodes_as_it_can():
    nodes = gpu_nodes(3)
    now, actions = begin(
        state(job("wide", gpus(16), seconds=9), job("one", gpus(8), seconds=8), gangs=None, nodes=nodes)
    )
    assert len(actions) == 2
    assert [len(gang.placement) for gang in now.gangs.values()] == [2, 1]
    split = [job("a", gpus(5), seconds=9), job("b", gpus(5), seconds=8), job("torn", gpus(6), seconds=7)]
    now, actions = begin(state(*split, gangs=None, nodes=gpu_nodes(2)))
    assert len(actions) == 2, "six GPUs are free, three on each of two nodes"


def test_a_large_gang_is_not_starved_by_small_ones_and_short_ones_fill_the_wait():
    """Four busy one-GPU gangs; one frees early, when the job that wants all four is first in line."""
    small = [job(f"s{index}", gpus(1), seconds=seconds) for index, seconds in enumerate((100, 100, 100, 60))]
    later = [job("fits", gpus(1), seconds=30), *(job(f"more{index}", gpus(1), seconds=45) for index in range(3))]
    policy = dataclasses.replace(AT_ONCE, startup_seconds=0.0)
    now, _ = begin(
        state(*small, job("big", gpus(4), seconds=50), *later, gangs=None, nodes=gpu_nodes(1, 4), policy=policy)
    )
    now, _ = after(now, *(ready(f"gang-{index}") for index in range(4)))
    now, actions = after(now, Tick(60.0), ended("gang-3", "s3"))
    assert actions == [RunTrial("gang-3", "fits")], "45 s would delay it; 30 s do not"
    assert now.reservation.start == 100
    now, actions = after(now, Tick(90.0), ended("gang-3", "fits"), Tick(100.0), ended("gang-0", "s0"))
    assert actions == []
    now, actions = after(now, ended("gang-1", "s1"), ended("gang-2", "s2"))
    assert actions == [*(StopGang(f"gang-{index}") for index in (2, 1, 0, 3)), StartGang("gang-4", gpus(4))]


def test_limits_of_a_sweep_hold_and_sweeps_take_turns():
    jobs = [job(f"{sweep}{index}", gpus(1), sweep=sweep, seconds=9) for sweep in "pq" for index in range(6)]
    cluster = Cluster.of(gpu_nodes(1))
    now, _ = begin(opening(jobs, cluster, policy=AT_ONCE))
    assert sorted(gang.kind.sweep for gang in now.gangs.values()) == list("ppppqqqq")
    now, _ = begin(opening(jobs, cluster, {"p": Limit(gpus=2), "q": Limit(gangs=3)}, AT_ONCE))
    assert sorted(gang.kind.sweep for gang in now.gangs.values()) == list("ppqqq")
    with pytest.raises(ValueError, match=r"sweep p may hold None gangs and 0.5 GPUs at once; wanted room for a gang"):
        opening(jobs, cluster, {"p": Limit(gpus=0.5)})


def test_a_limit_on_gangs_makes_room_for_another_shape():
    jobs = [job("a", gpus(1), seconds=9), job("b", gpus(2), seconds=8), job("c", gpus(1), seconds=7)]
    now, actions = begin(state(*jobs, gangs=1, nodes=gpu_nodes(1)))
    assert actions == [StartGang("gang-0", gpus(1))]
    now, actions = after(now, Tick(30.0), ready("gang-0"), Tick(39.0), ended("gang-0", "a"))
    assert actions[-2:] == [StopGang("gang-0"), StartGang("gang-1", gpus(2))], "the longer one first"


def test_a_gang_is_recycled_after_so_many_attempts():
    now, _ = begin(state("a", "b", "c", policy=dataclasses.replace(AT_ONCE, recycle_after=2)))
    now, actions = after(now, ready("gang-0"), ended("gang-0", "a"), ended("gang-0", "b"))
    assert actions[-2:] == [StopGang("gang-0"), StartGang("gang-1", ONE)]


def test_an_idle_gang_is_given_back_once_nothing_can_come_or_after_a_while():
    now, _ = after(begin(state("a", "b", "c", gangs=3))[0], *(ready(f"gang-{index}") for index in range(3)))
    now, actions = after(now, ended("gang-0", "a"), ended("gang-1", "b"))
    assert actions == [StopGang("gang-0")], "one trial is left; one gang is kept for its retry"
    now, actions = after(now, Tick(59.0), Tick(60.0))
    assert actions == [StopGang("gang-1")]
    assert now.wakes_at == math.inf


def test_a_lost_node_is_no_fault_of_its_trials_and_comes_back():
    now, _ = after(begin(state("a", gangs=1))[0], ready("gang-0"))
    now, actions = after(now, NodeLost(node="node"), GangLost(gang="gang-0", reason="node died"))
    assert (actions, dict(now.failures)) == ([StopGang("gang-0")], {})
    now, actions = step(now, NodeAdded(node=Node(name="node", cpus=1)))
    assert actions == [StartGang("gang-1", ONE)]


def test_what_fails_on_a_node_that_drains_is_not_held_against_the_trial():
    nodes = (Node(name="n0", cpus=1), Node(name="n1", cpus=1))
    for fate in (ended("gang-0", "a", "failed"), GangLost(gang="gang-0", reason="killed at the deadline")):
        now, _ = after(begin(state("a", nodes=nodes, policy=Policy(max_failures=0)))[0], ready("gang-0"))
        now, actions = after(now, NodeDraining(node=now.gangs["gang-0"].placement[0].node), fate)
        assert (dict(now.failures), dict(now.given_up), now.failures_in_a_row) == ({}, {}, 0)
        assert actions[-1] == StartGang("gang-1", ONE), "it goes on elsewhere"


def test_a_draining_node_is_left_with_a_checkpoint():
    nodes = (Node(name="n0", cpus=1), Node(name="n1", cpus=1))
    now, _ = after(begin(state("a", "b", gangs=2, nodes=nodes))[0], ready("gang-0"), ready("gang-1"))
    now, actions = step(now, NodeDraining(node="n0"))
    assert actions == [StopAttempt("gang-0")]
    now, actions = step(now, ended("gang-0", "a", "stopped"))
    assert actions == [StopGang("gang-0")], "and no gang starts there"
    now, actions = step(now, ended("gang-1", "b"))
    assert actions == [RunTrial("gang-1", "a")]
    assert not now.failures


def test_gangs_count_where_they_really_are():
    now, _ = begin(state(*(job(f"s{i}", gpus(4)) for i in range(2)), gangs=None, nodes=gpu_nodes(2, 4)))
    now, _ = step(now, GangReady(gang="gang-0", nodes=("n1",) * 4))
    assert now.gangs["gang-0"].placement[0].node == "n1"
    now, _ = step(now, GangReady(gang="gang-1", nodes=("n0",) * 4))
    assert [sum(room.gpus) for room in now.cluster.free.values()] == [0, 0]


class World:
    """A cluster and its workers that do whatever chance wants, and what must hold whatever they do."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.nodes = {f"n{i}": Node(name=f"n{i}", cpus=8, gpus=4) for i in range(chance.randint(1, 3))}
        shapes = [
            gpus(1, 0.5),
            gpus(1),
            gpus(3),
            gpus(4),
            ONE,
            GangShape(workers=8, cpus_per_worker=1, gpus_per_worker=0.5),
        ]
        shapes = chance.sample(shapes, chance.randint(1, 4))
        sweeps = ["p", "q"][: chance.randint(1, 2)]
        self.jobs = [self.job(index, shapes, sweeps) for index in range(chance.randint(1, 14))]
        self.limits = {"p": Limit(gangs=chance.randint(1, 4), gpus=4.0)} if chance.random() < 0.5 else {}
        self.policy = Policy(
            max_failures=chance.randint(0, 3),
            backoff_seconds=chance.choice([0.0, 5.0]),
            recycle_after=chance.choice([None, 1, 3]),
            ahead=chance.random() < 0.5,
            idle_seconds=chance.choice([0.0, 60.0]),
        )
        self.gone: dict[str, Node] = {}
        self.orphans: set[str] = set()
        self.saved: set[tuple[str, int]] = set()
        self.history: list[tuple] = []

    def job(self, index: int, shapes: list, sweeps: list) -> Job:
        chance = self.chance
        trunk = f"t{chance.randrange(index)}" if index and chance.random() < 0.3 else None
        return Job(
            trial_id=f"t{index}",
            kind=Kind(chance.choice(sweeps), chance.choice(shapes)),
            seconds=chance.choice([0.0, 10.0, 100.0, 1000.0]),
            priority=chance.choice([0, 0, 0, 1]),
            waits_for=(trunk, chance.choice([5, 10])) if trunk else None,
            last=20,
        )

    def play(self) -> State:
        now, actions = begin(opening(self.jobs, Cluster.of(self.nodes.values()), self.limits, self.policy))
        for moment in range(3000):
            self.check(now, actions)
            if now.finished:
                return now
            event = self.event(now, calm=moment > 200)
            before, (now, actions) = now, step(now, event)
            self.history.append((before, event, now, actions))
        raise AssertionError("it does not end")

    def event(self, now: State, calm: bool) -> object:
        chance = self.chance
        orphans = [name for name in now.gangs if name in self.orphans]
        if orphans:
            return GangLost(gang=orphans[0], reason="its node is gone")
        roll = 1.0 if calm else chance.random()
        active = [g for g in now.gangs.values() if g.status in ("starting", "busy")]
        stuck = not active and now.wakes_at == math.inf
        if self.gone and (calm or stuck or chance.random() < 0.2):
            name, node = self.gone.popitem()
            return NodeAdded(node=node)
        if roll < 0.03:
            name = chance.choice(sorted(self.nodes))
            self.gone[name] = self.nodes[name]
            self.orphans |= {gang.name for gang in gangs_on(now, name)}
            return NodeLost(node=name)
        if roll < 0.05:
            name = chance.choice(sorted(self.nodes))
            self.gone[name] = self.nodes[name]
            return NodeDraining(node=name)
        if not active or (now.wakes_at < math.inf and chance.random() < 0.2):
            assert now.wakes_at < math.inf, "it waits for nothing"
            return Tick(now.wakes_at)
        gang = chance.choice(active)
        if gang.status == "starting":
            lost = not calm and chance.random() < 0.05
            return GangLost(gang=gang.name, reason="x") if lost else GangReady(gang=gang.name)
        trial = now.running[gang.name]
        points = sorted(now.blocked[b][1] for b in now.branches.get(trial, ()) if b in now.blocked)
        if points and chance.random() < 0.8:
            self.saved.add((trial, points[0]))
            return CheckpointSaved(trial_id=trial, samples=points[0])
        if not calm and chance.random() < 0.1:
            return GangLost(gang=gang.name, reason="x")
        outcome = "completed" if calm else chance.choice(["completed", "completed", "diverged", "failed", "stopped"])
        return ended(gang.name, trial, outcome)

    def check(self, now: State, actions: list) -> None:
        assert len(set(now.running.values())) == len(now.running), "a trial runs twice"
        by_id = {j.trial_id: j for j in self.jobs}
        for action in actions:
            if isinstance(action, RunTrial):
                needs = by_id[action.trial_id].waits_for
                assert needs is None or needs in self.saved, "a branch began without its trunk's checkpoint"
                assert now.gangs[action.gang].kind == by_id[action.trial_id].kind
        used: dict[tuple[str, int], int] = {}
        for gang in now.gangs.values():
            for allotment in gang.placement:
                for device, units in allotment.gpus:
                    used[allotment.node, device] = used.get((allotment.node, device), 0) + units
        assert all(units <= UNITS for units in used.values()), "a GPU is given away twice"
        for name, room in now.cluster.free.items():
            if name not in self.gone:
                assert room.cpus >= 0, "CPUs are given away twice"
                taken = tuple(UNITS - used.get((name, device), 0) for device in range(4))
                assert room.gpus == taken, "the books of the devices are wrong"
        for sweep, limit in self.limits.items():
            mine = [gang for gang in now.gangs.values() if gang.kind.sweep == sweep]
            assert limit.gangs is None or len(mine) <= limit.gangs
            assert sum(g.kind.shape.workers * g.kind.shape.gpus_per_worker for g in mine) <= limit.gpus


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_all_rules_hold_and_every_trial_ends(seed):
    world = World(random.Random(seed))
    now = world.play()
    names = {job.trial_id for job in world.jobs}
    assert set(now.done) | set(now.given_up) | set(now.waiting) == names
    assert not set(now.done) & set(now.given_up)
    assert now.broken is not None or not now.waiting
    # Stepping again from any state on the way gives the same: it was not changed since.
    for before, event, then, actions in world.history[:: max(1, len(world.history) // 20)]:
        assert step(before, event) == (then, actions)
    again = World(random.Random(seed))
    again.play()
    assert [actions for *_, actions in again.history] == [actions for *_, actions in world.history]
