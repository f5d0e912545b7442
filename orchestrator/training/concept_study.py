"""Concept directions in the checkpoints of a sweep: how linear separability follows compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.concepts import concepts, features
from models.objectives import build_objective
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import location
from orchestrator.spec.trial import Trial
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import torch_generator
from orchestrator.training.inspection import averaged_model


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well the classes can be told by a line in the middle features of one trial's newest checkpoint."""

    trial_id: str
    arm: str
    size: str
    samples: int
    flops: float
    """Training FLOPs up to the checkpoint."""
    mean: float
    """Mean over classes of the area under the ROC curve; 0.5 is chance."""
    least: float
    """That of the worst class."""
    directions: Tensor
    """A unit vector a class: [classes, width of the middle block]."""

    def measured(self) -> dict[str, Any]:
        """Everything but the directions, by name."""
        return {name: value for name, value in vars(self).items() if name != "directions"}


def study(trials: Sequence[Trial], results: Path, data: Path, *, images: int, t: float) -> Iterator[Separability]:
    """One row a trial, in their order: half of `images` validation images make the directions, half try them.

    Images and noise are the same for every trial. Trunks, which are not measured anywhere, are left out.

    Raises:
        ValueError: a trial has no checkpoint, or there are fewer validation images.
    """
    for trial in (trial for trial in trials if trial.milestones):
        pixels, labels = load(trial.dataset, "validation", data)
        if images > len(pixels):
            raise ValueError(f"got {images} images; {trial.dataset} has {len(pixels)} for validation")
        generator = torch_generator(trial.evaluation.seed, "concepts", 0)
        chosen = torch.randperm(len(pixels), generator=generator)[:images]
        x = to_float(pixels[chosen])
        model, samples = averaged_model(trial, location(results))
        model.equip(data)
        noise = torch.randn(x.shape, generator=generator)
        found = features(model, build_objective(trial.objective), x, noise, t=t)
        half, y = images // 2, labels[chosen]
        learned = concepts(found[:half], y[:half], found[half:], y[half:], trial.model.num_classes)
        yield Separability(
            trial_id=trial.trial_id,
            arm=trial.arm,
            size=trial.size,
            samples=samples,
            flops=samples * trial.flops_per_sample,
            mean=float(learned.separability.mean()),
            least=float(learned.separability.min()),
            directions=learned.directions,
        )


def save_directions(found: Sequence[Separability], path: Path) -> None:
    """Write the directions of every trial to a safetensors file, by trial_id."""
    write_bytes(path, save({row.trial_id: row.directions.contiguous() for row in found}))
