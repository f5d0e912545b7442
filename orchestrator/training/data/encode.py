"""`ditlaw data encode`: pictures to latents of an autoencoder, once, as files that trainings map into memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from models.causal_vae import is_causal_vae, read_vae
from orchestrator.results.atomic import write_bytes
from orchestrator.spec.datasets import MANIFEST, Space, latents_name
from orchestrator.training.data.examples import Example, middle_square

Encoder = Callable[[Float[Tensor, "n c *size"]], Float[Tensor, "n l *latent"]]
"""Images or clips in [-1, 1] to latents of about unit deviation."""
SPLITS = ("train", "validation")


class Labelled(NamedTuple):
    """A sample in [-1, 1], an image or a clip, and its class, by name or number."""

    sample: Float[Tensor, c * size]
    label: str
    origin: int
    """Number of the picture or video file that it is from. Clips of one file look alike: they stay in one split."""


def encode(
    samples: Iterable[Labelled],
    encoder: Encoder,
    folder: Path,
    *,
    batch: int,
    validation_every: int,
    space: Space = "latents",
) -> Path:
    """Write the dataset `folder.name` of the latents of all samples, and return its folder; `space` is what they are.

    Every `validation_every`-th origin goes to the validation split, with all its samples. Latents are float16; files
    are written as they come, and count once the manifest is there, last.

    Raises:
        ValueError: the folder holds a dataset already (trials are known by its name, so it never changes), or there are
            fewer origins than one for each split.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds a dataset already, by whose name trials are known. Choose another with --to.")
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, int] = {}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    shape: list[int] = []
    origins: set[int] = set()
    files = {split: (folder / latents_name(split)).open("wb") for split in SPLITS}
    try:
        remaining = iter(samples)
        while chunk := list(itertools.islice(remaining, batch)):
            latents = encoder(torch.stack([labelled.sample for labelled in chunk])).to("cpu", torch.float16)
            shape = list(latents.shape[1:])
            for labelled, latent in zip(chunk, latents, strict=True):
                origins.add(labelled.origin)
                split = "validation" if labelled.origin % validation_every == validation_every - 1 else "train"
                files[split].write(latent.contiguous().numpy().tobytes())
                labels[split].append(names.setdefault(labelled.label, len(names)))
    finally:
        for file in files.values():
            file.close()
    if not all(labels.values()):
        raise ValueError(
            f"samples of {len(origins)} pictures or video files; wanted at least {validation_every}, so that some are "
            "for validation: clips of one file stay together. Lower --validation-every, or cut files in parts."
        )
    _finish(folder, shape, space, names, labels)
    return folder


def _finish(folder: Path, shape: list[int], space: Space, names: dict[str, int], labels: dict[str, list[int]]) -> None:
    """Labels by the order of class names (numbers as numbers), and the manifest."""
    ordered = sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    rank = np.array([ordered.index(name) for name in names])
    for split in SPLITS:
        write_bytes(folder / latents_name(split, "labels"), rank[labels[split]].astype("<i8").tobytes())
    files = [folder / latents_name(split, kind) for split in SPLITS for kind in ("latents", "labels")]
    manifest: dict[str, Any] = {
        "name": folder.name,
        "image_size": shape[-1],
        "channels": shape[0],
        "space": space,
        **({"frames": shape[1]} if len(shape) == 4 else {}),
        "class_names": ordered,
        "train_images": len(labels["train"]),
        "validation_images": len(labels["validation"]),
        "files": [{"name": f.name, "sha256": _sha256(f), "bytes": f.stat().st_size} for f in files],
    }
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pictures_of(source: Iterable[Example], size: int) -> Iterator[Labelled]:
    """Pictures as samples: their middle squares at `size` x `size`."""
    for number, example in enumerate(source):
        yield Labelled(_pixels(example.picture, size), example.label, number)


def _pixels(picture: Image.Image, size: int) -> Float[Tensor, "3 s s"]:
    """The middle square of a picture, in [-1, 1]."""
    square = middle_square(picture, size)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def as_they_are(samples: Float[Tensor, "n c *size"]) -> Float[Tensor, "n c *size"]:
    """No encoder: pixels for latents."""
    return samples


def encoder_in(folder: Path, device: torch.device) -> Encoder:
    """The encoder of the autoencoder in a folder: of the causal one that `ditlaw data vae` trains, or a diffusers
    AutoencoderKL, which sees every frame of a clip alone.

    Raises:
        ValueError: the folder holds neither.
    """
    if is_causal_vae(folder):
        model = read_vae(folder).to(device)
        return lambda clips: model.encoded(clips.to(device))
    return _per_frame(autoencoder(folder, device))


def _per_frame(encoder: Encoder) -> Encoder:
    def encoded(samples: Tensor) -> Tensor:
        if samples.dim() == 4:
            return encoder(samples)
        return encoder(samples.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(samples), -1)).transpose(1, 2)

    return encoded


def autoencoder(folder: Path, device: torch.device) -> Encoder:
    """The encoder of a diffusers AutoencoderKL in a local folder: the means of its latents, scaled as it says.

    Raises:
        ValueError: diffusers is not installed, or the folder does not hold such a model; it says which files to put
            there.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            "diffusers is not installed, which knows the autoencoder. Run: pip install diffusers"
        ) from error
    missing = [name for name in ("config.json",) if not (folder / name).is_file()]
    if missing or not any(folder.glob("diffusion_pytorch_model.*")):
        raise ValueError(
            f"{folder} does not hold a diffusers AutoencoderKL; wanted config.json and "
            "diffusion_pytorch_model.safetensors there, as in the folder vae/ of a latent diffusion model"
        )
    model = AutoencoderKL.from_pretrained(folder, local_files_only=True).to(device).eval()
    shift = getattr(model.config, "shift_factor", None) or 0.0

    @torch.no_grad()
    def encoded(images: Tensor) -> Tensor:
        means: Tensor = model.encode(images.to(device)).latent_dist.mode()
        return (means - shift) * model.config.scaling_factor

    return encoded
