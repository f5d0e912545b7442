"""The JiT's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.base import TransformerConfig, check_fixed_positions, check_rotation, swiglu_hidden
from models.configs.dit import DiTConfig, plain_dit
from models.configs.mmdit import ends_values
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values


@dataclass(frozen=True, kw_only=True)
class JiTConfig(TransformerConfig):
    """A plain transformer on large patches of pixels, which predicts the image (Li & He 2025, arXiv 2511.13720).

    Patches go through a narrow linear map first and get fixed sin-cos positions; blocks have RMS norms with gains,
    SwiGLU, QK-norm, rotary positions and adaLN-Zero; copies of the class embedding stand in the sequence from one block
    on. Train it with the objective x-prediction-velocity-loss.
    """

    family: ClassVar[str] = "jit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{size}/{patch}": {
            "patch": patch, "width": width, "depth": depth, "heads": heads,
            "bottleneck": 256 if size == "H" else 128, "context_tokens": 32, "context_start": start,
        }
        for size, (width, depth, heads, start) in {
            "B": (768, 12, 12, 5), "L": (1024, 24, 16, 9), "H": (1280, 32, 16, 11),
        }.items()
        for patch in (16, 32)
    }  # fmt: skip
    """Published sizes (its table 9) by patch: 16 for images of 256 pixels, 32 for 512."""
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "it always adds sin-cos positions and rotates queries and keys",
        "qk_norm": "its queries and keys are always normed",
        "mlp": "its MLP is always a SwiGLU",
        "block": "its blocks are serial",
        "learn_sigma": "it predicts the image",
        "text": "it is conditioned on class labels",
    }

    bottleneck: int = 32
    """Width between the two linear maps that a patch is embedded by."""
    context_tokens: int = 4
    """Copies of the class embedding, with learned positions, that stand before the patches."""
    context_start: int = 2
    """The first block that sees them, counted from 1; at most `depth`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fixed_positions(self.width)
        check_rotation(self.head_dim)
        if self.context_start > self.depth:
            raise ValueError(f"context_start is {self.context_start}; wanted at most the depth, {self.depth}")

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        late = {"context_start": min(2, depth), **options}
        return super().example(width=width, depth=depth, head_dim=head_dim, **late)

    @property
    def mlp_hidden(self) -> int:
        """Hidden size of the SwiGLU."""
        return swiglu_hidden(self.mlp_ratio, self.width)

    @property
    def plain(self) -> DiTConfig:
        """The DiT whose blocks these are, but for the norms."""
        return plain_dit(self, qk_norm=True, mlp="swiglu", positions="rope")

    def tokens_of(self, block: int) -> int:
        """Tokens that a block sees."""
        return self.tokens + (self.context_tokens if block + 1 >= self.context_start else 0)


@cost.register
def _jit_cost(config: JiTConfig) -> Cost:
    tally, width = Tally(), config.width
    tally.linear(config.patch_values, config.bottleneck, uses=config.tokens, bias=False)
    tally.linear(config.bottleneck, width, uses=config.tokens)
    tally.timestep(config.frequency_size, width)
    tally.tables += (config.num_classes + 1) * width
    tally.vectors += config.context_tokens * width + (2 * config.depth + 1) * width  # and gains
    for block in range(config.depth):
        tokens = config.tokens_of(block)
        tally.linear(width, 6 * width, uses=1)
        tally.linear(width, 3 * width, uses=tokens)
        tally.linear(width, width, uses=tokens)
        tally.linear(width, 2 * config.mlp_hidden, uses=tokens)
        tally.linear(config.mlp_hidden, width, uses=tokens)
        tally.vectors += 2 * config.head_dim
        tally.attention(tokens, tokens, width)
    tally.linear(width, 2 * width, uses=1)
    tally.linear(width, config.patch_values, uses=config.tokens)
    return tally.cost(config.tokens)


@activation_bytes.register
def _jit_activation_bytes(config: JiTConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: see `models.tally.block_values`; on the CPU an RMS norm is several kernels."""
    size, width = 4 if precision == "fp32" else 2, config.width
    blocks = [
        block_values(tokens=tokens, width=width, hidden=2 * config.mlp_hidden, heads=config.heads) + 4 * tokens * width
        for tokens in map(config.tokens_of, range(config.depth))
    ]
    tokens = config.tokens_of(config.depth)
    kept = config.depth * tokens * width + max(blocks) if checkpointing else sum(blocks)
    outer = ends_values(config, tokens) + config.tokens * config.bottleneck
    return size * (outer + kept) + 4 * config.channels * config.image_size**2
