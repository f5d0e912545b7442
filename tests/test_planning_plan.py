"""Planning: budgets shared, order, totals, and no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.budget import steps_of_flops
from orchestrator.planning.plan import make
from orchestrator.planning.speeds import speeds_json
from orchestrator.spec.source import SpecError

SPEC = """\
name: shared
models: {{patch: 7, head_dim: 8, sizes: [{{name: a, width: 16, depth: 1}}]}}
arms: {{sp: {{parameterization: sp}}}}
training: {{batch_size: 32}}
budgets: {{flops: {budgets}}}
"""


@pytest.mark.parametrize(("ratio", "count", "least"), [(2.0, 6, 1.96), (2**0.5, 10, 3.2)])
def test_budgets_of_one_configuration_share_one_trajectory(tmp_path, ratio, count, least):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(budgets=[1e10 * ratio**i for i in range(count)]))
    plan = make(path)
    assert (len(plan.trials), plan.num_cells) == (1, count)
    assert plan.flops_separate / plan.flops_planned > least


@given(st.floats(1e5, 1e15), st.floats(1e3, 1e9), st.integers(1, 4096))
@settings(max_examples=200)
def test_steps_are_the_nearest_to_the_budget(budget, per_sample, batch):
    steps, step = steps_of_flops(budget, per_sample, batch), per_sample * batch
    assert (steps == 0) == (budget < step)
    if steps:
        assert abs(steps * step - budget) <= step / 2 * (1 + 1e-9)


def test_state_follows_precision_and_stage(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(budgets=[1e10]) + "compute: {precision: bf16, zero_stage: 3, workers: 2}\n")
    (trial,) = make(path).as_json()["trials"]
    assert trial["state_bytes"] == pytest.approx((2 / 2 + 2 / 2 + 12 / 2 + 4 / 2 + 4) * trial["params_total"], rel=1e-2)
    path.write_text(SPEC.format(budgets=[1e10]))
    (trial,) = make(path).as_json()["trials"]
    assert trial["state_bytes"] == 24 * trial["params_total"]


def test_quickstart_asks_for_what_the_readme_says():
    plan = make(Path("sweeps/quickstart.yaml"))
    params = sorted({trial.params_total for trial in plan.trials})
    assert len(params) >= 5
    assert 8_000 < params[0] < 20_000
    assert 300_000 < params[-1] < 600_000
    assert {trial.arm for trial in plan.trials} == {"mup", "sp"}
    assert min(len(trial.milestones) for trial in plan.trials) >= 4
    seconds = [plan.seconds(trial) for trial in plan.trials]
    assert seconds == sorted(seconds, reverse=True)


def test_plan_imports_nothing_heavy_and_prints_the_promised_keys():
    code = (
        "import sys, json; from orchestrator.cli import main\n"
        "try: main(['plan', 'sweeps/quickstart.yaml', '--json', '--from-scratch'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'mlflow', 'pandas', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "print(json.dumps(sorted(heavy)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []
    plan = json.loads(done.stdout)
    assert {
        "num_cells", "num_trials", "flops_separate", "flops_planned", "flops_evaluation", "gpu_hours",
        "makespan_hours", "checkpoint_bytes", "results_bytes", "trials",
    } <= set(plan)  # fmt: skip
    assert {"trial_id", "size", "parameterization", "milestones", "flops", "gang"} <= set(plan["trials"][0])


GPU = """\
name: gpu
dataset: fashion-mnist
models: {{patch: 2, head_dim: 64, sizes: [{{name: w1152, width: 1152, depth: 28}}]}}
arms: {{sp: {{}}}}
training: {{batch_size: 256}}
budgets: {{flops: [1e18], max_epochs: 1e9}}
seeds: [0, 1, 2, 3]
{more}
"""


def planned(tmp_path, compute, more="", gpus=1):
    path = tmp_path / "gpu.yaml"
    path.write_text(GPU.format(more=more) + f"compute: {{gpus_per_worker: {gpus:g}, precision: bf16, {compute}}}\n")
    return make(path)


def test_hours_are_those_of_the_device_that_is_named(tmp_path):
    h100, a100 = (planned(tmp_path, f"device: {name}").gpu_hours for name in ("h100-80gb", "a100-80gb"))
    assert a100 == pytest.approx(h100 * 989.4 / 312, rel=0.05), "the same share of its peak"


def test_zero_3_and_offload_take_longer(tmp_path):
    plain, gathering, offloaded = (
        planned(tmp_path, f"device: h100-80gb, micro_batch: 32, {more}").gpu_hours
        for more in ("zero_stage: 1", "zero_stage: 3", "offload: true")
    )
    assert 1.5 * plain < gathering < offloaded


def test_a_limit_of_gpus_is_a_limit_of_gangs(tmp_path):
    free, limited = (planned(tmp_path, more) for more in ("gangs: 4", "gangs: 4, max_gpus: 2"))
    assert limited.makespan_hours == pytest.approx(2 * free.makespan_hours)
    assert limited.makespan_bound_hours == pytest.approx(2 * free.makespan_bound_hours)


def test_workers_with_a_part_of_a_gpu_have_its_hours(tmp_path):
    whole, half = (planned(tmp_path, "device: h100-80gb, micro_batch: 8", gpus=gpus) for gpus in (1, 0.5))
    assert half.gpu_hours == pytest.approx(whole.gpu_hours)
    assert half.makespan_hours == pytest.approx(2 * whole.makespan_hours)


def test_hours_by_device_and_gangs(tmp_path):
    plan = planned(tmp_path, "device: h100-80gb, gangs: 2")
    own, *others = speeds_json(plan)
    assert own["device"] == "h100-80gb"
    assert own["device_hours"] == pytest.approx(plan.gpu_hours)
    hours = {entry["gangs"]: entry["hours"] for entry in own["makespan_hours"]}
    assert hours[2] == pytest.approx(plan.makespan_hours)
    assert hours[1] == pytest.approx(plan.gpu_hours)
    a100 = next(speed for speed in others if speed["device"] == "a100-80gb")
    factor = a100["device_hours"] / own["device_hours"]
    assert {entry["gangs"]: entry["hours"] for entry in a100["makespan_hours"]} == pytest.approx(
        {gangs: factor * each for gangs, each in hours.items()}
    )
    assert (a100["measured"], a100["fits"]) == (False, True)


def test_evaluation_takes_the_time_of_fp32(tmp_path):
    some = planned(tmp_path, "device: h100-80gb")
    more = planned(tmp_path, "device: h100-80gb", "evaluation: {loss_images: 10000, loss_draws: 20}")
    flops = more.flops_evaluation - some.flops_evaluation
    assert flops / (3600 * (more.gpu_hours - some.gpu_hours)) < 67e12, "the peak of an H100 in fp32"


def test_problems_behind_problems_are_told_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    text = GPU.format(more="bogus: 1").replace("fashion-mnist", "fashion-mnit")
    path.write_text(text.replace("batch_size", "batch_siz"))
    with pytest.raises(SpecError) as refused:
        make(path)
    for told in ("bogus", "fashion-mnit", "batch_siz"):
        assert told in str(refused.value)
