"""A FLUX-style transformer: blocks of two streams, then parallel blocks of one, rotary positions, guidance embedding.

Written from the description of FLUX.1 (Black Forest Labs 2024) and of its parts: MM-DiT (Esser et al. 2024, arXiv
2403.03206), parallel attention and MLP (Dehghani et al. 2023, arXiv 2302.05442), rotary positions (Su et al. 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    Attention,
    FinalLayer,
    Linear,
    PatchEmbed,
    TimestepEmbedder,
    attend,
    check_shape,
    gelu_tanh,
    modulated_norm,
    modulation,
    rotations_2d,
    unpatched,
    vectors,
)
from models.config import Parameterization
from models.configs.flux import FluxConfig
from models.mmdit import BLOCK_TAGS, TEXT_TAGS, JointBlock, TextEmbedder
from models.parameterization import TaggedModule, TagTable, branch_multiplier, readout_multiplier


class SingleBlock(nn.Module):
    """One stream of text and image tokens: x + gate proj([attention(h), gelu(fc1 h)]) on one modulated norm h."""

    def __init__(self, config: FluxConfig, branch: float) -> None:
        super().__init__()
        self.branch = branch
        self.attn = Attention(width=config.width, heads=config.heads, qk_norm=True, project=False)
        self.fc1 = Linear(config.width, config.mlp_hidden)
        self.proj = Linear(config.width + config.mlp_hidden, config.width)
        self.adaLN_modulation = modulation(config.width, 3)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"], rotation: Float[Tensor, "2 n half"]
    ) -> Float[Tensor, "b n d"]:
        shift, scale, gate = vectors(self.adaLN_modulation, condition, 3)
        h = modulated_norm(x, shift, scale)
        both = torch.cat([attend(*self.attn.split(h, rotation)), gelu_tanh(self.fc1(h))], dim=-1)
        return torch.addcmul(x, gate, self.proj(both), value=self.branch)


class Flux(TaggedModule):
    """A text-conditional transformer; labels choose a caption, and the null class is the empty one."""

    config: FluxConfig
    tags: ClassVar[TagTable] = TEXT_TAGS + BLOCK_TAGS
    activations: ClassVar[str] = r"[xtg]_embedder|text_embedder\.pooled|(blocks|single_blocks)\.\d+(\.image\.mlp)?"
    rotation: Tensor

    def __init__(self, config: FluxConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.x_embedder = PatchEmbed(channels=config.channels, patch=config.patch, width=width)
        self.t_embedder = TimestepEmbedder(width=width, frequency_size=config.frequency_size)
        guidance = TimestepEmbedder(width=width, frequency_size=config.frequency_size) if config.guidance else None
        self.g_embedder = guidance
        self.text_embedder = TextEmbedder(config.captions, config.class_names, width)
        self.blocks = nn.ModuleList(JointBlock(config, qk_norm=True, branch=branch) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(config, branch) for _ in range(config.singles))
        readout = readout_multiplier(parameterization, width)
        self.final_layer = FinalLayer(width=width, outputs=config.patch_values, multiplier=readout)
        self.register_buffer("rotation", rotations_2d(config.side, config.head_dim), persistent=False)

    def equip(self, folder: Path) -> None:
        self.text_embedder.captions.equip(folder)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        y: Int[Tensor, " b"],
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Prediction for noised images; see `models.dit.DiT.forward`.

        Args:
            guidance: scales that the prediction is to be guided by already; 1 unless given.

        Raises:
            ValueError: scales for a model without an embedding of them.
        """
        config = self.config
        check_shape(x, config)
        if guidance is not None and self.g_embedder is None:
            raise ValueError("the model has no embedding of guidance scales; wanted `guidance: true` of it")
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        text, pooled = self.text_embedder(y)
        condition = self.t_embedder(t) + pooled
        if self.g_embedder is not None:
            condition = condition + self.g_embedder(torch.ones_like(t) if guidance is None else guidance)
        condition = F.silu(condition)
        for block in self.blocks:
            x, text = self.through(block, x, text, condition, self.rotation)
        x = torch.cat([x, text], dim=1)
        still = torch.tensor([1.0, 0.0], device=x.device).view(2, 1, 1)  # text tokens are not turned
        still = still.expand(2, text.shape[1], self.rotation.shape[-1])
        rotation = torch.cat([self.rotation, still], dim=1)
        for block in self.single_blocks:
            x = self.through(block, x, condition, rotation)
        x = self.final_layer(x[:, : config.tokens], condition)
        return unpatched(x, config.side, config.patch)
