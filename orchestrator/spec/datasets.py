"""Facts of the datasets ditlaw knows, which planning needs and which never change: shapes, classes, checksums."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.configs.base import Samples
from orchestrator.spec.identity import digest
from orchestrator.spec.source import nearest

Space = Literal["pixels", "latents"]


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a dataset, as it must lie in the dataset's folder."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of labelled images, or of clips where it has frames."""

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    train_images: int | None
    """None: without end, every sample of a training is another image."""
    validation_images: int
    files: tuple[DataFile, ...]
    form: Literal["idx", "procedural", "moving", "latents"] = "idx"
    """Where samples come from: MNIST's files, images or clips that are a function of their index, or what `ditlaw data
    encode` wrote."""
    space: Space = "pixels"
    """What the numbers of a sample are; of an encoded dataset whose manifest does not say, latents."""
    frames: int | None = None
    """Frames of a clip; None: the samples are still images."""
    frame_counts: tuple[int, ...] = ()
    """Frames that the clips of training batches have, batch by batch in turn; empty: all are whole."""
    max_epochs: float = 1000.0
    """Most passes over the training images that a sweep may ask for unasked: beyond, nothing new is learnt."""

    @property
    def samples(self) -> Samples:
        """What one sample is."""
        return "images" if self.frames is None else "clips"

    @property
    def has_flow(self) -> bool:
        """Whether something is seen to move in a sample: in clips of pixels. Latents are no picture of what they stand
        for, and optical flow of them, true or estimated, means nothing."""
        return self.frames is not None and self.space == "pixels"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: channels, frames of a clip, height, width."""
        frames = () if self.frames is None else (self.frames,)
        return self.channels, *frames, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """Of what the data are, whatever they are called: shape, classes, counts, and each file's checksum.

        Procedural images have no files; they are a function of their form and shape that is fixed for good.
        """
        files = {file.name: file.sha256 for file in self.files}
        counts = [self.train_images, self.validation_images]
        facts = [self.form, self.image_size, self.channels, self.class_names, counts, files]
        return digest(facts if self.frames is None else [*facts, self.frames, self.frame_counts])

    def epochs(self, samples: float) -> float:
        """Passes over the training images in so many samples; 0 of a dataset without end, which repeats nothing."""
        return 0.0 if self.train_images is None else samples / self.train_images


FASHION_MNIST = Dataset(
    name="fashion-mnist",
    image_size=28,
    channels=1,
    class_names=(
        "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    train_images=60_000,
    validation_images=10_000,
    files=(
        DataFile(
            name="train-images-idx3-ubyte.gz",
            sha256="b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            bytes=26_421_856,
        ),
        DataFile(
            name="train-labels-idx1-ubyte.gz",
            sha256="0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            bytes=29_491,
        ),
        DataFile(
            name="t10k-images-idx3-ubyte.gz",
            sha256="cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            bytes=4_422_079,
        ),
        DataFile(
            name="t10k-labels-idx1-ubyte.gz",
            sha256="8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            bytes=5_125,
        ),
    ),
)  # fmt: skip

SHAPES = ("disc", "ring", "triangle", "square", "frame", "star", "clover", "cross", "gear", "drop")


def _procedural(size: int, channels: int) -> Dataset:
    return Dataset(
        name=f"procedural-{size}" + ("-grey" if channels == 1 else ""),
        image_size=size,
        channels=channels,
        class_names=SHAPES,
        train_images=None,
        validation_images=10_000,
        files=(),
        form="procedural",
        max_epochs=math.inf,
    )


PROCEDURAL = tuple(_procedural(size, channels) for size in (16, 32, 64) for channels in (3, 1))
"""Shapes on backgrounds, drawn as they are needed: data without end, of three sizes, in colour and grey."""

MOTIONS = ("drifting", "turning", "growing", "shrinking", "swinging")
FIGURES = ("disc", "square")
FRAMES = 8
"""Of a procedural clip."""


def _moving(size: int, channels: int, frame_counts: tuple[int, ...] = ()) -> Dataset:
    return Dataset(
        name=f"moving-{size}" + ("-grey" if channels == 1 else "") + ("-varied" if frame_counts else ""),
        image_size=size,
        channels=channels,
        class_names=tuple(f"{motion} {figure}" for motion in MOTIONS for figure in FIGURES),
        train_images=None,
        validation_images=2048,
        files=(),
        form="moving",
        max_epochs=math.inf,
        frames=FRAMES,
        frame_counts=frame_counts,
    )


MOVING = (
    *(_moving(size, channels) for size in (16, 32) for channels in (3, 1)),
    *(_moving(size, 1, (FRAMES // 2, FRAMES)) for size in (16, 32)),
)
"""Figures that move over a drifting background, drawn as they are needed: clips without end of known optical flow, of
two sizes, in colour and grey; `-varied` has training clips of 4 frames and of 8 in turn."""

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (FASHION_MNIST, *PROCEDURAL, *MOVING)}

MANIFEST = "dataset.json"
"""The file that makes a folder an encoded dataset, written last."""


def default_folder(dataset_name: str) -> Path:
    """Where a dataset lies unless said otherwise: $DITLAW_DATA/<dataset>, or data/<dataset> here."""
    return Path(os.environ.get("DITLAW_DATA") or "data") / dataset_name


def latents_name(split: str, kind: str = "latents") -> str:
    """The file of an encoded dataset with the latents (float16, [n, c, h, w]) or labels (int64) of a split."""
    return f"{split}-{kind}.bin"


def dataset_named(name: str) -> Dataset:
    """The dataset of this name: one that ditlaw knows, or one that was encoded into its default folder.

    Raises:
        ValueError: there is none, or its manifest is damaged; the known ones are listed.
    """
    if name in DATASETS:
        return DATASETS[name]
    manifest = default_folder(name) / MANIFEST
    if "/" in name or not manifest.is_file():
        known = [*sorted(DATASETS), *encoded_names()]
        wanted = ", ".join(known)
        raise ValueError(
            f"dataset {name!r} is not known; wanted one of {wanted}, or one that ditlaw data encode made"
            f"{nearest(name, known)}"
        )
    try:
        told = json.loads(manifest.read_bytes())
        files = tuple(DataFile(**file) for file in told.pop("files"))
        names = tuple(told.pop("class_names"))
        facts = {"space": "latents", **told, "name": name}
        return Dataset(**facts, class_names=names, files=files, form="latents")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{manifest} is damaged: {error!r}. Encode the dataset again under another name.") from None


def encoded_names() -> list[str]:
    """Names of the encoded datasets in their default folders."""
    return sorted(path.parent.name for path in default_folder("").glob(f"*/{MANIFEST}"))
