"""A causal 3-D autoencoder of clips: 8 times smaller in space and 4 times in time, with a KL term.

No part of it sees a later frame than it stands for: convolutions are padded with the first frame in front, norms are of
the channels of one place. So latent i says what frames up to 4 i + 3 show, and its decoding frames 4 i to 4 i + 3. With
`temporal` 1 every frame is encoded alone, as an image autoencoder would.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.tally import Tally

SPATIAL = 8
"""Pixels along a side that one latent stands for."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "ditlaw-causal-vae"
KL_WEIGHT = 1e-4
"""Of the KL divergence, a latent number, beside the squared error, a pixel."""


@dataclass(frozen=True, kw_only=True)
class CausalVAEConfig:
    """The autoencoder."""

    channels: int = 3
    """Channels of clips."""
    latent_channels: int = 4
    """Channels of latents."""
    width: int = 16
    """Channels at full resolution; they double with each halving, up to four times as many."""
    temporal: Literal[1, 4] = 4
    """Frames that one latent stands for; 1: every frame is encoded alone."""
    scale: float = 1.0
    """What latents are multiplied by, so that their deviation is about 1."""

    def __post_init__(self) -> None:
        if self.temporal not in (1, 4):
            raise ValueError(f"temporal is {self.temporal}; wanted 4, or 1 for frames that are encoded alone")
        for name in ("channels", "latent_channels", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels at each resolution, the finest first."""
        return self.width, 2 * self.width, 4 * self.width, 4 * self.width

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames that become one at each halving of the resolution."""
        return (1, 2, 2) if self.temporal > 1 else (1, 1, 1)

    @property
    def kernel_frames(self) -> int:
        """Frames that a convolution sees."""
        return 3 if self.temporal > 1 else 1


class CodingFlops(NamedTuple):
    """FLOPs of one clip; a training sample costs 3 times both together."""

    encode: float
    decode: float


def coding_flops(config: CausalVAEConfig, frames: int, side: int) -> CodingFlops:
    """What encoding a clip of so many frames of `side` x `side` pixels costs, and decoding it: its convolutions."""
    down, up = Tally(), Tally()
    seen, positions = config.kernel_frames, frames * side**2
    down.convolution(config.channels, config.width, side=3, frames=seen, uses=positions)
    up.convolution(config.width, config.channels, side=3, frames=seen, uses=positions)
    for (fine, coarse), stride in zip(pairwise(config.widths), config.strides, strict=True):
        for _ in range(2):
            down.convolution(fine, fine, side=3, frames=seen, uses=positions)
        up.convolution(coarse, fine, side=3, frames=seen, uses=positions)
        positions //= 4 * stride
        down.convolution(fine, coarse, side=3, frames=seen, uses=positions)
        for _ in range(2):
            up.convolution(coarse, coarse, side=3, frames=seen, uses=positions)
    down.convolution(config.widths[-1], 2 * config.latent_channels, side=1, uses=positions)
    up.convolution(config.latent_channels, config.widths[-1], side=3, frames=seen, uses=positions)
    return CodingFlops(2.0 * down.multiply_adds, 2.0 * up.multiply_adds)


class CausalConv(nn.Conv3d):
    """A convolution that sees, in time, its own frame and earlier ones; before the first there is the first again."""

    def __init__(self, inputs: int, outputs: int, side: int, *, frames: int, stride: tuple[int, int] = (1, 1)) -> None:
        in_time, in_space = stride
        super().__init__(
            inputs,
            outputs,
            (frames, side, side),
            stride=(in_time, in_space, in_space),
            padding=(0, side // 2, side // 2),
        )
        self.before = max(0, frames - in_time)

    def forward(self, x: Float[Tensor, "b i f h w"]) -> Float[Tensor, "b o f2 h2 w2"]:
        first = x[:, :, :1].expand(-1, -1, self.before, -1, -1)
        return super().forward(torch.cat([first, x], dim=2))


class PlaceNorm(nn.Module):
    """RMS norm over the channels of each place and frame, with a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = PlaceNorm(channels), PlaceNorm(channels)
        self.conv1 = CausalConv(channels, channels, 3, frames=frames)
        self.conv2 = CausalConv(channels, channels, 3, frames=frames)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Grow(nn.Module):
    """Twice the resolution, and `in_time` times the frames, by nearest neighbours and a convolution."""

    def __init__(self, inputs: int, outputs: int, *, frames: int, in_time: int) -> None:
        super().__init__()
        self.in_time = in_time
        self.conv = CausalConv(inputs, outputs, 3, frames=frames)

    def forward(self, x: Float[Tensor, "b i f h w"]) -> Float[Tensor, "b o f2 h2 w2"]:
        x = x.repeat_interleave(self.in_time, 2) if self.in_time > 1 else x
        return self.conv(x.repeat_interleave(2, 3).repeat_interleave(2, 4))


class CausalVAE(nn.Module):
    """Encoder to the mean and log variance of latents, and decoder."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.config = config
        frames, widths = config.kernel_frames, config.widths
        down: list[nn.Module] = [CausalConv(config.channels, widths[0], 3, frames=frames)]
        up: list[nn.Module] = [CausalConv(config.latent_channels, widths[-1], 3, frames=frames)]
        for index, in_time in enumerate(config.strides):
            down += [
                Residual(widths[index], frames),
                CausalConv(widths[index], widths[index + 1], 3, frames=frames, stride=(in_time, 2)),
            ]
        for index, in_time in reversed(list(enumerate(config.strides))):
            up += [
                Residual(widths[index + 1], frames),
                Grow(widths[index + 1], widths[index], frames=frames, in_time=in_time),
            ]
        down += [PlaceNorm(widths[-1]), nn.SiLU(), CausalConv(widths[-1], 2 * config.latent_channels, 1, frames=1)]
        up += [PlaceNorm(widths[0]), nn.SiLU(), CausalConv(widths[0], config.channels, 3, frames=frames)]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)

    def posterior(self, x: Float[Tensor, "b c f h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log variance [b, latent channels, f / temporal, h / 8, w / 8] of the latents of clips in [-1, 1].

        Raises:
            ValueError: frames or sides that are no multiples of what a latent stands for, or other channels.
        """
        config = self.config
        channels, frames, height, width = x.shape[1:]
        if channels != config.channels or frames % config.temporal or height % SPATIAL or width % SPATIAL:
            raise ValueError(
                f"clips have shape {list(x.shape)}; wanted [b, {config.channels}, frames, h, w] with frames a multiple "
                f"of {config.temporal} and sides of {SPATIAL}. Choose another number of frames, or another size."
            )
        mean, log_variance = self.down(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 10.0)

    def decoded(self, latents: Float[Tensor, "b l f h w"]) -> Float[Tensor, "b c f2 h2 w2"]:
        """Clips of latents as `posterior` gives them, unscaled."""
        return self.up(latents)

    def loss(self, x: Float[Tensor, "b c f h w"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared error a pixel and KL divergence from the standard normal a latent number (Kingma & Welling 2014,
        arXiv 1312.6114, equation 10), means over the batch; what is minimised is the first plus KL_WEIGHT of the
        second. The noise of latents is drawn on the CPU."""
        mean, log_variance = self.posterior(x)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        error = (self.decoded(mean + (0.5 * log_variance).exp() * noise) - x).square().mean()
        return error, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()

    @torch.no_grad()
    def encoded(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b l f2 h2 w2"]:
        """Scaled means of latents."""
        return self.posterior(x)[0] * self.config.scale


def write_vae(folder: Path, model: CausalVAE, scale: float) -> None:
    """Keep an autoencoder as a folder of its configuration and weights; `scale` is of its latents."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    told = {**asdict(model.config), "scale": scale, "kind": KIND}
    (folder / CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def is_causal_vae(folder: Path) -> bool:
    """Whether a folder holds an autoencoder of this kind."""
    try:
        told = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("kind") == KIND


def read_vae(folder: Path) -> CausalVAE:
    """The autoencoder in a folder, for which `is_causal_vae` holds.

    Raises:
        ValueError: its configuration or weights are damaged or missing.
    """
    try:
        told = json.loads((folder / CONFIG).read_bytes())
        told.pop("kind")
        model = CausalVAE(CausalVAEConfig(**told))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no whole autoencoder: {error}. Train it again: ditlaw data vae") from error
    return model.eval().requires_grad_(False)
