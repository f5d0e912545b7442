"""A worker's standing in its gang: what it keeps from one trial to the next."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.fid.encoders import Encoder, load_encoder
from orchestrator.results.location import Location
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.trial import Evaluation
from orchestrator.training.data.consistency import flow_of_validation
from orchestrator.training.data.images import Split, load
from orchestrator.training.data.source import EndlessImages, HeldImages, TrainingData, whole
from orchestrator.training.evaluation import Draws, fixed_draws
from orchestrator.training.reference import RealImages, real_images

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""Time between two tries to write what the results folder refuses."""
HELD_BYTES = 2**30
"""Images that a GPU holds at most; of larger sets it gets batch by batch."""


@dataclass(kw_only=True)
class GangMember:
    """One worker of a gang: its rank, device and folders, the datasets it holds, and its line to the driver."""

    rank: int
    world_size: int
    device: torch.device
    results: Location
    data: Path
    stop: threading.Event = field(default_factory=threading.Event)
    report: Callable[[Any], None] = lambda progress: None
    beats: int = 0
    """Signs of life: rises with every step, evaluation batch and wait. One that stands still for long is a hang."""
    samples: int = 0
    """Samples seen by the running attempt."""
    _datasets: dict[tuple[str, Split], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _training: dict[str, TrainingData] = field(default_factory=dict)
    _draws: dict[tuple[str, Evaluation], Draws] = field(default_factory=dict)
    _encoders: dict[str, Encoder] = field(default_factory=dict)
    _real: dict[tuple[str, str], RealImages] = field(default_factory=dict)

    def dataset(self, name: str, split: Split) -> tuple[Tensor, Tensor]:
        """Images (bytes) and labels of a split, read once."""
        key = (name, split)
        if key not in self._datasets:
            self._datasets[key] = load(name, split, self.data)
        return self._datasets[key]

    def training_data(self, name: str) -> TrainingData:
        """What to train on; images are on the GPU where they take little of its memory, or are made there."""
        if name not in self._training:
            self._training[name] = self._open(name)
        return self._training[name]

    def _open(self, name: str) -> TrainingData:
        dataset = dataset_named(name)
        if dataset.train_images is None:
            return EndlessImages(dataset, self.device)
        images, labels = self.dataset(name, "train")
        if self.device.type != "cuda":
            return HeldImages(images, labels)
        if images.nbytes <= HELD_BYTES:
            return HeldImages(images.to(self.device), labels.to(self.device))
        return HeldImages(images, labels, target=self.device)

    def draws(self, name: str, evaluation: Evaluation) -> Draws:
        """The fixed draws of the validation loss, made once."""
        key = (name, evaluation)
        if key not in self._draws:
            flow = partial(flow_of_validation, dataset_named(name))
            self._draws[key] = fixed_draws(*self.dataset(name, "validation"), evaluation, flow)
        return self._draws[key]

    def encoder(self, name: str) -> Encoder:
        """An encoder of images, read once; ValueError where its weights are missing or wrong."""
        if name not in self._encoders:
            self._encoders[name] = load_encoder(name, encoders_folder(self.data.parent), self.device)
        return self._encoders[name]

    def real_images(self, name: str, encoder_name: str) -> RealImages:
        """What generated images are compared with, made once. Collective; as `training.reference.real_images`."""
        key = (name, encoder_name)
        if key not in self._real:
            self._real[key] = real_images(
                whole(self.training_data(name)),
                dataset_named(name),
                self.encoder(encoder_name),
                self.results,
                self.rank,
                self.world_size,
                self.device,
                self.beat,
                self.wait,
            )
        return self._real[key]

    def wait(self, error: OSError) -> None:
        """Let a moment pass until the results folder takes what it has just refused; raise that once asked to stop."""
        if self.stop.is_set():
            raise error
        log.warning("waiting for the results folder: %s", error)
        self.beat()
        time.sleep(AGAIN_SECONDS)

    def beat(self) -> None:
        """Give a sign of life."""
        self.beats += 1

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Rank 0's flags and small numbers, on every rank. Collective."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int32, device=self.device)
        torch.distributed.broadcast(tensor, src=0)
        return tuple(tensor.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the gang. Collective."""
        if self.world_size == 1:
            return values
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total / self.world_size


def encoders_folder(data: Path) -> Path:
    """Where weights of encoders lie that do not come with ditlaw: $DITLAW_ENCODERS, or `encoders` beside datasets."""
    return Path(os.environ.get("DITLAW_ENCODERS") or data / "encoders")
