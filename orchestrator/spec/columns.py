"""The columns of a measurement that are known before it is made."""

from __future__ import annotations

from typing import Any

from models.config import objective_label
from models.cost import FLOPS_DEFINITION
from orchestrator.spec.trial import Trial


def planned_columns(trial: Trial, milestone: int) -> dict[str, Any]:
    """What a trial and one of its milestones say of the measurement there."""
    return {
        "sweep": trial.sweep,
        "trial_id": trial.trial_id,
        "cell_id": trial.cell_id(milestone),
        "arm": trial.arm,
        "family": trial.model.family,
        "size": trial.size,
        "parameterization": trial.parameterization.name,
        "objective": objective_label(trial.objective),
        "learning_rate": trial.optimizer.learning_rate,
        "batch_size": trial.batch_size,
        "seed": trial.seed,
        "params_total": trial.params_total,
        "params_backbone": trial.params_backbone,
        "params_matmul": trial.params_matmul,
        "samples": milestone,
        "tokens": milestone * trial.model.tokens,
        "flops": milestone * trial.flops_per_sample,
        "budget_flops": trial.budgets[trial.milestones.index(milestone)],
        "flops_definition": FLOPS_DEFINITION,
        "zero_stage": trial.zero_stage,
        "precision": trial.precision,
        "num_workers": trial.num_workers,
    }
