"""DPM-Solver-v3's statistics of a trial's newest checkpoint, and samples made with them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.dpm_v3 import Statistics, estimate_statistics
from models.objectives import build_objective
from models.samplers import sample
from orchestrator.results.atomic import write_bytes
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.trial import Trial
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import torch_generator
from orchestrator.training.data.pictures import check_suffix, grid_as
from orchestrator.training.data.source import Batch, opened, whole
from orchestrator.training.inspection import averaged_model
from orchestrator.training.sampling import first_noise


def estimate(trial: Trial, results: Path, data: Path, out: Path, num_images: int, grid: Path | None) -> int:
    """Write the statistics to `out` (safetensors), and samples made with them to `grid` (PNG of images, GIF or MP4 of
    clips); returns samples seen.

    Images and noise are fixed by the evaluation's seed; guidance and steps are those of the sweep's evaluation.

    Raises:
        ValueError: the trial's objective has a sampler of its own, there is no checkpoint, or no such grid.
    """
    if trial.objective.sampler is not None:
        raise ValueError(
            f"trial {trial.name} trains {trial.objective.name}, which is sampled by {trial.objective.sampler} alone; "
            "wanted a trial of another objective, on whose path DPM-Solver-v3 has statistics"
        )
    suffix = grid.suffix.lstrip(".") if grid is not None else None
    if suffix is not None:
        check_suffix(suffix, moving=len(trial.model.shape) == 4)
    model, samples = averaged_model(trial, results)
    model.equip(data)
    evaluation = trial.evaluation
    images, labels = _training_samples(trial, data, num_images)
    statistics = estimate_statistics(
        model,
        build_objective(trial.objective),
        images,
        labels,
        torch_generator(evaluation.seed, "statistics", 1),
        guidance=evaluation.guidance,
        null_class=trial.model.num_classes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(out)
    if grid is not None and suffix is not None:
        write_bytes(grid, grid_as(suffix, _sampled(model, trial, statistics), trial.model.num_classes))
    return samples


def _training_samples(trial: Trial, data: Path, number: int) -> Batch:
    """Some of the training samples: drawn from a set, or the first of a seed's where there is no end of them."""
    seed, dataset = trial.evaluation.seed, dataset_named(trial.dataset)
    if dataset.train_images is None:
        return whole(opened(dataset, data, torch.device("cpu"))).batch(seed, 0, number, slice(None))
    images, labels = load(trial.dataset, "train", data)
    chosen = torch.randperm(len(images), generator=torch_generator(seed, "statistics", 0))[:number]
    return to_float(images[chosen]), labels[chosen]


def _sampled(model: nn.Module, trial: Trial, statistics: Statistics) -> Tensor:
    num_classes = trial.model.num_classes
    rows = max(1, trial.evaluation.sample_images // num_classes)
    noise, y = first_noise(trial.model, trial.evaluation, 0, rows * num_classes)
    return sample(
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
