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


GPU = """
name: gpu
dataset: fashion-mnist
arms: {sp: {parameterization: sp}}
models: {patch: 4, head_dim: 16, sizes: [{name: a, width: 32, depth: 2}]}
training: {batch_size: 64, learning_rate: 1e-3, warmup_samples: 0}
budgets: {flops: [1e11]}
compute: {gpus_per_worker: 1, precision: bf16}
"""


def planned(tmp_path: Path, text: str):
    path = tmp_path / "gpu.yaml"
    path.write_text(text)
    return make(path).trials


@pytest.mark.parametrize(
    ("change", "stepping"),
    [
        ("", "graph"),
        (", graphs: false", "deepspeed"),
        (", graphs: uncaptured", "flat"),
        (", device: h100-80gb", "graph"),
        (", workers: 2", "deepspeed"),
        (", zero_stage: 2", "deepspeed"),
        (", compile: true", "graph"),
        (", compile: true, device: h100-80gb", "graph"),
        (", compile: true, graphs: false", "deepspeed"),
        (", compile: true, graphs: uncaptured", "flat"),
        (", compile: true, zero_stage: 2", "deepspeed"),
        (", compile: true, micro_batch: 8", "deepspeed"),
        (", compile: true, workers: 2", "deepspeed"),
        (", compile: true, workers: 2, graphs: true", "graph"),
        (", workers: 2, graphs: uncaptured, device: h100-80gb", "flat"),
        (", workers: 2, micro_batch: 32, graphs: true", "graph"),
        (", workers: 2, micro_batch: 16, graphs: true", "deepspeed"),
        (", workers: 2, zero_stage: 2, graphs: true", "deepspeed"),
        (", workers: 2, offload: true, graphs: true", "deepspeed"),
        (", compile: true, activation_checkpointing: true", "deepspeed"),
    ],
)
def test_whole_steps_of_one_gpu_are_graphs_and_those_of_several_if_asked_for(tmp_path, change, stepping):
    trials = planned(tmp_path, GPU.replace("bf16}", f"bf16{change}}}"))
    assert {trial.stepping for trial in trials} == {stepping}


def test_steps_that_leave_no_room_for_a_graph_have_none(tmp_path):
    """On a device of which nothing is known a graph may take 8 GiB."""
    large = GPU.replace("name: a, width: 32, depth: 2", "name: a, width: 1152, depth: 28").replace("1e11", "1e16")
    trials = planned(tmp_path, large.replace("batch_size: 64", "batch_size: 512"))
    assert {trial.stepping for trial in trials} == {"deepspeed"}


def test_no_trial_on_a_cpu_is_a_graph(plan):
    assert {trial.stepping for trial in plan.trials} == {"deepspeed"}


def test_fp8_of_a_width_that_its_units_cannot_take_is_refused(tmp_path):
    text = GPU.replace("bf16", "fp8")
    assert {trial.zero_stage for trial in planned(tmp_path, text)} == {1}
    with pytest.raises(ValueError, match="fp8 with a; wanted DiTs of a width that 16 divides"):
        planned(tmp_path, text.replace("head_dim: 16", "head_dim: 12").replace("width: 32", "width: 24"))


def test_packing_off_is_what_yaml_makes_of_it(tmp_path):
    path = tmp_path / "gpu.yaml"
    path.write_text(GPU.replace("bf16}", "bf16, packing: off}"))
    assert make(path).sweep.compute.packing == "off"
