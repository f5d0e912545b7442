"""What model families of clips have in common: frames, and clips of several lengths and resolutions in one training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from models.configs.base import ModelConfig, Samples
from models.cost import Cost


class View(NamedTuple):
    """One size of clip that a model is trained on."""

    frames: int
    image_size: int


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ModelConfig):
    """A model of clips [channels, frames, image_size, image_size] with classes."""

    samples: ClassVar[Samples] = "clips"
    frames: int
    """Frames of a whole clip."""
    frame_counts: tuple[int, ...] = ()
    """Frames that the clips of training batches have, batch by batch in turn; empty: all are whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for count in self.frame_counts:
            if not 1 <= count <= self.frames:
                raise ValueError(f"frame_counts has {count}; wanted 1 to the {self.frames} frames of a whole clip")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.channels, self.frames, self.image_size, self.image_size

    @property
    def views(self) -> tuple[View, ...]:
        """The sizes of clip that training goes through, each as often as the others."""
        return tuple(View(frames, self.image_size) for frames in self.frame_counts or (self.frames,))


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Of a model whose samples have several sizes, each as often as the others; `tokens` is the mean as well."""
    tokens = sum(cost.tokens for cost in costs)
    return Cost(
        params_total=costs[0].params_total,
        params_backbone=costs[0].params_backbone,
        params_matmul=sum(cost.params_matmul * cost.tokens for cost in costs) / tokens,
        forward_flops=sum(cost.forward_flops for cost in costs) / len(costs),
        tokens=mean_tokens([cost.tokens for cost in costs]),
    )


def mean_tokens(tokens: Sequence[int]) -> int:
    """The mean of the tokens of samples of several sizes, to the nearest whole token."""
    return max(1, round(sum(tokens) / len(tokens)))


def windows(frames: int, *, before: int | None, after: int | None) -> Iterator[tuple[int, range]]:
    """Each frame with the frames that it sees: so many before it and after it, None being all."""
    for frame in range(frames):
        first = 0 if before is None else max(0, frame - before)
        last = frames - 1 if after is None else min(frames - 1, frame + after)
        yield frame, range(first, last + 1)
