"""`ditlaw data encode`: pictures to latents of an autoencoder, once, as files that trainings map into memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from orchestrator.results.atomic import write_bytes
from orchestrator.spec.datasets import MANIFEST, latents_name
from orchestrator.training.data.examples import Example

Encoder = Callable[[Float[Tensor, "n 3 s s"]], Float[Tensor, "n c h w"]]
"""Images in [-1, 1] to latents of about unit deviation."""
SPLITS = ("train", "validation")


def encode(
    pictures: Iterable[Example], encoder: Encoder, folder: Path, *, size: int, batch: int, validation_every: int
) -> Path:
    """Write the dataset `folder.name` of the latents of all pictures, and return its folder.

    Pictures are cut to their middle square and brought to `size` x `size`. Every `validation_every`-th goes to the
    validation split. Latents are float16; files are written as they come, and count once the manifest is there, last.

    Raises:
        ValueError: the folder holds a dataset already (trials are known by its name, so it never changes), or there are
            fewer pictures than one for each split.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds a dataset already, by whose name trials are known. Choose another with --to.")
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, int] = {}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    shape: list[int] = []
    files = {split: (folder / latents_name(split)).open("wb") for split in SPLITS}
    try:
        numbered = enumerate(pictures)
        while chunk := list(itertools.islice(numbered, batch)):
            images = torch.stack([_pixels(example.picture, size) for _, example in chunk])
            latents = encoder(images).to("cpu", torch.float16)
            shape = list(latents.shape[1:])
            for (number, example), latent in zip(chunk, latents, strict=True):
                split = "validation" if number % validation_every == validation_every - 1 else "train"
                files[split].write(latent.contiguous().numpy().tobytes())
                labels[split].append(names.setdefault(example.label, len(names)))
    finally:
        for file in files.values():
            file.close()
    if not all(labels.values()):
        found = sum(map(len, labels.values()))
        raise ValueError(f"{found} pictures; wanted at least {validation_every}, so that some are for validation")
    _finish(folder, shape, names, labels)
    return folder


def _finish(folder: Path, shape: list[int], names: dict[str, int], labels: dict[str, list[int]]) -> None:
    """Labels by the order of class names (numbers as numbers), and the manifest."""
    ordered = sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    rank = np.array([ordered.index(name) for name in names])
    for split in SPLITS:
        write_bytes(folder / latents_name(split, "labels"), rank[labels[split]].astype("<i8").tobytes())
    files = [folder / latents_name(split, kind) for split in SPLITS for kind in ("latents", "labels")]
    manifest: dict[str, Any] = {
        "name": folder.name,
        "image_size": shape[1],
        "channels": shape[0],
        "class_names": ordered,
        "train_images": len(labels["train"]),
        "validation_images": len(labels["validation"]),
        "files": [{"name": f.name, "sha256": _sha256(f), "bytes": f.stat().st_size} for f in files],
    }
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pixels(picture: Image.Image, size: int) -> Float[Tensor, "3 s s"]:
    """The middle square of a picture, in [-1, 1]."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


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
