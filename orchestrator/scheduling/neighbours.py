"""Whose turn it is among the drivers of one cluster.

There is no master. Each driver tells the others what it holds and which gang it lacks, and steps back by itself where
another goes first: it starts nothing in the room that the other needs, and gives its gangs back as their trials end.
The higher priority goes first; at the same one the driver that would still hold no more than this one keeps, so that
shares even out and a gang is never passed to and fro. What is told may be late or lost: then drivers use what is free,
as if they were alone, and nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.scheduling.backend import Claim, GangShape, Node
from orchestrator.scheduling.capacity import NOWHERE, UNITS, Allotment, Cluster
from orchestrator.scheduling.state import Kind, State


def claim_of(state: State, sweep: str, driver: str = "this one") -> Claim:
    """What the driver with this state has to tell the others."""
    held: dict[str, tuple[float, float]] = {}
    for gang in state.gangs.values():
        for node, cpus, gpus in gang.placement:
            before = held.get(node, (0.0, 0.0))
            held[node] = before[0] + cpus / UNITS, before[1] + sum(units for _, units in gpus) / UNITS
    asked = state.gangs[state.asked] if state.asked is not None else None
    key = state.pools[asked.kind].uncovered if asked is not None else None
    running = max((state.jobs[trial_id].priority for trial_id in state.running.values()), default=0)
    return Claim(
        driver=driver,
        sweep=sweep,
        priority=running if key is None else -key[0],
        held=tuple(Node(name=name, cpus=cpus, gpus=gpus) for name, (cpus, gpus) in sorted(held.items())),
        lacks=asked.kind.shape if asked is not None and key is not None else None,
    )


def with_neighbours(state: State, claims: tuple[Claim, ...]) -> State:
    """The state of a driver that knows these claims. To be asked again when nodes come or go: who could be served then
    is another matter."""
    lacking = [claim for claim in claims if claim.lacks is not None and _could_hold(state, claims, claim, claim.lacks)]
    lacking.sort(key=lambda claim: (-claim.priority, claim.driver))
    return state._replace(neighbours=claims, lacking=tuple(lacking))


def goes_first(state: State, claim: Claim, priority: int | None, shape: GangShape | None = None) -> bool:
    """Whether a claim goes before a job of ours with this priority; before None, no job, always.

    `shape` is the gang that we hold and would give back; None where we would have to start one.
    """
    if priority is None or claim.priority != priority:
        return priority is None or claim.priority > priority
    cpus = sum(use.cpus for use in state.use.values())
    gpus = sum(use.gpus for use in state.use.values())
    whole_cpus = state.cluster.cpus + sum(node.cpus for other in state.neighbours for node in other.held)
    whole_gpus = state.cluster.gpus + sum(node.gpus for other in state.neighbours for node in other.held)

    def share(cpus: float, gpus: float) -> float:
        return max(cpus / (whole_cpus or 1.0), gpus / (whole_gpus or 1.0))

    assert claim.lacks is not None
    theirs = share(
        claim.lacks.cpus + sum(node.cpus for node in claim.held),
        claim.lacks.gpus + sum(node.gpus for node in claim.held),
    )
    ours = share(cpus - (shape.cpus if shape else 0.0), gpus - (shape.gpus if shape else 0.0))
    return theirs <= ours + 1e-9


def steps_back(state: State, kind: Kind, claims: Sequence[Claim]) -> bool:
    """Whether one of these claims goes before our first job of a kind that has no gang."""
    key = state.pools[kind].uncovered
    return key is not None and any(claim.lacks and goes_first(state, claim, -key[0]) for claim in claims)


def room_left(state: State, priority: int) -> tuple[Cluster, frozenset[str]]:
    """What a job of this priority may be started in: the cluster less what is free for those who go first, and the
    nodes to keep off, where room is still being made for them."""
    cluster, kept = state.cluster, NOWHERE
    for claim in state.lacking:
        if goes_first(state, claim, priority):
            assert claim.lacks is not None
            placement = cluster.place(claim.lacks, kept)
            if placement is None:
                kept |= to_be_cleared(state, claim.lacks)
            else:
                cluster = cluster.take(placement)
    return cluster, kept


def to_be_cleared(state: State, shape: GangShape) -> frozenset[str]:
    """The nodes that have the least to be cleared of our gangs for one of this shape to fit."""
    ours: dict[str, list[Allotment]] = {}
    for gang in state.gangs.values():
        for allotment in gang.placement:
            ours.setdefault(allotment.node, []).append(allotment)
    cluster, left, chosen = state.cluster, shape.workers, set()
    could = {node: cluster.would_hold(node, ours.get(node, ()), shape) for node in cluster.totals}
    for node in sorted(could, key=lambda node: (-cluster.would_hold(node, (), shape), -could[node], node)):
        if left > 0 and could[node]:
            chosen.add(node)
            left -= could[node]
    return frozenset(chosen)


def _could_hold(state: State, claims: Sequence[Claim], claim: Claim, shape: GangShape) -> bool:
    """Whether a gang fits what is free, ours, or held by drivers that are no more urgent."""
    room = {name: (total.cpus / UNITS, sum(total.gpus) / UNITS) for name, total in state.cluster.totals.items()}
    for other in claims:
        if other.driver != claim.driver and other.priority <= claim.priority:
            for node in other.held:
                cpus, gpus = room.get(node.name, (0.0, 0.0))
                room[node.name] = cpus + node.cpus, gpus + node.gpus
    nodes = [Node(name=name, cpus=cpus, gpus=gpus) for name, (cpus, gpus) in room.items()]
    return Cluster.of(nodes).place(shape) is not None
