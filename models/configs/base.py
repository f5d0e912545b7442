"""What every model family says of itself as data, without torch: planning reads it.

A family is a frozen dataclass derived from `ModelConfig`, with its closed forms of cost beside it (`models.cost`), and
a module of the same name one folder up. Its fields determine the architecture completely, so their canonical JSON is
part of a trial's identity. Every field has a docstring: it is what a sweep's `models` section says of the option.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

Predicts = Literal["images", "tokens"]
Samples = Literal["images", "clips"]
"""What one sample is: a still image, or a clip of frames."""

ADDED_LATER = {"added_later": True}
"""Metadata of a configuration's field that came when there were results already: see `orchestrator.spec.identity`."""
DATA_FIELDS = ("image_size", "channels", "frames", "frame_counts", "num_classes", "class_names", "dataset")
"""Fields that the dataset gives, to the families that have them; users choose the others."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """A model of images [channels, image_size, image_size] with classes."""

    family: ClassVar[str]
    """Name of the family in sweeps and results."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published sizes by name, as fields of the class."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Names, in lower case, that published sizes may also begin with."""
    refusals: ClassVar[Mapping[str, str]] = {}
    """Options of other families that one may expect here, and why there are none."""
    predicts: ClassVar[Predicts] = "images"
    """Whether it predicts something of noised images, as objectives on Gaussian paths want, or tokens."""
    samples: ClassVar[Samples] = "images"
    """What it is a model of."""
    packable: ClassVar[bool] = False
    """Several models of one configuration can train as one stacked model."""
    can_use_float8: ClassVar[bool] = False
    """The linear maps of its blocks can multiply in fp8, where their sizes can."""

    image_size: int
    """Height and width of the (latent) image in pixels."""
    channels: int
    """Channels of the (latent) image."""
    num_classes: int
    """Classes of the label table; one more row is added for the null class of guidance dropout."""
    width: int
    """Size of the residual stream, which every other width is in proportion to."""
    depth: int
    """Number of blocks that lie one behind the other."""
    class_dropout: float = 0.1
    """Probability with which a training label becomes the null class."""
    zero_init: bool = True
    """Residual branches start at zero, so every block starts as the identity."""

    @property
    def fusable(self) -> bool:
        """Its blocks are such as `models.fused` has kernels for."""
        return False

    def __post_init__(self) -> None:
        """Refuse what no field of its type can be; a family adds what does not go together."""
        for name, hint in _hints(type(self)):
            value = getattr(self, name)
            if hint is int and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value}; wanted a whole number of at least 1")
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(str, get_args(hint)))}")
        if not 0.0 <= self.class_dropout < 1.0:
            raise ValueError(f"class_dropout is {self.class_dropout}; wanted at least 0 and below 1")

    @classmethod
    @abstractmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        """A small model of the family on 8 x 8 images of one channel and 10 classes, with heads of size `head_dim`.

        The coordinate check trains it at several widths and depths.
        """

    @property
    @abstractmethod
    def width_step(self) -> int:
        """What widths of models like this one are multiples of: those of a ladder with heads of one size."""

    @abstractmethod
    def resized(self, *, width: int, depth: int) -> Self:
        """The same model at another size, with heads of the same size; `width` is a multiple of `width_step`."""

    @property
    def resolutions(self) -> int:
        """Resolutions of a sample that it takes, each half the one before."""
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: channels, height, width."""
        return self.channels, self.image_size, self.image_size

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of one sample: what the tokens of a budget are counted in."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig(ModelConfig):
    """A model of square patches as tokens, with heads of one size."""

    patch: int
    """Side of a square patch in pixels; divides `image_size`."""
    heads: int
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden size of the MLP over `width`; a SwiGLU's is 2/3 of that, see `mlp_hidden`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)
        check_patch(self.image_size, self.patch)

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        shape = {"image_size": 8, "channels": 1, "num_classes": 10, "patch": 2}
        return cls(**{**shape, "width": width, "depth": depth, "heads": width // head_dim, **options})

    @property
    def width_step(self) -> int:
        return math.lcm(self.head_dim, 4)

    def resized(self, *, width: int, depth: int) -> Self:
        return replace(self, width=width, depth=depth, heads=width // self.head_dim)

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden size of the MLP."""
        return self.mlp_ratio * self.width

    @property
    def side(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of one image, its patches."""
        return self.side**2

    @property
    def patch_values(self) -> int:
        """Numbers of one patch."""
        return self.channels * self.patch**2


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(PatchConfig):
    """A model of patches whose time goes through a two-layer MLP."""

    frequency_size: int = 256
    """Size of the sinusoidal timestep features; even."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frequencies(self.frequency_size)


def swiglu_hidden(ratio: int, width: int) -> int:
    """Hidden size of a SwiGLU, which has three matrices for two: 2/3 of `ratio` x `width` to the nearest multiple of 8
    (at least 8), so that it has about the parameters of a GELU MLP."""
    return max(8, 8 * ((ratio * width + 6) // 12))


@cache
def _hints(config: type[ModelConfig]) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(config)
    return tuple((name, hint) for name, hint in hints.items() if get_origin(hint) is not ClassVar)


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width."""
    if width % heads:
        raise ValueError(f"width {width} is not divisible by heads {heads}; wanted a width that is a multiple of heads")


def check_patch(image_size: int, patch: int) -> None:
    """Refuse patches that do not divide the image."""
    if image_size % patch:
        raise ValueError(f"patch {patch} does not divide image_size {image_size}; wanted one of {divisors(image_size)}")


def divisors(number: int) -> list[int]:
    """What divides a number, 1 and itself included."""
    return [p for p in range(1, number + 1) if number % p == 0]


def check_fixed_positions(width: int) -> None:
    """Refuse widths that sines and cosines of two axes do not fill."""
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4, which 2-D sin-cos positions need")


def check_rotation(head_dim: int) -> None:
    """Refuse heads whose pairs cannot be shared between two axes."""
    if head_dim % 4:
        raise ValueError(
            f"heads of size {head_dim} cannot be rotated in 2-D: two axes of pairs need a multiple of 4; "
            f"change heads or width, or take positions sincos or learned"
        )


def check_frequencies(frequency_size: int) -> None:
    """Refuse timestep features that are not pairs."""
    if frequency_size < 2 or frequency_size % 2:
        raise ValueError(f"frequency_size is {frequency_size}; wanted an even number of at least 2")
