"""The scheduler: a pure function from (state, event) to (state, actions). It knows nothing of Ray, clocks or files.

Trials wait in the order of the plan (longest first, so that no long one is left for the end) and go to whichever gang
is free. An attempt that fails, or whose gang is lost, is tried again up to a limit; divergence is a result and is not.
A lost gang is replaced while work is waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from orchestrator.scheduling.backend import AttemptEnded, Event, GangLost, GangReady

GangState = Literal["starting", "idle", "busy"]
MAX_GANG_LOSSES = 3
"""Gangs lost in a row, none of them having come up, before the sweep is given up."""
MAX_FAILURES_IN_A_ROW = 6
"""Failed attempts in a row, whatever the trials, before the sweep is given up: something is wrong with all of it."""


@dataclass(frozen=True)
class StartGang:
    """Start this gang."""

    gang: str


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


Action = StartGang | RunTrial | StopAttempt | StopGang


@dataclass(frozen=True)
class StopRequested:
    """A person wants the sweep to stop, to be continued later."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the scheduler knows."""

    order: tuple[str, ...]
    """All trials to run, in the plan's order."""
    waiting: tuple[str, ...]
    """Those that wait, in the same order."""
    max_gangs: int
    max_failures: int
    """Failed attempts of a trial before it is given up."""
    gangs: Mapping[str, GangState] = field(default_factory=dict)
    running: Mapping[str, str] = field(default_factory=dict)
    """Trial by gang."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Failed attempts by trial."""
    done: frozenset[str] = frozenset()
    given_up: Mapping[str, str] = field(default_factory=dict)
    """Trials that failed too often, with the last reason."""
    stopping: bool = False
    gangs_named: int = 0
    losses: int = 0
    """Gangs lost since the last one came up."""
    failures_in_a_row: int = 0
    """Failed attempts since the last one that did not fail."""
    broken: str | None = None
    """Why the sweep is given up, if so."""

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing will."""
        return not self.running and (not self.waiting or self.stopping or self.broken is not None)

    @property
    def succeeded(self) -> bool:
        """Everything is measured."""
        return not self.running and not self.waiting and not self.given_up


def begin(state: State) -> tuple[State, list[Action]]:
    """The first actions: start as many gangs as there is work for."""
    return _fill(state)


def step(state: State, event: Event | StopRequested) -> tuple[State, list[Action]]:
    """The state after `event`, and what to do now. Events of unknown gangs change nothing."""
    if isinstance(event, StopRequested):
        if state.stopping:
            return state, []
        return replace(state, stopping=True), [StopAttempt(gang) for gang in state.running]
    if event.gang not in state.gangs:
        return state, []
    if isinstance(event, GangReady):
        state = replace(state, gangs={**state.gangs, event.gang: "idle"}, losses=0)
        return _fill(state)
    if isinstance(event, AttemptEnded):
        return _attempt_ended(state, event)
    return _gang_lost(state, event)


def _attempt_ended(state: State, event: AttemptEnded) -> tuple[State, list[Action]]:
    if state.running.get(event.gang) != event.trial_id:
        return state, []
    running = {gang: trial for gang, trial in state.running.items() if gang != event.gang}
    if event.outcome == "failed":
        # Its process group may be stuck half-way through a collective: start afresh.
        state = replace(state, running=running, gangs=_without(state.gangs, event.gang))
        state, actions = _fill(_failed(state, event.trial_id, event.reason or "failed"))
        return state, [StopGang(event.gang), *actions]
    state = replace(state, running=running, gangs={**state.gangs, event.gang: "idle"}, failures_in_a_row=0)
    if event.outcome == "stopped":
        state = _wait(state, event.trial_id)
    else:
        state = replace(state, done=state.done | {event.trial_id})
    return _fill(state)


def _gang_lost(state: State, event: GangLost) -> tuple[State, list[Action]]:
    trial = state.running.get(event.gang)
    running = {gang: other for gang, other in state.running.items() if gang != event.gang}
    losses = state.losses + 1 if state.gangs[event.gang] == "starting" else state.losses
    state = replace(state, running=running, gangs=_without(state.gangs, event.gang), losses=losses)
    if trial is not None:
        state = _failed(state, trial, event.reason)
    if losses >= MAX_GANG_LOSSES:
        state = replace(state, broken=f"no workers could be started: {event.reason}")
    state, actions = _fill(state)
    return state, [StopGang(event.gang), *actions]


def _failed(state: State, trial_id: str, reason: str) -> State:
    """Count a failed attempt; the trial waits again, or is given up."""
    count, in_a_row = state.failures.get(trial_id, 0) + 1, state.failures_in_a_row + 1
    state = replace(state, failures={**state.failures, trial_id: count}, failures_in_a_row=in_a_row)
    if in_a_row >= MAX_FAILURES_IN_A_ROW:
        state = replace(state, broken=f"{in_a_row} attempts failed in a row, the last one: {reason}")
    if count > state.max_failures:
        return replace(state, given_up={**state.given_up, trial_id: reason})
    return _wait(state, trial_id)


def _wait(state: State, trial_id: str) -> State:
    """Put a trial back among the waiting, at its place in the plan: longest first stays longest first."""
    return replace(state, waiting=tuple(t for t in state.order if t == trial_id or t in state.waiting))


def _fill(state: State) -> tuple[State, list[Action]]:
    """Give waiting trials to idle gangs, start the gangs that are missing, end those that nothing waits for."""
    actions: list[Action] = []
    gangs, running, waiting = dict(state.gangs), dict(state.running), list(state.waiting)
    halted = state.stopping or state.broken is not None
    for gang in sorted(gang for gang, status in gangs.items() if status == "idle"):
        if waiting and not halted:
            running[gang] = waiting.pop(0)
            gangs[gang] = "busy"
            actions.append(RunTrial(gang, running[gang]))
        elif halted or not running:
            del gangs[gang]
            actions.append(StopGang(gang))
    named = state.gangs_named
    starting = sum(status == "starting" for status in gangs.values())
    while not halted and len(gangs) < state.max_gangs and starting < len(waiting):
        gang = f"gang-{named}"
        named, starting = named + 1, starting + 1
        gangs[gang] = "starting"
        actions.append(StartGang(gang))
    changed = replace(state, gangs=gangs, running=running, waiting=tuple(waiting), gangs_named=named)
    return changed, actions


def _without(gangs: Mapping[str, GangState], gang: str) -> dict[str, GangState]:
    return {name: status for name, status in gangs.items() if name != gang}
