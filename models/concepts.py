"""Concept directions: where in a model's features the presence of a class lies, and how well a line tells it.

The direction of a class is the difference of mean features with and without it (Kim et al. 2018, arXiv 1711.11279, with
means for a trained classifier; Kwon et al. 2022, arXiv 2210.10960, for diffusion models). The model is given the null
class, so what its features know of the class it has found in the noised image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.objectives import Objective
from models.parameterization import TaggedModule


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """The directions of all classes in one layer."""

    directions: Float[Tensor, "k d"]
    """Unit vectors."""
    separability: Float[Tensor, " k"]
    """On images that the directions were not made from: the share of pairs, of one image with the class and one
    without, that the projection puts in the right order (the area under the ROC curve); 0.5 is chance."""


@torch.no_grad()
def features(
    model: TaggedModule,
    objective: Objective,
    x: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    *,
    t: float,
    batch: int = 256,
) -> Float[Tensor, "n d"]:
    """Features of images noised to time `t`: what the middle block of the model gives, mean over tokens or pixels."""
    blocks = list(getattr(model, model.trunk))
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, out: Any) -> None:
        stream = out[0] if isinstance(out, tuple) else out
        # Tokens are [b, n, d]; maps [b, d, h, w].
        seen.append((stream.mean(1) if stream.dim() == 3 else stream.flatten(2).mean(2)).float().cpu())

    handle = blocks[len(blocks) // 2].register_forward_hook(keep)
    try:
        for images, eps in zip(x.split(batch), noise.split(batch), strict=True):
            times = torch.full((len(images),), t, device=images.device)
            null = torch.full((len(images),), model.config.num_classes, device=images.device)
            if objective.predicts == "images":
                objective.outputs(model, objective.noised(images, eps, times), times, null)
            else:
                model(*model.inputs(images, times, null))
    finally:
        handle.remove()
    return torch.cat(seen)


def concepts(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    num_classes: int,
) -> Concepts:
    """Directions from the features of some images, and how well they separate those of others.

    Raises:
        ValueError: a class has no image in one of the two sets, or is all of it.
    """
    directions, areas = [], []
    for label in range(num_classes):
        for labels, name in ((train_labels, "made from"), (test_labels, "tried on")):
            if not 0 < int((labels == label).sum()) < len(labels):
                raise ValueError(f"class {label} is none or all of the images that directions are {name}; wanted more")
        direction = train[train_labels == label].mean(0) - train[train_labels != label].mean(0)
        direction = direction / direction.norm().clamp(min=1e-12)
        directions.append(direction)
        areas.append(area_under_curve(test @ direction, test_labels == label))
    return Concepts(directions=torch.stack(directions), separability=torch.tensor(areas))


def area_under_curve(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Share of pairs of a positive and a negative in which the positive scores higher; equal scores count a half."""
    ordered, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    del ordered
    ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[inverse]
    num = int(positive.sum())
    return float((ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))
