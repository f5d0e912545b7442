"""What a plan is expected to tell: its cells under the law and noise that its spec expects. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from analysis.design import ExpectedInterval, expected_intervals
from analysis.planted import Cells, Noise, PlantedLaw
from orchestrator.planning.plan import Plan
from orchestrator.spec.trial import Trial


def expected_of(plan: Plan) -> dict[str, list[ExpectedInterval]]:
    """The expected 95% intervals of each arm's laws, under `expect` of the spec; arms without cells are left out."""
    expect, result = plan.sweep.expect, {}
    noise = Noise(seed=expect.seed_noise, measurement=expect.measurement_noise)
    for arm in plan.arms:
        cells = cells_of(trial for trial in plan.trials if trial.arm == arm)
        if cells is not None:
            law = PlantedLaw(**expect.law.model_dump()) if expect.law is not None else PlantedLaw.around(cells)
            result[arm] = expected_intervals(cells, law, noise, expect.target_flops)
    return result


def cells_of(trials: Iterable[Trial]) -> Cells | None:
    """The cells of one arm, of each size at one learning rate, as a law is fitted to the best; None without any.

    Which rate is best nobody knows yet: the middle one stands for it. Cooldowns off one trunk count as one trajectory.
    """
    by_size: dict[str, dict[float, list[Trial]]] = {}
    for trial in trials:
        if trial.milestones:
            by_size.setdefault(trial.size, {}).setdefault(trial.optimizer.learning_rate, []).append(trial)
    kept = [trial for rates in by_size.values() for trial in _middle(rates)]
    if not kept:
        return None
    index = {key: number for number, key in enumerate(dict.fromkeys(trial.trunk or trial.trial_id for trial in kept))}
    rows = [
        (trial.params_backbone, samples, trial.flops_per_sample * samples, index[trial.trunk or trial.trial_id], budget)
        for trial in kept
        for samples, budget in zip(trial.milestones, trial.budgets, strict=True)
    ]
    params, samples, flops, trial_index, budgets = zip(*rows, strict=True)
    return Cells(
        params=np.array(params, dtype=float),
        samples=np.array(samples, dtype=float),
        flops=np.array(flops, dtype=float),
        trial=np.array(trial_index, dtype=np.int64),
        budget_flops=np.array([np.nan if budget is None else budget for budget in budgets], dtype=float),
    )


def _middle(rates: Mapping[float, list[Trial]]) -> list[Trial]:
    return rates[sorted(rates)[len(rates) // 2]]
