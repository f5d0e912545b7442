"""Results folders as a driver leaves them, from workers that train nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from test_analysis_planted import measurement

from orchestrator.planning.plan import Plan, make
from orchestrator.results.store import Store, write_json
from orchestrator.scheduling.backend import Assignment
from orchestrator.scheduling.driver import Driver
from orchestrator.scheduling.local_backend import LocalBackend
from orchestrator.scheduling.state import Policy, State
from orchestrator.spec.trial import Trial
from orchestrator.tracking.recording import RecordingTracker

Answer = Callable[[Assignment], str | None]
"""What an attempt comes to: None measures, "diverged" diverges, any other text is raised."""


Loss = Callable[[Trial, int], float]
"""The loss of a trial after so many samples."""


def by_size(trial: Trial, samples: int) -> float:
    return 1.0 + trial.params_backbone / 1e9


def by_law(trial: Trial, samples: int) -> float:
    """Chinchilla's form, with a valley that the quickstart's sizes and budgets bracket."""
    return float(0.2 + 40 * trial.params_backbone**-0.5 + 30 * samples**-0.5)


class Worker:
    """Writes what it is asked to measure, or fails."""

    def __init__(self, store: Store, answer: Answer, loss: Loss = by_size) -> None:
        self.store, self.answer, self.loss = store, answer, loss

    def join(self, *arguments: object) -> None: ...

    def run(self, assignment: Assignment) -> tuple[str, str | None]:
        answer, trial = self.answer(assignment), assignment.trial
        if answer not in (None, "diverged"):
            raise RuntimeError(answer)
        log = self.store.folder / "logs" / trial.trial_id / f"{assignment.attempt}.log"
        log.write_bytes(f"attempt {assignment.attempt} of {trial.name}\n".encode())
        budgets = dict(zip(trial.milestones, trial.budgets, strict=True))
        for samples in assignment.milestones:
            row = measurement(trial.trial_id, trial.arm, "10K", 1e-3, samples, 1e9, 1.0, datetime.now(UTC))
            row |= {"sweep": trial.sweep, "size": trial.size, "attempt": assignment.attempt}
            row |= {"loss": self.loss(trial, samples), "budget_flops": budgets[samples]}
            row |= {"flops": samples * trial.flops_per_sample, "params_backbone": trial.params_backbone}
            row |= {"params_total": trial.params_total}
            if answer:
                row |= {"outcome": "diverged", "reason": "training loss is nan", "loss": None}
            self.store.append_measurements([row])
        return ("diverged", "training loss is nan") if answer else ("completed", None)

    def progress(self) -> None: ...
    def request_stop(self) -> None: ...


def smoke() -> Plan:
    """The smoke sweep on one gang."""
    plan = make(Path("sweeps/smoke.yaml"))
    compute = plan.sweep.compute.model_copy(update={"gangs": 1})
    return dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))


def drive(plan: Plan, folder: Path, answer: Answer = lambda assignment: None, loss: Loss = by_size) -> State:
    """Run what remains of a plan, as `ditlaw run` would, without waits between retries."""
    store, tracker = Store(folder), RecordingTracker()
    tracker.start(plan.as_json())
    backend = LocalBackend(lambda: Worker(store, answer, loss))
    policy = Policy(backoff_seconds=0.0, max_failures=plan.sweep.compute.retries)
    with store.lock():
        store.claim(plan.sweep.name, plan.digest)
        write_json(folder / "plan.json", plan.as_json())
        state = Driver(plan, store, backend, tracker.run_id, lambda snapshot: None, policy).run()
    backend.close()
    return state
