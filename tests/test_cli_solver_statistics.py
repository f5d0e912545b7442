"""`ditlaw solver-statistics` on samples without end, still and moving, and what it refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from models.dpm_v3 import Statistics
from models.families import build
from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.training.checkpoint import Checkpoint, Checkpoints

SPEC = """
name: moving
dataset: {dataset}
objective: {{name: {objective}}}
models: {{{models}, head_dim: 8, sizes: [{{name: w8, width: 8, depth: 1}}]}}
arms: {{sp: {{parameterization: sp}}}}
training: {{batch_size: 8, learning_rate: 1e-3}}
budgets: {{samples: [8]}}
evaluation: {{loss_images: 8, sample_images: 10, sampler: euler, sampler_steps: 2}}
"""
CLIPS = "family: video-dit, patch: 4, patch_frames: 4"


def asked(tmp_path: Path, grid: str | None, *, dataset: str, models: str, objective: str = "rectified-flow") -> Result:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(dataset=dataset, models=models, objective=objective))
    trial = make(path).trials[0]
    model = build(trial.model, trial.parameterization, trial.seed)
    tensors = {f"ema/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    Checkpoints(tmp_path, trial.trial_id).save(Checkpoint(samples=trial.last, tensors=tensors, counters={}))
    arguments = ["solver-statistics", path, "--trial", trial.trial_id, "--results", tmp_path, "--images", 2]
    arguments += ["-o", tmp_path / "v3.safetensors"] + (["--grid", tmp_path / grid] if grid else [])
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("dataset", "models", "grid", "shape"),
    [
        ("moving-16-grey", CLIPS, "v3.gif", (1, 8, 16, 16)),
        ("procedural-16", "family: dit, patch: 4", None, (3, 16, 16)),
    ],
)
def test_statistics_of_samples_without_end(tmp_path, dataset, models, grid, shape):
    done = asked(tmp_path, grid, dataset=dataset, models=models)
    assert done.exit_code == 0, done.output
    found = Statistics.load(tmp_path / "v3.safetensors")
    assert found.l.shape[1:] == found.s.shape[1:] == found.b.shape[1:] == shape
    assert grid is None or Image.open(tmp_path / grid).n_frames == 8


@pytest.mark.parametrize(
    ("grid", "objective", "message"),
    [
        ("v3.png", "rectified-flow", "clips cannot be written as png; wanted gif or mp4"),
        ("v3.gif", "pyramid-flow", "trains pyramid-flow, which is sampled by pyramid alone; wanted a trial of another"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(tmp_path, grid, objective, message):
    models = CLIPS + (", levels: 2" if objective == "pyramid-flow" else "")
    done = asked(tmp_path, grid, dataset="moving-16-grey", models=models, objective=objective)
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert not (tmp_path / "v3.safetensors").exists()
