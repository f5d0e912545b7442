"""Where a training takes its batches from: a function of (seed, samples seen), whatever form the dataset has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orchestrator.spec.datasets import Dataset
from orchestrator.training.data.images import to_float
from orchestrator.training.data.order import batch_indices, first_index
from orchestrator.training.data.procedural import render

Batch = tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]


class TrainingData(Protocol):
    """The training images of a dataset."""

    @property
    def device(self) -> torch.device:
        """Where batches are made."""

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        """Images in [-1, 1] and labels of a part of the batch that begins at `samples_seen`."""


@dataclass(frozen=True)
class HeldImages:
    """A finite set, in memory or mapped into it: every epoch visits each image once, in an order of its own."""

    images: Tensor
    """[n, c, h, w], bytes or floats."""
    labels: Tensor
    """[n]"""

    @property
    def device(self) -> torch.device:
        return self.images.device

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        chosen = batch_indices(seed, samples_seen, batch_size, len(self.images))[part]
        indices = torch.from_numpy(chosen).to(self.device)
        return to_float(self.images[indices]), self.labels[indices]


@dataclass(frozen=True)
class EndlessImages:
    """Images without end: a seed walks along indices of its own, so that no sample is ever seen twice."""

    dataset: Dataset
    device: torch.device

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        first, last, _ = part.indices(batch_size)
        begin = first_index(seed) + samples_seen
        indices = torch.arange(begin + first, begin + last, device=self.device)
        images, labels = render(indices, self.dataset.image_size, self.dataset.channels)
        return to_float(images), labels
