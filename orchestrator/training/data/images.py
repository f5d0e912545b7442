"""Images and labels of a split, whole and in memory, whatever form the dataset has."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.spec.datasets import Dataset, dataset_named, latents_name
from orchestrator.training.data.fetch import find
from orchestrator.training.data.moving import render_clips
from orchestrator.training.data.procedural import FIRST_VALIDATION, render

Split = Literal["train", "validation"]

_IDX_NAMES = {"train": "train", "validation": "t10k"}
_RENDERED_AT_ONCE = 256


def load(dataset_name: str, split: Split, folder: Path) -> tuple[Shaped[Tensor, "n c *size"], Int64[Tensor, " n"]]:
    """The images [n, c, h, w] as bytes 0 to 255, and their labels [n], of one split; clips and latents are floats.

    Raises ValueError when files are missing (it says how to get them), damaged, or of an unexpected shape.
    """
    dataset = dataset_named(dataset_name)
    folder = Path(folder)
    if missing := find(dataset_name, folder):
        fetch = f"Run: ditlaw data fetch {dataset_name} --to {folder}"
        remedy = fetch if dataset.form == "idx" else "Put them back, or encode it again under another name"
        raise ValueError(
            f"dataset {dataset_name} is not in {folder.absolute()}: {', '.join(file.name for file in missing)} missing "
            f"or of a wrong size. {remedy}"
        )
    if dataset.form in ("procedural", "moving"):
        if split == "train":
            raise ValueError(f"{dataset_name} has no end; wanted its validation split, or batches of `training_data`")
        return _validation(dataset)
    if dataset.form == "latents":
        return _latents(dataset, split, folder)
    return load_idx(dataset, split, folder)


def _latents(dataset: Dataset, split: Split, folder: Path) -> tuple[Float[Tensor, "n c *size"], Int64[Tensor, " n"]]:
    """Encoded images and their labels, mapped into memory."""
    count = dataset.train_images if split == "train" else dataset.validation_images
    assert count is not None, "what lies in files has an end"
    shape = (count, *dataset.shape)
    mapped = [
        # Copy on write, so that torch may have it: nothing is written.
        torch.from_numpy(np.memmap(folder / latents_name(split, kind), dtype=dtype, mode="c", shape=form))
        for kind, dtype, form in (("latents", "<f2", shape), ("labels", "<i8", (count,)))
    ]
    return mapped[0], mapped[1]


def rendered(dataset: Dataset, indices: Int64[Tensor, " n"]) -> tuple[Tensor, Int64[Tensor, " n"]]:
    """Samples [n, *shape] and labels [n] of a dataset without end: bytes, or floats of clips."""
    if dataset.frames is None:
        return render(indices, dataset.image_size, dataset.channels)
    return render_clips(indices, dataset.image_size, dataset.frames, dataset.channels)


def _validation(dataset: Dataset) -> tuple[Tensor, Int64[Tensor, " n"]]:
    """The validation samples of a dataset without end."""
    indices = torch.arange(FIRST_VALIDATION, FIRST_VALIDATION + dataset.validation_images)
    parts = [rendered(dataset, some) for some in indices.split(_RENDERED_AT_ONCE)]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def load_idx(dataset: Dataset, split: Split, folder: Path) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """One split of a dataset laid out as MNIST is (LeCun's idx files, gzipped), one channel; as `load`."""
    size = dataset.image_size
    num_images = dataset.train_images if split == "train" else dataset.validation_images
    assert num_images is not None, "only procedural datasets have no end"
    stem = _IDX_NAMES[split]
    images = _read_idx(dataset, folder / f"{stem}-images-idx3-ubyte.gz", (num_images, size, size))
    labels = _read_idx(dataset, folder / f"{stem}-labels-idx1-ubyte.gz", (num_images,))
    if labels.max() >= dataset.num_classes:
        raise ValueError(
            f"{folder / f'{stem}-labels-idx1-ubyte.gz'} holds label {labels.max()}; wanted 0 to "
            f"{dataset.num_classes - 1}. Delete it and run: ditlaw data fetch {dataset.name}"
        )
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _read_idx(dataset: Dataset, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One idx file of bytes: two zero bytes, type 0x08, the number of dims, each as big-endian uint32, data."""
    remedy = f"Delete it and run: ditlaw data fetch {dataset.name}"
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}. {remedy}") from error
    header = struct.pack(f">HBB{len(shape)}I", 0, 0x08, len(shape), *shape)
    if data[: len(header)] != header:
        raise ValueError(
            f"{path} starts with {data[: len(header)].hex()}; wanted {header.hex()}, an idx file of bytes of shape "
            f"{list(shape)}. {remedy}"
        )
    count = int(np.prod(shape))
    if len(data) != len(header) + count:
        raise ValueError(f"{path} holds {len(data) - len(header)} bytes of data; wanted {count}. {remedy}")
    return np.frombuffer(data, dtype=np.uint8, offset=len(header)).reshape(shape).copy()


def to_float(images: Tensor) -> Float[Tensor, "n c *size"]:
    """Bytes 0 to 255 as float32 in [-1, 1]; latents, which are floats already, as they are."""
    return images.float() if images.is_floating_point() else images.float() / 127.5 - 1
