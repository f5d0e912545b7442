"""`eval`, `sample`, `noise` and `encoders`: what they print of a checkpoint, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.results.store import read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.training import encoder_training, reference
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt

SPEC = """\
name: tiny
dataset: procedural-16
models: {patch: 4, head_dim: 8, sizes: [{name: w8, width: 8, depth: 1}]}
arms: {mup: {parameterization: {name: mup, base_width: 8}}}
training: {batch_size: 32, learning_rate: 1e-2}
seeds: [0, 1]
budgets: {samples: [32, 64]}
evaluation:
  {loss_images: 64, sample_images: 0, sampler_steps: 2,
   distance: {encoder: shapes-cnn, images: 80, most_of_training: 99}}
"""


def invoke(*words: str | Path) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str | Path) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def results(group, tmp_path_factory) -> Iterator[Path]:
    """Two trained trials, as `run` leaves them."""
    folder = tmp_path_factory.mktemp("looking")
    (folder / "tiny.yaml").write_text(SPEC)
    results = folder / "results"
    plan = make(folder / "tiny.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "IMAGES", 500)
        member = GangMember(
            rank=0, world_size=1, device=torch.device("cpu"), results=results, data=Path("data/procedural-16")
        )
        for trial in plan.trials:
            assignment = Assignment(
                trial=trial, attempt=0, gang="gang-0", milestones=trial.milestones, samples_spent=0,
                checkpoint_seconds=1e9, mlflow_run_id=None,
            )  # fmt: skip
            assert run_attempt(assignment, member) == ("completed", None)
        (results / "plan.json").write_text(json.dumps({"spec_path": str(folder / "tiny.yaml")}))
        yield results


@pytest.fixture(scope="module")
def checkpoint(results) -> Path:
    """Of the trial of seed 0."""
    trial_id = read_measurements(results).query("seed == 0")["trial_id"].iloc[0]
    return results / "checkpoints" / str(trial_id)


def test_eval_finds_what_the_sweep_measured(results, checkpoint):
    found = json.loads(invoke("eval", checkpoint, "--json"))
    rows = read_measurements(results)
    (row,) = rows[(rows["trial_id"] == found["trial_id"]) & (rows["samples"] == 64)].to_dict("records")
    for column in ("loss", "loss_sd", "fd", "kid", "fd_encoder", "fd_encoder_digest", "eval_samples", "sampler"):
        assert found[column] == row[column], column
    text = invoke("eval", next(checkpoint.glob("*32")), "--images", "24", "--steps", "1", "--sampler", "euler")
    assert "32" in text
    assert "sampler            euler" in text
    assert "eval_samples       24" in text


def test_sample_draws_one_class_or_a_column_each(checkpoint, tmp_path):
    assert "10 images of" in invoke("sample", checkpoint, "--images", "10", "-o", tmp_path / "all.png")
    assert Image.open(io.BytesIO((tmp_path / "all.png").read_bytes())).size == (10 * 17 - 1, 16)
    guided = ("--class", "3", "--guidance", "2", "--seed", "5")
    invoke("sample", checkpoint, "--images", "12", *guided, "-o", tmp_path / "three.png")
    assert Image.open(tmp_path / "three.png").size == (10 * 17 - 1, 2 * 17 - 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "--encoder", "vgg"), "no encoder 'vgg'; known are inception, fmnist-cnn, shapes-cnn"),
        (("eval", "--encoder", "inception"), "pt_inception-2015-12-05-6726825d.pth is missing; wanted"),
        (("eval", "--sampler", "dpm-v3"), "no sampler 'dpm-v3'; wanted one of ddpm, ddim"),
        (("sample", "-o", "x.png", "--class", "10"), "class 10 is not one of procedural-16; wanted 0 to 9"),
        (("sample", "-o", "x.png", "--guidance", "0.5"), "0.5 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(checkpoint, words, message):
    assert message in refused(words[0], checkpoint, *words[1:]).replace("\n", " ")


def test_other_specs_and_folders_are_refused(results, checkpoint, tmp_path):
    assert "is no checkpoint; wanted RESULTS/checkpoints/TRIAL" in refused("eval", results)
    (tmp_path / "other.yaml").write_text(SPEC.replace("1e-2", "2e-2"))
    assert "is not in the plan of" in refused("eval", checkpoint, "--spec", tmp_path / "other.yaml")


def test_noise_is_kept_beside_the_measurements(results):
    told = json.loads(invoke("noise", results, "--json"))
    assert [estimate["quantity"] for estimate in told] == ["loss", "fd"]
    assert json.loads((results / "noise.json").read_text()) == {"relative_sd": told}
    assert all(estimate["degrees_of_freedom"] == 1 and estimate["sampling"] > 0 for estimate in told)
    assert "loss: " in invoke("noise", results)


def test_encoders_are_listed_and_trained(tmp_path, monkeypatch):
    listed = invoke("encoders", "list")
    assert "shapes-cnn     64 features" in listed
    assert "wanted as" in listed
    monkeypatch.setattr(encoder_training, "EPOCH", 2 * encoder_training.BATCH)
    recipe = encoder_training.RECIPES["shapes-cnn"]
    monkeypatch.setitem(
        encoder_training.RECIPES, "shapes-cnn", dataclasses.replace(recipe, dataset="procedural-16")
    )  # fmt: skip
    words = ("encoders", "train", "shapes-cnn", "--epochs", "1", "--data", tmp_path, "-o")
    assert "epoch 1: loss" in invoke(*words, tmp_path / "one.safetensors")
    invoke(*words, tmp_path / "two.safetensors")
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "layout" not in " ".join(one)
