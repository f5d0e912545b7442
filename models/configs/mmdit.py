"""The multi-modal diffusion transformer's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models.configs.base import TransformerConfig, check_fixed_positions
from models.configs.dit import DiTConfig, plain_dit
from models.configs.text import Text, TextConditioned
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values

Conditioning = Literal["joint", "cross", "in-context"]


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig(TextConditioned):
    """A text-conditional transformer after Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206, figure 2).

    Captions are embeddings made beforehand (`text`). The pooled one is added to the timestep's and modulates all
    blocks; how the sequence comes in is `conditioning`.
    """

    family: ClassVar[str] = "mmdit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"d{depth}/2": {"patch": 2, "width": 64 * depth, "depth": depth, "heads": depth}
        for depth in (15, 18, 21, 24, 30, 38)
    }
    """The paper's ladder (section 5.3): width 64 x depth, as many heads as blocks; d24 is SD3-medium's size."""
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "patches have fixed sin-cos positions and text tokens none; family flux rotates",
        "block": "text and image have a stream each; conditioning says how they meet",
        "learn_sigma": "it predicts a velocity",
    }

    conditioning: Conditioning = "joint"
    """joint: text has a stream with its own weights, and both attend over both (SD3); cross: image tokens attend to the
    text in a layer of their own (PixArt-alpha, Chen et al. 2023, arXiv 2310.00426); in-context: text tokens stand
    beside the image's in one stream (DiT, section 3.2)."""
    qk_norm: bool = True
    """RMS norm of queries and keys over each head, with a learned gain for each stream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fixed_positions(self.width)

    @property
    def plain(self) -> DiTConfig:
        """The DiT whose blocks a single stream is made of."""
        return plain_dit(self, qk_norm=self.qk_norm)


def text_embedders(tally: Tally, text: Text, width: int) -> None:
    """The map of the sequence, and the two of the pooled embedding."""
    tally.linear(text.width, width, uses=text.tokens)
    tally.linear(text.pooled, width, uses=1)
    tally.linear(width, width, uses=1)


def stream(tally: Tally, config: TransformerConfig, *, tokens: int, gains: bool, read_only: bool = False) -> None:
    """The weights of one stream of a block; a `read_only` one is attended to and goes no further."""
    width = config.width
    tally.linear(width, (2 if read_only else 6) * width, uses=1)
    tally.linear(width, 3 * width, uses=tokens)
    tally.vectors += 2 * config.head_dim if gains else 0
    if not read_only:
        tally.linear(width, width, uses=tokens)
        tally.linear(width, config.mlp_hidden, uses=tokens)
        tally.linear(config.mlp_hidden, width, uses=tokens)


def ends(tally: Tally, config: TransformerConfig) -> None:
    """Patch embedding, timestep and readout, which all families of patches have."""
    tally.linear(config.patch_values, config.width, uses=config.tokens)
    tally.timestep(config.frequency_size, config.width)
    tally.linear(config.width, 2 * config.width, uses=1)
    tally.linear(config.width, config.patch_values, uses=config.tokens)


@cost.register
def _mmdit_cost(config: MMDiTConfig) -> Cost:
    tally, image, width = Tally(), config.tokens, config.width
    text = config.captions.tokens
    ends(tally, config)
    text_embedders(tally, config.captions, width)
    for block in range(config.depth):
        if config.conditioning == "joint":
            stream(tally, config, tokens=image, gains=config.qk_norm)
            stream(tally, config, tokens=text, gains=config.qk_norm, read_only=block == config.depth - 1)
            tally.attention(image + text, image + text, width)
        elif config.conditioning == "in-context":
            stream(tally, config, tokens=image + text, gains=config.qk_norm)
            tally.attention(image + text, image + text, width)
        else:
            stream(tally, config, tokens=image, gains=config.qk_norm)
            tally.attention(image, image, width)
            tally.linear(width, width, uses=image)
            tally.linear(width, 2 * width, uses=text)
            tally.linear(width, width, uses=image)
            tally.vectors += 2 * config.head_dim if config.qk_norm else 0
            tally.attention(image, text, width)
    return tally.cost(image)


def ends_values(config: TransformerConfig, tokens: int) -> int:
    """A bound of the numbers that embedders and readout keep, `tokens` of them at most in the stream."""
    width = config.width
    return config.tokens * config.patch_values + config.frequency_size + 16 * width + 6 * tokens * width


@activation_bytes.register
def _mmdit_activation_bytes(config: MMDiTConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: see `models.tally.block_values`."""
    size, text, width = 4 if precision == "fp32" else 2, config.captions.tokens, config.width
    of_block = {"width": width, "hidden": config.mlp_hidden, "heads": config.heads}
    joint = config.conditioning == "joint"
    block = block_values(tokens=config.tokens, joint=joint, **of_block)
    if config.conditioning == "cross":
        block += config.tokens * (7 * width + 4 * config.heads) + text * 4 * width
    else:
        block += block_values(tokens=text, joint=joint, **of_block)
    inputs = (config.tokens + text) * width
    kept = config.depth * inputs + block if checkpointing else config.depth * block
    outer = ends_values(config, config.tokens + text) + text * config.captions.width + config.captions.pooled
    return size * (outer + kept) + 4 * config.channels * config.image_size**2
