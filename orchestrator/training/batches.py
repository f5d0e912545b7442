"""What a step is given: images and labels, times and noise, of one trial or of the members of a pack.

A host launches each operation on a GPU in some microseconds, and a step of a small model takes a millisecond. So only
what depends on a member's own seed is done member by member: two draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.objectives import Objective
from orchestrator.spec.trial import Trial
from orchestrator.training.data.order import joined, torch_generator
from orchestrator.training.data.source import TrainingData, Walk


def batches(
    trials: Sequence[Trial], samples: Sequence[int], data: TrainingData, objective: Objective, part: slice
) -> tuple[Tensor, ...]:
    """Images, labels, times and noise [M b, ...] (and the optical flow, if the objective asks) of the trials, one after
    the other, at the samples that each has seen; labels are dropped at the model's rate.

    Draws are made for whole batches and then divided. They are made where the data are, and neither host nor GPU waits.

    Args:
        trials: of one model, objective, batch size and dataset.
        samples: seen by each.
        data: of that dataset.
        objective: theirs.
        part: of every batch.
    """
    first = trials[0]
    walks = [(trial.seed, seen) for trial, seen in zip(trials, samples, strict=True)]
    x, labels = data.batches(walks, first.batch_size, part)
    uniform, noise = _draws(walks, first.batch_size, x.shape[1:], data.device)
    y = torch.where(uniform[:, 1, part].flatten() < first.model.class_dropout, first.model.num_classes, labels)
    t = objective.draw_t(uniform[:, 0, part].flatten())
    flows = [data.flow(*walk, first.batch_size, part) for walk in walks] if objective.consistency else []
    return x, y, t, noise[:, part].flatten(0, 1), *(joined(parts) for parts in zip(*flows, strict=True))


def _draws(walks: Sequence[Walk], batch_size: int, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each walk numbers uniform in [0, 1) [M, 2, b] and noise [M, b, *shape]."""
    uniform = torch.empty(len(walks), 2, batch_size, device=device)
    noise = torch.empty(len(walks), batch_size, *shape, device=device)
    for row, (seed, seen) in enumerate(walks):
        generator = torch_generator(seed, "step", seen, device.type)
        torch.rand(2, batch_size, generator=generator, out=uniform[row])
        torch.randn(batch_size, *shape, generator=generator, out=noise[row])
    return uniform, noise
