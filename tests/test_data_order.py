"""Randomness is a function of (seed, stream, samples_seen), and every epoch visits every image once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.data.order import batch_indices, numpy_generator, torch_generator


@given(
    num_images=st.integers(1, 40),
    start=st.integers(0, 200),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6),
)
def test_batches_of_any_sizes_walk_one_sequence(num_images: int, start: int, sizes: list[int]) -> None:
    starts = np.cumsum([start, *sizes])
    pieces = [batch_indices(3, int(first), size, num_images) for first, size in zip(starts[:-1], sizes, strict=True)]
    assert np.concatenate(pieces).tolist() == batch_indices(3, start, sum(sizes), num_images).tolist()


def test_each_epoch_visits_each_image_once_in_an_order_of_its_own() -> None:
    epochs = batch_indices(0, 0, 300, 100).reshape(3, 100)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(100))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert epochs.dtype == np.int64


def test_the_order_is_fixed_for_good() -> None:
    """A change here would break the resumption of stored trials, silently: the values are pinned."""
    assert batch_indices(0, 0, 8, 60_000).tolist() == [7097, 45053, 38491, 46912, 42947, 182, 40, 12367]
    assert batch_indices(1, 60_000, 4, 60_000).tolist() == [26238, 11748, 50433, 51929]
    assert torch_generator(0, "noise", 64).initial_seed() == 9999524567695800469 ^ 2**63
    assert numpy_generator(0, "noise", 64).bit_generator.random_raw() == 2153510616311358865


def test_seeds_differ() -> None:
    assert batch_indices(0, 0, 100, 100).tolist() != batch_indices(1, 0, 100, 100).tolist()


@pytest.mark.parametrize("arguments", [(0, -1, 4, 10), (0, 0, 0, 10), (0, 0, 4, 0)])
def test_sizes_that_make_no_batch_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="wanted a batch and a dataset of at least 1"):
        batch_indices(*arguments)


def test_generators_depend_on_seed_stream_and_progress_only() -> None:
    def draw(seed: int, stream: str, samples: int) -> tuple[float, ...]:
        return tuple(torch.randn(4, generator=torch_generator(seed, stream, samples)).tolist())

    def draw_numpy(seed: int, stream: str, samples: int) -> tuple[float, ...]:
        return tuple(numpy_generator(seed, stream, samples).standard_normal(4).tolist())

    points = [(seed, stream, samples) for seed in (0, 1) for stream in ("noise", "time") for samples in (0, 64)]
    for function in (draw, draw_numpy):
        assert len({function(*point) for point in points}) == len(points)
        assert [function(*point) for point in points] == [function(*point) for point in points]


def test_a_step_costs_tens_of_microseconds() -> None:
    batch_indices(0, 0, 64, 60_000)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for step in range(100):
            batch_indices(0, 64 * step, 64, 60_000)
            torch_generator(0, "noise", 64 * step)
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 100e-6
