"""Codebooks of patches, fitted to the training images of a dataset."""

from __future__ import annotations

from pathlib import Path

from models.codebook import Codebook, k_means, write
from models.configs.base import check_patch
from models.masked import patches
from orchestrator.spec.datasets import Dataset
from orchestrator.training.data.images import load, to_float


def make_codebook(
    dataset: Dataset, data: Path, folder: Path, patch: int, codes: int, images: int
) -> tuple[Path, str, float]:
    """Fit a codebook to the first `images` training images in `data`; returns its path in `folder`, its checksum, and
    the root mean square error of the patches that it was fitted to.

    Raises:
        ValueError: the patch does not divide the images, or they have fewer different patches than codes.
    """
    check_patch(dataset.image_size, patch)
    x = patches(to_float(load(dataset.name, "train", data)[0][:images]), patch).flatten(0, 1)
    fitted = k_means(x, codes=codes, rounds=15)
    book = Codebook(codes=codes, values=x.shape[1])
    book.patches.copy_(fitted)
    error = float((book.patches[book.nearest(x)] - x).square().mean().sqrt())
    path = folder / f"{dataset.name}-p{patch}-c{codes}.safetensors"
    return path, write(path, fitted), error
