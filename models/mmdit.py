"""The multi-modal diffusion transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    Attention,
    CrossAttention,
    FinalLayer,
    Linear,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    attend_jointly,
    check_shape,
    modulated_norm,
    modulation,
    positions_2d,
    unpatched,
    vectors,
)
from models.config import Parameterization
from models.configs.base import TransformerConfig
from models.configs.mmdit import MMDiTConfig
from models.configs.text import Text
from models.dit import DiTBlock
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier
from models.text import Captions


class Stream(nn.Module):
    """The weights of one modality in a joint block. A `read_only` one is attended to and goes no further."""

    def __init__(self, config: TransformerConfig, *, qk_norm: bool, branch: float, read_only: bool = False) -> None:
        super().__init__()
        width, self.branch, self.read_only = config.width, branch, read_only
        self.attn = Attention(width=width, heads=config.heads, qk_norm=qk_norm, project=not read_only)
        self.mlp = None if read_only else Mlp(width=width, hidden=config.mlp_hidden)
        self.adaLN_modulation = modulation(width, 2 if read_only else 6)

    def modulators(self, condition: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention and MLP; of a read-only stream shift and scale alone."""
        return vectors(self.adaLN_modulation, condition, 2 if self.read_only else 6)

    def after(
        self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"], modulators: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n d"]:
        """The stream after a block, from what its tokens attended to."""
        if self.mlp is None:
            return x
        _, _, gate_attn, shift, scale, gate_mlp = modulators
        x = torch.addcmul(x, gate_attn, self.attn.proj(attended), value=self.branch)
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift, scale)), value=self.branch)


class JointBlock(nn.Module):
    """Two streams, each with weights of its own, that attend over both (Esser et al. 2024, figure 2b)."""

    def __init__(self, config: TransformerConfig, *, qk_norm: bool, branch: float, last: bool = False) -> None:
        super().__init__()
        self.image = Stream(config, qk_norm=qk_norm, branch=branch)
        self.text = Stream(config, qk_norm=qk_norm, branch=branch, read_only=last)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        text: Float[Tensor, "b l d"],
        condition: Float[Tensor, "b d"],
        rotation: Float[Tensor, "2 n half"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b l d"]]:
        of_image, of_text = self.image.modulators(condition), self.text.modulators(condition)
        attended = attend_jointly(
            self.image.attn.split(modulated_norm(x, *of_image[:2]), rotation),
            self.text.attn.split(modulated_norm(text, *of_text[:2])),
        )
        return self.image.after(x, attended[0], of_image), self.text.after(text, attended[1], of_text)


class CrossBlock(DiTBlock):
    """A DiT block with attention to the text between its two halves, unmodulated (Chen et al. 2023, section 2.3)."""

    def __init__(self, config: MMDiTConfig, branch: float) -> None:
        super().__init__(config.plain, branch)
        self.cross = CrossAttention(width=config.width, heads=config.heads, qk_norm=config.qk_norm)

    def between(self, x: Float[Tensor, "b n d"], context: Tensor | None) -> Float[Tensor, "b n d"]:
        assert context is not None, "a cross block has a text"
        return torch.add(x, self.cross(x, context), alpha=self.branch)


class TextEmbedder(nn.Module):
    """A caption's sequence and pooled embedding at the model's width."""

    def __init__(self, text: Text, class_names: Sequence[str], width: int) -> None:
        super().__init__()
        self.captions = Captions(text, class_names)
        self.sequence = Linear(text.width, width)
        self.pooled = nn.Sequential(Linear(text.pooled, width), nn.SiLU(), Linear(width, width))

    def forward(self, y: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        sequence, pooled = self.captions(y)
        precision = self.sequence.weight.dtype
        return self.sequence(sequence.to(precision)), self.pooled(pooled.to(precision))


TEXT_TAGS: TagTable = (
    ("text_embedder.sequence.weight", Tag(Role.INPUT, Start.LINEAR)),
    ("text_embedder.pooled.0.weight", Tag(Role.INPUT, Start.LINEAR)),
    ("text_embedder.pooled.2.weight", Tag(Role.HIDDEN, Start.LINEAR)),
)
BLOCK_TAGS: TagTable = (
    ("*blocks.*.bias", Tag(Role.BIAS, Start.ZERO, branch=True)),
    ("*.bias", Tag(Role.BIAS, Start.ZERO)),
    ("x_embedder.proj.weight", Tag(Role.INPUT, Start.LINEAR)),
    ("[tg]_embedder.mlp.0.weight", Tag(Role.INPUT, Start.TIMESTEP)),
    ("[tg]_embedder.mlp.2.weight", Tag(Role.HIDDEN, Start.TIMESTEP)),
    ("*blocks.*.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
    ("final_layer.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION)),
    ("*blocks.*.[qk]_norm.weight", Tag(Role.VECTOR, Start.ONE, branch=True)),
    # Nothing gates attention to the text, so its last map starts at zero instead.
    ("blocks.*.cross.proj.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
    ("*blocks.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
    ("final_layer.linear.weight", Tag(Role.OUTPUT, Start.ZERO)),
)
"""Of all that families with adaLN blocks share."""


class MMDiT(TaggedModule):
    """A text-conditional transformer; labels choose a caption, and the null class is the empty one."""

    config: MMDiTConfig
    tags: ClassVar[TagTable] = TEXT_TAGS + BLOCK_TAGS
    activations: ClassVar[str] = r"[xt]_embedder|text_embedder\.pooled|blocks\.\d+(\.(attn|mlp|image\.mlp|cross))?"
    positions: Tensor

    def __init__(self, config: MMDiTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.x_embedder = PatchEmbed(channels=config.channels, patch=config.patch, width=width)
        self.t_embedder = TimestepEmbedder(width=width, frequency_size=config.frequency_size)
        self.text_embedder = TextEmbedder(config.captions, config.class_names, width)
        self.blocks = nn.ModuleList(self._block(branch, index == config.depth - 1) for index in range(config.depth))
        readout = readout_multiplier(parameterization, width)
        self.final_layer = FinalLayer(width=width, outputs=config.patch_values, multiplier=readout)
        self.register_buffer("positions", positions_2d(config.side, width), persistent=False)

    def _block(self, branch: float, last: bool) -> nn.Module:
        config = self.config
        if config.conditioning == "joint":
            return JointBlock(config, qk_norm=config.qk_norm, branch=branch, last=last)
        return CrossBlock(config, branch) if config.conditioning == "cross" else DiTBlock(config.plain, branch)

    def equip(self, folder: Path) -> None:
        self.text_embedder.captions.equip(folder)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Prediction for noised images; see `models.dit.DiT.forward`."""
        config = self.config
        check_shape(x, config)
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        x = x + self.positions.to(x.dtype)
        text, pooled = self.text_embedder(y)
        condition = F.silu(self.t_embedder(t) + pooled)
        if config.conditioning == "in-context":
            x = torch.cat([x, text], dim=1)
        for block in self.blocks:
            if config.conditioning == "joint":
                x, text = self.through(block, x, text, condition)
            else:
                x = self.through(block, x, condition, None, text)
        x = self.final_layer(x[:, : config.tokens], condition)
        return unpatched(x, config.side, config.patch)
