"""Whatever the spec: every cell is one milestone, nothing is trained for nothing, identities know only the training."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.plan import expand
from orchestrator.spec.source import Source
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trial import Trial

BATCH = 32


def trials_of(spec: dict[str, Any]) -> list[Trial]:
    return expand(Sweep.model_validate(spec), Source(Path("spec.yaml"), "", spec, {}))


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    widths = draw(st.lists(st.sampled_from([8, 16, 24, 32]), min_size=1, max_size=3, unique=True))
    schedules = ["constant", {"name": "wsd", "cooldown": draw(st.sampled_from([0.1, 0.25, 0.5]))}]
    arms = {}
    for index in range(draw(st.integers(1, 2))):
        schedule = draw(st.sampled_from(schedules))
        arms[f"arm{index}"] = {"training": {"schedule": schedule, "weight_decay": 0.01 * index}}
    budgets = draw(st.lists(st.integers(4, 40), min_size=1, max_size=4, unique=True))
    rates = draw(st.lists(st.sampled_from([1e-3, 2e-3, 4e-3]), min_size=1, max_size=3, unique=True))
    axes = draw(st.sampled_from([{}, {"qk_norm": [True, False]}, {"betas": [[0.9, 0.99], [0.9, 0.999]]}]))
    return {
        "name": "drawn",
        "models": {"patch": 7, "head_dim": 8, "sizes": {"rule": "width", "widths": sorted(widths), "depth": 1}},
        "arms": arms,
        "axes": axes,
        "training": {"batch_size": BATCH, "learning_rate": rates},
        "seeds": draw(st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True)),
        "budgets": {"samples": [steps * BATCH for steps in budgets]},
    }


@settings(max_examples=60, deadline=None)
@given(specs())
def test_every_cell_is_exactly_one_milestone_and_nothing_is_trained_beyond(spec):
    trials = trials_of(spec)
    wanted = Counter(
        itertools.product(
            spec["arms"],
            spec["models"]["sizes"]["widths"],
            spec["training"]["learning_rate"],
            spec["seeds"],
            spec["budgets"]["samples"],
            range(len(next(iter(spec["axes"].values()), [0]))),
        )
    )
    order = {arm: sorted({t.arm for t in trials if t.arm.split(" ")[0] == arm}) for arm in spec["arms"]}
    found = Counter(
        (arm, t.model.width, t.optimizer.learning_rate, t.seed, samples, order[arm].index(t.arm))
        for t in trials
        for arm in [t.arm.split(" ")[0]]
        for samples in t.milestones
    )
    assert found == wanted
    assert len({t.trial_id for t in trials}) == len(trials)
    starts = {(t.trunk, t.first) for t in trials if t.trunk is not None}
    for trial in trials:
        assert trial.last == max([*trial.milestones, *trial.branch_points])
        assert {(trial.trial_id, point) for point in trial.branch_points} <= starts, "no checkpoint is kept for nobody"
    kept = {(t.trial_id, point) for t in trials for point in t.branch_points}
    assert kept == starts


def shuffled(value: Any, seed: int) -> Any:
    if not isinstance(value, dict):
        return value
    items = [(key, shuffled(inner, seed)) for key, inner in value.items()]
    random.Random(seed).shuffle(items)
    return dict(items)


@settings(max_examples=40, deadline=None)
@given(specs(), st.integers(0, 9), st.integers(41, 60))
def test_identity_knows_neither_key_order_nor_other_cells(spec, seed, more):
    known = {trial.trial_id: trial for trial in trials_of(spec)}
    assert {trial.trial_id for trial in trials_of(shuffled(spec, seed))} == set(known)
    larger = {
        **spec,
        "name": "larger",
        "arms": {**spec["arms"], "another": {"training": {"weight_decay": 0.5}}},
        "seeds": [*spec["seeds"], 99],
        "budgets": {"samples": [*spec["budgets"]["samples"], more * BATCH]},
    }
    extended = {trial.trial_id: trial for trial in trials_of(larger)}
    assert set(known) <= set(extended)
    for trial_id, trial in known.items():
        assert set(trial.milestones) <= set(extended[trial_id].milestones)
        assert set(trial.branch_points) <= set(extended[trial_id].branch_points)


@settings(max_examples=40, deadline=None)
@given(specs())
def test_what_is_done_is_not_planned_and_the_rest_is_whole(spec):
    from orchestrator.planning.plan import Plan

    sweep = Sweep.model_validate(spec)
    plan = Plan(sweep, Source(Path("spec.yaml"), "", spec, {}), tuple(trials_of(spec)))
    cells = {(trial.trial_id, m) for trial in plan.trials for m in trial.milestones}
    done = set(sorted(cells)[::2])
    checkpoints = {trial_id: (samples,) for trial_id, samples in sorted(done)}
    rest = plan.remaining(done, checkpoints)
    assert {(t.trial_id, m) for t in rest.trials for m in t.milestones} == cells - done
    assert rest.num_cells + rest.cells_measured == plan.num_cells
    assert 0 <= rest.flops_planned <= plan.flops_planned
    assert plan.remaining(cells, {}).trials == ()
