"""The video diffusion transformer: a DiT on spacetime patches, with a choice of what a token attends over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import CrossAttention, FinalLayer, LabelEmbedder, Linear, TimestepEmbedder, modulated_norm, vectors
from models.config import Parameterization
from models.configs.text import Text
from models.configs.video_dit import VideoDiTConfig
from models.dit import DiTBlock
from models.mmdit import BLOCK_TAGS
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier
from models.spacetime import SpacetimeAttention, SpacetimePatchEmbed, positions_3d, rotations_3d, unpatched_clips
from models.text import Captions


class CaptionEmbedder(nn.Module):
    """The words of a class's caption at the model's width."""

    def __init__(self, text: Text, class_names: Sequence[str], width: int) -> None:
        super().__init__()
        self.captions = Captions(text, class_names)
        self.sequence = Linear(text.width, width)

    def forward(self, y: Int[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        return self.sequence(self.captions(y)[0].to(self.sequence.weight.dtype))


class VideoBlock(DiTBlock):
    """A DiT block whose tokens attend over what its pattern says, and to a caption where there is one."""

    def __init__(self, config: VideoDiTConfig, block: int, branch: float) -> None:
        super().__init__(config.plain, branch)
        self.attn = SpacetimeAttention(
            width=config.width,
            heads=config.heads,
            pattern=config.pattern(block),
            window=config.window,
            qk_norm=config.qk_norm,
        )
        self.cross = None
        if config.conditioning == "cross":
            self.cross = CrossAttention(width=config.width, heads=config.heads, qk_norm=config.qk_norm)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        frames: int,
        rotation: Float[Tensor, "2 n half"] | None = None,
        caption: Float[Tensor, "b l d"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors(self.adaLN_modulation, condition, 6)
        x = torch.addcmul(x, gate, self.attn(modulated_norm(x, shift, scale), frames, rotation), value=self.branch)
        if self.cross is not None:
            x = torch.add(x, self.cross(x, caption), alpha=self.branch)
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)), value=self.branch)


class VideoDiT(TaggedModule):
    """A class-conditional transformer of clips; its call is that of a DiT, on [b, c, f, h, w].

    Clips may be shorter than whole ones, by whole patches, and as coarse as the coarsest of the model's levels.
    """

    config: VideoDiTConfig
    tags: ClassVar[TagTable] = (
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("text_embedder.sequence.weight", Tag(Role.INPUT, Start.LINEAR)),
        *BLOCK_TAGS,
    )
    activations: ClassVar[str] = r"[xty]_embedder|text_embedder|blocks\.\d+(\.(attn|mlp|cross))?"

    def __init__(self, config: VideoDiTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.x_embedder = SpacetimePatchEmbed(
            channels=config.channels, patch_frames=config.patch_frames, patch=config.patch, width=width
        )
        self.t_embedder = TimestepEmbedder(width=width, frequency_size=config.frequency_size)
        cross = config.conditioning == "cross"
        self.y_embedder = None if cross else LabelEmbedder(num_classes=config.num_classes, width=width)
        self.text_embedder = CaptionEmbedder(config.captions, config.class_names, width) if cross else None
        self.blocks = nn.ModuleList(VideoBlock(config, index, branch) for index in range(config.depth))
        readout = readout_multiplier(parameterization, width)
        self.final_layer = FinalLayer(width=width, outputs=config.patch_values, multiplier=readout)
        frames, rope = config.frames // config.patch_frames, config.positions == "rope"
        for level in range(config.levels):
            of_level, features = (rotations_3d, config.head_dim) if rope else (positions_3d, width)
            fixed = of_level(frames, config.side >> level, features, spacing=2.0**level)
            self.register_buffer(f"places_{level}", fixed, persistent=False)

    def equip(self, folder: Path) -> None:
        if self.text_embedder is not None:
            self.text_embedder.captions.equip(folder)

    def forward(
        self, x: Float[Tensor, "b c f h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c f h w"]:
        """Prediction for noised clips; see `models.dit.DiT.forward`.

        Raises:
            ValueError: clips of another shape, longer than a whole one, or not of whole patches.
        """
        config, level = self.config, self._level(x)
        frames, places = x.shape[2] // config.patch_frames, self.get_buffer(f"places_{level}")
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        condition, caption, rotation = self.t_embedder(t), None, None
        if config.positions == "rope":
            rotation = places[:, :frames].flatten(1, 2)
        else:
            x = x + places[:frames].flatten(0, 1).to(x.dtype)
        if self.y_embedder is not None:
            condition = condition + self.y_embedder(y)
        if self.text_embedder is not None:
            caption = self.text_embedder(y)
        condition = F.silu(condition)
        for block in self.blocks:
            x = self.through(block, x, condition, frames, rotation, caption)
        x = self.final_layer(x, condition)
        return unpatched_clips(x, side=config.side >> level, patch_frames=config.patch_frames, patch=config.patch)

    def _level(self, x: Tensor) -> int:
        """The level that clips are of: how often their resolution was halved."""
        config = self.config
        channels, frames, height, width = x.shape[1:] if x.dim() == 5 else (0, 0, 0, 0)
        sides = [config.image_size >> level for level in range(config.levels)]
        short = 1 <= frames <= config.frames and frames % config.patch_frames == 0
        if channels != config.channels or not short or height != width or height not in sides:
            size = " or ".join(f"{side}, {side}" for side in sides)
            raise ValueError(
                f"clips have shape {list(x.shape)}; wanted [b, {config.channels}, frames, {size}] of at most "
                f"{config.frames} frames, a multiple of {config.patch_frames}"
            )
        return sides.index(height)
