"""Facts of the datasets ditlaw knows, which planning needs and which never change: shapes, classes, checksums."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a dataset, as it must lie in the dataset's folder."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of labelled images."""

    name: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    train_images: int
    validation_images: int
    files: tuple[DataFile, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


FASHION_MNIST = Dataset(
    name="fashion-mnist",
    image_size=28,
    channels=1,
    class_names=(
        "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    train_images=60_000,
    validation_images=10_000,
    files=(),
)  # fmt: skip

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (FASHION_MNIST,)}
