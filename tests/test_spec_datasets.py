"""What a dataset's digest says: what the data are, whatever they are called."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.spec.datasets import DATASETS, FASHION_MNIST


def test_the_digest_is_of_the_data_and_not_of_the_name() -> None:
    digests = {dataset.digest for dataset in DATASETS.values()}
    assert len(digests) == len(DATASETS)
    assert replace(FASHION_MNIST, name="fmnist", max_epochs=3.0).digest == FASHION_MNIST.digest
    changed = replace(FASHION_MNIST.files[0], sha256="0" * 64)
    assert replace(FASHION_MNIST, files=(changed, *FASHION_MNIST.files[1:])).digest != FASHION_MNIST.digest
