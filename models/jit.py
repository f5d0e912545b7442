"""JiT, "just image transformers" (Li & He 2025, arXiv 2511.13720, section 4 and appendix A)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    NORM_EPS,
    FinalLayer,
    LabelEmbedder,
    Linear,
    TimestepEmbedder,
    check_shape,
    positions_2d,
    rotations_2d,
    unpatched,
)
from models.config import Parameterization
from models.configs.jit import JiTConfig
from models.dit import DiTBlock, ModulatedNorm
from models.mmdit import BLOCK_TAGS
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier


class ModulatedRmsNorm(nn.Module):
    """RMSNorm(x) gain (1 + scale) + shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self, x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
    ) -> Float[Tensor, "b n d"]:
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], self.weight, NORM_EPS), 1 + scale)


class JiTBlock(DiTBlock):
    """A DiT block with RMS norms that have gains."""

    def __init__(self, config: JiTConfig, branch: float) -> None:
        super().__init__(config.plain, branch)
        self.norm1 = ModulatedRmsNorm(config.width)
        self.norm2 = ModulatedRmsNorm(config.width)

    def norms(self) -> tuple[ModulatedNorm, ModulatedNorm]:
        return self.norm1, self.norm2


class JiTFinalLayer(FinalLayer):
    """DiT's readout with an RMS norm that has a gain."""

    def __init__(self, *, width: int, outputs: int, multiplier: float) -> None:
        super().__init__(width=width, outputs=outputs, multiplier=multiplier)
        self.norm = ModulatedRmsNorm(width)

    def modulated(
        self, x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
    ) -> Float[Tensor, "b n d"]:
        return self.norm(x, shift, scale)


class BottleneckEmbed(nn.Module):
    """Patches through two linear maps, the first of which is narrow (section 4.3)."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.narrow = Linear(config.patch_values, config.bottleneck, bias=False)
        self.proj = Linear(config.bottleneck, config.width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(self.narrow(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)))


class JiT(TaggedModule):
    """A class-conditional transformer on pixels; its call is that of a DiT."""

    config: JiTConfig
    tags: ClassVar[TagTable] = (
        # Neither side of it grows; its output has the scale of its input at any width.
        ("x_embedder.narrow.weight", Tag(Role.INPUT, Start.LINEAR)),
        ("context", Tag(Role.VECTOR, Start.EMBEDDING)),
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("blocks.*.norm[12].weight", Tag(Role.VECTOR, Start.ONE, branch=True)),
        ("final_layer.norm.weight", Tag(Role.VECTOR, Start.ONE)),
        *BLOCK_TAGS,
    )
    activations: ClassVar[str] = r"[xt]_embedder|blocks\.\d+(\.(attn|mlp))?"
    positions: Tensor
    rotation: Tensor

    def __init__(self, config: JiTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.x_embedder = BottleneckEmbed(config)
        self.t_embedder = TimestepEmbedder(width=width, frequency_size=config.frequency_size)
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=width)
        self.context = nn.Parameter(torch.zeros(config.context_tokens, width))
        self.blocks = nn.ModuleList(JiTBlock(config, branch) for _ in range(config.depth))
        readout = readout_multiplier(parameterization, width)
        self.final_layer = JiTFinalLayer(width=width, outputs=config.patch_values, multiplier=readout)
        self.register_buffer("positions", positions_2d(config.side, width), persistent=False)
        turned = rotations_2d(config.side, config.head_dim)
        still = torch.stack([torch.ones(config.context_tokens, config.head_dim // 2)] * 2)
        still[1] = 0  # tokens of the class are not turned
        self.register_buffer("rotation", torch.cat([still, turned], dim=1), persistent=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Prediction of the image; see `models.dit.DiT.forward`."""
        config = self.config
        check_shape(x, config)
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        x = x + self.positions.to(x.dtype)
        label = self.y_embedder(y)
        condition = F.silu(self.t_embedder(t) + label)
        for index, block in enumerate(self.blocks):
            if index + 1 == config.context_start:
                x = torch.cat([label[:, None] + self.context, x], dim=1)
            x = self.through(block, x, condition, self.rotation[:, -x.shape[1] :])
        x = self.final_layer(x[:, config.context_tokens :], condition)
        return unpatched(x, config.side, config.patch)
