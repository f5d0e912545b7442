"""What a plan is expected to tell: the intervals of its fits, from the law and noise that the spec takes as true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.design import ExpectedInterval, expected_intervals
from analysis.planted import Cells, Noise, PlantedLaw
from orchestrator.planning.plan import Plan
from orchestrator.spec.sweep import Expect
from orchestrator.spec.trial import Trial


def expectations(plan: Plan) -> dict[str, list[ExpectedInterval]]:
    """Expected 95% intervals by arm, each at the middle one of its learning rates.

    Raises:
        ValueError: `expect.noise` names no stored noise, or one of none at all.
    """
    expect = plan.sweep.expect
    noise = _noise(expect, plan.source.path.parent)
    found = {}
    for arm in plan.arms:
        cells = _cells([trial for trial in plan.trials if trial.arm == arm and trial.milestones])
        law = _law(expect, cells)
        found[arm] = expected_intervals(cells, law, noise, expect.target_flops)
    return found


def expected_json(plan: Plan) -> list[dict[str, Any]]:
    """The same as plain mappings: arm, method, name, truth, low, high, outcome, reason."""
    return [
        {
            "arm": arm,
            "method": interval.method,
            "name": interval.name,
            "truth": interval.truth,
            "low": interval.low,
            "high": interval.high,
            "outcome": interval.outcome,
            "reason": interval.reason,
        }
        for arm, intervals in expectations(plan).items()
        for interval in intervals
    ]


def _noise(expect: Expect, folder: Path) -> Noise:
    """As the spec gives it, or else as it was measured."""
    seed, measurement = expect.seed_noise, expect.measurement_noise
    if expect.noise is not None:
        from analysis.noise import stored_noise  # with it comes pandas, which other plans do without

        stored = stored_noise(folder / expect.noise)
        given = expect.model_fields_set
        seed = seed if "seed_noise" in given else stored.seed or 0.0
        measurement = measurement if "measurement_noise" in given else stored.measurement or 0.0
    if seed + measurement == 0:
        raise ValueError(f"expect.noise: {expect.noise} tells of no noise at all; give seed_noise or measurement_noise")
    return Noise(seed=seed, measurement=measurement)


def _law(expect: Expect, cells: Cells) -> PlantedLaw:
    if expect.law is None:
        return PlantedLaw.around(cells)
    law = expect.law
    return PlantedLaw(E=law.E, A=law.A, B=law.B, alpha=law.alpha, beta=law.beta)


def _cells(trials: Sequence[Trial]) -> Cells:
    """The cells at the middle learning rate; cooldowns of one trunk share its noise."""
    rates = sorted({trial.optimizer.learning_rate for trial in trials})
    chosen = [trial for trial in trials if trial.optimizer.learning_rate == rates[len(rates) // 2]]
    lines = {identity: number for number, identity in enumerate(dict.fromkeys(t.trunk or t.trial_id for t in chosen))}
    rows = [
        (
            trial.params_backbone,
            milestone,
            milestone * trial.flops_per_sample,
            lines[trial.trunk or trial.trial_id],
            np.nan if budget is None else budget,
        )
        for trial in chosen
        for milestone, budget in zip(trial.milestones, trial.budgets, strict=True)
    ]
    params, samples, flops, trial, budget = (np.array(column) for column in zip(*rows, strict=True))
    return Cells(
        params=params.astype(float),
        samples=samples.astype(float),
        flops=flops.astype(float),
        trial=trial.astype(np.int64),
        budget_flops=budget.astype(float),
    )
