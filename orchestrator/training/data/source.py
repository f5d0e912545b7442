"""Where a training takes its batches from: a function of (seed, samples seen), whatever form the dataset has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from models.warping import Flow, estimated_flow
from orchestrator.spec.datasets import Dataset
from orchestrator.training.data.images import load, rendered, to_float
from orchestrator.training.data.moving import optical_flow
from orchestrator.training.data.order import batch_indices_on, first_index, joined
from orchestrator.training.step_graph import StepGraph

Walk = tuple[int, int]
"""A seed, and samples seen on the way that it takes through a dataset."""
Batch = tuple[Float[Tensor, "b c *size"], Int64[Tensor, " b"]]


class TrainingData(Protocol):
    """The training images of a dataset."""

    @property
    def device(self) -> torch.device:
        """Where batches are made."""

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        """Samples in [-1, 1] and labels of a part of the batch that begins at `samples_seen`."""

    def batches(self, walks: Sequence[Walk], batch_size: int, part: slice) -> Batch:
        """The batches of several walks, one after the other."""

    def flow(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Flow:
        """The optical flow of the clips of that part: true where the dataset knows it, else estimated.

        Raises:
            ValueError: the samples are still images.
        """


@dataclass(frozen=True)
class HeldImages:
    """A finite set, in memory or mapped into it: every epoch visits each image once, in an order of its own."""

    images: Tensor
    """[n, c, h, w], bytes or floats."""
    labels: Tensor
    """[n]"""
    target: torch.device | None = None
    """The GPU that batches of images in the host's memory go to; None leaves them where the images are."""

    @property
    def device(self) -> torch.device:
        return self.target or self.images.device

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        return self.batches([(seed, samples_seen)], batch_size, part)

    def batches(self, walks: Sequence[Walk], batch_size: int, part: slice) -> Batch:
        where, length = self.images.device, len(self.images)
        indices = joined([batch_indices_on(where, *walk, batch_size, length)[part] for walk in walks])
        return to_float(self._chosen(self.images, indices)), self._chosen(self.labels, indices)

    def _chosen(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Rows on their device. Pinned ones are copied while the GPU is at earlier steps, and the host goes on."""
        if self.device == rows.device:
            return rows[indices]
        held = torch.empty((len(indices), *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
        torch.index_select(rows, 0, indices, out=held)
        return held.to(self.device, non_blocking=True)

    def flow(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Flow:
        if self.images.dim() != 5:
            raise ValueError("still images have no optical flow; wanted a dataset of clips")
        return estimated_flow(self.batch(seed, samples_seen, batch_size, part)[0])


def opened(dataset: Dataset, folder: Path, device: torch.device) -> TrainingData:
    """The training samples of a dataset, on the device.

    Raises:
        ValueError: its files are not in the folder.
    """
    if dataset.train_images is None:
        return EndlessImages(dataset, device)
    samples, labels = load(dataset.name, "train", folder)
    return HeldImages(samples.to(device), labels.to(device))


def whole(data: TrainingData) -> TrainingData:
    """The same data with no clip cut short."""
    if not isinstance(data, EndlessImages):
        return data
    return dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, frame_counts=()))


@dataclass(frozen=True)
class EndlessImages:
    """Images without end: a seed walks along indices of its own, so that no sample is ever seen twice.

    An image is drawn in two hundred small operations: a GPU draws those of all walks together, replaying what it was
    told once.
    """

    dataset: Dataset
    device: torch.device
    _drawing: dict[tuple[int, int, int], StepGraph[Batch]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )
    """On a GPU, by number of walks and part of the batch."""

    def batch(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        return self.batches([(seed, samples_seen)], batch_size, part)

    def batches(self, walks: Sequence[Walk], batch_size: int, part: slice) -> Batch:
        if self.dataset.frames is not None:
            clips, classes = zip(*(self._clips(*walk, batch_size, part) for walk in walks), strict=True)
            return joined(clips), joined(classes)
        first, last, _ = part.indices(batch_size)
        begins = [first_index(seed) + samples_seen for seed, samples_seen in walks]
        draw = partial(_drawn, self.dataset, first, last)
        if self.device.type == "cuda":
            replayed = self._drawing.setdefault((len(walks), first, last), StepGraph(draw))
            return replayed(torch.tensor(begins, pin_memory=True).to(self.device, non_blocking=True))
        return draw(torch.tensor(begins, device=self.device))

    def _clips(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Batch:
        samples, labels = rendered(
            self._at(samples_seen, batch_size), self._indices(seed, samples_seen, batch_size, part)
        )
        return to_float(samples), labels

    def flow(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Flow:
        dataset = self._at(samples_seen, batch_size)
        if dataset.frames is None:
            raise ValueError(
                f"{dataset.name} holds still images, which have no optical flow; wanted a dataset of clips"
            )
        indices = self._indices(seed, samples_seen, batch_size, part)
        return optical_flow(indices, dataset.image_size, dataset.frames)

    def _indices(self, seed: int, samples_seen: int, batch_size: int, part: slice) -> Int64[Tensor, " b"]:
        first, last, _ = part.indices(batch_size)
        begin = first_index(seed) + samples_seen
        return torch.arange(begin + first, begin + last, device=self.device)

    def _at(self, samples_seen: int, batch_size: int) -> Dataset:
        """The dataset with clips as long as those of this batch."""
        counts = self.dataset.frame_counts
        if not counts:
            return self.dataset
        return dataclasses.replace(self.dataset, frames=counts[samples_seen // batch_size % len(counts)])


def _drawn(dataset: Dataset, first: int, last: int, begins: Int64[Tensor, " m"]) -> Batch:
    """Images without end from `first` to `last` (not included) of the batches that begin at some indices."""
    indices = begins[:, None] + torch.arange(first, last, device=begins.device)
    images, labels = rendered(dataset, indices.view(-1))
    return to_float(images), labels
