"""What the store holds of a plan: which milestones are measured, and what attempts have spent. Follows new parts."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.planning.plan import Plan
from orchestrator.results.checkpoints import checkpoint_folders
from orchestrator.results.store import Store, read_attempts, read_curves, read_parts
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.spec.trial import Trial


class Books:
    """The books of one sweep. Opening them reads; only `close_abandoned`, `claim` and `enter_lost` write."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._seen: set[Path] = set()
        self._measured: set[tuple[str, int]] = set()
        self._spent: dict[str, int] = {}
        self.refresh()
        attempts = read_attempts(store.folder)
        self._entered = set(zip(attempts["trial_id"], attempts["attempt"], strict=True))
        for trial_id, start, end in zip(
            attempts["trial_id"], attempts["samples_start"], attempts["samples_end"], strict=True
        ):
            self.spend(str(trial_id), int(end - start))

    def refresh(self) -> None:
        """Take in the measurements written since the last look."""
        new = [part for part in self._store.parts("measurements") if part not in self._seen]
        rows = read_parts(new, "measurements", ["trial_id", "samples"]).to_pydict()
        self._measured |= set(zip(rows["trial_id"], rows["samples"], strict=True))
        self._seen |= set(new)

    def lacking(self, trial: Trial) -> tuple[int, ...]:
        """The milestones of a trial that are not measured."""
        return tuple(m for m in trial.milestones if (trial.trial_id, m) not in self._measured)

    @property
    def waiting(self) -> list[Trial]:
        """Trials with something left to measure, in the plan's order."""
        return [trial for trial in self._plan.trials if self.lacking(trial)]

    @property
    def num_measured(self) -> int:
        """Milestones of the plan that are measured."""
        return self._plan.num_cells - sum(len(self.lacking(trial)) for trial in self._plan.trials)

    @property
    def flops_done(self) -> float:
        """Training FLOPs that need not be spent again, as far as measurements show."""
        return sum(self._reached(trial) * trial.flops_per_sample for trial in self._plan.trials)

    def spent(self, trial_id: str) -> int:
        """Samples that all attempts of a trial have trained, lost ones included."""
        return self._spent.get(trial_id, 0)

    def spend(self, trial_id: str, samples: int) -> None:
        """An attempt has ended after so many samples."""
        self._spent[trial_id] = self.spent(trial_id) + samples

    def to_retrain(self) -> list[Trial]:
        """Trials that were trained before and would have to start at 0: no checkpoint is left to go on from."""
        found = []
        for trial in self.waiting:
            first = self.lacking(trial)[0]
            usable = [f for f in checkpoint_folders(self._store.folder, trial.trial_id) if int(f.name) <= first]
            if not usable and self._was_measured(trial):
                found.append(trial)
        return found

    def claim(self, trial_id: str) -> int:
        """The next attempt's number, taken by creating its log file: no two attempts ever share one."""
        folder = self._logs(trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.log")))
        while True:
            with contextlib.suppress(FileExistsError):
                (folder / f"{number}.log").open("x").close()
                return number
            number += 1

    def close_abandoned(self) -> None:
        """Enter the attempts that died with their driver: claimed, and without a row. Their curves say how far."""
        abandoned = [
            (trial, number)
            for trial in self._plan.trials
            for number in range(len(list(self._logs(trial.trial_id).glob("*.log"))))
            if (trial.trial_id, number) not in self._entered
        ]
        if not abandoned:
            return
        curves = read_curves(self._store.folder)
        for trial, number in abandoned:
            part = curves[(curves["trial_id"] == trial.trial_id) & (curves["attempt"] == number)]
            start, end = (int(part["samples"].min()), int(part["samples"].max())) if len(part) else (0, 0)
            log = self._logs(trial.trial_id) / f"{number}.log"
            began = datetime.fromtimestamp(log.stat().st_mtime, UTC)
            self._enter(trial, number, None, began, (start, end), "the driver died")

    def enter_lost(self, assignment: Assignment, began: datetime, last: Progress | None, reason: str) -> int:
        """Enter an attempt whose worker could not; returns the samples it trained, as far as is known."""
        span = (last.samples_start, last.samples) if last else (0, 0)
        return self._enter(assignment.trial, assignment.attempt, assignment.gang, began, span, reason)

    def _enter(
        self, trial: Trial, attempt: int, gang: str | None, began: datetime, span: tuple[int, int], reason: str
    ) -> int:
        start, end = span
        row = {
            "trial_id": trial.trial_id,
            "attempt": attempt,
            "gang": gang,
            "host": None,
            "started_at": began,
            "ended_at": max(began, datetime.now(UTC)),
            "outcome": "failed",
            "reason": reason,
            "samples_start": start,
            "samples_end": end,
            "flops": (end - start) * trial.flops_per_sample,
            "wall_seconds": max(0.0, (datetime.now(UTC) - began).total_seconds()),
            "train_seconds": None,
            "evaluation_seconds": None,
            "startup_seconds": None,
        }
        self._store.append_attempts([row])
        self._entered.add((trial.trial_id, attempt))
        self.spend(trial.trial_id, end - start)
        return end - start

    def _logs(self, trial_id: str) -> Path:
        return self._store.folder / "logs" / trial_id

    def _reached(self, trial: Trial) -> int:
        return max((m for m in trial.milestones if (trial.trial_id, m) in self._measured), default=0)

    def _was_measured(self, trial: Trial) -> bool:
        return any(trial_id == trial.trial_id for trial_id, _ in self._measured)
