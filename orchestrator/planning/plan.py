"""The plan of a sweep: its trials in the order they run, and what they cost. No torch, no Ray: it answers at once."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.planning import grid
from orchestrator.planning.placement import checkpoint_bytes, evaluation_flops, state_bytes, training_seconds
from orchestrator.spec.identity import digest
from orchestrator.spec.source import Source
from orchestrator.spec.sweep import Sweep, load
from orchestrator.spec.trial import Trial

MEASUREMENT_BYTES = 12_000
"""Bytes of one measurement's Parquet part file, with its share of the training curve."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The trials of a sweep, longest first, and what they cost."""

    sweep: Sweep
    source: Source
    trials: tuple[Trial, ...]

    @property
    def digest(self) -> str:
        """Identity of the work: of the trials and their milestones, whatever the spec's layout or comments."""
        return digest(sorted((trial.trial_id, list(trial.milestones)) for trial in self.trials))

    @property
    def num_cells(self) -> int:
        """Measurements asked for."""
        return sum(len(trial.milestones) for trial in self.trials)

    @property
    def flops_separate(self) -> float:
        """Training FLOPs if every cell were a run of its own."""
        return sum(trial.flops_per_sample * sum(trial.milestones) for trial in self.trials)

    @property
    def flops_planned(self) -> float:
        """Training FLOPs with budgets shared."""
        return sum(trial.flops for trial in self.trials)

    @property
    def flops_evaluation(self) -> float:
        """FLOPs of all evaluations."""
        return sum(evaluation_flops(trial) for trial in self.trials)

    def seconds(self, trial: Trial) -> float:
        """Estimated seconds of `trial` on a gang, evaluation included."""
        compute = self.sweep.compute
        training = training_seconds(trial, compute.cpus_per_worker, compute.gpus_per_worker)
        return training * (1 + evaluation_flops(trial) / trial.flops)

    @property
    def gpu_hours(self) -> float:
        """Estimated hours of devices (GPUs, or CPU workers where there are none)."""
        return sum(self.seconds(trial) * trial.num_workers for trial in self.trials) / 3600

    @property
    def makespan_hours(self) -> float:
        """Estimated hours from start to end: longest first, each to the gang that is free soonest."""
        free = [0.0] * min(self.sweep.compute.gangs, len(self.trials))
        for trial in self.trials:
            heapq.heapreplace(free, free[0] + self.seconds(trial))
        return max(free) / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all trials' checkpoints."""
        return sum(checkpoint_bytes(trial) for trial in self.trials)

    @property
    def results_bytes(self) -> int:
        """Bytes of measurements and curves."""
        return self.num_cells * MEASUREMENT_BYTES

    def as_json(self) -> dict[str, Any]:
        """The plan as `ditlaw plan --json` prints it and `plan.json` keeps it."""
        compute = self.sweep.compute
        return {
            "sweep": self.sweep.name,
            "question": self.sweep.question,
            "digest": self.digest,
            "num_cells": self.num_cells,
            "num_trials": len(self.trials),
            "flops_separate": self.flops_separate,
            "flops_planned": self.flops_planned,
            "flops_evaluation": self.flops_evaluation,
            "gpu_hours": self.gpu_hours,
            "makespan_hours": self.makespan_hours,
            "checkpoint_bytes": self.checkpoint_bytes,
            "results_bytes": self.results_bytes,
            "arms": list(self.sweep.arms),
            "gangs": compute.gangs,
            "trials": [self._trial_json(trial) for trial in self.trials],
            "spec_path": str(self.source.path),
            "spec": self.source.text,
        }

    def _trial_json(self, trial: Trial) -> dict[str, Any]:
        compute = self.sweep.compute
        return {
            "trial_id": trial.trial_id,
            "name": trial.name,
            "arm": trial.arm,
            "size": trial.size,
            "parameterization": trial.parameterization.name,
            "learning_rate": trial.optimizer.learning_rate,
            "seed": trial.seed,
            "params_total": trial.params_total,
            "milestones": list(trial.milestones),
            "budgets": list(trial.budgets),
            "flops": trial.flops,
            "flops_evaluation": evaluation_flops(trial),
            "seconds": self.seconds(trial),
            "state_bytes": state_bytes(trial),
            "gang": {
                "workers": trial.num_workers,
                "cpus_per_worker": compute.cpus_per_worker,
                "gpus_per_worker": compute.gpus_per_worker,
                "zero_stage": trial.zero_stage,
                "precision": trial.precision,
            },
        }


def make(path: Path) -> Plan:
    """Plan the spec at `path`; raise SpecError with every problem of it."""
    sweep, source = load(path)
    plan = Plan(sweep=sweep, source=source, trials=tuple(grid.expand(sweep, source)))
    longest_first = sorted(plan.trials, key=lambda trial: (-plan.seconds(trial), trial.trial_id))
    return Plan(sweep=sweep, source=source, trials=tuple(longest_first))
