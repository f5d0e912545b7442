"""Reading idx files: the pixels and labels that were written, or an error that says what is wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.spec.datasets import Dataset, default_folder
from orchestrator.training.data.fetch import find
from orchestrator.training.data.images import load, load_idx

DATASET = Dataset(
    name="tiny", image_size=2, channels=1, class_names=("x", "y"), train_images=3, validation_images=1, files=()
)
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([1, 0, 1], dtype=np.uint8)
IMAGES_NAME, LABELS_NAME = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / IMAGES_NAME).write_bytes(gzip.compress(idx(PIXELS)))
    (tmp_path / LABELS_NAME).write_bytes(gzip.compress(idx(LABELS)))
    return tmp_path


def test_reads_images_and_labels(folder: Path) -> None:
    images, labels = load_idx(DATASET, "train", folder)
    assert torch.equal(images, torch.from_numpy(PIXELS)[:, None])
    assert torch.equal(labels, torch.tensor([1, 0, 1]))
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (IMAGES_NAME, gzip.compress(idx(PIXELS))[:-9], "is damaged"),
        (IMAGES_NAME, b"no gzip", "is damaged"),
        (IMAGES_NAME, gzip.compress(idx(PIXELS[:2])), r"wanted 00000803\w+, an idx file of bytes of shape \[3, 2, 2\]"),
        (IMAGES_NAME, gzip.compress(idx(PIXELS)[:-1]), "holds 11 bytes of data; wanted 12"),
        (LABELS_NAME, gzip.compress(idx(PIXELS)), r"of shape \[3\]"),
        (LABELS_NAME, gzip.compress(idx(LABELS + 1)), "holds label 2; wanted 0 to 1"),
    ],
    ids=["cut short", "not compressed", "other size", "a byte missing", "images for labels", "unknown label"],
)
def test_refuses_what_is_not_the_dataset(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_idx(DATASET, "train", folder)
    assert str(folder / name) in str(error.value)
    assert "ditlaw data fetch tiny" in str(error.value)


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz, .* missing") as error:
        load("fashion-mnist", "train", tmp_path)
    assert str(error.value).endswith(f"Run: ditlaw data fetch fashion-mnist --to {tmp_path}")


@pytest.mark.skipif(bool(find("fashion-mnist", default_folder("fashion-mnist"))), reason="Fashion-MNIST not fetched")
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("validation", 10_000)])
def test_fashion_mnist_is_balanced(split: str, count: int) -> None:
    images, labels = load("fashion-mnist", split, default_folder("fashion-mnist"))  # type: ignore[arg-type]
    assert images.shape == (count, 1, 28, 28)
    assert labels.bincount().tolist() == [count // 10] * 10
