"""Which trials of a sweep go first: `compute.priority`, and what the conditions of `compute.priorities` add to it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.spec.compute import PRIORITY_NAMES, Compute
from orchestrator.spec.expression import parse
from orchestrator.spec.trial import Trial


def priorities_of(compute: Compute, trials: Sequence[Trial]) -> list[int]:
    """The priority of each trial; higher goes first.

    Raises:
        ValueError: a condition cannot be worked out for a trial (text compared with a number).
    """
    conditions = [(parse(text), number) for text, number in compute.priorities.items()]
    return [
        compute.priority + sum(number for condition, number in conditions if condition.holds(values))
        for values in map(_values, trials)
    ]


def _values(trial: Trial) -> dict[str, object]:
    """What a condition may ask of a trial. Samples and FLOPs are those at its end."""
    values: dict[str, object] = {
        "arm": trial.arm,
        "size": trial.size,
        "seed": float(trial.seed),
        "width": float(trial.model.width),
        "depth": float(trial.model.depth),
        "params": float(trial.params_backbone),
        "batch_size": float(trial.batch_size),
        "learning_rate": trial.optimizer.learning_rate,
        "samples": float(trial.last),
        "flops": trial.last * trial.flops_per_sample,
    }
    assert values.keys() == PRIORITY_NAMES, "the names that a spec may use"
    return values
