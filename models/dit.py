"""The diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748), written from the paper.

Parameter names follow the published checkpoints, so that loading one is a matter of reshaping the patch embedding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    Attention,
    LabelEmbedder,
    Linear,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulated_norm,
    positions_2d,
)
from models.config import DiTConfig, Parameterization
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier


def _modulation(width: int, num_vectors: int) -> nn.Sequential:
    # The non-linearity is the same for every block and is applied once, in DiT.forward; index 1 keeps the
    # checkpoints' names.
    return nn.Sequential(nn.Identity(), Linear(width, num_vectors * width))


class DiTBlock(nn.Module):
    """A transformer block with adaLN-Zero conditioning (DiT, figure 3)."""

    def __init__(self, config: DiTConfig, branch: float) -> None:
        super().__init__()
        self.branch = branch
        """What both residual branches are multiplied by."""
        self.attn = Attention(width=config.width, heads=config.heads)
        self.mlp = Mlp(width=config.width, hidden=config.mlp_ratio * config.width)
        self.adaLN_modulation = _modulation(config.width, 6)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        b, d = condition.shape
        vectors = self.adaLN_modulation(condition).view(b, 6, 1, d).unbind(1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = vectors
        x = torch.addcmul(x, gate_attn, self.attn(modulated_norm(x, shift_attn, scale_attn)), value=self.branch)
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)), value=self.branch)


class FinalLayer(nn.Module):
    """adaLN and the readout to patches."""

    def __init__(self, config: DiTConfig, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.linear = Linear(config.width, config.patch**2 * config.out_channels)
        self.adaLN_modulation = _modulation(config.width, 2)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n o"]:
        b, d = condition.shape
        shift, scale = self.adaLN_modulation(condition).view(b, 2, 1, d).unbind(1)
        # The multiplier is of the matrix product, not of the bias, which has no width to make up for. It goes to the
        # weight, by far the smaller factor.
        weight = self.linear.weight if self.multiplier == 1.0 else self.linear.weight * self.multiplier
        return F.linear(modulated_norm(x, shift, scale), weight, self.linear.bias)


class DiT(TaggedModule):
    """A class-conditional diffusion transformer.

    Starts at zero; `models.families.build` gives an initialised one. Label dropout is the training loop's, which
    replaces labels by the null class `config.num_classes`: the forward pass draws nothing.
    """

    tags: ClassVar[TagTable] = (
        ("blocks.*.bias", Tag(Role.BIAS, Start.ZERO, branch=True)),
        ("*.bias", Tag(Role.BIAS, Start.ZERO)),
        ("x_embedder.proj.weight", Tag(Role.INPUT, Start.LINEAR)),
        ("t_embedder.mlp.0.weight", Tag(Role.INPUT, Start.TIMESTEP)),
        ("t_embedder.mlp.2.weight", Tag(Role.HIDDEN, Start.TIMESTEP)),
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("blocks.*.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("*.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION)),
        ("blocks.*.attn.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("blocks.*.mlp.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("final_layer.linear.weight", Tag(Role.OUTPUT, Start.ZERO)),
    )

    positions: Tensor

    def __init__(self, config: DiTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(channels=config.channels, patch=config.patch, width=config.width)
        self.t_embedder = TimestepEmbedder(width=config.width, frequency_size=config.frequency_size)
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=config.width)
        self.blocks = nn.ModuleList(
            DiTBlock(config, branch_multiplier(parameterization, config.depth)) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(config, readout_multiplier(parameterization, config.width))
        self.register_buffer(
            "positions", positions_2d(config.image_size // config.patch, config.width), persistent=False
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c_out h w"]:
        """Prediction for noised images.

        Args:
            x: noised images; cast to the model's precision.
            t: times in [0, 1]; keep them in float32.
            y: labels in [0, num_classes]; `num_classes` is the null class.
        """
        x = self.x_embedder(x.to(self.positions.dtype)) + self.positions  # [b, n, d]
        condition = F.silu(self.t_embedder(t) + self.y_embedder(y))  # [b, d]
        for block in self.blocks:
            x = block(x, condition)
        x = self.final_layer(x, condition)  # [b, n, patch * patch * c_out]
        config = self.config
        return rearrange(
            x, "b (h w) (p q c) -> b c (h p) (w q)", h=config.image_size // config.patch, p=config.patch, q=config.patch
        )
