"""Facts of the encoders that planning needs: names, features, cost, and which weights each one is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from models.configs.base import Samples

EncoderName = Literal["inception", "fmnist-cnn", "shapes-cnn", "moving-cnn", "dinov2", "clip"]


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """An encoder as far as it is known without its weights."""

    name: EncoderName
    dim: int
    """Number of features."""
    flops: float
    """FLOPs of one image, its resize left out (a multiply-add is 2)."""
    preprocessing: str
    """What is done to bytes 0 to 255 before the network; part of what a cached reference is known by."""
    file: str
    """The file or folder that holds the weights, below the folder of encoders."""
    sha256: str | None = None
    """Of the file, where there is only one right one; a folder's digest is of what lies in it."""
    published: str = ""
    """Where the weights are to be had, for messages."""
    batch: int = 1024
    """Images encoded at a time, at most."""
    weight_bytes: int = 0
    """Of its weights, about."""
    image_bytes: int = 0
    """Of encoding an image, about."""
    input: tuple[int, int] | None = None
    """Channels and side of the pictures that a classifier of `models.fid.classifier` takes, whose weights come with
    ditlaw; None: another network, with weights from elsewhere."""
    samples: Samples = "images"
    """What it encodes."""
    reference: int = 50_000
    """Real samples that generated ones are compared with, at most; as many as FID-50k has, unless encoding is dear."""
    frames_by: EncoderName | None = None
    """The encoder of images that sees one frame of each clip beside it, for the distance of single frames."""


def _classifier(
    name: EncoderName, *, sha256: str, input: tuple[int, int], flops: float, preprocessing: str, **facts: Any
) -> EncoderFacts:
    """One whose weights come with ditlaw, and are made again by a command of it."""
    return EncoderFacts(
        name=name,
        dim=64,
        flops=flops,
        preprocessing=preprocessing,
        file=f"{name.replace('-', '_')}.safetensors",
        sha256=sha256,
        published=f"shipped with ditlaw (models/fid/weights); `ditlaw encoders train {name}` makes it again",
        input=input,
        **facts,
    )


ENCODERS: dict[str, EncoderFacts] = {
    facts.name: facts
    for facts in (
        EncoderFacts(
            name="inception",
            dim=2048,
            flops=11.4e9,
            preprocessing="299x299 bilinear as TensorFlow 1 (corners not aligned, no half pixels), (x - 128) / 128",
            file="pt_inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            published="release fid_weights of github.com/mseitzer/pytorch-fid",
            batch=64,
            weight_bytes=96_000_000,
            image_bytes=18_000_000,
        ),
        _classifier(
            "fmnist-cnn",
            flops=7.5e6,
            preprocessing="mean of channels, antialiased bilinear to 28x28 where larger or smaller, x / 127.5 - 1",
            sha256="ffe4b8b2b047933916139e52b13168618684eca2a08fece3b8fe92630ba53d55",
            weight_bytes=250_000,
            image_bytes=200_000,
            input=(1, 28),
        ),
        _classifier(
            "shapes-cnn",
            flops=10.3e6,
            preprocessing="three equal channels of a grey one, antialiased bilinear to 32x32 where larger or smaller, "
            "x / 127.5 - 1",
            sha256="48ce82dd761e5b1aaeaf55ad3932bcefa7745ae91d478bf70198275c72b7f54d",
            weight_bytes=250_000,
            image_bytes=260_000,
            input=(3, 32),
        ),
        _classifier(
            "moving-cnn",
            flops=34.2e6,
            preprocessing="three equal channels of a grey one, antialiased bilinear to 16x16 where larger or smaller, "
            "x / 127.5 - 1; one frame of each clip, taken in turn, as shapes-cnn has it",
            sha256="348e480907b30353eebd8b548a30d346e2eb186f7cf4bf956e915fef1b6e5b00",
            weight_bytes=550_000,
            image_bytes=450_000,
            input=(3, 16),
            samples="clips",
            reference=10_000,
            frames_by="shapes-cnn",
        ),
        EncoderFacts(
            name="dinov2",
            dim=1024,
            flops=162e9,
            preprocessing="224x224 antialiased bicubic, ImageNet mean and deviation",
            file="dinov2-large",
            published="facebook/dinov2-large on the Hugging Face hub (config.json and model.safetensors)",
            batch=64,
            weight_bytes=1_220_000_000,
            image_bytes=20_000_000,
        ),
        EncoderFacts(
            name="clip",
            dim=768,
            flops=162e9,
            preprocessing="224x224 antialiased bicubic, CLIP's mean and deviation",
            file="clip-vit-large-patch14",
            published="openai/clip-vit-large-patch14 on the Hugging Face hub (config.json and model.safetensors)",
            batch=64,
            weight_bytes=1_220_000_000,
            image_bytes=20_000_000,
        ),
    )
}
"""Every encoder by its name. `inception` is the only one whose Frechet distance is called FID."""
