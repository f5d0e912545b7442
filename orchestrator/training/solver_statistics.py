"""DPM-Solver-v3's statistics of a trial's newest checkpoint, and images sampled with them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from models.dpm_v3 import Statistics, estimate_statistics
from models.objectives import build_objective
from models.samplers import sample
from orchestrator.results.atomic import write_bytes
from orchestrator.spec.trial import Trial
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import torch_generator
from orchestrator.training.data.pictures import grid_png
from orchestrator.training.inspection import averaged_model
from orchestrator.training.sampling import first_noise


def estimate(trial: Trial, results: Path, data: Path, out: Path, num_images: int, grid: Path | None) -> int:
    """Write the statistics to `out` (safetensors), and a PNG sampled with them to `grid`; returns samples seen.

    Images and noise are fixed by the evaluation's seed; guidance and steps are those of the sweep's evaluation.
    """
    model, samples = averaged_model(trial, results)
    objective, evaluation = build_objective(trial.objective), trial.evaluation
    images, labels = load(trial.dataset, "train", data)
    chosen = torch.randperm(len(images), generator=torch_generator(evaluation.seed, "statistics", 0))[:num_images]
    statistics = estimate_statistics(
        model,
        objective,
        to_float(images[chosen]),
        labels[chosen],
        torch_generator(evaluation.seed, "statistics", 1),
        guidance=evaluation.guidance,
        null_class=trial.model.num_classes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(out)
    if grid is not None:
        write_bytes(grid, _grid(model, trial, statistics))
    return samples


def _grid(model: nn.Module, trial: Trial, statistics: Statistics) -> bytes:
    num_classes = trial.model.num_classes
    rows = max(1, trial.evaluation.sample_images // num_classes)
    noise, y = first_noise(trial.model, trial.evaluation, 0, rows * num_classes)
    images = sample(
        model,
        build_objective(trial.objective),
        noise,
        y,
        sampler="dpm-v3",
        steps=trial.evaluation.sampler_steps,
        guidance=trial.evaluation.guidance,
        null_class=num_classes,
        guidance_interval=trial.evaluation.guidance_interval,
        statistics=statistics,
    )
    return grid_png(images, num_classes)
