"""Several drivers on one cluster, each with its own scheduler: who goes first, and that nobody waits for nothing."""

from __future__ import annotations

import pytest

from orchestrator.scheduling.backend import (
    AttemptEnded,
    Claim,
    GangReady,
    GangShape,
    NeighboursHeard,
    Node,
    NodeAdded,
)
from orchestrator.scheduling.capacity import Cluster
from orchestrator.scheduling.neighbours import claim_of
from orchestrator.scheduling.scheduler import Tick, begin, step
from orchestrator.scheduling.state import Job, Kind, Limit, Policy, RunTrial, StartGang, StopGang, opening

ONE = GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=0)
CPUS = 4


def wide(cpus: float) -> GangShape:
    return GangShape(workers=1, cpus_per_worker=cpus, gpus_per_worker=0)


class Sharer:
    """A driver as its cluster sees it: trials take one round, gangs come up as soon as there is room."""

    def __init__(self, name: str, trials: int, priority: int = 0, shape: GangShape = ONE, gangs: int | None = None):
        jobs = [
            Job(trial_id=f"{name}{index}", kind=Kind(name, shape), seconds=1.0, priority=priority)
            for index in range(trials)
        ]
        self.name, self.shape, self.started, self.running = name, shape, 0, {}
        self.pending: list[str] = []
        self.held: list[str] = []
        policy, limits = Policy(ahead=True, backoff_seconds=0.0), {name: Limit(gangs=gangs)}
        self.state = opening(jobs, Cluster.of([]), limits, policy)
        self.apply(*begin(self.state))

    def apply(self, state, actions) -> None:
        self.state = state
        for action in actions:
            match action:
                case StartGang(gang, _):
                    self.pending.append(gang)
                    self.started += 1
                case StopGang(gang):
                    self.pending = [name for name in self.pending if name != gang]
                    self.held = [name for name in self.held if name != gang]
                case RunTrial(gang, trial_id):
                    self.running[gang] = trial_id

    def tell(self, event: object) -> None:
        self.apply(*step(self.state, event))

    @property
    def use(self) -> float:
        return len(self.held) * self.shape.cpus


class World:
    """One node that the drivers share; who came first is placed first, as in Ray."""

    def __init__(self, *drivers: Sharer) -> None:
        self.drivers, self.now = list(drivers), 0
        self.uses: list[dict[str, float]] = []

    @property
    def free(self) -> float:
        return CPUS - sum(driver.use for driver in self.drivers)

    def round(self) -> None:
        self.now += 1
        for driver in self.drivers:
            others = tuple(claim_of(d.state, d.name, d.name) for d in self.drivers if d is not driver)
            driver.tell(Tick(self.now))
            driver.tell(NodeAdded(node=Node(name="node", cpus=self.free + driver.use)))
            if others != driver.state.neighbours:
                driver.tell(NeighboursHeard(claims=others))
            for gang in list(driver.running):
                trial = driver.running.pop(gang)
                ended = AttemptEnded(gang=gang, trial_id=trial, attempt=0, outcome="completed", reason=None)
                driver.tell(ended)
            self.place()
        self.uses.append({driver.name: driver.use for driver in self.drivers})
        assert self.free >= 0

    def place(self) -> None:
        for driver in self.drivers:
            for gang in list(driver.pending):
                if gang in driver.pending and self.free >= driver.shape.cpus:
                    driver.pending.remove(gang)
                    driver.held.append(gang)
                    driver.tell(GangReady(gang=gang, nodes=("node",)))

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()

    def until_done(self) -> None:
        for _ in range(500):
            if all(driver.state.succeeded for driver in self.drivers):
                return
            self.round()
        raise AssertionError([driver.state for driver in self.drivers])


def test_one_driver_has_it_all():
    world = World(Sharer("a", 40))
    world.until_done()
    assert max(use["a"] for use in world.uses) == CPUS
    assert world.drivers[0].started <= CPUS + 1, "the last one is the one that was asked for ahead"


def test_the_higher_priority_gets_what_it_can_use_as_trials_end_and_then_the_other_goes_on():
    low = Sharer("low", 60)
    world = World(low)
    world.rounds(4)
    assert low.use == CPUS
    high = Sharer("high", 30, priority=5)
    world.drivers.append(high)
    world.rounds(8)
    assert (high.use, low.use) == (CPUS, 0)
    assert not low.pending, "what is asked for ahead would take the room that was given back"
    world.until_done()


def test_limits_are_kept_and_the_rest_is_left_to_others():
    low, high = Sharer("low", 60), Sharer("high", 30, priority=5, gangs=1)
    world = World(low, high)
    world.rounds(10)
    assert (high.use, low.use) == (1, CPUS - 1)
    world.until_done()
    assert low.started <= 2 * CPUS


@pytest.mark.parametrize("first", [4, 10])
def test_equal_ones_share_evenly_and_no_gang_goes_to_and_fro(first):
    one = Sharer("one", 200)
    world = World(one)
    world.rounds(first)
    other = Sharer("other", 200)
    world.drivers.append(other)
    world.rounds(8)
    before = one.started + other.started
    world.rounds(15)
    assert (one.use, other.use) == (2, 2)
    assert one.started + other.started <= before + 2
    world.until_done()


def test_room_is_saved_up_for_a_large_gang_that_goes_first():
    low = Sharer("low", 60)
    world = World(low)
    world.rounds(4)
    high = Sharer("high", 3, priority=1, shape=wide(4))
    world.drivers.append(high)
    world.rounds(6)
    assert {"high": 4, "low": 0} in world.uses
    world.until_done()


def test_nobody_waits_for_one_that_can_never_be_served():
    low, high = Sharer("low", 20), Sharer("high", 1, priority=1, shape=wide(64))
    world = World(low, high)
    for _ in range(30):
        world.round()
    assert low.state.succeeded


def test_one_that_a_new_node_could_serve_goes_first_from_then_on():
    low = Sharer("low", 60)
    world = World(low)
    world.rounds(4)
    large = Claim(driver="large", sweep="x", priority=9, lacks=wide(6))
    low.tell(NeighboursHeard(claims=(large,)))
    assert low.state.lacking == ()
    low.tell(NodeAdded(node=Node(name="larger", cpus=6)))
    assert low.state.lacking == (large,)
    assert low.pending == [], "the new node is left to it"


def test_a_claim_says_what_is_held_and_what_is_lacking():
    driver = Sharer("a", 30, priority=3)
    world = World(driver)
    world.rounds(4)
    held = (Node(name="node", cpus=4.0),)
    assert claim_of(driver.state, "a", "me") == Claim(driver="me", sweep="a", priority=3, held=held, lacks=ONE)
    world.until_done()
    world.round()
    assert claim_of(driver.state, "a", "me") == Claim(driver="me", sweep="a", priority=0)


def test_a_neighbour_that_falls_silent_is_forgotten():
    low = Sharer("low", 20)
    world = World(low)
    world.rounds(3)
    dead = Claim(driver="dead", sweep="x", priority=9, lacks=ONE)
    low.tell(NeighboursHeard(claims=(dead,)))
    world.drivers[0].tell(NeighboursHeard(claims=()))
    world.until_done()


def test_only_the_node_that_is_cleared_soonest_is_given_back():
    """Three nodes of two CPUs: for a gang of two, the gangs of one node end, and the others go on and are replaced."""
    jobs = [Job(trial_id=f"t{index}", kind=Kind("s", ONE), seconds=1.0) for index in range(40)]
    nodes = [Node(name=name, cpus=2) for name in "abc"]
    state, actions = begin(opening(jobs, Cluster.of(nodes), policy=Policy(ahead=True, recycle_after=1)))
    claim = Claim(driver="x", sweep="x", priority=1, lacks=wide(2))
    running: dict[str, str] = {}
    places: dict[str, str] = {}

    def take(more: list) -> None:
        for action in more:
            if isinstance(action, StartGang) and state.gangs[action.gang].placement:
                places[action.gang] = state.gangs[action.gang].placement[0].node
            elif isinstance(action, RunTrial):
                running[action.gang] = action.trial_id
            elif isinstance(action, StopGang):
                places.pop(action.gang, None)

    take(actions)
    for _ in range(4):
        for gang in [name for name in places if name not in running]:
            state, more = step(state, GangReady(gang=gang, nodes=(places[gang],)))
            take(more)
        state, more = step(state, NeighboursHeard(claims=(claim,)))
        take(more)
        for gang, trial in list(running.items()):
            del running[gang]
            ended = AttemptEnded(gang=gang, trial_id=trial, attempt=0, outcome="completed", reason=None)
            state, more = step(state, ended)
            take(more)
    held = [gang.placement[0].node for gang in state.gangs.values() if gang.placement]
    assert len(held) == 4, "the other four gangs have gone on"
    assert state.cluster.place(wide(2)) is not None
