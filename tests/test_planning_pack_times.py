"""Plans and simulations of packed trials: hours as the throughput table gives them, packs as the driver forms them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.planning.cautions import cautions
from orchestrator.planning.devices import host
from orchestrator.planning.evaluation import evaluation_seconds
from orchestrator.planning.own_speeds import FOLDER
from orchestrator.planning.pack_times import Curve, curve, pack_times
from orchestrator.planning.packing import packs_of
from orchestrator.planning.plan import Plan, make
from orchestrator.planning.speeds import speeds
from orchestrator.scheduling.backend import Node
from orchestrator.scheduling.simulation import simulate
from orchestrator.scheduling.study import works_of

SPEC = """
name: packed
dataset: fashion-mnist
models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 16, depth: 1}, {name: b, width: 32, depth: 1}]}
arms: {sp: {parameterization: sp}}
training: {batch_size: 32, learning_rate: [1e-3, 2e-3, 4e-3]}
seeds: [0, 1]
budgets: {samples: [3200, 6400]}
evaluation: {loss_images: 64, sample_images: 0}
"""
TOKENS = 32 * 16
GAINS = [
    {"width": 16, "tokens": TOKENS, "members": 2, "gain": 1.5},
    {"width": 16, "tokens": TOKENS, "members": 8, "gain": 2.5},
    {"width": 64, "tokens": TOKENS, "members": 4, "gain": 1.2},
]


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "cpu.json").write_text(json.dumps({"speeds": [], "gains": GAINS}))

    def made(compute: str) -> Plan:
        path = tmp_path / "spec.yaml"
        path.write_text(f"{SPEC}compute: {{{compute}}}\n")
        return make(path)

    return made


def training(plan: Plan, size: str) -> float:
    """Seconds of training of one trial alone."""
    trial = next(trial for trial in plan.trials if trial.size == size)
    return plan.device_seconds[trial.trial_id][0] - evaluation_seconds(trial, host())


def test_gains_are_those_of_the_table_and_of_nothing_beyond_it(plan_of):
    a, b = (next(trial for trial in plan_of("").trials if trial.size == size) for size in "ab")
    assert curve("cpu", a) == Curve(((1, 1.0), (2, 1.5), (8, 2.5))), "of the nearest shape"
    assert curve("cpu", b) == Curve(((1, 1.0), (4, 1.2)))
    assert curve("a100-80gb", a) == Curve(((1, 1.0),))
    of_a = curve("cpu", a)
    assert of_a.gain(2) == (1.5, True)
    assert of_a.gain(4) == (pytest.approx(2.0), True), "half way in the logarithm"
    assert of_a.gain(9) == (2.5, False)
    assert Curve(((1, 1.0),)).gain(3) == (1.0, False)


def test_members_with_less_to_train_leave_first(plan_of):
    plan = plan_of("")
    trials = tuple(trial for trial in plan.trials if trial.size == "a")[:2]
    evaluation = evaluation_seconds(trials[0], host())
    alone = {trial.trial_id: (seconds + evaluation, True) for trial, seconds in zip(trials, (100, 40), strict=True)}
    (time,) = pack_times([trials], host(), alone)
    assert time.alone == pytest.approx(140 + 2 * evaluation)
    assert time.total == pytest.approx(2 * 40 / 1.5 + 60 + 2 * evaluation), "evaluations gain nothing"
    assert time.seconds == pytest.approx((40 / 1.5 + 60 + evaluation, 40 / 1.5 + evaluation))
    assert time.measured


@pytest.mark.parametrize(
    ("packing", "gangs", "members"),
    [
        ("auto", 1, {"a": [6], "b": [3, 3]}),
        ("auto", 3, {"a": [2, 2, 2], "b": [2, 2, 2]}),
        ("5", 1, {"a": [3, 3], "b": [3, 3]}),
    ],
)
def test_a_plan_takes_the_time_of_its_packs(plan_of, packing, gangs, members):
    alone, packed = (plan_of(f"gangs: {gangs}, packing: {how}") for how in ("off", packing))
    assert [time.trials for time in packed.packs] == packs_of(packed.sweep.compute, packed.trials)
    seconds = {size: [] for size in members}
    for size, packs in members.items():
        gains = curve("cpu", next(trial for trial in alone.trials if trial.size == size))
        evaluation = sum(evaluation_seconds(trial, host()) for trial in alone.trials if trial.size == size) / 6
        seconds[size] = [n * (training(alone, size) / gains.gain(n)[0] + evaluation) for n in packs]
    total = sum(map(sum, seconds.values()))
    assert 3600 * packed.gpu_hours == pytest.approx(total)
    assert packed.gpu_hours < alone.gpu_hours
    assert 3600 * packed.makespan_bound_hours == pytest.approx(max(total / gangs, *map(max, seconds.values())))
    least = {1: total, 3: seconds["a"][0] + seconds["b"][0]}[gangs]
    assert 3600 * packed.makespan_hours == pytest.approx(least)
    assert speeds(packed)[0].hours_by_gangs[gangs] == packed.makespan_hours
    assert speeds(packed)[0].device_hours == pytest.approx(packed.gpu_hours)
    assert packed.digest == alone.digest


def test_other_numbers_of_gangs_have_packs_of_their_own(plan_of):
    one, three = (plan_of(f"gangs: {gangs}, packing: auto") for gangs in (1, 3))
    assert one.makespans_on([1, 3]) == [one.makespan_hours, three.makespan_hours]
    number, same = (plan_of(f"gangs: {gangs}, packing: 3") for gangs in (1, 3))
    assert number.makespans_on([1, 3]) == [number.makespan_hours, same.makespan_hours]


def test_gangs_that_a_limit_of_gpus_forbids_cut_no_pack(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "h100-80gb.json").write_text(json.dumps({"speeds": [], "gains": GAINS}))
    path = tmp_path / "gpu.yaml"
    for limit, packs in (("", 12), (", max_gpus: 1", 3), (", max_gpus: 0.5", 3)):
        gpus = 0.5 if "0.5" in limit else 1
        path.write_text(
            f"{SPEC}compute: {{packing: auto, gangs: 6, device: h100-80gb, gpus_per_worker: {gpus}{limit}}}\n"
        )
        plan = make(path)
        assert len(packs_of(plan.sweep.compute, plan.trials)) == packs


@pytest.mark.parametrize("packing", ["off", "auto", "4"])
@pytest.mark.parametrize("gangs", [1, 4])
def test_a_simulation_runs_the_packs_of_the_plan(plan_of, packing, gangs):
    plan = plan_of(f"gangs: {gangs}, packing: {packing}")
    nodes = [Node(name="n", cpus=gangs, gpus=0)]
    works = works_of(plan)
    assert [len(work.mates) + 1 for work in works] == [len(p) for p in packs_of(plan.sweep.compute, plan.trials)]
    outcome = simulate(works, nodes)
    assert outcome.seconds == pytest.approx(3600 * plan.makespan_hours, abs=31)
    assert outcome.busy == pytest.approx(3600 * plan.gpu_hours, rel=1e-3)
    assert (outcome.trials, outcome.packs) == (len(plan.trials), len(works))
    assert outcome.flops == pytest.approx(plan.flops_planned)


def test_what_is_measured_of_a_pack_is_not_planned_again(plan_of):
    plan = plan_of("packing: 6")
    first = plan.packs[0].trials
    done = {(trial.trial_id, samples) for trial in first[:2] for samples in trial.milestones}
    rest = plan.remaining(done, {})
    assert [len(pack.trials) for pack in rest.packs] == [4, 6]
    assert 0 < plan.gpu_hours - rest.gpu_hours < plan.packs[0].total / 3600


def test_the_plan_says_what_packs_bring(plan_of, tmp_path):
    def told(compute: str) -> str:
        plan_of(compute)
        output = CliRunner().invoke(main, ["plan", str(tmp_path / "spec.yaml")]).output
        return next(
            (line.removeprefix("packs").strip() for line in output.splitlines() if line.startswith("packs")), ""
        )

    assert told("") == ""
    plan = plan_of("packing: auto")
    gain = sum(pack.alone for pack in plan.packs) / sum(pack.total for pack in plan.packs)
    saved = sum(pack.alone - pack.total for pack in plan.packs) / 3600
    assert told("packing: auto") == (
        f"1 of 6 trials, 2 of 3 trials: {gain:.2f}x as fast as alone, {saved:.3g} device hours less"
    )
    assert told("packing: 6").endswith("; the gain of 1 was not measured on cpu")
    assert told("packing: auto, gangs: 6").startswith("none: not measured to pay on cpu for such shapes, or a gang")
    assert told("packing: 4, workers: 2").startswith("none: no trial here can be a member")
    assert told("packing: auto, gpus_per_worker: 1").startswith("none: auto needs to know the GPU")
    answer = json.loads(CliRunner().invoke(main, ["plan", str(tmp_path / "spec.yaml"), "--json"]).output)
    assert answer["packs"] == []


def test_packs_that_may_not_fit_are_told(tmp_path):
    path = tmp_path / "gpu.yaml"
    large = SPEC.replace("{name: b, width: 32, depth: 1}", "{name: b, width: 1024, depth: 24}")
    path.write_text(f"{large}compute: {{packing: 6, gpus_per_worker: 1, device: l40s-48gb, workers: 1}}\n")
    (text,) = (text for text in cautions(make(path)) if "pack" in text)
    assert text.startswith("A pack of 6 trials of size b needs about ")
    assert text.endswith("Lower compute.packing.")
