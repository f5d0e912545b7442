"""Frechet and kernel distances of a trial's generated images from the training images, at a milestone.

Workers share the images. What is encoded is kept every so often, so that an evaluation that is killed goes on from
there; features are put together by the number of their image before anything is worked out from them, so that the
result does not depend on who made which, or in what order.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.fid.encoders import Encoder, to_bytes
from models.fid.frechet import BLOCKS, extrapolated_distance, frechet_distance, influences, sampling_sd
from models.fid.kid import SUBSET_SIZE, SUBSETS, kernel_distance
from models.fid.moments import Moments
from models.paths import over
from orchestrator.results.location import Location
from orchestrator.results.partials import read_partials
from orchestrator.spec.identity import canonical_json
from orchestrator.spec.trial import Distance, Evaluation
from orchestrator.training.data.order import torch_generator
from orchestrator.training.reference import RealImages
from orchestrator.training.sampling import Generator, batches

log = logging.getLogger(__name__)

PARTIAL_SECONDS = 20.0
"""Time between two files of what has been encoded."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How far generated images are from real ones. Columns of a measurement have the same names."""

    encoder: str
    encoder_digest: str
    images: int
    frechet: float
    frechet_sd: float
    """Of fresh images of the same model."""
    kid: float
    kid_subset_sd: float
    fd_inf: float
    fd_inf_low: float
    fd_inf_high: float
    per_frame: float | None
    """Frechet distance of single frames, of clips."""

    def columns(self) -> dict[str, object]:
        """Of a measurement. Only Inception's Frechet distance is FID."""
        is_fid = self.encoder == "inception"
        return {
            "fid": self.frechet if is_fid else None,
            "fd": None if is_fid else self.frechet,
            "fd_encoder": self.encoder,
            "fd_encoder_digest": self.encoder_digest,
            "fd_sd": self.frechet_sd,
            "kid": self.kid,
            "kid_subset_sd": self.kid_subset_sd,
            "fd_inf": self.fd_inf,
            "fd_inf_low": self.fd_inf_low,
            "fd_inf_high": self.fd_inf_high,
            "fd_per_frame": self.per_frame,
            "eval_samples": self.images,
        }


class NotFinite(Exception):
    """The model generates images that are not finite: a result, not a failure."""


@dataclass(kw_only=True)
class Features:
    """Features of generated images by their number, as far as they are there: [images, d], and which."""

    values: Tensor
    there: Tensor

    def keep(self, start: int, features: Tensor) -> None:
        """Those of images from `start` on."""
        self.values[start : start + len(features)] = features
        self.there[start : start + len(features)] = True


def generated_features(
    generator: Generator,
    encoder: Encoder,
    images: int,
    *,
    folder: Location | None = None,
    put: Callable[[bytes], None] = lambda data: None,
    fingerprint: str = "",
    rank: int = 0,
    world_size: int = 1,
    beat: Callable[[], None] = lambda: None,
) -> Tensor:
    """Features [images, d] of images 0 to `images`, the same on every worker. Collective.

    Args:
        folder: where parts of an earlier try of the same evaluation may lie; `put` adds one.
        fingerprint: what parts must have been made with.

    Rows of images that are not finite are NaN.
    """
    device = generator.device
    features = Features(
        values=torch.zeros(images, encoder.dim, device=device),
        there=torch.zeros(images, dtype=torch.bool, device=device),
    )
    if folder is not None and rank == 0:
        _restore(features, folder, fingerprint)
    if world_size > 1:
        torch.distributed.broadcast(features.values, src=0)
        there = features.there.to(torch.int32)
        torch.distributed.broadcast(there, src=0)
        features.there = there.bool()
    before = features.there.clone()
    done = before.tolist()
    todo = list(batches(images, generator.batch, done.__getitem__))
    unsaved: list[tuple[int, Tensor]] = []
    saved_at = time.perf_counter()
    for start, stop in todo[rank::world_size]:
        part = _encoded(generator.images(start, stop), encoder)
        beat()
        features.keep(start, part)
        unsaved.append((start, part))
        if time.perf_counter() - saved_at > PARTIAL_SECONDS:
            put(_partial(unsaved, fingerprint))
            unsaved, saved_at = [], time.perf_counter()
    if world_size > 1:
        made = torch.where(before[:, None], 0.0, features.values)
        torch.distributed.all_reduce(made)
        features.values = torch.where(before[:, None], features.values, made)
    return features.values


def _encoded(images: Tensor, encoder: Encoder) -> Tensor:
    """Features; NaN for images that are not finite."""
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    features = encoder.features(to_bytes(torch.where(over(finite, images), images, 0.0)))
    return torch.where(finite[:, None], features, math.nan)


def _partial(parts: list[tuple[int, Tensor]], fingerprint: str) -> bytes:
    """The features of some batches by their first image; the name of one more tensor says what they were made with."""
    tensors = {str(start): part.cpu().contiguous() for start, part in parts}
    return save({**tensors, f"of {fingerprint}": torch.zeros(0)})


def _restore(features: Features, folder: Location, fingerprint: str) -> None:
    for data in read_partials(folder):
        try:
            parts = load(data)
            if parts.pop(f"of {fingerprint}", None) is None:
                continue
            for start, part in parts.items():
                features.keep(int(start), part[: len(features.values) - int(start)].to(features.values.device))
        except (SafetensorError, ValueError, RuntimeError) as error:
            log.warning("a part of an evaluation in %s is left out: %s", folder, error)
    if bool(features.there.any()):
        log.info("the evaluation goes on with %d images made already", int(features.there.sum()))


def distances_of(features: Tensor, real: RealImages, encoder: str, seed: int) -> Distances:
    """All distances of features [n, d] of generated images.

    The kernel distance has a hundredth as many subsets as there are images, at most SUBSETS, of half of them each, at
    most SUBSET_SIZE.

    Raises:
        NotFinite: some images were not finite.
    """
    images = len(features)
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise NotFinite(f"{bad} of {images} generated images are not finite")
    dim = real.pool.shape[1]
    features, of_frames = features[:, :dim], features[:, dim:]
    if images < dim:
        log.warning(
            "%d images for a Frechet distance of %d features: its bias is large; rely on KID, or generate more",
            images,
            dim,
        )
    kernel = kernel_distance(
        features,
        real.pool,
        torch_generator(seed, "kid", 0),
        subsets=min(SUBSETS, max(1, images // 100)),
        subset_size=min(SUBSET_SIZE, images // 2),
    )
    assert images >= 2 * BLOCKS, "the sweep language asks for as many"
    influence = influences(features, real.reference)
    limit = extrapolated_distance(features, real.reference, influence)
    return Distances(
        encoder=encoder,
        encoder_digest=real.encoder_digest,
        images=images,
        frechet=frechet_distance(Moments.of(features), real.reference),
        frechet_sd=sampling_sd(influence),
        kid=kernel.value,
        kid_subset_sd=kernel.subset_sd,
        fd_inf=limit.value,
        fd_inf_low=limit.low,
        fd_inf_high=limit.high,
        per_frame=None if real.frames is None else frechet_distance(Moments.of(of_frames), real.frames),
    )


def fingerprint_of(model: nn.Module, evaluation: Evaluation, distance: Distance, encoder: Encoder) -> str:
    """What features of generated images depend on: sums over the weights, and how images are made and encoded."""
    values = [p.detach().double() for p in model.parameters()]
    weights = torch.stack([total for v in values for total in (v.sum(), v.square().sum())]).cpu().numpy().tobytes()
    how = f"{canonical_json(evaluation)}{distance.images}{encoder.digest}"
    return hashlib.sha256(weights + how.encode()).hexdigest()
