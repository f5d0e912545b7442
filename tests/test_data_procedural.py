"""Procedural images: a function of the index, none twice, classes told apart by shape, and quick to make."""

from __future__ import annotations

import time

import pytest
import torch

from orchestrator.spec.datasets import DATASETS, PROCEDURAL, SHAPES
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import first_index
from orchestrator.training.data.procedural import FIRST_VALIDATION, _outlines, render
from orchestrator.training.data.source import EndlessImages

COLOUR = DATASETS["procedural-16"]


@pytest.mark.parametrize("dataset", PROCEDURAL, ids=lambda dataset: dataset.name)
def test_images_have_the_datasets_shape_and_classes(dataset):
    images, labels = render(torch.arange(400), dataset.image_size, dataset.channels)
    assert images.shape == (400, dataset.channels, dataset.image_size, dataset.image_size)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert labels.bincount(minlength=10).min() > 15, "of 40 on average"
    assert dataset.num_classes == len(SHAPES) == len(_outlines("cpu")[0])


def test_an_image_is_a_function_of_its_index_alone():
    indices = torch.tensor([5, 2**33 + 5, 2**61 + 17, FIRST_VALIDATION, 0])
    images, labels = render(indices, 16, 3)
    for index, image, label in zip(indices, images, labels, strict=True):
        alone, its_label = render(index[None], 16, 3)
        assert its_label == label
        # The tail of a vector may round otherwise than its middle.
        assert (alone[0].int() - image.int()).abs().max() <= 1


def test_the_images_are_fixed_for_good():
    """A change here would make stored trials and new ones incomparable: sums of pixels, and classes, are pinned."""
    images, labels = render(torch.tensor([0, 1, 2, 2**40, FIRST_VALIDATION]), 32, 3)
    assert labels.tolist() == [3, 7, 4, 4, 5]
    assert [int(image.sum()) for image in images.long()] == pytest.approx(
        [399480, 376591, 291125, 408557, 377576], abs=40
    )


def test_no_image_comes_twice():
    indices = torch.cat([torch.arange(first, first + 6000) for first in (0, 2**32 - 3000, FIRST_VALIDATION)])
    images = torch.cat([render(some, 16, 1)[0] for some in indices.split(1000)])
    assert len({bytes(image.numpy()) for image in images.flatten(1)}) == len(indices)


def test_a_seed_walks_along_indices_of_its_own_and_batches_of_any_size_walk_it_alike():
    data = EndlessImages(COLOUR, torch.device("cpu"))
    x, y = data.batch(3, 128, 64, slice(0, 64))
    parts = [
        data.batch(3, 128, 32, slice(0, 32)),
        data.batch(3, 160, 32, slice(0, 16)),
        data.batch(3, 160, 32, slice(16, 32)),
    ]
    assert torch.equal(torch.cat([labels for _, labels in parts]), y)
    assert torch.allclose(torch.cat([images for images, _ in parts]), x, atol=1 / 127)
    assert -1 <= x.min() < x.max() <= 1
    assert not torch.equal(data.batch(4, 128, 64, slice(0, 64))[0], x)
    starts = [first_index(seed) for seed in range(1000)]
    assert len(set(starts)) == 1000
    assert 0 <= min(starts) < max(starts) + 2**53 <= FIRST_VALIDATION


def test_batches_of_several_walks_are_those_of_each():
    data = EndlessImages(COLOUR, torch.device("cpu"))
    walks = [(3, 128), (4, 0), (3, 192)]
    x, y = data.batches(walks, 32, slice(8, 24))
    alone = [data.batch(*walk, 32, slice(8, 24)) for walk in walks]
    assert torch.equal(torch.cat([labels for _, labels in alone]), y)
    assert torch.allclose(torch.cat([images for images, _ in alone]), x, atol=1 / 127)


def test_validation_images_are_apart_from_all_training_and_the_rest_is_refused(tmp_path):
    images, labels = load(COLOUR.name, "validation", tmp_path)
    assert len(images) == len(labels) == COLOUR.validation_images
    assert torch.equal(images[:256], render(torch.arange(FIRST_VALIDATION, FIRST_VALIDATION + 256), 16, 3)[0])
    with pytest.raises(ValueError, match="procedural-16 has no end; wanted its validation split"):
        load(COLOUR.name, "train", tmp_path)


def test_a_linear_map_cannot_tell_the_classes_but_shape_can():
    """Pixels alone say little (colours and places are drawn alike for every class); an outline's moments say more."""
    images, labels = render(torch.arange(3000), 16, 1)
    pixels = torch.cat([to_float(images).flatten(1), torch.ones(3000, 1)], dim=1)
    wanted = torch.nn.functional.one_hot(labels, 10).float()
    weights = torch.linalg.lstsq(pixels[:2000], wanted[:2000]).solution
    right = (pixels[2000:] @ weights).argmax(1) == labels[2000:]
    assert right.float().mean() < 0.3


def test_a_batch_costs_less_than_the_smallest_models_step():
    """Processor time on one thread: 2 ms where a step of width 16 takes 6; the rest is for busy machines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        render(torch.arange(64), 32, 1)
        costs = []
        for step in range(30):
            began = time.thread_time()
            render(torch.arange(64 * step, 64 * step + 64), 32, 1)
            costs.append(time.thread_time() - began)
        assert min(costs) < 6e-3
    finally:
        torch.set_num_threads(threads)
