"""Encoders of images by name, with the digest of their weights: what two sets of images are compared by."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.fid.catalog import ENCODERS, EncoderFacts
from models.fid.classifier import Classifier, ClipClassifier, new_classifier
from models.fid.inception import Inception

SHIPPED = Path(__file__).parent / "weights"
"""The folder of weights that come with the code."""
_TRANSFORMERS_MEAN = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073)}
_TRANSFORMERS_STD = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711)}
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A network that turns images into features, and which weights it has."""

    facts: EncoderFacts
    digest: str
    """SHA-256 of the weights: of the file, or of the files of a folder one after the other."""
    dim: int
    """Number of features."""
    network: Callable[[Tensor], Tensor]
    frame_dim: int = 0
    """How many of them, the last, are of a single frame of a clip and are compared on their own."""

    @property
    def name(self) -> str:
        """Its name in ENCODERS."""
        return self.facts.name

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n c *size"]) -> Float[Tensor, "n d"]:
        """Features in float32 of bytes 0 to 255, images or clips, with one channel or three.

        Raises:
            ValueError: the images are not such bytes, or not what the encoder is of.
        """
        axes = "h, w" if self.facts.samples == "images" else "f, h, w"
        dims = 4 if self.facts.samples == "images" else 5
        if images.dtype != torch.uint8 or images.ndim != dims or images.shape[1] not in (1, 3):
            shape = list(images.shape)
            raise ValueError(
                f"{self.name} got {self.facts.samples} of {images.dtype} and shape {shape}; wanted bytes 0 to 255 of "
                f"shape [n, 1 or 3, {axes}]. `to_bytes` turns floats in [-1, 1] into them."
            )
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.network(images).float()


def to_bytes(images: Float[Tensor, "n c *size"]) -> UInt8[Tensor, "n c *size"]:
    """Generated images in [-1, 1] as bytes 0 to 255; what a sampler leaves outside is cut off, as everywhere.

    Raises:
        ValueError: some are not finite; it says how many.
    """
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} of {len(images)} images are not finite; wanted values in [-1, 1]")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load_encoder(name: str, folder: Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of this name; `folder` holds the weights that do not come with the code.

    Raises:
        ValueError: the name is unknown, or its weights are missing, damaged or other ones; the message says which file
            with which digest is wanted, and where it is published.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder {name!r}; known are {', '.join(ENCODERS)}. Correct the name.")
    facts = ENCODERS[name]
    network: nn.Module
    frame_dim = 0
    if facts.samples == "clips":
        assert facts.frames_by is not None, "distances of clips have those of frames beside them"
        frames = ENCODERS[facts.frames_by]
        network, digest, dim = _Clips(_small(facts), _small(frames)), str(facts.sha256), facts.dim + frames.dim
        frame_dim = frames.dim
    elif facts.input is not None:
        network, digest, dim = _small(facts), str(facts.sha256), facts.dim
    elif name == "inception":
        network, digest, dim = _Colour(_inception(facts, folder)), str(facts.sha256), facts.dim
    else:
        transformer, digest = _transformer(facts, folder)
        network, dim = _Colour(transformer), transformer.dim
    network = network.eval().requires_grad_(False).to(device)
    return Encoder(facts=facts, digest=digest, dim=dim, frame_dim=frame_dim, network=network)


class _Colour(nn.Module):
    """A network of colour pictures; grey ones get three equal channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _verified(facts: EncoderFacts, folder: Path) -> Path:
    """The file of weights, there and the right one."""
    path = folder / facts.file
    wanted = f"{facts.file} with SHA-256 {facts.sha256}, published as {facts.published}"
    if not path.is_file():
        raise ValueError(
            f"encoder {facts.name} has no weights: {path.absolute()} is missing; wanted {wanted}. Put it there, or "
            "name another folder in DITLAW_ENCODERS."
        )
    found = file_digest(path)
    if found != facts.sha256:
        raise ValueError(f"{path.absolute()} has SHA-256 {found}; wanted {wanted}. Fetch it again.")
    return path


def _inception(facts: EncoderFacts, folder: Path) -> nn.Module:
    path = _verified(facts, folder)
    with torch.device("meta"):  # nothing is drawn only to be replaced
        network = Inception()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except (RuntimeError, pickle.UnpicklingError) as error:  # not with this digest, but for another torch
        raise ValueError(f"{path} cannot be read as weights of Inception: {error}") from error
    return network


class _Small(nn.Module):
    """A classifier's features of any image: its channels averaged or repeated as wanted, resized."""

    def __init__(self, classifier: Classifier | ClipClassifier, channels: int, size: int) -> None:
        super().__init__()
        self.classifier, self.channels, self.size = classifier, channels, size

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        x = x.mean(dim=1, keepdim=True) if self.channels == 1 else x.expand(-1, self.channels, *x.shape[2:])
        if x.shape[-2:] != (self.size, self.size):
            pictures = x if x.dim() == 4 else x.transpose(1, 2).flatten(0, 1)
            sized = nn.functional.interpolate(pictures, size=(self.size,) * 2, mode="bilinear", antialias=True)
            x = sized if x.dim() == 4 else sized.unflatten(0, (len(x), -1)).transpose(1, 2)
        return self.classifier.features(x / 127.5 - 1)


class _Clips(nn.Module):
    """Features of clips, and beside them those of one frame of each: of clip i frame i modulo their number, so that a
    set of clips has its frames in equal shares and one frame a clip, which are as independent as the clips are."""

    def __init__(self, whole: nn.Module, still: nn.Module) -> None:
        super().__init__()
        self.whole, self.still = whole, still

    def forward(self, clips: Tensor) -> Tensor:
        number = torch.arange(len(clips), device=clips.device)
        frames = clips[number, :, number % clips.shape[2]]
        return torch.cat([self.whole(clips), self.still(frames)], dim=1)


def _small(facts: EncoderFacts) -> _Small:
    """An encoder whose weights come with ditlaw."""
    classifier = new_classifier(facts)
    classifier.load_state_dict(load_file(_verified(facts, SHIPPED)))
    assert facts.input is not None, f"{facts.name} is no classifier"
    return _Small(classifier, *facts.input)


class _Transformer(nn.Module):
    """A vision transformer from a folder: images resized and normalised as it was trained, its summary token."""

    def __init__(self, name: str, model: Any, size: int) -> None:
        super().__init__()
        self.model, self.size, self.clip = model, size, name == "clip"
        self.dim = int(model.config.projection_dim if self.clip else model.config.hidden_size)
        self.mean = nn.Buffer(torch.tensor(_TRANSFORMERS_MEAN[name]).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(_TRANSFORMERS_STD[name]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.interpolate(images.float(), size=(self.size,) * 2, mode="bicubic", antialias=True)
        outputs = self.model(pixel_values=(x.clamp(0, 255) / 255 - self.mean) / self.std)
        return outputs.image_embeds if self.clip else outputs.last_hidden_state[:, 0]


def _transformer(facts: EncoderFacts, folder: Path) -> tuple[_Transformer, str]:
    """A DINOv2 or CLIP from a local folder through transformers; nothing is ever downloaded."""
    place = folder / facts.file
    files = [place / "config.json", *sorted(place.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise ValueError(
            f"encoder {facts.name} has no weights: wanted config.json and *.safetensors in {place.absolute()}, "
            f"published as {facts.published}. Put them there, or name another folder in DITLAW_ENCODERS."
        )
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"encoder {facts.name} needs the package transformers ({error}); install it") from error
    kind = transformers.Dinov2Model if facts.name == "dinov2" else transformers.CLIPVisionModelWithProjection
    try:
        model = kind.from_pretrained(str(place), local_files_only=True)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"encoder {facts.name} cannot be read from {place.absolute()}: {error}") from error
    digest = hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()
    return _Transformer(facts.name, model, 224), digest
