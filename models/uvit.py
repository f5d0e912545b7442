"""The U-ViT (Bao et al. 2022, arXiv 2209.12152, section 3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    NORM_EPS,
    Attention,
    LabelEmbedder,
    Linear,
    Mlp,
    PatchEmbed,
    check_shape,
    time_features,
    unpatched,
)
from models.config import Parameterization
from models.configs.uvit import EXTRA, UViTConfig
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier


class Join(nn.Module):
    """The stream joined with that of the block that mirrors this one: a linear map of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "b n d"], skip: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.linear(torch.cat([x, skip], dim=-1))


class PlainBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: UViTConfig, branch: float) -> None:
        super().__init__()
        self.branch = branch
        self.norm1 = nn.LayerNorm(config.width, NORM_EPS)
        self.attn = Attention(width=config.width, heads=config.heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(config.width, NORM_EPS)
        self.mlp = Mlp(width=config.width, hidden=config.mlp_hidden)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = torch.add(x, self.attn(self.norm1(x)), alpha=self.branch)
        return torch.add(x, self.mlp(self.norm2(x)), alpha=self.branch)


class UViT(TaggedModule):
    """A class-conditional U-ViT; its call is that of a DiT."""

    config: UViTConfig
    tags: ClassVar[TagTable] = (
        ("positions", Tag(Role.VECTOR, Start.EMBEDDING)),
        ("x_embedder.proj.weight", Tag(Role.INPUT, Start.LINEAR)),
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("joins.*.weight", Tag(Role.HIDDEN, Start.LINEAR)),
        ("blocks.*.bias", Tag(Role.BIAS, Start.ZERO, branch=True)),
        ("*.bias", Tag(Role.BIAS, Start.ZERO)),
        ("blocks.*.norm[12].weight", Tag(Role.VECTOR, Start.ONE, branch=True)),
        ("norm.weight", Tag(Role.VECTOR, Start.ONE)),
        # The last map of a branch starts at zero if `zero_init` says so.
        ("blocks.*.attn.proj.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("blocks.*.mlp.fc2.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("blocks.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("readout.weight", Tag(Role.OUTPUT, Start.ZERO)),
    )
    activations: ClassVar[str] = r"x_embedder|(blocks|joins)\.\d+(\.(attn|mlp))?"

    def __init__(self, config: UViTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.x_embedder = PatchEmbed(channels=config.channels, patch=config.patch, width=width)
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=width)
        self.positions = nn.Parameter(torch.zeros(config.tokens + EXTRA, width))
        self.blocks = nn.ModuleList(PlainBlock(config, branch) for _ in range(config.depth))
        self.joins = nn.ModuleList(Join(width) for _ in range(config.depth // 2))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.readout = Linear(width, config.patch_values)
        self.multiplier = readout_multiplier(parameterization, width)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Prediction for noised images; see `models.dit.DiT.forward`."""
        config = self.config
        check_shape(x, config)
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        time = time_features(t, config.width).to(x.dtype)
        x = torch.cat([time[:, None], self.y_embedder(y)[:, None], x], dim=1) + self.positions
        half = config.depth // 2
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index > half:
                x = self.joins[index - half - 1](x, skips.pop())
            x = self.through(block, x)
            if index < half:
                skips.append(x)
        x = self.readout(self.norm(x[:, EXTRA:]), self.multiplier)
        return unpatched(x, config.side, config.patch)
