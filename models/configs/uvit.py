"""The U-ViT's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.base import PatchConfig
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values

EXTRA = 2
"""Tokens beside the patches: the time and the class."""


@dataclass(frozen=True, kw_only=True)
class UViTConfig(PatchConfig):
    """A transformer with long skip connections, as a U-Net has them (Bao et al. 2022, arXiv 2209.12152).

    Time and class are tokens, positions are learned, and blocks are plain, without biases of queries, keys and values.
    `depth` is odd: as many blocks before the middle one as after it, each of which is joined with the one that mirrors
    it. Without the last convolution, which the largest of the published models (H/2 on latents) does not have either.
    """

    family: ClassVar[str] = "uvit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{size}/2": {"patch": 2, "width": width, "depth": depth, "heads": heads}
        for size, (width, depth, heads) in {
            "S": (512, 13, 8), "M": (768, 17, 12), "L": (1024, 21, 16), "H": (1152, 29, 16),
        }.items()
    }  # fmt: skip
    """Published sizes (its table 1), at patch 2 on latents."""
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its positions are learned, of patches and of the tokens of time and class",
        "block": "its blocks are serial",
        "text": "it is conditioned on class labels",
        "frequency_size": "its time is a token of sines and cosines, as wide as the model",
    }

    zero_init: bool = False
    """Residual branches start at zero; the published model's do not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % 2 == 0:
            raise ValueError(
                f"depth is {self.depth}; wanted an odd number: blocks before and after the middle one mirror each other"
            )
        if self.width % 2:
            raise ValueError(f"width is {self.width}; wanted an even number, for the sines and cosines of the time")

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        return super().example(width=width, depth=depth + 1 - depth % 2, head_dim=head_dim, **options)


@cost.register
def _uvit_cost(config: UViTConfig) -> Cost:
    tally, width, all_tokens = Tally(), config.width, config.tokens + EXTRA
    tally.linear(config.patch_values, width, uses=config.tokens)
    tally.tables += (config.num_classes + 1) * width + all_tokens * width
    for _ in range(config.depth):
        tally.vectors += 4 * width  # norms
        tally.linear(width, 3 * width, uses=all_tokens, bias=False)
        tally.linear(width, width, uses=all_tokens)
        tally.linear(width, config.mlp_hidden, uses=all_tokens)
        tally.linear(config.mlp_hidden, width, uses=all_tokens)
        tally.attention(all_tokens, all_tokens, width)
    for _ in range(config.depth // 2):
        tally.linear(2 * width, width, uses=all_tokens)
    tally.vectors += 2 * width
    tally.linear(width, config.patch_values, uses=config.tokens)
    return tally.cost(config.tokens)


@activation_bytes.register
def _uvit_activation_bytes(config: UViTConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: see `models.tally.block_values`; a join keeps both of its inputs."""
    size, width, tokens = 4 if precision == "fp32" else 2, config.width, config.tokens + EXTRA
    block = block_values(tokens=tokens, width=width, hidden=config.mlp_hidden, heads=config.heads) - 5 * tokens * width
    joins = config.depth // 2 * 2 * tokens * width
    kept = config.depth * tokens * width + block if checkpointing else config.depth * block
    outer = config.tokens * config.patch_values + 8 * width + 4 * tokens * width
    return size * (outer + kept + joins) + 4 * config.channels * config.image_size**2
