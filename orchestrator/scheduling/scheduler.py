"""The scheduler: a pure function from (state, event) to (state, actions). It knows nothing of Ray, clocks or files.

Time comes in as the event `Tick`. A state is made of persistent maps (`scheduling/persistent.py`), so that a step costs
O(log n) and leaves the state that it started from as it was: any schedule of events can be replayed, or tried out.

Jobs wait in the order of priority and length, and go to whichever gang of their kind is free (`admission.py`). One
that fails, or whose gang is lost, is tried again after a while, up to a limit; a new checkpoint clears the count, for
what gets on is not stuck. Divergence is a result and is not tried again. A cooldown waits until its trunk's checkpoint
is there; if the trunk ends without it, so does the cooldown. A lost gang is replaced while work waits for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.scheduling.admission import dispatch
from orchestrator.scheduling.backend import (
    AttemptEnded,
    CheckpointSaved,
    Event,
    GangLost,
    GangReady,
    NeighboursHeard,
    Node,
    NodeAdded,
    NodeDraining,
    NodeLost,
)
from orchestrator.scheduling.neighbours import with_neighbours
from orchestrator.scheduling.state import Action, Gang, RecordDiverged, State, StopAttempt
from orchestrator.scheduling.turn import Turn

MAX_GANG_LOSSES = 3
"""Gangs lost in a row before they came up, and while no other was up, before the sweep is given up; one more for each
that is still starting."""
MAX_FAILURES_IN_A_ROW = 6
"""Failed attempts in a row, whatever the trials, before the sweep is given up: something is wrong with all of it."""


@dataclass(frozen=True)
class StopRequested:
    """A person wants the sweep to stop, to be continued later."""


@dataclass(frozen=True)
class RetryRequested:
    """A person wants a trial to be tried again with a fresh count of retries, even if it was given up."""

    trial_id: str


@dataclass(frozen=True)
class Tick:
    """It is `now`, in seconds since any fixed moment; earlier than the last Tick changes nothing."""

    now: float


def begin(state: State) -> tuple[State, list[Action]]:
    """The first actions: start the gangs for which there is work and room."""
    turn = Turn(state)
    dispatch(turn)
    return turn.state, turn.actions


def step(state: State, event: Event | StopRequested | RetryRequested | Tick) -> tuple[State, list[Action]]:
    """The state after `event`, and what to do now. Events of unknown gangs, trials and nodes change nothing."""
    turn = Turn(state)
    match event:
        case Tick(now):
            if now <= state.now:
                return state, []
            turn.state = state._replace(now=now)
            if now < state.wakes_at:
                return turn.state, []
            _release_delayed(turn)
        case StopRequested():
            turn.state = state._replace(stopping=True)
            turn.actions += [] if state.stopping else [StopAttempt(gang) for gang in state.running]
        case RetryRequested(trial_id):
            _retry(turn, trial_id)
        case GangReady():
            _gang_ready(turn, event)
        case AttemptEnded():
            _attempt_ended(turn, event)
        case GangLost():
            _gang_lost(turn, event)
        case CheckpointSaved():
            _checkpoint_saved(turn, event)
        case NodeAdded(node=node):
            turn.state = state._replace(cluster=state.cluster.with_node(node))
        case NodeDraining(node=name):
            _node_draining(turn, name)
        case NodeLost(node=name):
            _node_lost(turn, name)
        case NeighboursHeard(claims=claims):
            turn.state = with_neighbours(state, claims)
    if turn.state is not state:
        if state.neighbours and turn.state.cluster.totals is not state.cluster.totals:
            turn.state = with_neighbours(turn.state, state.neighbours)
        dispatch(turn)
    return turn.state, turn.actions


def _release_delayed(turn: Turn) -> None:
    """Let the jobs whose wait is over begin again."""
    while (key := turn.state.delayed.key_at(0)) is not None and key[0] <= turn.state.now:
        turn.state = turn.state._replace(delayed=turn.state.delayed.without(key))
        turn.queue(key[1])


def _retry(turn: Turn, trial_id: str) -> None:
    """Forget the failures of a trial. One that was given up begins again, and so do the branches that it took along."""
    state = turn.state
    if trial_id not in state.jobs:
        return
    turn.state = state._replace(failures=state.failures.without(trial_id), failures_in_a_row=0)
    if (key := next((key for key in state.delayed if key[1] == trial_id), None)) is not None:
        turn.state = turn.state._replace(delayed=turn.state.delayed.without(key))
        turn.queue(trial_id)
    if trial_id not in state.given_up:
        return
    turn.state = turn.state._replace(given_up=turn.state.given_up.without(trial_id))
    turn.revive(trial_id)
    if trial_id in turn.state.blocked:
        _retry(turn, turn.state.blocked[trial_id][0])
    for branch in state.branches.get(trial_id, ()):
        if branch in turn.state.given_up:
            _retry(turn, branch)


def _gang_ready(turn: Turn, event: GangReady) -> None:
    state = turn.state
    gang = state.gangs.get(event.gang)
    if gang is None or gang.status not in ("asked", "starting"):
        return
    placement = gang.placement
    if event.nodes:
        placement = state.cluster.release(placement).placed_on(gang.kind.shape, event.nodes)
    asked = None if state.asked == gang.name else state.asked
    turn.state = state._replace(losses=0, stumbles=0, starts_at=-math.inf, asked=asked)
    ready = gang._replace(placement=placement)
    turn.replace(gang, ready)
    turn.free(ready)


def _attempt_ended(turn: Turn, event: AttemptEnded) -> None:
    state, trial_id = turn.state, event.trial_id
    if state.running.get(event.gang) != trial_id:
        return
    gang = state.gangs[event.gang]
    turn.state = state._replace(running=state.running.without(event.gang))
    if event.outcome == "failed":
        # Its process group may be stuck half-way through a collective: start afresh.
        turn.end(gang)
        _failed(turn, trial_id, event.reason or "failed", excused=gang.leaving)
        return
    turn.state = turn.state._replace(failures_in_a_row=0)
    if event.outcome == "stopped":
        turn.queue(trial_id)
    elif event.outcome == "diverged":
        _diverged(turn, trial_id, event.reason or "diverged")
    else:
        _done(turn, trial_id)
        for branch in _waiting_branches(turn.state, trial_id):
            _given_up(turn, branch, f"its trunk {trial_id} ended without a checkpoint to begin with")
    turn.free(gang)


def _gang_lost(turn: Turn, event: GangLost) -> None:
    state = turn.state
    gang = state.gangs.get(event.gang)
    if gang is None:
        return
    trial_id = state.running.get(gang.name)
    turn.state = state._replace(running=state.running.without(gang.name))
    turn.end(gang)
    if gang.status in ("asked", "starting") and not gang.leaving:
        _not_come_up(turn, event.reason)
    if trial_id is not None:
        _failed(turn, trial_id, event.reason, excused=gang.leaving)


def _not_come_up(turn: Turn, reason: str) -> None:
    """Wait before the next start. Nothing is wrong with the sweep as long as other gangs come up: a node may be."""
    state = turn.state
    others = [gang.status for gang in state.gangs.values()]
    up, starting = any(status in ("idle", "busy", "held") for status in others), others.count("starting")
    losses, stumbles = 0 if up else state.losses + 1, state.stumbles + 1
    starts_at = state.now + state.policy.backoff(stumbles)
    turn.state = state._replace(losses=losses, stumbles=stumbles, starts_at=starts_at)
    if losses >= MAX_GANG_LOSSES + starting:
        turn.state = turn.state._replace(broken=f"no workers could be started: {reason}")


def _checkpoint_saved(turn: Turn, event: CheckpointSaved) -> None:
    """Count the progress, and let the branches that begin there begin."""
    state, trial_id = turn.state, event.trial_id
    if trial_id not in state.jobs:
        return
    if event.samples > state.saved.get(trial_id, 0):
        saved = state.saved.set(trial_id, event.samples)
        failures = state.failures.without(trial_id)
        turn.state = state._replace(saved=saved, failures=failures, failures_in_a_row=0)
    for branch in _waiting_branches(turn.state, trial_id):
        if turn.state.blocked[branch] == (trial_id, event.samples):
            turn.state = turn.state._replace(blocked=turn.state.blocked.without(branch))
            turn.queue(branch)


def _node_draining(turn: Turn, name: str) -> None:
    """Nothing new goes to the node; what runs there saves and ends."""
    if name not in turn.state.cluster.totals:
        return
    turn.state = turn.state._replace(cluster=turn.state.cluster.with_node(Node(name=name, cpus=0.0)))
    _forget_reservation_on(turn, name)
    for gang in gangs_on(turn.state, name):
        leaving = gang._replace(leaving=True)
        turn.replace(gang, leaving)
        if gang.status == "busy":
            turn.actions.append(StopAttempt(gang.name))
        elif gang.status in ("idle", "held"):
            turn.end(leaving)


def _node_lost(turn: Turn, name: str) -> None:
    """The node's resources are gone. Gangs that were idle end; that the others are lost is told by their own events."""
    if name not in turn.state.cluster.totals:
        return
    _forget_reservation_on(turn, name)
    for gang in gangs_on(turn.state, name):
        elsewhere = tuple(allotment for allotment in gang.placement if allotment.node != name)
        leaving = gang._replace(placement=elsewhere, leaving=True)
        turn.replace(gang, leaving)
        if gang.status in ("idle", "held"):
            turn.end(leaving)
    turn.state = turn.state._replace(cluster=turn.state.cluster.without_node(name))


def _forget_reservation_on(turn: Turn, node: str) -> None:
    if turn.state.reservation is not None and node in turn.state.reservation.nodes:
        turn.drop_reservation()


def gangs_on(state: State, node: str) -> list[Gang]:
    """The gangs that hold something of a node."""
    return [gang for gang in state.gangs.values() if any(allotment.node == node for allotment in gang.placement)]


def _done(turn: Turn, trial_id: str) -> None:
    turn.retire(trial_id)
    turn.state = turn.state._replace(done=turn.state.done.set(trial_id, None))


def _diverged(turn: Turn, trial_id: str, reason: str) -> None:
    """Enter the result, and the same for the branches that cannot begin any more."""
    _done(turn, trial_id)
    turn.state = turn.state._replace(diverged=turn.state.diverged.set(trial_id, reason))
    for branch in _waiting_branches(turn.state, trial_id):
        why = f"its trunk {trial_id} diverged: {reason}"
        _diverged(turn, branch, why)
        turn.actions.append(RecordDiverged(branch, why))


def _failed(turn: Turn, trial_id: str, reason: str, excused: bool = False) -> None:
    """Count a failed attempt; the trial waits again, or is given up. One whose node was going is not counted."""
    if excused:
        turn.queue(trial_id)
        return
    state = turn.state
    policy, count, in_a_row = state.policy, state.failures.get(trial_id, 0) + 1, state.failures_in_a_row + 1
    turn.state = state._replace(failures=state.failures.set(trial_id, count), failures_in_a_row=in_a_row)
    if in_a_row >= MAX_FAILURES_IN_A_ROW and state.broken is None:
        broken = f"{in_a_row} attempts failed in a row, the last one: {reason}"
        turn.state = turn.state._replace(broken=broken)
    if count > policy.max_failures:
        _given_up(turn, trial_id, reason)
    elif policy.backoff_seconds > 0:
        due = state.now + policy.backoff(count)
        turn.state = turn.state._replace(delayed=turn.state.delayed.set((due, trial_id), None))
    else:
        turn.queue(trial_id)


def _given_up(turn: Turn, trial_id: str, reason: str) -> None:
    """Give a trial up, and the branches that wait for it."""
    turn.retire(trial_id)
    turn.state = turn.state._replace(given_up=turn.state.given_up.set(trial_id, reason))
    for branch in _waiting_branches(turn.state, trial_id):
        _given_up(turn, branch, f"its trunk {trial_id} was given up: {reason}")


def _waiting_branches(state: State, trunk: str) -> list[str]:
    return [branch for branch in state.branches.get(trunk, ()) if branch in state.blocked]
