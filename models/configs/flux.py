"""The FLUX-style transformer's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.base import check_rotation
from models.configs.mmdit import ends, ends_values, stream, text_embedders
from models.configs.text import TextConditioned
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values


@dataclass(frozen=True, kw_only=True)
class FluxConfig(TextConditioned):
    """A text-conditional rectified flow transformer after FLUX.1 (Black Forest Labs 2024; its published code).

    Blocks of two streams as MM-DiT's come first; then blocks of one stream, in which attention and MLP are parallel.
    Queries and keys of image tokens are rotated by row and column. `depth` is the number of two-stream blocks.
    """

    family: ClassVar[str] = "flux"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "12B/2": {"patch": 2, "width": 3072, "depth": 19, "heads": 24, "singles_per_double": 2}
    }
    """FLUX.1's transformer: 19 blocks of two streams and 38 of one."""
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its queries and keys are always rotated",
        "qk_norm": "its queries and keys are always normed",
        "block": "its blocks of one stream are always parallel; singles_per_double says how many there are",
        "learn_sigma": "it predicts a velocity",
    }

    singles_per_double: int = 2
    """Blocks of one stream for every block of two."""
    guidance: bool = False
    """An embedding of the guidance scale, for models that guidance is distilled into; where none is given it is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotation(self.head_dim)

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        one = {"singles_per_double": 1, **options}
        return super().example(width=width, depth=depth, head_dim=head_dim, **one)

    @property
    def singles(self) -> int:
        """Blocks of one stream."""
        return self.depth * self.singles_per_double


@cost.register
def _flux_cost(config: FluxConfig) -> Cost:
    tally, width = Tally(), config.width
    both = config.tokens + config.captions.tokens
    ends(tally, config)
    text_embedders(tally, config.captions, width)
    if config.guidance:
        tally.timestep(config.frequency_size, width)
    for _ in range(config.depth):
        stream(tally, config, tokens=config.tokens, gains=True)
        stream(tally, config, tokens=config.captions.tokens, gains=True)
    for _ in range(config.singles):
        tally.linear(width, 3 * width, uses=1)
        tally.linear(width, 3 * width, uses=both)
        tally.linear(width, config.mlp_hidden, uses=both)
        tally.linear(width + config.mlp_hidden, width, uses=both)
        tally.vectors += 2 * config.head_dim
    for _ in range(config.depth + config.singles):
        tally.attention(both, both, width)
    return tally.cost(config.tokens)


@activation_bytes.register
def _flux_activation_bytes(config: FluxConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: see `models.tally.block_values`. A block of one stream joins attention and MLP once more."""
    size, text, width = 4 if precision == "fp32" else 2, config.captions.tokens, config.width
    both, hidden, heads = config.tokens + text, config.mlp_hidden, config.heads
    double = sum(
        block_values(tokens=tokens, width=width, hidden=hidden, heads=heads, joint=True)
        for tokens in (config.tokens, text)
    )
    single = block_values(tokens=both, width=width, hidden=hidden, heads=heads) - both * 4 * width
    blocks = config.depth + config.singles
    kept = blocks * both * width + max(double, single) if checkpointing else (
        config.depth * double + config.singles * single
    )  # fmt: skip
    outer = ends_values(config, both) + text * config.captions.width + config.captions.pooled + 4 * width
    return size * (outer + kept) + 4 * config.channels * config.image_size**2
