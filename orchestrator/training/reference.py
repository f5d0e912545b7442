"""The training images as an encoder sees them: what generated images are compared with. Made once a results folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.fid.encoders import Encoder, to_bytes
from models.fid.frechet import Reference, symmetric_root
from models.fid.moments import Moments
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, entries
from orchestrator.results.patience import Wait, raised, when_it_answers
from orchestrator.spec.datasets import Dataset
from orchestrator.spec.identity import digest
from orchestrator.training.data.source import TrainingData

log = logging.getLogger(__name__)

IMAGES = 50_000
"""Images of a reference at most, as FID-50k has."""
POOL = 10_000
"""Images whose features are kept for the kernel distance, which needs features and not moments."""
BATCH = 250
"""Images of one forward pass of an encoder."""
SEED = 2**31 - 1
"""Of the order in which training images are taken: no trial's, so that endless images are other ones."""


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Moments of real images under one encoder, and the features of some of them."""

    reference: Reference
    pool: Tensor
    """[n, d]"""
    encoder_digest: str
    frames: Reference | None = None
    """Of single frames, where the encoder is of clips and has features of frames beside theirs."""


def real_images(
    data: TrainingData,
    dataset: Dataset,
    encoder: Encoder,
    results: Location,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    beat: Callable[[], None] = lambda: None,
    wait: Wait = raised,
) -> RealImages:
    """The reference from the results folder, where it is known by dataset, encoder and preprocessing; else it is made.

    Collective: workers share the images, and one of them keeps the result. They are the first of a training's order,
    at most the encoder's `reference`, and always the same; clips are whole. `wait` is called while the results folder
    does not take it, and raises to give up.

    Raises:
        ValueError: the folder's reference was made with other weights of this encoder, so that distances would not
            compare with those that are there.
    """
    facts = encoder.facts
    images_of = [dataset.name, dataset.form, dataset.image_size, dataset.channels, dataset.train_images]
    if dataset.frames is not None:
        images_of.append(dataset.frames)
    files = [file.sha256 for file in dataset.files]
    most = min(facts.reference, IMAGES)
    key = digest([images_of, files, encoder.digest, facts.preprocessing, most, POOL])
    folder, stem = results / "references", f"{dataset.name}-{encoder.name}-"
    path = folder / f"{stem}{key}.safetensors"
    known = _read(path)
    if world_size > 1:  # what one worker sees, all of them do, or they would wait for each other
        there = torch.tensor([known is not None], dtype=torch.int32, device=device)
        torch.distributed.broadcast(there, src=0)
        known = _read(path) if bool(there) else None
    if known is None:
        others = [other.name for other in _names(folder) if other.name.startswith(stem) and other.name != path.name]
        if others:
            raise ValueError(
                f"the results in {results} were measured with other weights of encoder {encoder.name} or another "
                f"{dataset.name} ({others[0]}); this one has SHA-256 {encoder.digest[:16]}... "
                "Distances would not compare. Put the weights back, or measure into another results folder."
            )
        num_images = most if dataset.train_images is None else min(most, dataset.train_images)
        known = _made(data, num_images, encoder, rank, world_size, device, beat)
        if rank == 0:
            content = save({name: tensor.cpu().contiguous() for name, tensor in known.items()})
            when_it_answers(partial(write_bytes, path, content), results, wait)
            log.info("%s holds the features of %d images of %s", path, int(known["count"]), dataset.name)
    moments, pool = Moments(int(known["count"]), known["mean"], known["scatter"]).to(device), known["pool"].to(device)
    if not encoder.frame_dim:
        reference = Reference.from_root(moments, known["sqrt_covariance"].to(device))
        return RealImages(reference=reference, pool=pool, encoder_digest=encoder.digest)
    own, frames = slice(0, facts.dim), slice(facts.dim, None)
    return RealImages(
        reference=Reference.of(moments.of_features(own)),
        pool=pool[:, own],
        encoder_digest=encoder.digest,
        frames=Reference.of(moments.of_features(frames)),
    )


def _made(
    data: TrainingData,
    num_images: int,
    encoder: Encoder,
    rank: int,
    world_size: int,
    device: torch.device | str,
    beat: Callable[[], None],
) -> dict[str, Tensor]:
    moments: Moments | None = None
    pool = torch.zeros(0)
    for start in range(rank * BATCH, num_images, world_size * BATCH):
        part = slice(0, min(BATCH, num_images - start))
        images, _ = data.batch(SEED, start, BATCH, part)
        parts = to_bytes(images.to(device)).split(encoder.facts.batch)
        features = torch.cat([encoder.features(part) for part in parts])
        beat()
        moments = Moments.of(features) if moments is None else moments.merge(Moments.of(features))
        if start < POOL:
            if not len(pool):
                pool = features.new_zeros(min(POOL, num_images), features.shape[1])
            pool[start : start + len(features)] = features[: len(pool) - start]
    assert moments is not None, "there are more batches of images than workers"
    if world_size > 1:
        moments = moments.over_workers()
        torch.distributed.all_reduce(pool)
    root = symmetric_root(moments.covariance)
    count = torch.tensor(moments.count)
    return {
        "count": count, "mean": moments.mean, "scatter": moments.scatter, "sqrt_covariance": root, "pool": pool,
    }  # fmt: skip


def _names(folder: Location) -> list[Location]:
    try:
        return [path for path in entries(folder) if not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def _read(path: Location) -> dict[str, Tensor] | None:
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        log.warning("%s cannot be read (%s); it is made again", path, error)
        return None
