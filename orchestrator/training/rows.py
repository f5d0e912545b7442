"""What an attempt writes to the store: rows of measurements, attempts and training curves."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.results.schema import EVALUATION_COLUMNS, SCHEMA_VERSION
from orchestrator.spec.columns import planned_columns
from orchestrator.training.compilation import seconds_compiling
from orchestrator.training.measuring import Measured

if TYPE_CHECKING:
    from orchestrator.training.loop import Attempt


def measurement_row(
    attempt: Attempt, milestone: int, outcome: str, reason: str | None, measured: Measured | None
) -> dict[str, Any]:
    """Of a milestone; `measured` is None where the trial diverged before it."""
    trial, member = attempt.trial, attempt.member
    again = max(0, attempt.assignment.samples_spent - (attempt.samples_start - trial.first))
    wall_seconds = attempt.wall_seconds()
    return {
        **dict.fromkeys(EVALUATION_COLUMNS),
        **planned_columns(trial, milestone),
        **(measured.columns(trial) if measured is not None else {}),
        "schema_version": SCHEMA_VERSION,
        "loss_train": attempt.counters.running_loss,
        "outcome": outcome,
        "reason": reason,
        "num_workers": member.world_size,
        "attempt": attempt.assignment.attempt,
        "mlflow_run_id": attempt.assignment.mlflow_run_id,
        "wall_seconds": wall_seconds,
        "gpu_hours": wall_seconds * attempt.share * member.world_size / 3600,
        "flops_useful": (min(milestone, attempt.samples) - trial.first) * trial.flops_per_sample,
        "flops_wasted": again * trial.flops_per_sample,
        "created_at": datetime.now(UTC),
    }


def attempt_row(attempt: Attempt, outcome: str, reason: str | None) -> dict[str, Any]:
    """Of the attempt as it stands."""
    return {
        "trial_id": attempt.trial.trial_id,
        "attempt": attempt.assignment.attempt,
        "gang": attempt.assignment.gang,
        "host": socket.gethostname(),
        "started_at": attempt.started_at,
        "ended_at": datetime.now(UTC),
        "outcome": outcome,
        "reason": reason,
        "samples_start": attempt.samples_start,
        "samples_end": attempt.samples,
        "flops": (attempt.samples - attempt.samples_start) * attempt.trial.flops_per_sample,
        "wall_seconds": time.perf_counter() - attempt.started,
        "train_seconds": attempt.train_seconds,
        "evaluation_seconds": attempt.evaluation_seconds,
        "startup_seconds": attempt.startup_seconds,
        "checkpoint_seconds": attempt.checkpoint_seconds,
        "waited_seconds": attempt.assignment.waited_seconds,
        "compile_seconds": attempt.share * (seconds_compiling() - attempt.compiling_before),
    }


def curve_row(attempt: Attempt, loss: float | None) -> dict[str, Any]:
    """Of the training curve, at the attempt's samples; `loss` is that of the window that ends here."""
    trial = attempt.trial
    return {
        "trial_id": trial.trial_id,
        "attempt": attempt.assignment.attempt,
        "samples": attempt.samples,
        "flops": attempt.samples * trial.flops_per_sample,
        "loss": loss,
        "learning_rate": trial.optimizer.learning_rate * attempt.rate_scale(),
        "samples_per_second": attempt.samples_per_second(),
        "wall_seconds": attempt.wall_seconds(),
    }
