"""The 3-D U-Net's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from models.configs.clips import ClipConfig, View, mean_cost, mean_tokens
from models.configs.unet import UNetConfig, attention_tally, unet_bytes, unet_tally
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally


@dataclass(frozen=True, kw_only=True)
class UNet3DConfig(ClipConfig, UNetConfig):
    """The U-Net with time as a third axis (Ho et al. 2022, arXiv 2204.03458): the convolutional arm of video.

    Resolutions halve in space alone. Where the U-Net attends over a frame, this one then attends over the frames of a
    place. What begins, ends and resamples it convolves each frame alone.
    """

    family: ClassVar[str] = "unet3d"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    convolution: Literal["factorised", "full"] = "factorised"
    """Of residual blocks. factorised: 3 x 3 within a frame, then 3 along time (Qiu et al. 2017, arXiv 1711.10305);
    full: 3 x 3 x 3."""

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        return super().example(width=width, depth=depth, head_dim=head_dim, **{"frames": 4, **options})

    @property
    def tokens(self) -> int:
        """Pixels of one clip, the mean where clips have several lengths."""
        return mean_tokens([self.tokens_of(view) for view in self.views])

    def tokens_of(self, view: View) -> int:
        """Pixels of a clip of one size."""
        return view.frames * view.image_size**2


@cost.register
def _unet3d_cost(config: UNet3DConfig) -> Cost:
    return mean_cost([_cost_of(config, view) for view in config.views])


def _cost_of(config: UNet3DConfig, view: View) -> Cost:
    def convolution(tally: Tally, inputs: int, outputs: int, positions: int) -> None:
        if config.convolution == "full":
            tally.convolution(inputs, outputs, side=3, uses=positions, frames=3)
        else:
            tally.convolution(inputs, outputs, side=3, uses=positions)
            tally.convolution(outputs, outputs, side=1, uses=positions, frames=3)

    def attention(tally: Tally, outputs: int, places: int) -> None:
        for seen in (places, view.frames):
            attention_tally(tally, outputs, positions=view.frames * places, seen=seen)

    return unet_tally(config, convolution, attention, view.frames).cost(config.tokens_of(view))


@activation_bytes.register
def _unet3d_activation_bytes(config: UNet3DConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound, of whole clips: see `models.configs.unet.unet_bytes`."""
    halves = config.convolution == "factorised"
    return unet_bytes(config, precision, checkpointing, frames=config.frames, attentions=2, halves=halves)
