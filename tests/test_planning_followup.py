"""`ditlaw suggest`: from results with a planted law to a spec that goes on from them."""

from __future__ import annotations

import itertools
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from analysis.planted import Noise, PlantedLaw
from models.config import DiTConfig
from orchestrator.cli import main
from orchestrator.follow_up import follow_up
from orchestrator.planning.followup import budget_grid, rungs, seed_constraints
from orchestrator.planning.plan import Plan, make
from orchestrator.results.holdings import holdings
from orchestrator.results.schema import EVALUATION_COLUMNS
from orchestrator.results.store import Store

SPEC = """
name: pilot
question: How large?
models:
  patch: 4
  head_dim: 8
  sizes: {rule: width, widths: [16, 24, 32, 48, 64], depth: 2}
arms:
  mup: {parameterization: {name: mup, base_width: 32}}
  sp: {parameterization: sp}
training: {batch_size: 64, learning_rate: 1.6e-2, warmup_samples: 640}
budgets: {flops: [2.5e10, 5e10, 1e11, 2e11]}
"""
LAW = PlantedLaw(E=0.15, A=1.5, B=3.0, alpha=0.3, beta=0.35)
NOISE = Noise(seed=0.004, measurement=0.001)
TARGET, SPEND = 4e12, 5e11


def measured(folder: Path, spec: str = SPEC, seed: int = 0) -> Plan:
    """A results folder in which every trial of `spec` has measured the planted law."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / "spec.yaml"
    path.write_text(spec)
    plan, store, rng = make(path), Store(folder), np.random.default_rng(seed)
    store.claim(plan.sweep.name, plan.digest)
    for trial in plan.trials:
        off = NOISE.seed * rng.standard_normal()
        rows = [
            row(trial, samples, budget, off + NOISE.measurement * rng.standard_normal())
            for samples, budget in zip(trial.milestones, trial.budgets, strict=True)
        ]
        store.append_measurements(rows)
        if rows:
            (folder / "checkpoints" / trial.trial_id).mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan.as_json()))
    return plan


def row(trial: Any, samples: int, budget: float | None, error: float) -> dict[str, Any]:
    loss = float(LAW.loss(trial.params_backbone, samples) * np.exp(error))
    if trial.optimizer.learning_rate > 0.02:
        loss *= 1.1  # the best rate is the lower one
    flops = trial.flops_per_sample * samples
    names = ("params_total", "params_backbone", "params_matmul", "batch_size", "seed", "num_workers", "zero_stage")
    own = {name: getattr(trial, name) for name in (*names, "trial_id", "sweep", "arm", "size", "precision")}
    return dict.fromkeys(EVALUATION_COLUMNS) | own | {
        "schema_version": 1, "cell_id": trial.cell_id(samples), "family": "dit", "objective": "rectified-flow",
        "parameterization": trial.parameterization.name, "learning_rate": trial.optimizer.learning_rate,
        "samples": samples, "tokens": 49 * samples, "flops": flops, "budget_flops": budget, "loss": loss,
        "flops_definition": "3x-forward-matmul-v1", "loss_train": loss, "fid": 30 * loss,
        "eval_samples": 5000, "sampler": "heun", "sampler_steps": 20, "guidance": 1.0,
        "outcome": "ok", "reason": None, "attempt": 0, "mlflow_run_id": None, "wall_seconds": 1.0, "gpu_hours": 0.1,
        "flops_useful": flops, "flops_wasted": 0.0, "created_at": datetime.now(UTC),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("study") / "results" / "pilot"
    return folder, measured(folder)


def suggested(folder: Path, *options: str, out: Path | None = None) -> dict[str, Any]:
    out = out or folder.parent.parent / "next.yaml"
    arguments = ["suggest", str(folder), "--target-flops", f"{TARGET:g}", "--spend", f"{SPEND:g}", "-o", str(out)]
    done = CliRunner().invoke(main, [*arguments, "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_follow_up_goes_on_from_what_is_measured(pilot):
    folder, plan = pilot
    found = suggested(folder, "--arm", "mup")
    following = make(Path(found["spec"]))
    assert following.sweep.name == "pilot-next"
    assert list(following.sweep.arms) == ["mup"]
    known = {trial.trial_id: trial for trial in plan.trials if trial.arm == "mup"}
    planned = {trial.trial_id: trial for trial in following.trials}
    for trial_id, trial in known.items():
        assert set(trial.milestones) <= set(planned[trial_id].milestones)
    held = holdings(folder.parent / "pilot-next", planned)
    cells = {(trial.trial_id, samples) for trial in known.values() for samples in trial.milestones}
    assert held.measured >= cells
    checkpoints = {trial_id: list(trial.milestones) for trial_id, trial in known.items()}
    left = following.remaining(held.measured, checkpoints)
    assert left.flops_planned == pytest.approx(found["flops"], rel=1e-9)
    assert 0.5 * SPEND < left.flops_planned <= SPEND
    new = {(trial.size, trial.seed): trial for trial in left.trials}
    assert set(new) == {(run["size"], run["seed"]) for run in found["runs"]}
    for run in found["runs"]:
        trial = new[run["size"], run["seed"]]
        assert [s * trial.flops_per_sample for s in trial.milestones] == pytest.approx(run["milestones"])


def test_it_says_what_it_expects(pilot):
    folder, _ = pilot
    found = suggested(folder, "--arm", "mup")
    for name in ("params", "loss"):
        now, after = found["now"][name], found["after"][name]
        assert 1 < after["factor"] < now["factor"]
        assert now["ci95"][0] < now["value"] < now["ci95"][1]
    text = Path(found["spec"]).read_text()
    assert text.startswith("# Follows up sweep pilot, arm mup:")
    assert f"N* within a factor of {found['now']['params']['factor']:.3g} now" in text.replace("\n# ", " ")
    expect = yaml.safe_load(text)["expect"]
    assert expect["law"]["alpha"] == pytest.approx(LAW.alpha, abs=0.15)
    assert expect["target_flops"] == TARGET
    assert found["noise"]["seed"] == pytest.approx(NOISE.seed, rel=0.8)


def test_people_are_shown_a_table(pilot, tmp_path):
    folder, _ = pilot
    arguments = ["suggest", str(folder), "--arm", "mup", "--target-flops", "4e12", "--spend", "5e11"]
    done = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "next.yaml")])
    assert done.exit_code == 0, done.output
    assert "measured at FLOPs" in done.output
    assert re.search(r"N\*    within a factor of \S+ now, within a factor of \S+ after", done.output)
    assert re.search(r"loss  within \S+% now, within \S+% after", done.output)
    assert f"Next:  ditlaw plan {tmp_path}" in done.output.replace("\n", "")


def test_only_new_cells_where_asked(pilot, tmp_path):
    folder, plan = pilot
    found = suggested(folder, "--arm", "mup", "--new-only", out=tmp_path / "next.yaml")
    planned = {(t.trial_id, s) for t in make(tmp_path / "next.yaml").trials for s in t.milestones}
    assert len(planned) == sum(len(run["milestones"]) for run in found["runs"])
    assert not planned & {(t.trial_id, s) for t in plan.trials for s in t.milestones}


def test_data_without_end_have_no_epochs_to_keep_within(tmp_path):
    folder = tmp_path / "results" / "pilot"
    measured(folder, SPEC.replace("question: How large?", "dataset: procedural-16-grey"))
    found = suggested(folder, "--arm", "mup", out=tmp_path / "next.yaml")
    assert found["runs"]
    assert "epochs" not in (tmp_path / "next.yaml").read_text()


def test_further_seeds_have_their_own_budgets(pilot, tmp_path):
    folder, _ = pilot
    found = suggested(folder, "--arm", "mup", "--seeds", "3", out=tmp_path / "next.yaml")
    following = make(tmp_path / "next.yaml")
    assert set(following.sweep.seeds) >= {run["seed"] for run in found["runs"]}
    tops: dict[tuple[str, int], float] = {}
    for run in found["runs"]:
        tops[run["size"], run["seed"]] = run["milestones"][-1]
    for trial in following.trials:
        top = tops.get((trial.size, trial.seed))
        if top is not None:
            assert trial.flops == pytest.approx(top)
        else:
            assert trial.seed == 0  # measured before


def test_the_best_learning_rate_goes_on(tmp_path):
    folder = tmp_path / "results" / "rates"
    spec = SPEC.replace("name: pilot", "name: rates").replace("learning_rate: 1.6e-2, ", "")
    plan = measured(folder, spec + "axes: {learning_rate: [1.6e-2, 3.2e-2]}\nseeds: [5, 6]\n")
    found = suggested(folder, "--arm", "sp", out=tmp_path / "next.yaml")
    following = make(tmp_path / "next.yaml")
    assert {trial.optimizer.learning_rate for trial in following.trials} == {0.016}
    assert {run["seed"] for run in found["runs"]} == {5}
    known = {trial.trial_id for trial in plan.trials if trial.arm == "sp" and trial.optimizer.learning_rate == 0.016}
    assert known <= {trial.trial_id for trial in following.trials}


def test_a_study_begins_from_its_spec_alone(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    found = follow_up(spec, None, target_flops=TARGET, spend=1e12, arm="sp")
    assert found.law is None
    assert "N* not known yet, within a factor of" in found.text
    assert "has measured" not in found.text
    assert any("nothing is measured" in note for note in found.notes)
    assert found.suggestion.after["params"] < 0.7 * found.suggestion.now["params"]
    (tmp_path / "next.yaml").write_text(found.text)
    following = make(tmp_path / "next.yaml")
    assert following.flops_planned == pytest.approx(found.suggestion.flops)
    assert len({trial.size for trial in following.trials}) >= 3


def test_cooldowns_cost_their_own_part(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.replace("warmup_samples: 640", "warmup_samples: 640, schedule: {name: wsd, cooldown: 0.2}"))
    found = follow_up(spec, None, target_flops=TARGET, spend=1e12, arm="mup")
    (tmp_path / "next.yaml").write_text(found.text)
    following = make(tmp_path / "next.yaml")
    assert following.flops_planned == pytest.approx(found.suggestion.flops, rel=0.02)
    assert following.flops_planned < 1.02e12


def test_fid_is_a_quantity_of_its_own(pilot, tmp_path):
    folder, _ = pilot
    found = suggested(folder, "--arm", "mup", "--quantity", "fid", out=tmp_path / "next.yaml")
    assert found["now"]["loss"]["value"] > 3  # thirty times the planted loss


def test_what_cannot_be_is_refused(pilot, tmp_path):
    folder, _ = pilot
    out = tmp_path / "next.yaml"

    def refusal(*options: str) -> str:
        arguments = ["suggest", str(folder), "-o", str(out), *options]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2, done.output
        assert not out.exists()
        return done.output

    both = ("--target-flops", "1e13", "--spend", "1e11")
    assert "has several arms: mup, sp. Say which with --arm." in refusal(*both)
    assert "has no arm 'mud'; wanted one of mup, sp" in refusal(*both, "--arm", "mud")
    assert "buys no trial: the cheapest costs" in refusal("--target-flops", "1e13", "--spend", "1e3", "--arm", "mup")
    assert "--spend got -1.0; wanted a positive number" in refusal(
        "--target-flops", "1e13", "--spend", "-1", "--arm", "mup"
    )


def test_rungs_follow_the_rule_of_the_sizes():
    def dit(width: int, depth: int, heads: int) -> DiTConfig:
        return DiTConfig(image_size=32, channels=4, num_classes=10, patch=2, width=width, depth=depth, heads=heads)

    aspect = rungs({"s": dit(128, 4, 2), "m": dit(256, 8, 4), "l": dit(512, 16, 8)})
    assert [size["width"] for size in aspect] == list(range(128, 769, 64))
    assert all(size["depth"] == round(size["width"] / 32) and size["heads"] == size["width"] // 64 for size in aspect)
    assert {"s", "m", "l"} <= {size["name"] for size in aspect}
    depths = rungs({"a": dit(64, 2, 2), "b": dit(64, 6, 2)})
    assert [(size["width"], size["depth"]) for size in depths] == [(64, depth) for depth in range(2, 10)]
    mixed = rungs({"a": dit(64, 2, 2), "b": dit(128, 2, 2)})
    assert [size["name"] for size in mixed] == ["a", "b"]
    many = rungs({"a": dit(8, 2, 2), "b": dit(2048, 2, 512)})
    assert 20 <= len(many) <= 30


def test_budgets_fill_gaps_and_go_on_to_the_cap():
    grid = budget_grid([1e10, 4e10], 2e11)
    assert {1e10, 4e10} <= set(grid)
    assert grid == sorted(grid)
    assert 1.3e11 < grid[-1] <= 2e11
    assert all(1.2 < high / low < 1.8 for low, high in itertools.pairwise(grid))
    assert budget_grid([1e10, 1.4e10], 1e10) == [1e10, 1.4e10]


def test_seeds_are_parted_by_conditions_only_where_they_differ():
    assert seed_constraints({("a", 0): [1e10], ("b", 0): [2e10]}) == []
    assert seed_constraints({("a", 0): [1e10], ("a", 1): [5e9], ("b", 0): [2e10], ("b", 1): [2e10]}) == [
        "size != 'a' or seed == 0 and flops < 1.001e+10 or seed == 1 and flops < 5.005e+09"
    ]
