"""The driver of a sweep: turns the scheduler's actions into calls of a backend, and what happens into events.

It holds nothing that the store does not: started again, it finds what is measured and goes on with the rest.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from orchestrator.planning.plan import Plan
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling import scheduler
from orchestrator.scheduling.backend import Assignment, AttemptEnded, Backend, Event, GangLost, GangShape, Progress
from orchestrator.scheduling.scheduler import Action, RunTrial, StartGang, State, StopAttempt, StopGang, StopRequested
from orchestrator.spec.trial import Trial

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
MAX_FAILURES = 2


@dataclass(frozen=True)
class Remaining:
    """What the results folder lacks of a plan: the unmeasured milestones by trial, in the plan's order."""

    milestones: dict[str, tuple[int, ...]]
    measured: int
    """Milestones of the plan that are measured."""
    flops_done: float
    """Training FLOPs that need not be spent again, as far as measurements show."""


def remaining(plan: Plan, results: Path) -> Remaining:
    """Compare `plan` with the measurements in `results`."""
    table = read_measurements(results)
    measured = set(zip(table["trial_id"], table["samples"], strict=True))
    todo: dict[str, tuple[int, ...]] = {}
    count, flops = 0, 0.0
    for trial in plan.trials:
        have = [m for m in trial.milestones if (trial.trial_id, m) in measured]
        lacking = tuple(m for m in trial.milestones if (trial.trial_id, m) not in measured)
        count += len(have)
        flops += max(have, default=0) * trial.flops_per_sample
        if lacking:
            todo[trial.trial_id] = lacking
    return Remaining(milestones=todo, measured=count, flops_done=flops)


@dataclass
class Snapshot:
    """The sweep at a moment, for whoever shows it."""

    state: State
    trials: dict[str, Trial]
    progress: dict[str, Progress]
    """By gang."""
    flops_done: float
    flops_planned: float
    seconds: float
    """Since the driver began."""
    flops_here: float
    """Training FLOPs done since the driver began."""
    notes: list[str] = field(default_factory=list)
    """What a person should hear once: retries, lost gangs."""


class Driver:
    """Runs what remains of a plan.

    Args:
        plan: the sweep.
        store: its results folder.
        backend: where gangs run.
        run_id: the tracker's run of a trial, or None while it has none.
        listen: called a few times a second with the state of things.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        backend: Backend,
        run_id: Callable[[str], str | None],
        listen: Callable[[Snapshot], None],
    ) -> None:
        self._plan, self._store, self._backend = plan, store, backend
        self._run_id, self._listen = run_id, listen
        self._trials = {trial.trial_id: trial for trial in plan.trials}
        self._remaining = remaining(plan, store.folder)
        self._spent = _samples_spent(read_attempts(store.folder))
        self._running: dict[str, tuple[Assignment, datetime]] = {}
        self._last: dict[str, Progress] = {}
        self._flops_ended = 0.0
        self._began = time.monotonic()
        self._stop = False
        self._notes: list[str] = []
        compute = plan.sweep.compute
        self._shape = GangShape(
            workers=compute.workers, cpus_per_worker=compute.cpus_per_worker, gpus_per_worker=compute.gpus_per_worker
        )
        self._state = State(
            waiting=tuple(self._remaining.milestones),
            max_gangs=min(compute.gangs, len(self._remaining.milestones)),
            max_failures=MAX_FAILURES,
        )

    def request_stop(self) -> None:
        """Let every attempt save and end; safe to call from a signal handler."""
        self._stop = True

    def opening(self) -> str:
        """What there is to do, in a line."""
        plan, trials = self._plan, len(self._remaining.milestones)
        have = f" ({self._remaining.measured} are there)" if self._remaining.measured else ""
        cells = plan.num_cells - self._remaining.measured
        return f"{plan.sweep.name}: {cells} measurements to make{have}; {trials} trials, {self._state.max_gangs} gangs"

    def run(self) -> State:
        """Run until everything is measured, given up or stopped."""
        self._apply(*scheduler.begin(self._state))
        while not self._state.finished:
            if self._stop and not self._state.stopping:
                self._apply(*scheduler.step(self._state, StopRequested()))
            for event in self._backend.events(TICK_SECONDS):
                self._record(event)
                self._apply(*scheduler.step(self._state, event))
            self._last |= self._backend.progress()
            self._listen(self.snapshot())
        return self._state

    def snapshot(self) -> Snapshot:
        """The sweep as it is now."""
        progress = {gang: p for gang, p in self._last.items() if gang in self._running and self._is_current(gang, p)}
        current = sum(
            (p.samples - p.samples_start) * self._trials[p.trial_id].flops_per_sample for p in progress.values()
        )
        notes, self._notes = self._notes, []
        return Snapshot(
            state=self._state,
            trials=self._trials,
            progress=progress,
            flops_done=self._remaining.flops_done + self._flops_ended + current,
            flops_planned=self._plan.flops_planned,
            seconds=time.monotonic() - self._began,
            flops_here=self._flops_ended + current,
            notes=notes,
        )

    def _is_current(self, gang: str, progress: Progress) -> bool:
        assignment, _ = self._running[gang]
        return (progress.trial_id, progress.attempt) == (assignment.trial.trial_id, assignment.attempt)

    def _apply(self, state: State, actions: list[Action]) -> None:
        self._state = state
        for action in actions:
            match action:
                case StartGang(gang):
                    self._backend.start_gang(gang, self._shape)
                case RunTrial(gang, trial_id):
                    self._run(gang, self._trials[trial_id])
                case StopAttempt(gang):
                    self._backend.request_stop(gang)
                case StopGang(gang):
                    self._backend.stop_gang(gang)

    def _run(self, gang: str, trial: Trial) -> None:
        measured = remaining(self._plan, self._store.folder).milestones if trial.trial_id in self._spent else {}
        assignment = Assignment(
            trial=trial,
            attempt=_claim_attempt(self._store.folder, trial.trial_id),
            gang=gang,
            milestones=measured.get(trial.trial_id, self._remaining.milestones[trial.trial_id]),
            samples_spent=self._spent.get(trial.trial_id, 0),
            checkpoint_seconds=60 * self._plan.sweep.compute.checkpoint_minutes,
            mlflow_run_id=self._run_id(trial.trial_id),
        )
        self._running[gang] = assignment, datetime.now(UTC)
        self._backend.run(assignment)

    def _record(self, event: Event) -> None:
        """Keep the books of an attempt that has ended, and its row where the worker could not write it."""
        if isinstance(event, GangLost):
            self._notes.append(f"{event.gang} was lost: {event.reason}")
        if not isinstance(event, AttemptEnded | GangLost) or event.gang not in self._running:
            return
        assignment, started_at = self._running.pop(event.gang)
        trial, last = assignment.trial, self._last.get(event.gang)
        if last is not None and (last.trial_id, last.attempt) != (trial.trial_id, assignment.attempt):
            last = None
        start, end = (last.samples_start, last.samples) if last else (0, 0)
        if isinstance(event, GangLost) or event.outcome == "failed":
            self._notes.append(f"{trial.name}: attempt {assignment.attempt} failed: {event.reason}")
            self._store.append_attempts([_lost_row(assignment, started_at, start, end, event.reason or "failed")])
        elif event.outcome in ("completed", "diverged"):
            end = trial.milestones[-1]
            if event.outcome == "diverged":
                self._notes.append(f"{trial.name} diverged: {event.reason}")
        self._spent[trial.trial_id] = self._spent.get(trial.trial_id, 0) + end - start
        self._flops_ended += (end - start) * trial.flops_per_sample


def _claim_attempt(results: Path, trial_id: str) -> int:
    """The next attempt's number, taken by creating its log file: no two attempts ever share one."""
    folder = results / "logs" / trial_id
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.log")))
    while True:
        with contextlib.suppress(FileExistsError):
            (folder / f"{number}.log").open("x").close()
            return number
        number += 1


def _samples_spent(attempts: pd.DataFrame) -> dict[str, int]:
    spent = (attempts["samples_end"] - attempts["samples_start"]).groupby(attempts["trial_id"]).sum()
    return {str(trial_id): int(samples) for trial_id, samples in spent.items()}


def _lost_row(assignment: Assignment, started_at: datetime, start: int, end: int, reason: str) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "trial_id": assignment.trial.trial_id,
        "attempt": assignment.attempt,
        "gang": assignment.gang,
        "host": None,
        "started_at": started_at,
        "ended_at": now,
        "outcome": "failed",
        "reason": reason,
        "samples_start": start,
        "samples_end": end,
        "flops": (end - start) * assignment.trial.flops_per_sample,
        "wall_seconds": (now - started_at).total_seconds(),
        "train_seconds": None,
        "evaluation_seconds": None,
        "startup_seconds": None,
    }
