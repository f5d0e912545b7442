"""The 3-D U-Net (Ho et al. 2022, arXiv 2204.03458, section 3): the U-Net's blocks with time as a third axis."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.configs.unet import Stage
from models.configs.unet3d import UNet3DConfig
from models.parameterization import Role, Start, Tag, TagTable
from models.spacetime import SpacetimeAttention
from models.unet import GROUP_NORM_EPS, ResidualBlock, UNet


class Conv3d(nn.Conv3d):
    """A convolution of `frames` x `side` x `side` that keeps the frames, and the resolution at stride 1; starts at
    zero, as `models.blocks.Conv`."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, *, frames: int = 1) -> None:
        padding = (frames // 2, side // 2, side // 2)
        super().__init__(inputs, outputs, (frames, side, side), stride=(1, stride, stride), padding=padding)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b i f h w"], multiplier: float = 1.0) -> Float[Tensor, "b o f h2 w2"]:
        """The multiplier is of the product, not of the bias."""
        weight = self.weight if multiplier == 1.0 else self.weight * multiplier
        return F.conv3d(x, weight, self.bias, self.stride, self.padding)


class FactorisedConv(nn.Module):
    """A convolution within frames, then one along time (Qiu et al. 2017, arXiv 1711.10305)."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.space = Conv3d(inputs, outputs, side)
        self.time = Conv3d(outputs, outputs, 1, frames=3)

    def forward(self, x: Float[Tensor, "b i f h w"]) -> Float[Tensor, "b o f h w"]:
        return self.time(self.space(x))


def _residual_conv(config: UNet3DConfig, inputs: int, outputs: int, side: int) -> nn.Module:
    """A convolution of a residual block; its shortcut, of side 1, stays within a pixel."""
    if side == 1:
        return Conv3d(inputs, outputs, 1)
    if config.convolution == "full":
        return Conv3d(inputs, outputs, side, frames=side)
    return FactorisedConv(inputs, outputs, side)


class SpacetimeAttentionBlock(nn.Module):
    """x + attention(norm(x)) over the pixels of each frame, or over the frames of each pixel."""

    def __init__(self, config: UNet3DConfig, stage: Stage, branch: float, along: str) -> None:
        super().__init__()
        self.branch = branch
        self.norm = nn.GroupNorm(config.groups, stage.outputs, GROUP_NORM_EPS)
        self.attn = SpacetimeAttention(
            width=stage.outputs, heads=stage.outputs // config.head_dim, pattern="time" if along == "time" else "space"
        )

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        h = self.attn(self.norm(x).flatten(2).transpose(1, 2), x.shape[2])
        return torch.add(x, h.transpose(1, 2).view_as(x), alpha=self.branch)


class UNet3DStage(nn.Module):
    """A residual block and, where the level has it, attention over space and then over time."""

    def __init__(self, config: UNet3DConfig, stage: Stage, branch: float) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, side: int) -> nn.Module:
            return _residual_conv(config, inputs, outputs, side)

        self.residual = ResidualBlock(config, stage, branch, conv)
        axes = ("space", "time") if stage.attention else ()
        self.attention = nn.Sequential(*(SpacetimeAttentionBlock(config, stage, branch, axis) for axis in axes))

    def forward(self, x: Float[Tensor, "b c f h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 f h w"]:
        return self.attention(self.residual(x, condition))


class UNet3D(UNet):
    """A class-conditional U-Net of clips [b, c, f, h, w], which may be shorter than whole ones."""

    config: UNet3DConfig
    tags: ClassVar[TagTable] = (
        # Of a factorised convolution the last map, along time, starts at zero if `zero_init` says so.
        ("stages.*.conv2.space.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("stages.*.conv2.time.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        *UNet.tags,
    )
    conv = Conv3d
    stage = UNet3DStage
    growth = (1.0, 2.0, 2.0)

    def check(self, x: Tensor) -> None:
        config = self.config
        wanted = (config.channels, config.image_size, config.image_size)
        if x.dim() != 5 or (x.shape[1], *x.shape[3:]) != wanted or not 1 <= x.shape[2] <= config.frames:
            raise ValueError(
                f"clips have shape {list(x.shape)}; wanted [b, {config.channels}, frames, {config.image_size}, "
                f"{config.image_size}] of at most {config.frames} frames"
            )
