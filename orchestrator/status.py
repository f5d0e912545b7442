"""How a sweep is doing, read from its results folder alone: any machine that sees the folder can ask, at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd

from orchestrator.best_losses import Best, lowest
from orchestrator.results.checkpoints import checkpoint_folders
from orchestrator.results.location import Location
from orchestrator.results.logs import claimed_attempts
from orchestrator.results.parts import read_parts
from orchestrator.results.requests import requests_of, retried_at
from orchestrator.results.schema import RUNNING
from orchestrator.results.store import Store, read_attempts, read_planned
from orchestrator.scheduling.books import failures_in

TrialState = Literal["done", "diverged", "failed", "running", "blocked", "waiting"]
TRIAL_STATES: tuple[TrialState, ...] = ("done", "diverged", "failed", "running", "blocked", "waiting")
"""failed: out of retries; blocked: waits for the checkpoint of its trunk."""
SweepState = Literal["running", "stopping", "complete", "stopped", "died"]
DEFAULT_RETRIES = 2
"""Of a plan.json that does not say."""
NUM_FAULTS = 5
"""Faults that are told, the latest."""
CURVE_COLUMNS = ["trial_id", "attempt", "samples", "loss", "samples_per_second"]


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """One trial. `samples` are trained and not lost, of `last`; `loss` is the newest there is."""

    trial_id: str
    name: str
    state: TrialState
    samples: int
    last: int
    attempts: int
    failures: int
    """Failed attempts that count against its retries."""
    reason: str | None
    loss: float | None
    samples_per_second: float | None
    mfu: float | None
    """Training FLOP/s over the peak of its gang's devices, while it trains."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An attempt that failed."""

    trial_id: str
    name: str
    attempt: int
    at: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """A sweep at a moment."""

    sweep: str
    folder: str
    digest: str
    state: SweepState
    driver: str | None
    """Who runs it, or ran it and died."""
    trials: Sequence[TrialStatus]
    num_cells: int
    cells_measured: int
    flops_planned: float
    flops_done: float
    """Of the planned ones, what need not be spent again."""
    flops_spent: float
    """Of all attempts, lost ones too."""
    device_hours: float
    attempts: int
    attempts_failed: int
    flops_per_second: float | None
    samples_per_second: float | None
    mfu: float | None
    """Mean over the gangs that train."""
    eta_seconds: float | None
    faults: Sequence[Fault]
    best: Sequence[Best]

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, all states named."""
        return {state: sum(trial.state == state for trial in self.trials) for state in TRIAL_STATES}

    def as_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        values = asdict(self)
        for fault in values["faults"]:
            fault["at"] = fault["at"].isoformat()
        return {**values, "counts": self.counts}


class StatusReader:
    """Reads the status of one results folder, again and again; curves are read once each."""

    def __init__(self, folder: Location) -> None:
        self._store = Store(folder)
        self._seen: set[Location] = set()
        self._points: dict[tuple[str, int], dict[str, Any]] = {}
        """The newest point of each attempt's curve."""
        self._begins: dict[tuple[str, int], int] = {}
        """Samples of the first one."""

    def read(self) -> SweepStatus:
        """The status now. Raises ValueError where the folder holds no plan."""
        plan = _plan(self._store.folder)
        self._read_curves()
        begun = read_attempts(self._store.folder, running=True)
        attempts = begun[begun["outcome"] != RUNNING]
        rows, _ = read_planned(self._store.folder)
        holder = self._store.holder()
        alive = holder is not None and holder[2]
        trials = self._trials(plan, attempts, rows, alive)
        here = _since(attempts, holder[1] if holder and alive else None)
        current = [trial for trial in trials if trial.state == "running"]
        rate = self._rate(plan, here, current, holder[1] if holder else None) if alive else (None, None)
        flops = {str(trial["trial_id"]): trial["flops_per_sample"] for trial in plan["trials"]}
        first = {str(trial["trial_id"]): trial["samples_start"] for trial in plan["trials"]}
        done = sum((trial.samples - first[trial.trial_id]) * flops[trial.trial_id] for trial in trials)
        workers = {str(trial["trial_id"]): trial["gang"]["workers"] for trial in plan["trials"]}
        return SweepStatus(
            sweep=plan["sweep"],
            folder=str(self._store.folder),
            digest=plan["digest"],
            state=self._state(trials, alive, holder is not None),
            driver=holder[0] if holder else None,
            trials=trials,
            num_cells=sum(len(trial["milestones"]) for trial in plan["trials"]),
            cells_measured=len(rows),
            flops_planned=plan["flops_planned"],
            flops_done=done,
            flops_spent=float(attempts["flops"].sum()),
            device_hours=_device_seconds(attempts, workers) / 3600,
            attempts=len(attempts) + len(current),
            attempts_failed=int((attempts["outcome"] == "failed").sum()),
            flops_per_second=rate[0],
            samples_per_second=rate[1],
            mfu=_mfu(current, begun),
            eta_seconds=max(0.0, plan["flops_planned"] - done) / rate[0] if rate[0] else None,
            faults=_faults(attempts, {trial.trial_id: trial.name for trial in trials}),
            best=lowest(rows),
        )

    def _state(self, trials: Sequence[TrialStatus], alive: bool, named: bool) -> SweepState:
        if alive:
            asked = any(request.kind == "stop" for request in requests_of(self._store.folder))
            return "stopping" if asked else "running"
        if all(trial.state in ("done", "diverged") for trial in trials):
            return "complete"
        return "died" if named else "stopped"

    def _read_curves(self) -> None:
        """Take in the points of curves written since the last look."""
        new = [part for part in self._store.parts("curves") if part not in self._seen]
        self._seen |= set(new)
        for row in read_parts(new, "curves", CURVE_COLUMNS).to_pylist():
            key = row["trial_id"], row["attempt"]
            self._begins[key] = min(row["samples"], self._begins.get(key, row["samples"]))
            if key not in self._points or row["samples"] >= self._points[key]["samples"]:
                self._points[key] = row

    def _trials(
        self, plan: Mapping[str, Any], attempts: pd.DataFrame, rows: pd.DataFrame, alive: bool
    ) -> list[TrialStatus]:
        folder, retries = self._store.folder, int(plan.get("retries", DEFAULT_RETRIES))
        since = retried_at(folder)
        history = {str(trial_id): part.to_dict("records") for trial_id, part in attempts.groupby("trial_id")}
        measured = {str(trial_id): part.to_dict("records") for trial_id, part in rows.groupby("trial_id")}
        branches: dict[str, list[dict[str, Any]]] = {}
        for trial in plan["trials"]:
            if trial["trunk"]:
                branches.setdefault(trial["trunk"], []).append(trial)
        stored = {
            str(trial["trial_id"]): {int(found.name) for found in checkpoint_folders(folder, trial["trial_id"])}
            for trial in plan["trials"]
        }
        found = []
        for trial in plan["trials"]:
            trial_id = str(trial["trial_id"])
            ran: Any = history.get(trial_id, [])
            there: Any = measured.get(trial_id, [])
            failures = failures_in(ran, max(stored[trial_id], default=0), since.get(trial_id))
            open_attempt = self._open_attempt(trial_id, ran) if alive else None
            here = _Known(trial, ran, there, stored, branches.get(trial_id, []), measured)
            found.append(self._trial(here, failures, failures > retries, open_attempt))
        return found

    def _trial(self, known: _Known, failures: int, exhausted: bool, open_attempt: int | None) -> TrialStatus:
        trial, ended = known.trial, known.ended
        state: TrialState = "waiting"
        if ended:
            state = "diverged" if known.diverged else "done"
        elif open_attempt is not None:
            state = "running"
        elif exhausted:
            state = "failed"
        elif known.blocked:
            state = "blocked"
        point = self._points.get((trial["trial_id"], open_attempt)) if open_attempt is not None else None
        last = max((*trial["milestones"], *trial["branch_points"]))
        samples = last if ended else max(known.reached, point["samples"] if point else 0)
        reason = known.diverged or (known.attempts[-1]["reason"] if known.attempts and not ended else None)
        loss = point["loss"] if point else (known.measured[-1]["loss"] if known.measured else None)
        rate = point["samples_per_second"] if point else None
        peak = trial.get("peak_flops_per_second")
        return TrialStatus(
            trial_id=trial["trial_id"],
            name=trial["name"],
            state=state,
            samples=samples,
            last=last,
            attempts=len(known.attempts) + (open_attempt is not None),
            failures=failures,
            reason=reason,
            loss=None if loss is None or pd.isna(loss) else float(loss),
            samples_per_second=rate,
            mfu=rate * trial["flops_per_sample"] / peak if rate and peak else None,
        )

    def _open_attempt(self, trial_id: str, ran: Sequence[Mapping[str, Any]]) -> int | None:
        """The attempt that is claimed (its log is there) and has not ended (no row)."""
        claimed = claimed_attempts(self._store.folder, trial_id)
        newest = claimed[-1] if claimed else None
        return newest if newest is not None and all(row["attempt"] != newest for row in ran) else None

    def _rate(
        self, plan: Mapping[str, Any], here: pd.DataFrame, running: Sequence[TrialStatus], since: datetime | None
    ) -> tuple[float | None, float | None]:
        """Training FLOPs and samples a second since the driver began, with all that it waited for."""
        seconds = (datetime.now(UTC) - since).total_seconds() if since else 0.0
        cost = {str(trial["trial_id"]): trial["flops_per_sample"] for trial in plan["trials"]}
        samples = float((here["samples_end"] - here["samples_start"]).sum())
        flops = float(here["flops"].sum())
        for trial in running:
            key = trial.trial_id, trial.attempts - 1
            trained = self._points[key]["samples"] - self._begins[key] if key in self._points else 0
            samples, flops = samples + trained, flops + trained * cost[trial.trial_id]
        return (flops / seconds, samples / seconds) if seconds > 0 and flops > 0 else (None, None)


@dataclass(frozen=True)
class _Known:
    """What the folder holds of one trial, and of the branches that begin with its checkpoints."""

    trial: Mapping[str, Any]
    attempts: Sequence[Mapping[str, Any]]
    measured: Sequence[Mapping[str, Any]]
    stored: Mapping[str, set[int]]
    branches: Sequence[Mapping[str, Any]]
    rows: Mapping[str, Sequence[Mapping[Any, Any]]]

    @property
    def diverged(self) -> str | None:
        """Why, if it has."""
        return next((row["reason"] or "diverged" for row in self.measured if row["outcome"] == "diverged"), None)

    @property
    def ended(self) -> bool:
        """Nothing is left to do: all is measured, and every branch has begun or can."""
        lacking = set(self.trial["milestones"]) - {row["samples"] for row in self.measured}
        own = self.stored[self.trial["trial_id"]]
        return not lacking and all(
            branch["samples_start"] in own or self.stored[branch["trial_id"]] or branch["trial_id"] in self.rows
            for branch in self.branches
        )

    @property
    def blocked(self) -> bool:
        """Its trunk has not saved the checkpoint with which it begins."""
        trunk = self.trial["trunk"]
        there = self.stored.get(trunk, set()) if trunk else set()
        return bool(trunk) and not self.stored[self.trial["trial_id"]] and self.trial["samples_start"] not in there

    @property
    def reached(self) -> int:
        """Samples that need not be trained again."""
        measured = (row["samples"] for row in self.measured)
        return max((int(self.trial["samples_start"]), *self.stored[self.trial["trial_id"]], *measured))


def _plan(folder: Location) -> dict[str, Any]:
    path = folder / "plan.json"
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
        plan["trials"], plan["sweep"], plan["digest"], plan["flops_planned"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no plan that can be read ({error}); wanted the results folder of a sweep that was run, or "
            "the name of one in results/."
        ) from None
    return plan


def _since(attempts: pd.DataFrame, since: datetime | None) -> pd.DataFrame:
    return attempts[attempts["started_at"] >= since] if since is not None else attempts[:0]


def _faults(attempts: pd.DataFrame, names: Mapping[str, str]) -> list[Fault]:
    failed = attempts[attempts["outcome"] == "failed"].sort_values("ended_at").tail(NUM_FAULTS)
    return [
        Fault(
            trial_id=row["trial_id"],
            name=names.get(row["trial_id"], row["trial_id"]),
            attempt=row["attempt"],
            at=row["ended_at"].to_pydatetime(),
            reason=row["reason"] or "no reason given",
        )
        for row in failed.to_dict("records")
    ]


def _mfu(running: Sequence[TrialStatus], begun: pd.DataFrame) -> float | None:
    """Mean over the gangs that train; the members of a pack have each a part of their gang's."""
    newest = begun[begun["outcome"] == RUNNING].sort_values("attempt")
    gang_of = dict(zip(newest["trial_id"], newest["gang"], strict=True))
    gangs: dict[str, float] = {}
    for trial in running:
        if trial.mfu is not None:
            gang = gang_of.get(trial.trial_id) or trial.trial_id
            gangs[gang] = gangs.get(gang, 0.0) + trial.mfu
    return sum(gangs.values()) / len(gangs) if gangs else None


def _device_seconds(attempts: pd.DataFrame, workers: Mapping[str, int]) -> float:
    """Seconds of attempts times the workers of each; time that attempts on one gang, a pack, have in common counts
    once."""
    total = 0.0
    busy_until: dict[str, float] = {}
    rows: list[Any] = attempts.sort_values("started_at").to_dict("records")
    for row in rows:
        start, gang = row["started_at"].timestamp(), row["gang"] or f"{row['trial_id']} {row['attempt']}"
        shared = max(0.0, busy_until.get(gang, start) - start)
        total += max(0.0, row["wall_seconds"] - shared) * workers.get(row["trial_id"], 1)
        busy_until[gang] = max(busy_until.get(gang, start), start + row["wall_seconds"])
    return total
