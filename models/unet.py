"""The U-Net of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, appendix B; Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import Attention, Conv, LabelEmbedder, Linear, TimestepEmbedder, check_shape
from models.config import Parameterization
from models.configs.unet import CONDITION, Stage, UNetConfig
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier

GROUP_NORM_EPS = 1e-5


class ResidualBlock(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), scale and shift from the condition."""

    def __init__(
        self, config: UNetConfig, stage: Stage, branch: float, conv: Callable[[int, int, int], nn.Module] = Conv
    ) -> None:
        super().__init__()
        self.branch = branch
        self.norm1 = nn.GroupNorm(config.groups, stage.inputs, GROUP_NORM_EPS)
        self.conv1 = conv(stage.inputs, stage.outputs, 3)
        self.modulation = Linear(CONDITION * config.width, 2 * stage.outputs)
        self.norm2 = nn.GroupNorm(config.groups, stage.outputs, GROUP_NORM_EPS)
        self.conv2 = conv(stage.outputs, stage.outputs, 3)
        self.shortcut = conv(stage.inputs, stage.outputs, 1) if stage.inputs != stage.outputs else None

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 *size"]:
        modulation = self.modulation(condition)
        scale, shift = modulation.view(*modulation.shape, *(1 for _ in x.shape[2:])).chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        x = x if self.shortcut is None else self.shortcut(x)
        return torch.add(x, h, alpha=self.branch)


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over the pixels of a feature map."""

    def __init__(self, config: UNetConfig, stage: Stage, branch: float) -> None:
        super().__init__()
        self.branch = branch
        self.norm = nn.GroupNorm(config.groups, stage.outputs, GROUP_NORM_EPS)
        self.attn = Attention(width=stage.outputs, heads=stage.outputs // config.head_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.attn(self.norm(x).flatten(2).transpose(1, 2))
        return torch.add(x, h.transpose(1, 2).view_as(x), alpha=self.branch)


class UNetStage(nn.Module):
    """A residual block and, where the level has it, attention."""

    def __init__(self, config: UNetConfig, stage: Stage, branch: float) -> None:
        super().__init__()
        self.residual = ResidualBlock(config, stage, branch)
        self.attention = AttentionBlock(config, stage, branch) if stage.attention else None

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        x = self.residual(x, condition)
        return x if self.attention is None else self.attention(x)


class UNet(TaggedModule):
    """A class-conditional U-Net; its call is that of a DiT."""

    config: UNetConfig
    tags: ClassVar[TagTable] = (
        ("readout.norm.weight", Tag(Role.VECTOR, Start.ONE)),
        ("readout.conv.weight", Tag(Role.OUTPUT, Start.ZERO)),
        ("x_embedder.weight", Tag(Role.INPUT, Start.LINEAR)),
        ("t_embedder.mlp.0.weight", Tag(Role.INPUT, Start.TIMESTEP)),
        ("t_embedder.mlp.2.weight", Tag(Role.HIDDEN, Start.TIMESTEP)),
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("*.shortcut.weight", Tag(Role.HIDDEN, Start.LINEAR)),
        ("*.shortcut.bias", Tag(Role.BIAS, Start.ZERO)),
        ("resamplers.*.weight", Tag(Role.HIDDEN, Start.LINEAR)),
        ("stages.*.norm*.weight", Tag(Role.VECTOR, Start.ONE, branch=True)),
        ("stages.*.bias", Tag(Role.BIAS, Start.ZERO, branch=True)),
        ("*.bias", Tag(Role.BIAS, Start.ZERO)),
        # The last map of a branch starts at zero if `zero_init` says so.
        ("stages.*.conv2.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("stages.*.attn.proj.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("stages.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
    )
    activations: ClassVar[str] = r"[xty]_embedder|stages\.\d+(\.(residual|attention))?"

    trunk: ClassVar[str] = "stages"
    conv: ClassVar[type[Conv | nn.Conv3d]] = Conv
    """What it begins, changes its resolution, and ends with."""
    stage: ClassVar[type[nn.Module]] = UNetStage
    growth: ClassVar[tuple[float, ...]] = (2.0, 2.0)
    """What nearest neighbours multiply each axis by on the way up."""

    def __init__(self, config: UNetConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        branch = branch_multiplier(parameterization, config.depth)
        condition = CONDITION * config.width
        self.x_embedder = self.conv(config.channels, config.width, 3)
        self.t_embedder = TimestepEmbedder(width=condition, frequency_size=config.frequency_size)
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=condition)
        after = config.middle._replace(attention=False)
        self._plan = [*config.encoder, config.middle, after, *config.decoder]
        self.stages = nn.ModuleList(self.stage(config, stage, branch) for stage in self._plan)
        self.resamplers = nn.ModuleDict(
            {
                str(index): self.conv(stage.outputs, stage.outputs, 3, stride=2 if index < len(config.encoder) else 1)
                for index, stage in enumerate(self._plan)
                if stage.resample
            }
        )
        self.readout = Readout(config, readout_multiplier(parameterization, config.width), self.conv)

    def check(self, x: Tensor) -> None:
        """Refuse samples that it is not for."""
        check_shape(x, self.config)

    def forward(
        self, x: Float[Tensor, "b c *size"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c_out *size"]:
        """Prediction for noised images; see `models.dit.DiT.forward`."""
        config = self.config
        self.check(x)
        x = self.x_embedder(x.to(self.readout.conv.weight.dtype))
        condition = F.silu(self.t_embedder(t) + self.y_embedder(y))  # [b, e]
        skips, down = [x], len(config.encoder)
        for index, stage in enumerate(self.stages):
            if index >= down + 2:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self.through(stage, x, condition)
            if index < down:
                skips.append(x)
            if self._plan[index].resample:
                if index >= down:
                    x = F.interpolate(x, scale_factor=self.growth, mode="nearest")
                x = self.resamplers[str(index)](x)
                if index < down:
                    skips.append(x)
        return self.readout(x)


class Readout(nn.Module):
    """The last norm and convolution. The multiplier is of the product, not of the bias."""

    def __init__(
        self, config: UNetConfig, multiplier: float, conv: Callable[[int, int, int], Conv | nn.Conv3d]
    ) -> None:
        super().__init__()
        self.multiplier = multiplier
        channels = config.decoder[-1].outputs
        self.norm = nn.GroupNorm(config.groups, channels, GROUP_NORM_EPS)
        self.conv = conv(channels, config.out_channels, 3)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c_out *size"]:
        return self.conv(F.silu(self.norm(x)), self.multiplier)
