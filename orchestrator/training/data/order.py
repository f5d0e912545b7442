"""Randomness as a function of (seed, stream, samples_seen): resuming replays it, whatever ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

ORDERS = 64
"""Orders of epochs that are kept: two of each member of a large pack, whose members walk side by side."""


def batch_indices(seed: int, samples_seen: int, batch_size: int, num_images: int) -> NDArray[np.int64]:
    """Which images make up the batch that starts at `samples_seen`; shape [batch_size], values in [0, num_images).

    Every epoch visits each image once, in an order of its own; a batch may end one epoch and begin the next. Batches of
    any size walk the same sequence. Raises ValueError unless the sizes are positive.
    """
    if samples_seen < 0 or batch_size < 1 or num_images < 1:
        raise ValueError(
            f"no batch of {batch_size} at {samples_seen} samples seen of {num_images} images; wanted a batch and a "
            "dataset of at least 1, and samples_seen of at least 0."
        )
    epoch, start = divmod(samples_seen, num_images)
    pieces = []
    while batch_size > 0:
        piece = _epoch_order(seed, epoch, num_images)[start : start + batch_size]
        pieces.append(piece)
        batch_size -= len(piece)
        epoch, start = epoch + 1, 0
    return np.concatenate(pieces)


def first_index(seed: int) -> int:
    """Where a seed's walk through a dataset without end begins, in [0, 2^62 - 2^53).

    A trial has less than 2^53 samples, and two seeds meet with a chance of about their samples over 2^62.
    """
    return _hash(seed, "endless", 0) % (2**62 - 2**53)


def torch_generator(seed: int, stream: str, samples_seen: int, device: str = "cpu") -> torch.Generator:
    """A torch generator that depends on (seed, stream, samples_seen) only. Streams are independent of each other.

    torch's CPU generator keeps the low 32 bits of the hash; CUDA's keeps all 64. The two give different numbers: draw
    on the CPU what must be the same everywhere.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(_hash(seed, stream, samples_seen))
    return generator


def numpy_generator(seed: int, stream: str, samples_seen: int) -> np.random.Generator:
    """A numpy generator that depends on (seed, stream, samples_seen) only."""
    key = np.array([_hash(seed, stream, 0), samples_seen], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def batch_indices_on(
    device: torch.device, seed: int, samples_seen: int, batch_size: int, num_images: int
) -> Int64[Tensor, " b"]:
    """`batch_indices` on a device, to which the order of an epoch goes once: no step waits for a copy."""
    if device.type == "cpu":
        return torch.from_numpy(batch_indices(seed, samples_seen, batch_size, num_images))
    epoch, start = divmod(samples_seen, num_images)
    pieces = []
    while batch_size > 0:
        pieces.append(_epoch_order_on(device, seed, epoch, num_images)[start : start + batch_size])
        batch_size -= len(pieces[-1])
        epoch, start = epoch + 1, 0
    return joined(pieces)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other; of one no copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


@lru_cache(maxsize=ORDERS)
def _epoch_order_on(device: torch.device, seed: int, epoch: int, num_images: int) -> Int64[Tensor, " n"]:
    return torch.from_numpy(_epoch_order(seed, epoch, num_images).copy()).to(device)


@lru_cache(maxsize=ORDERS)
def _epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    # Sorts raw Philox words: numpy promises that those never change, which it does not of Generator.permutation.
    key = np.array([_hash(seed, "order", 0), epoch], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(num_images)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def _hash(seed: int, stream: str, samples_seen: int) -> int:
    """64 bits of BLAKE2b, in [0, 2^64)."""
    text = f"{seed}/{stream}/{samples_seen}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
