"""`ditlaw concepts`: a row a measured trial, a figure, and the directions themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from analysis.concept_plot import concept_plot
from models.families import build
from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.training.checkpoint import Checkpoint, Checkpoints

SPEC = """name: told
models: {patch: 7, head_dim: 8, sizes: [{name: small, width: 8, depth: 1}]}
arms:
  dit: {}
  unet:
    models:
      family: unet
      multipliers: [1]
      attention: []
      head_dim: 8
      groups: 8
      sizes: [{name: small, width: 8, depth: 1}]
training: {batch_size: 32, schedule: {name: wsd, cooldown: 0.5}, warmup_samples: 32}
budgets: {samples: [64, 128]}
"""


def test_every_measured_trial_has_a_row_and_directions(tmp_path: Path, fashion_mnist: Path) -> None:
    spec, figure, file = tmp_path / "told.yaml", tmp_path / "told.png", tmp_path / "told.safetensors"
    spec.write_text(SPEC)
    arguments = ["concepts", str(spec), "--results", str(tmp_path), "--data", str(fashion_mnist), "--images", "100"]
    missing = CliRunner().invoke(main, arguments)
    assert (missing.exit_code, "has no checkpoint" in missing.stderr) == (2, True)
    trials = make(spec).trials
    for trial in trials:
        tensors = {
            f"ema/{name}": p.detach() for name, p in build(trial.model, trial.parameterization, 0).named_parameters()
        }
        Checkpoints(tmp_path, trial.trial_id).save(Checkpoint(samples=trial.last, tensors=tensors, counters={}))
    done = CliRunner().invoke(main, [*arguments, "--json", "-o", str(figure), "--directions", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    measured = [trial for trial in trials if trial.milestones]
    assert {row["trial_id"] for row in rows} == {trial.trial_id for trial in measured} < {t.trial_id for t in trials}
    assert [(row["arm"], row["samples"]) for row in rows] == [("dit", 64), ("dit", 128), ("unet", 64), ("unet", 128)]
    assert all(
        row["flops"] == trial.flops_per_sample * row["samples"]
        for row in rows
        for trial in trials
        if trial.trial_id == row["trial_id"]
    )
    assert all(0 <= row["least"] <= row["mean"] <= 1 and row["mean"] > 0.5 for row in rows)
    assert {tuple(tensor.shape) for tensor in load_file(file).values()} == {(10, 8)}
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_figure_has_a_line_an_arm_and_size_with_seeds_averaged() -> None:
    rows = pd.DataFrame(
        [("a", "s", 1e9, 0.6), ("a", "s", 1e9, 0.8), ("a", "s", 2e9, 0.9), ("a", "l", 2e9, 0.7), ("b", "s", 1e9, 0.5)],
        columns=["arm", "size", "flops", "mean"],
    )
    (axes,) = concept_plot(rows).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "a s": pytest.approx([0.7, 0.9]), "a l": [0.7], "b s": [0.5],
    }  # fmt: skip
    with pytest.raises(ValueError, match="no rows to draw"):
        concept_plot(rows[:0])
