"""The U-Net's configuration and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

from models.configs.base import ModelConfig, check_frequencies
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally

CONDITION = 4
"""Width of the timestep and class embedding over the base width."""
_TOKENS = "a U-Net convolves pixels and has no tokens: the padding of its convolutions tells where a pixel is"


class Stage(NamedTuple):
    """A residual block with what follows it: attention, and a change of resolution."""

    inputs: int
    """Channels that come in; in the decoder those of the skip connection are among them."""
    outputs: int
    side: int
    """Side of the feature map that the residual block sees."""
    attention: bool
    resample: bool
    """Whether the resolution halves (encoder) or doubles (decoder) after it."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ModelConfig):
    """A class-conditional U-Net after ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, appendix B), which is DDPM's with
    scale and shift from the time, heads of one size, and attention at several resolutions.

    `width` is the channels of the finest level, `depth` the residual blocks of each level of the encoder; the decoder
    has one more.
    """

    family: ClassVar[str] = "unet"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "DDPM-32": {
            "width": 128,
            "depth": 2,
            "multipliers": (1, 2, 2, 2),
            "attention": (16,),
            "head_dim": 256,
            "frequency_size": 128,
        },
        "ADM-64": {
            "width": 192,
            "depth": 3,
            "multipliers": (1, 2, 3, 4),
            "attention": (32, 16, 8),
            "frequency_size": 192,
        },
        "ADM-128": {"width": 256, "depth": 2, "multipliers": (1, 1, 2, 3, 4), "attention": (32, 16, 8)},
        "ADM-256": {"width": 256, "depth": 2, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (32, 16, 8)},
    }
    """ADM's sizes by the image size that they are for, and DDPM's for CIFAR-10 with ADM's conditioning."""
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": _TOKENS,
        "patch": _TOKENS,
        "block": "its blocks are residual convolutions with attention after them",
        "mlp": "its blocks are convolutions and have no MLP",
        "mlp_ratio": "its blocks are convolutions and have no MLP",
        "heads": "heads follow from head_dim, as levels differ in width",
        "text": "it is conditioned on class labels",
    }

    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of every level over `width`, finest level first; each has half the resolution of the one before."""
    attention: tuple[int, ...] = (16, 14, 8, 7)
    """Sides of the feature maps that attention follows residual blocks at, in pixels; those that no level has do
    nothing. The middle always has attention."""
    head_dim: int = 64
    """Size of one attention head; divides the channels of every level with attention."""
    groups: int = 32
    """Groups of every group norm; divides the channels of every level."""
    frequency_size: int = 256
    """Size of the sinusoidal timestep features; even."""
    learn_sigma: bool = False
    """Predict a second set of channels (the learned variance of DDPM)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frequencies(self.frequency_size)
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers are {list(self.multipliers)}; wanted at least one, of at least 1")
        halvings = len(self.multipliers) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"multipliers are of {halvings + 1} levels, and image_size {self.image_size} cannot be halved "
                f"{halvings} times; wanted fewer"
            )
        for stage in (*self.encoder, self.middle, *self.decoder):
            for channels in (stage.inputs, stage.outputs):
                if channels % self.groups:
                    raise ValueError(
                        f"groups are {self.groups}, which do not divide the {channels} channels of a level; wanted a "
                        "divisor, or another width"
                    )
            if stage.attention and stage.outputs % self.head_dim:
                raise ValueError(
                    f"head_dim is {self.head_dim}, which does not divide the {stage.outputs} channels of the level of "
                    f"side {stage.side}; wanted a divisor, or another width"
                )

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        shape = {"image_size": 8, "channels": 1, "num_classes": 10, "multipliers": (1, 2), "attention": (4,)}
        return cls(**{**shape, "width": width, "depth": depth, "head_dim": head_dim, "groups": 8, **options})

    @property
    def width_step(self) -> int:
        return math.lcm(self.head_dim, self.groups)

    def resized(self, *, width: int, depth: int) -> Self:
        return replace(self, width=width, depth=depth)

    @property
    def tokens(self) -> int:
        """Pixels of one image: the positions of its finest level."""
        return self.image_size**2

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.channels * (2 if self.learn_sigma else 1)

    @property
    def encoder(self) -> list[Stage]:
        """The stages on the way down, finest first."""
        stages, channels, side = [], self.width, self.image_size
        for level, multiplier in enumerate(self.multipliers):
            for block in range(self.depth):
                outputs = multiplier * self.width
                last = block == self.depth - 1 and level < len(self.multipliers) - 1
                stages.append(Stage(channels, outputs, side, side in self.attention, last))
                channels = outputs
            side //= 2
        return stages

    @property
    def middle(self) -> Stage:
        """The coarsest stage: a residual block, attention, and a second residual block."""
        channels = self.multipliers[-1] * self.width
        return Stage(channels, channels, self.image_size >> (len(self.multipliers) - 1), True, False)

    @property
    def decoder(self) -> list[Stage]:
        """The stages on the way up, coarsest first."""
        skips = [self.width]
        for stage in self.encoder:
            skips += [stage.outputs] * (2 if stage.resample else 1)
        stages, channels = [], self.middle.outputs
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            side = self.image_size >> level
            for block in range(self.depth + 1):
                outputs, last = multiplier * self.width, block == self.depth and level > 0
                stages.append(Stage(channels + skips.pop(), outputs, side, side in self.attention, last))
                channels = outputs
        return stages


def _residuals(config: UNetConfig) -> Iterator[Stage]:
    """Every residual block; the second of the middle has neither attention nor a change of resolution."""
    yield from config.encoder
    yield config.middle
    yield config.middle._replace(attention=False)
    yield from config.decoder


@cost.register
def _unet_cost(config: UNetConfig) -> Cost:
    def convolution(tally: Tally, inputs: int, outputs: int, positions: int) -> None:
        tally.convolution(inputs, outputs, side=3, uses=positions)

    def attention(tally: Tally, outputs: int, places: int) -> None:
        attention_tally(tally, outputs, positions=places, seen=places)

    return unet_tally(config, convolution, attention).cost(config.tokens)


def attention_tally(tally: Tally, outputs: int, *, positions: int, seen: int) -> None:
    """Attention of `positions` of a feature map, each over `seen` of them, with its norm."""
    tally.vectors += 2 * outputs
    tally.linear(outputs, 3 * outputs, uses=positions)
    tally.linear(outputs, outputs, uses=positions)
    tally.attention(positions, seen, outputs)


def unet_tally(
    config: UNetConfig,
    convolution: Callable[[Tally, int, int, int], None],
    attention: Callable[[Tally, int, int], None],
    frames: int = 1,
) -> Tally:
    """What a U-Net is made of.

    Args:
        convolution: adds one of a residual block, of inputs, outputs and positions.
        attention: adds what follows a residual block with attention, of outputs and the places of a frame.
        frames: of a sample; what is not of residual blocks sees each alone.
    """
    width, condition = config.width, CONDITION * config.width
    last, pixels, tally = config.decoder[-1].outputs, frames * config.image_size**2, Tally()
    tally.convolution(config.channels, width, side=3, uses=pixels)
    tally.timestep(config.frequency_size, condition)
    tally.tables += (config.num_classes + 1) * condition
    for stage in _residuals(config):
        inputs, outputs, positions = stage.inputs, stage.outputs, frames * stage.side**2
        convolution(tally, inputs, outputs, positions)
        convolution(tally, outputs, outputs, positions)
        if inputs != outputs:
            tally.convolution(inputs, outputs, side=1, uses=positions)
        tally.linear(condition, 2 * outputs, uses=1)
        tally.vectors += 2 * inputs + 2 * outputs  # norms
        if stage.attention:
            attention(tally, outputs, stage.side**2)
    for stages, growth in ((config.encoder, 0.5), (config.decoder, 2)):
        for stage in stages:
            if stage.resample:
                tally.convolution(stage.outputs, stage.outputs, side=3, uses=frames * int(stage.side * growth) ** 2)
    tally.vectors += 2 * last
    tally.convolution(last, config.out_channels, side=3, uses=pixels)
    return tally


@activation_bytes.register
def _unet_activation_bytes(config: UNetConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: every input of a norm, a non-linearity, a convolution or a matrix product as a tensor of its own."""
    return unet_bytes(config, precision, checkpointing)


def unet_bytes(
    config: UNetConfig,
    precision: Precision,
    checkpointing: bool,
    *,
    frames: int = 1,
    attentions: int = 1,
    halves: bool = False,
) -> int:
    """A bound of what autograd saves of a sample of `frames` frames.

    Args:
        attentions: that follow a residual block with attention.
        halves: each convolution of a residual block is two, one behind the other.
    """
    size = 4 if precision == "fp32" else 2
    stages = [frames * _stage_values(config, stage, attentions, halves) for stage in _residuals(config)]
    inputs = [frames * stage.inputs * stage.side**2 for stage in _residuals(config)]
    pixels = frames * config.image_size**2
    ends = pixels * (config.channels + 3 * config.decoder[-1].outputs) + 8 * CONDITION * config.width
    kept = sum(inputs) + max(stages) if checkpointing else sum(stages)
    return size * (ends + config.frequency_size + kept) + 4 * config.channels * pixels


def _stage_values(config: UNetConfig, stage: Stage, attentions: int, halves: bool) -> int:
    """Numbers that one stage keeps: in and out of both norms and non-linearities, and what convolutions are given."""
    each = 3 * stage.inputs + (7 if halves else 5) * stage.outputs
    if stage.attention:
        each += attentions * (6 * stage.outputs + stage.outputs // config.head_dim)
    if stage.resample:
        each += 4 * stage.outputs
    return each * stage.side**2 + 2 * config.groups * 2 + 4 * stage.outputs
