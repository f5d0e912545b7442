"""The driver of a sweep: turns the scheduler's actions into calls of a backend, and what happens into events.

It holds nothing that the store does not: started again, it finds what is measured and goes on with the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from orchestrator.planning.packing import packs_of
from orchestrator.planning.plan import Plan
from orchestrator.results.checkpoints import has_checkpoint
from orchestrator.results.outbox import PATIENCE_SECONDS
from orchestrator.results.patience import is_full, may_pass, when_it_answers
from orchestrator.results.store import Store
from orchestrator.scheduling import scheduler
from orchestrator.scheduling.backend import (
    Assignment,
    AttemptEnded,
    Backend,
    CheckpointSaved,
    Event,
    GangLost,
    NeighboursHeard,
    Progress,
)
from orchestrator.scheduling.books import NODE_LOST, Books
from orchestrator.scheduling.capacity import Cluster
from orchestrator.scheduling.jobs import jobs_of, policy_of
from orchestrator.scheduling.neighbours import claim_of
from orchestrator.scheduling.scheduler import RetryRequested, StopRequested, Tick
from orchestrator.scheduling.snapshot import Ending, Snapshot, counted
from orchestrator.scheduling.state import (
    Action,
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
from orchestrator.scheduling.tally import Tally
from orchestrator.spec.trial import Trial

TICK_SECONDS = 0.2
AGAIN_SECONDS = 1.0
"""Time between two tries to write to a full disk, or to reach storage that is away."""

T = TypeVar("T")


class Driver:
    """Runs what remains of a plan.

    Args:
        plan: the sweep.
        store: its results folder.
        backend: where gangs run.
        run_id: the tracker's run of a trial, or None while it has none.
        listen: called a few times a second with the state of things.
        policy: how the scheduler behaves; by default as the sweep says.
        waiting_since: `time.monotonic()` from which on devices wait for the first gangs; default: now.

    Raises:
        ValueError: a trial begins with a checkpoint that is not there and that nothing makes.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        backend: Backend,
        run_id: Callable[[str], str | None],
        listen: Callable[[Snapshot], None],
        policy: Policy | None = None,
        waiting_since: float | None = None,
    ) -> None:
        self._plan, self._store, self._backend = plan, store, backend
        self._run_id, self._listen = run_id, listen
        self._trials = {trial.trial_id: trial for trial in plan.trials}
        self._books = Books(plan, store)
        self._books.check_trunks()
        self._books.close_abandoned()
        foregone = self._books.enter_foregone()
        self._tally = Tally(plan, self._books.reached)
        self._running: dict[str, tuple[str, Assignment, datetime]] = {}
        """Job, assignment and when it began, by gang."""
        self._last: dict[str, Progress] = {}
        self._began = time.monotonic()
        self._waiting_since = self._began if waiting_since is None else waiting_since
        self._free_since: dict[str, float] = {}
        """Since when a gang has had nothing to do, or been asked for."""
        self._stop = False
        self._patient_until: float | None = None
        """When a driver that is to stop gives up on storage that is away; None while it is not to stop."""
        self._retries: list[str] = []
        self._faults = 0
        self._notes = [f"{trial.name} has diverged before: its further budgets are entered so" for trial in foregone]
        self._waiting: set[str] = set()
        self._neighbours: set[str] = set()
        waiting, compute = self._books.waiting, plan.sweep.compute
        packs = packs_of(compute, waiting)
        self._packs = {pack[0].trial_id: pack for pack in packs}
        """Trials by the first of their pack, under whose name the scheduler knows it."""
        self._num_waiting = len(waiting)
        for trial in plan.trials:
            if trial.branch_points:
                self._books.drop_branch_points(trial.trial_id)
        self._state = opening(
            jobs_of(plan, packs, self._books.waits),
            Cluster.of(backend.nodes()),
            {plan.sweep.name: Limit(gangs=compute.gangs, gpus=compute.max_gpus)},
            policy or policy_of(compute),
            {trial.trial_id: max(self._books.checkpoints(trial.trial_id), default=0) for trial in waiting},
            self._books.failures,
        )

    def request_stop(self) -> None:
        """Let every attempt save and end; safe to call from a signal handler."""
        self._stop = True

    def request_retry(self, trial_ids: Collection[str]) -> None:
        """Give trials a fresh count of retries, those that were given up too."""
        self._retries += trial_ids

    def opening(self) -> str:
        """What there is to do, in a line."""
        plan, trials, have = self._plan, self._num_waiting, self._books.num_measured
        there = f" ({have} are there)" if have else ""
        to_make = f"{plan.num_cells - have} measurements to make{there}"
        gangs = min(plan.sweep.compute.gangs, len(self._packs))
        packed = f" in {counted(len(self._packs), 'pack')}" if len(self._packs) < trials else ""
        return f"{plan.sweep.name}: {to_make}; {counted(trials, 'trial')}{packed}, {counted(gangs, 'gang')}"

    def run(self) -> State:
        """Run until everything is measured, given up or stopped.

        Raises OSError where the results folder fails in a way that waiting does not mend, where this driver is to stop
        and has waited in vain, and, as LockLost, where another driver has the folder now.
        """
        self._books.insist = self._insist
        self._apply(*scheduler.begin(self._state))
        while not self._state.finished:
            self._store.check_lock()
            self._tell(Tick(time.monotonic() - self._began))
            if self._stop and not self._state.stopping:
                self._tell(StopRequested())
            while self._retries:
                wanted = self._retries.pop()
                packs = self._packs.items()
                job = next((job for job, pack in packs if any(one.trial_id == wanted for one in pack)), wanted)
                self._tell(RetryRequested(job))
            events = self._backend.events(TICK_SECONDS)
            if any(isinstance(event, AttemptEnded | GangLost) for event in events):
                self._books.refresh()
            for event in events:
                for checked in self._record(event):
                    self._tell(checked)
            self._last |= self._backend.progress()
            self._note_waits()
            for saved in self._branch_points_saved():
                self._tell(saved)
            self._backend.tell_neighbours(claim_of(self._state, self._plan.sweep.name))
            self._listen(self.snapshot())
        return self._state

    def ending(self) -> Ending:
        """What is left, once `run` has returned."""
        state = self._state
        self._books.refresh()
        lacking = {trial.trial_id for trial in self._books.waiting}
        given_up = {
            trial.trial_id: reason
            for job, reason in state.given_up.items()
            for trial in self._packs[job]
            if trial.trial_id in lacking
        }
        return Ending(state=state, given_up=given_up, to_go=len(lacking) - len(given_up))

    def snapshot(self) -> Snapshot:
        """The sweep as it is now."""
        progress = {gang: p for gang, (_, a, _) in self._running.items() if (p := self._last_of(gang, a)) is not None}
        standing = self._tally.standing(part for whole in progress.values() for part in (whole, *whole.mates))
        notes, self._notes = self._notes, []
        return Snapshot(
            state=self._state,
            trials=self._trials,
            packs=self._packs,
            progress=progress,
            flops_done=standing.flops_done,
            flops_planned=self._plan.flops_planned,
            seconds=time.monotonic() - self._began,
            flops_here=standing.flops_here,
            seconds_left=standing.seconds_left,
            notes=notes,
            faults=self._faults,
            diverged=self._books.num_diverged,
        )

    def _tell(self, event: Event | StopRequested | RetryRequested | Tick) -> None:
        self._apply(*scheduler.step(self._state, event))

    def _apply(self, state: State, actions: list[Action]) -> None:
        self._state = state
        for action in actions:
            match action:
                case StartGang(gang, shape):
                    self._free_since[gang] = time.monotonic() if self._last else self._waiting_since
                    self._backend.start_gang(gang, shape)
                case RunTrial(gang, trial_id):
                    self._run(gang, trial_id)
                case StopAttempt(gang):
                    self._backend.request_stop(gang)
                case StopGang(gang):
                    self._backend.stop_gang(gang)
                case RecordDiverged(trial_id, reason):
                    trial = self._trials[trial_id]
                    self._books.enter_diverged(trial, reason)
                    self._notes.append(f"{trial.name} diverged: {reason}")

    def _run(self, gang: str, job: str) -> None:
        """Begin what is left of a pack, most often a single trial."""
        left = [trial for trial in self._packs[job] if self._books.stops(trial)] or [*self._packs[job][:1]]
        first, *mates = (self._assignment(gang, trial) for trial in left)
        waited = time.monotonic() - self._free_since.pop(gang, time.monotonic())
        assignment = replace(first, mates=tuple(mates), waited_seconds=waited)
        self._running[gang] = job, assignment, datetime.now(UTC)
        self._backend.run(assignment)

    def _assignment(self, gang: str, trial: Trial) -> Assignment:
        return Assignment(
            trial=trial,
            attempt=self._books.claim(trial.trial_id),
            gang=gang,
            milestones=self._books.lacking(trial),
            branch_points=self._books.needed(trial),
            samples_spent=self._books.spent(trial.trial_id),
            checkpoint_seconds=60 * self._plan.sweep.compute.checkpoint_minutes,
            keep_finished=self._plan.sweep.compute.finished == "keep",
            mlflow_run_id=self._run_id(trial.trial_id),
        )

    def _record(self, event: Event) -> list[Event]:
        """Keep the books of an attempt that has ended, and tell the scheduler what the store says of it.

        The store decides: an attempt that says it is complete and whose measurements are not there has failed, and a
        gang that died after its last measurement leaves nothing to repeat. Checkpoints are told of first. A pack has
        ended when every member has, and fails if any does: its next attempt is of those that are left.
        """
        if isinstance(event, NeighboursHeard):
            self._note_neighbours(event)
        if isinstance(event, GangLost):
            self._notes.append(f"{event.gang} was lost: {event.reason}")
            self._faults += 1
        if not isinstance(event, AttemptEnded | GangLost) or event.gang not in self._running:
            return [event]
        job, assignment, began = self._running.pop(event.gang)
        self._free_since[event.gang] = time.monotonic()
        last = self._last_of(event.gang, assignment)
        newest = max(
            (max(self._books.checkpoints(one.trial.trial_id), default=0) for one in assignment.mates), default=0
        )
        saved: list[Event] = [
            CheckpointSaved(trial_id=job, samples=samples)
            for samples in sorted({*self._books.checkpoints(assignment.trial.trial_id), newest} - {0})
        ]
        if assignment.trial.trunk is not None:
            self._books.drop_branch_points(assignment.trial.trunk)
        ended = partial(AttemptEnded, gang=event.gang, trial_id=job, attempt=assignment.attempt)
        if isinstance(event, GangLost) or event.outcome == "failed":
            lacking = [self._enter_lost(one, began, _of(last, one), event) for one in assignment.members]
            if any(lacking):
                if isinstance(event, AttemptEnded):  # a lost gang is counted already
                    self._faults += 1
                lost = event if isinstance(event, GangLost) else ended(outcome="failed", reason=event.reason)
                return [*saved, lost]
            return [*saved, ended(outcome="completed", reason=None), event]
        missing = [self._enter_ended(one, _of(last, one), event) for one in assignment.members]
        if event.outcome == "diverged" or (event.outcome == "completed" and event.reason):
            diverged = "" if assignment.mates else f"{assignment.trial.name} diverged: "
            self._notes.append(f"{diverged}{event.reason}")
        if any(missing):
            reason = f"its workers do not write to the folder that the driver reads, {self._store.folder}"
            self._notes.append(f"{assignment.trial.name}: {reason}")
            self._faults += 1
            return [*saved, ended(outcome="failed", reason=reason)]
        return [*saved, ended(outcome=event.outcome, reason=event.reason)]

    def _enter_lost(
        self, assignment: Assignment, began: datetime, last: Progress | None, event: AttemptEnded | GangLost
    ) -> bool:
        """Enter an attempt whose worker could not; whether its trial lacks anything."""
        trial, reason = assignment.trial, event.reason or "no reason given"
        if (gang := self._state.gangs.get(event.gang)) is not None and gang.leaving:
            reason = f"{NODE_LOST}: {reason}"
        spent = self._books.enter_lost(assignment, began, last, reason)
        self._tally.end(trial, spent, self._kept(trial, last, spent))
        if not self._books.stops(trial):
            return False
        where = f"logs/{trial.trial_id}/{assignment.attempt}.log"
        self._notes.append(f"{trial.name}: attempt {assignment.attempt} failed ({where}): {reason}")
        return True

    def _enter_ended(self, assignment: Assignment, last: Progress | None, event: AttemptEnded) -> bool:
        """Count an attempt that its worker has entered; whether the store lacks what it says to have measured."""
        trial = assignment.trial
        stopped = event.outcome == "stopped" and bool(self._books.stops(trial))
        start = last.samples_start if last else trial.first
        end = (last.samples if last else trial.first) if stopped else trial.last
        self._books.spend(trial.trial_id, end - start)
        self._tally.end(trial, end - start, end - start)
        lacking = {"completed": self._books.stops(trial), "diverged": self._books.lacking(trial)}.get(event.outcome)
        return bool(lacking)

    def _kept(self, trial: Trial, last: Progress | None, spent: int) -> int:
        """Of the samples that a lost attempt trained, those that a checkpoint holds."""
        start = last.samples_start if last else trial.first
        return min(spent, max(0, max(self._books.checkpoints(trial.trial_id), default=start) - start))

    def _note_neighbours(self, heard: NeighboursHeard) -> None:
        """Say it once of each sweep that shares the cluster."""
        for claim in heard.claims:
            if claim.driver not in self._neighbours:
                self._neighbours.add(claim.driver)
                self._notes.append(f"sweep {claim.sweep} runs on the same cluster, at priority {claim.priority}")

    def _note_waits(self) -> None:
        """Say it when a worker begins to wait for a full disk: it cannot even write that into its log."""
        on = {gang: assignment for gang, (_, assignment, _) in self._running.items()}
        last = {gang: self._last_of(gang, assignment) for gang, assignment in on.items()}
        waiting = {gang for gang, progress in last.items() if progress and progress.phase == "waiting for disk space"}
        for gang in sorted(waiting - self._waiting):
            self._notes.append(f"{on[gang].trial.name} waits for room on the disk of {self._store.folder}")
        self._waiting = waiting

    def _insist(self, act: Callable[[], T]) -> T:
        """Do something with the results folder; wait while its disk is full, or its storage does not answer."""
        told = False

        def wait(error: OSError) -> None:
            nonlocal told
            if self._stop and self._gives_up(error):
                raise error
            if not told:
                what = "room on the disk" if is_full(error) else self._store.folder
                self._notes.append(f"the sweep waits for {what}: {error}")
                told = True
            self._listen(self.snapshot())
            time.sleep(AGAIN_SECONDS)

        return when_it_answers(act, self._store.folder, wait)

    def _gives_up(self, error: OSError) -> bool:
        """Whether a driver that is to stop leaves something undone. It does when its workers do: on a full disk at
        once, else after a while, in which their attempts can end."""
        if self._patient_until is None:
            self._patient_until = time.monotonic() + PATIENCE_SECONDS
            for gang in self._running:
                self._backend.request_stop(gang)
        return is_full(error) or time.monotonic() > self._patient_until

    def _branch_points_saved(self) -> list[CheckpointSaved]:
        """The checkpoints for which branches wait and that running trunks have made since the last look."""
        state, found = self._state, []
        for trunk in state.running.values():
            points = {state.blocked[branch][1] for branch in state.branches.get(trunk, ()) if branch in state.blocked}
            reached = max((last.samples for last in self._last.values() if last.trial_id == trunk), default=0)
            try:
                folder, made = self._store.folder, sorted(point for point in points if point <= reached)
                there = [samples for samples in made if has_checkpoint(folder, trunk, samples)]
            except OSError as error:
                if not may_pass(error, self._store.folder):
                    raise
                continue  # not known yet
            found += [CheckpointSaved(trial_id=trunk, samples=samples) for samples in there]
        return found

    def _last_of(self, gang: str, assignment: Assignment) -> Progress | None:
        """The last progress known of an attempt."""
        last = self._last.get(gang)
        wanted = (assignment.trial.trial_id, assignment.attempt)
        return last if last is not None and (last.trial_id, last.attempt) == wanted else None


def _of(last: Progress | None, assignment: Assignment) -> Progress | None:
    """The progress of one member of a pack."""
    parts = (last, *last.mates) if last is not None else ()
    return next((part for part in parts if part.trial_id == assignment.trial.trial_id), None)
