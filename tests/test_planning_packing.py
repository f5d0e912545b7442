"""Packs: trials of one shape together, no gang left idle for it, and unasked only where it was measured to pay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.planning import packing
from orchestrator.planning.packing import GAINS, Gain, members_worth, packable, packs_of
from orchestrator.planning.plan import make


@pytest.fixture(scope="module")
def plan():
    return make(Path("sweeps/smoke.yaml"))


def compute_of(plan, **changes):
    return plan.sweep.compute.model_copy(update=changes)


def shapes(packs):
    return [[(trial.arm, trial.size) for trial in pack] for pack in packs]


def test_off_leaves_every_trial_alone(plan):
    assert packs_of(compute_of(plan), plan.trials) == [(trial,) for trial in plan.trials]


def test_a_number_packs_trials_of_one_shape_and_one_end(plan):
    packs = packs_of(compute_of(plan, packing=8), plan.trials)
    assert sorted(len(pack) for pack in packs) == [2, 2, 2]
    assert all(len({trial.size for trial in pack}) == 1 for pack in packs)
    assert {trial.trial_id for pack in packs for trial in pack} == {trial.trial_id for trial in plan.trials}
    seeds = [dataclasses.replace(plan.trials[0], seed=seed) for seed in range(5)]
    assert [len(pack) for pack in packs_of(compute_of(plan, packing=4), seeds)] == [3, 2], "of nearly one size"


@pytest.mark.parametrize(
    "change",
    [{"num_workers": 2}, {"branch_points": (32,)}, {"offload": True}, {"micro_batch": 8}, {"zero_stage": 3}],
)
def test_what_a_pack_cannot_do_trains_alone(plan, change):
    assert packable(plan.trials[0])
    assert not packable(dataclasses.replace(plan.trials[0], **change))


def test_auto_packs_where_the_table_says_so_and_keeps_every_gang_busy(plan, monkeypatch):
    seeds = [dataclasses.replace(plan.trials[0], seed=seed) for seed in range(6)]
    trial = seeds[0]
    tokens = trial.batch_size * 16
    rows = [(trial.model.width, 4, 1.3), (trial.model.width, 8, 1.1)]
    table = tuple(Gain(width=width, tokens=tokens, members=members, gain=gain) for width, members, gain in rows)
    monkeypatch.setitem(packing.GAINS, "cpu", table)
    assert members_worth("cpu", trial) == 4, "eight together gain less than is asked for"
    larger = dataclasses.replace(trial, batch_size=64, milestones=(64,), budgets=(None,))
    assert members_worth("cpu", larger) == 1, "not measured"
    assert members_worth("a100-80gb", trial) == 1
    auto = compute_of(plan, packing="auto", gangs=1)
    assert [len(pack) for pack in packs_of(auto, seeds)] == [3, 3]
    assert [len(pack) for pack in packs_of(compute_of(plan, packing="auto", gangs=3), seeds)] == [2, 2, 2]


def test_the_tables_gains_are_ascending_measurements():
    for gains in GAINS.values():
        assert all(gain.members > 1 and gain.gain > 0 for gain in gains)
