"""What the store holds of a plan: which milestones are measured, and what attempts have spent. Follows new parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow.compute as pc

from orchestrator.planning.plan import Plan
from orchestrator.results import logs
from orchestrator.results.checkpoints import (
    checkpoint_folders,
    checkpoint_name,
    checkpoints_folder,
    drop_checkpoint,
    has_checkpoint,
    read_checkpoint,
    set_aside,
)
from orchestrator.results.location import Location
from orchestrator.results.parts import read_new
from orchestrator.results.requests import Fresh, retried_at
from orchestrator.results.schema import MEASUREMENT, SCHEMA_VERSION
from orchestrator.results.store import Store, read_attempts, read_curves
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.spec.columns import planned_columns
from orchestrator.spec.trial import Trial

log = logging.getLogger(__name__)

DRIVER_DIED, NODE_LOST = "the driver died", "its node was lost"
"""How the reasons of failures begin that are no fault of the trial."""

T = TypeVar("T")


class Insist(Protocol):
    """Does something with the results folder; it may be tried several times, and raises OSError where it fails."""

    def __call__(self, act: Callable[[], T]) -> T: ...


def _once(act: Callable[[], T]) -> T:
    return act()


class Divergence(NamedTuple):
    """A trial came to nothing from so many samples on."""

    samples: int
    reason: str


def failures_in(attempts: Sequence[Mapping[str, Any]], newest: int, since: Fresh | None) -> int:
    """The failed attempts at the end of a trial's history that count against its retries.

    The one that made the newest checkpoint counts, those before it do not; nor do those that began before `since`, or
    were cut off with their driver or their node.

    Args:
        attempts: rows of one trial.
        newest: samples of its newest checkpoint.
        since: when a person asked for a fresh count.
    """
    count = 0
    for row in sorted(attempts, key=lambda row: int(row["attempt"]), reverse=True):  # clocks of workers may differ
        if row["outcome"] != "failed" or (since is not None and since.forgets(row)):
            break
        if not str(row["reason"]).startswith((DRIVER_DIED, NODE_LOST)):
            count += 1
        if row["samples_end"] > 0 and row["samples_start"] < newest:
            break
    return count


class Books:
    """The books of one sweep. Opening them reads; `close_abandoned`, `claim`, `enter_...` and `drop_...` write.

    Whatever they ask of the results folder, or write there, is done by `insist`: at first once, and what fails is
    raised. A driver at work sets one that waits.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self.insist: Insist = _once
        self._trials = {trial.trial_id: trial for trial in plan.trials}
        self._branches: dict[str, list[Trial]] = {}
        for trial in plan.trials:
            if trial.trunk is not None:
                self._branches.setdefault(trial.trunk, []).append(trial)
        self._seen: set[str] = set()
        """Names of the parts that have been read."""
        self._measured: set[tuple[str, int]] = set()
        self._diverged: dict[str, Divergence] = {}
        """The first milestone of a trial that it did not reach."""
        self._spent: dict[str, int] = {}
        self.refresh()
        attempts = read_attempts(store.folder)
        self._attempts = attempts[
            ["trial_id", "attempt", "samples_start", "samples_end", "outcome", "reason", "started_at"]
        ]
        self._entered = set(zip(attempts["trial_id"], attempts["attempt"], strict=True))
        for trial_id, start, end in zip(
            attempts["trial_id"], attempts["samples_start"], attempts["samples_end"], strict=True
        ):
            self.spend(str(trial_id), int(end - start))

    def refresh(self) -> None:
        """Take in the measurements written since the last look."""
        columns = ["trial_id", "samples", "outcome", "reason"]
        new = self.insist(lambda: read_new(self._store.folder, "measurements", self._seen, columns))
        rows = new.table.to_pydict()
        self._measured |= set(zip(rows["trial_id"], rows["samples"], strict=True))
        for trial_id, samples, outcome, reason in zip(*(rows[name] for name in columns), strict=True):
            if outcome == "diverged":
                here = Divergence(samples, reason or "diverged")
                self._diverged[trial_id] = min(here, self._diverged.get(trial_id, here))
        self._seen |= {part.name for part in new.parts}

    def lacking(self, trial: Trial) -> tuple[int, ...]:
        """The milestones of a trial that are not measured."""
        return tuple(m for m in trial.milestones if (trial.trial_id, m) not in self._measured)

    def needed(self, trial: Trial) -> tuple[int, ...]:
        """The branch points of a trial at which a checkpoint is still to be made: a branch has to begin there."""
        points = {branch.first for branch in self._branches.get(trial.trial_id, []) if self.waits(branch)}
        return tuple(point for point in trial.branch_points if point in points)

    def stops(self, trial: Trial) -> tuple[int, ...]:
        """Where a trial still has something to do: unmeasured milestones and needed branch points, ascending."""
        return tuple(sorted({*self.lacking(trial), *self.needed(trial)}))

    def waits(self, trial: Trial) -> bool:
        """Whether a trial cannot begin yet: its trunk's checkpoint is not there, and it has none of its own."""
        if trial.trunk is None or not self.lacking(trial) or self.checkpoints(trial.trial_id):
            return False
        return not self.has_checkpoint(trial.trunk, trial.first)

    def checkpoints(self, trial_id: str) -> list[int]:
        """Samples of the finished checkpoints of a trial, newest first."""
        folders = self.insist(partial(checkpoint_folders, self._store.folder, trial_id))
        return [int(folder.name) for folder in folders]

    def has_checkpoint(self, trial_id: str, samples: int) -> bool:
        """Whether a trial has a finished checkpoint at exactly `samples`."""
        return self.insist(partial(has_checkpoint, self._store.folder, trial_id, samples))

    @property
    def waiting(self) -> list[Trial]:
        """Trials with something left to do, in the plan's order."""
        return [trial for trial in self._plan.trials if self.stops(trial)]

    def check_trunks(self) -> None:
        """Raise ValueError if a branch could never begin: no checkpoint, and nothing in the plan that will make it."""
        for trial in self._plan.trials:
            if self.waits(trial):
                assert trial.trunk is not None
                trunk = self._trials.get(trial.trunk)
                if trunk is None or trial.first not in trunk.branch_points:
                    folder = checkpoints_folder(self._store.folder, trial.trunk) / checkpoint_name(trial.first)
                    raise ValueError(
                        f"{trial.name} ({trial.trial_id}) begins with the checkpoint {folder}, which is not there, and "
                        f"no trial of {self._plan.sweep.name} makes it; wanted one of them. Put the checkpoint back, "
                        "or plan its trunk too."
                    )

    @property
    def num_measured(self) -> int:
        """Milestones of the plan that are measured."""
        return self._plan.num_cells - sum(len(self.lacking(trial)) for trial in self._plan.trials)

    @property
    def num_diverged(self) -> int:
        """Trials of the plan whose rows say that they diverged."""
        return len(self._diverged.keys() & self._trials.keys())

    @property
    def failures(self) -> dict[str, int]:
        """Failed attempts by trial, since its newest checkpoint or since a person asked for a fresh count."""
        since, counts = retried_at(self._store.folder), {}
        for trial_id, rows in self._attempts.groupby("trial_id"):
            name = str(trial_id)
            if name in self._trials and (rows["outcome"] == "failed").any():
                newest = max(self.checkpoints(name), default=0)
                history: Any = rows.to_dict("records")
                counts[name] = failures_in(history, newest, since.get(name))
        return counts

    def spent(self, trial_id: str) -> int:
        """Samples that all attempts of a trial have trained, lost ones included."""
        return self._spent.get(trial_id, 0)

    def spend(self, trial_id: str, samples: int) -> None:
        """An attempt has ended after so many samples."""
        self._spent[trial_id] = self.spent(trial_id) + samples

    def to_retrain(self) -> list[Trial]:
        """Trials that were trained before and would have to start at 0: no checkpoint is left to go on from.

        None of a sweep whose spec says not to keep them, and none that had diverged before it came to what is left.
        """
        if self._plan.sweep.compute.finished == "drop":
            return []
        found, diverged = [], self._divergences()
        for trial in self.waiting:
            have, first, known = self.checkpoints(trial.trial_id), self.stops(trial)[0], diverged.get(trial.trial_id)
            if trial.trunk is not None or (known is not None and known.samples <= first):
                continue
            if not any(samples <= first for samples in have) and self._was_trained(trial):
                found.append(trial)
        return found

    def enter_foregone(self) -> list[Trial]:
        """Enter what trials can no longer reach that have diverged before, as under budgets that were added since.

        A row is what it would be had its milestone been asked for at first. Returns the trials.
        """
        found, diverged = [], self._divergences()
        for trial in self.waiting if diverged else []:
            known, of_trunk = diverged.get(trial.trial_id), diverged.get(trial.trunk or "")
            if of_trunk is not None and of_trunk.samples <= trial.first and self.waits(trial):
                self.enter_diverged(trial, f"its trunk {trial.trunk} diverged: {of_trunk.reason}")
                found.append(trial)
            elif known is not None and (beyond := [m for m in self.lacking(trial) if m >= known.samples]):
                self._repeat_diverged(trial, beyond)
                found.append(trial)
        self.refresh()
        return found

    def _divergences(self) -> dict[str, Divergence]:
        """Where and why trials have diverged, by trial_id: by their rows, and by their newest attempt, which tells of
        trunks, and where more exactly. Not of what is to be tried anew since."""
        found = dict(self._diverged)
        newest = self._attempts.sort_values("attempt").drop_duplicates("trial_id", keep="last")
        rows: Any = newest[newest["outcome"] == "diverged"].to_dict("records")
        since = retried_at(self._store.folder) if rows else {}
        for row in rows:
            trial = self._trials.get(row["trial_id"])
            if trial is None or (trial.milestones and trial.trial_id not in found) or self._is_anew(row, since):
                continue
            ended = Divergence(int(row["samples_end"]), str(row["reason"]))
            found[trial.trial_id] = min(ended, found.get(trial.trial_id, ended))
        return found

    def _is_anew(self, attempt: Mapping[str, Any], since: Mapping[str, Fresh]) -> bool:
        """Whether a person has asked after an attempt that its trial, or a branch of it, be tried again."""
        own = since.get(attempt["trial_id"])
        branches = (since.get(branch.trial_id) for branch in self._branches.get(attempt["trial_id"], []))
        return (own is not None and own.forgets(attempt)) or any(
            asked is not None and asked.at > attempt["started_at"] for asked in branches
        )

    def _repeat_diverged(self, trial: Trial, milestones: Sequence[int]) -> None:
        """Enter further milestones of a trial that has diverged, each as its first row that says so."""
        rows = self.insist(lambda: read_new(self._store.folder, "measurements")).table
        rows = rows.filter((pc.field("trial_id") == trial.trial_id) & (pc.field("outcome") == "diverged"))
        first = min(rows.to_pylist(), key=lambda row: row["samples"])
        now = {"created_at": datetime.now(UTC)}
        further = [first | planned_columns(trial, milestone) | now for milestone in milestones]
        self.insist(partial(self._store.append_measurements, further))

    def set_damaged_aside(self) -> list[Location]:
        """Let the damaged checkpoints count no more that trials with something left to do would begin with; those."""
        waiting = self.waiting
        found: list[Location] = []
        for trial_id in sorted({t.trial_id for t in waiting} | {t.trunk for t in waiting if t.trunk is not None}):
            for folder in checkpoint_folders(self._store.folder, trial_id):
                try:
                    read_checkpoint(folder, trial_id)
                except (ValueError, FileNotFoundError) as error:
                    log.warning("checkpoint %s is set aside: %s", folder, error)
                    set_aside(folder)
                    found.append(folder)
        return found

    def drop_branch_points(self, trunk_id: str) -> None:
        """Delete a trunk's checkpoints at branch points off which everything is measured; its newest one stays."""
        trunk = self._trials.get(trunk_id)
        if trunk is None:
            return
        needed = {branch.first for branch in self._branches.get(trunk_id, []) if self.lacking(branch)}
        for samples in self.checkpoints(trunk_id)[1:]:
            if samples in trunk.branch_points and samples not in needed:
                drop_checkpoint(checkpoints_folder(self._store.folder, trunk_id) / checkpoint_name(samples))

    def claim(self, trial_id: str) -> int:
        """The next attempt's number, taken by creating its log file: no two attempts ever share one.

        Raises LockLost where another driver has the folder now.
        """

        def claimed() -> int:
            self._store.check_lock(sure=True)
            return logs.claim_attempt(self._store.folder, trial_id)

        return self.insist(claimed)

    def close_abandoned(self) -> None:
        """Enter the attempts that died with their driver: claimed, and without a row of their end.

        The row of their beginning says where they began; curves and checkpoints say how far they came.
        """
        abandoned = [
            (trial, number)
            for trial in self._plan.trials
            for number in logs.claimed_attempts(self._store.folder, trial.trial_id)
            if (trial.trial_id, number) not in self._entered
        ]
        if not abandoned:
            return
        folder = self._store.folder
        curves, begun = read_curves(folder), read_attempts(folder, running=True)
        starts = dict(zip(zip(begun["trial_id"], begun["attempt"], strict=True), begun["samples_start"], strict=True))
        for trial, number in abandoned:
            part = curves[(curves["trial_id"] == trial.trial_id) & (curves["attempt"] == number)]
            seen = [int(samples) for samples in part["samples"]]
            start = int(starts.get((trial.trial_id, number), min(seen, default=0)))
            if number == logs.claimed_attempts(folder, trial.trial_id)[-1]:
                seen += self.checkpoints(trial.trial_id)
            began = datetime.fromtimestamp(logs.log_of(folder, trial.trial_id, number).stat().st_mtime, UTC)
            self._enter(trial, number, None, began, (start, max(start, *seen, 0)), DRIVER_DIED)

    def enter_lost(self, assignment: Assignment, began: datetime, last: Progress | None, reason: str) -> int:
        """Enter an attempt whose worker could not; returns the samples it trained, as far as is known."""
        span = (last.samples_start, last.samples) if last else (0, 0)
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC the driver: the attempt ended: {reason}"
        logs.add_line(self._store.folder, assignment.trial.trial_id, assignment.attempt, line)
        return self._enter(assignment.trial, assignment.attempt, assignment.gang, began, span, reason)

    def enter_diverged(self, trial: Trial, reason: str) -> None:
        """Enter a branch that can never begin as diverged, at each milestone: divergence is a result."""
        attempt, now = self.claim(trial.trial_id), datetime.now(UTC)
        known = {"schema_version": SCHEMA_VERSION, "outcome": "diverged", "reason": reason, "attempt": attempt}
        spent = {"wall_seconds": 0.0, "gpu_hours": 0.0, "flops_useful": 0.0, "flops_wasted": 0.0, "created_at": now}
        empty: dict[str, object] = dict.fromkeys(MEASUREMENT.names)
        rows = [empty | planned_columns(trial, milestone) | known | spent for milestone in self.lacking(trial)]
        self.insist(partial(self._store.append_measurements, rows))
        self._enter(trial, attempt, None, now, (trial.first, trial.first), reason, "diverged")
        self.refresh()

    def _enter(
        self,
        trial: Trial,
        attempt: int,
        gang: str | None,
        began: datetime,
        span: tuple[int, int],
        reason: str,
        outcome: str = "failed",
    ) -> int:
        start, end = span
        row = {
            "trial_id": trial.trial_id,
            "attempt": attempt,
            "gang": gang,
            "host": None,
            "started_at": began,
            "ended_at": max(began, datetime.now(UTC)),
            "outcome": outcome,
            "reason": reason,
            "samples_start": start,
            "samples_end": end,
            "flops": (end - start) * trial.flops_per_sample,
            "wall_seconds": max(0.0, (datetime.now(UTC) - began).total_seconds()),
            "train_seconds": None,
            "evaluation_seconds": None,
            "startup_seconds": None,
            "checkpoint_seconds": None,
            "waited_seconds": None,
            "compile_seconds": None,
        }
        self.insist(partial(self._store.append_attempts, [row]))
        self._entered.add((trial.trial_id, attempt))
        self.spend(trial.trial_id, end - start)
        return end - start

    def reached(self, trial: Trial) -> int:
        """Samples up to which a trial need not be trained again."""
        stops = set(self.stops(trial))
        return max((s for s in (*trial.milestones, *trial.branch_points) if s not in stops), default=trial.first)

    def _was_trained(self, trial: Trial) -> bool:
        """Whether anything is left of earlier training: measurements of it or its branches, or checkpoints."""
        family = {trial.trial_id, *(branch.trial_id for branch in self._branches.get(trial.trial_id, []))}
        measured = any(trial_id in family for trial_id, _ in self._measured)
        return measured or any(self.checkpoints(trial_id) for trial_id in family)
