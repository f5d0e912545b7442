"""The video diffusion transformer's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from models.configs.base import divisors
from models.configs.clips import ClipConfig, View, mean_cost, mean_tokens, windows
from models.configs.dit import DiTConfig, plain_dit
from models.configs.mmdit import stream
from models.configs.text import ClassNames, TextConditioned
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values

SpacetimeAttention = Literal["full", "factorised", "causal", "windowed"]
Pattern = Literal["full", "space", "time", "causal", "windowed"]
"""What the tokens of one block attend over."""


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig(ClipConfig, TextConditioned):
    """A diffusion transformer on spacetime patches (after Sora, Latte (Ma et al. 2024, arXiv 2401.03048) and the DiT).

    Tokens are boxes of `patch_frames` x `patch` x `patch`, ordered by frame. All kinds of attention have the same
    weights and differ in what a token sees, and so in FLOPs.
    """

    family: ClassVar[str] = "video-dit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{size}/2": {"patch": 2, "width": width, "depth": depth, "heads": heads}
        for size, (width, depth, heads) in {
            "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16),
        }.items()
    }  # fmt: skip
    """Latte's sizes (its table 1), which are the DiT's."""
    refusals: ClassVar[Mapping[str, str]] = {
        "block": "its blocks are serial",
        "learn_sigma": "it predicts one set of channels",
        "mlp": "its MLP has a GELU",
    }

    class_names: tuple[str, ...] = ()
    """What the classes are called: the captions of {name: class-names}; conditioning adaln reads none."""
    patch_frames: int = 1
    """Frames of a spacetime patch; divides the frames of every clip."""
    attention: SpacetimeAttention = "full"
    """full: over all tokens; factorised: over those of the same frame and of the same place, block by block in turn
    (Latte, variant 1); causal: over those of the same frames and of earlier ones; windowed: over those of frames at
    most `window` away. Counted in frames of tokens."""
    window: int = 1
    """Frames of tokens, before and after, that windowed attention sees beside a token's own."""
    positions: Literal["sincos", "rope"] = "sincos"
    """"sincos": fixed sines and cosines of time, row and column, added to the tokens. "rope": queries and keys are
    rotated by them, a third of a head's pairs for each."""
    conditioning: Literal["adaln", "cross"] = "adaln"
    """adaln: the class is added to the time and modulates all blocks (DiT); cross: the time modulates, and tokens
    attend to the class's caption, which is `text`, in a layer of their own (PixArt-alpha, Chen et al. 2023, arXiv
    2310.00426)."""
    qk_norm: bool = False
    """RMS norm of queries and keys over each head, with a learned gain."""
    levels: int = 1
    """Resolutions that it is trained on and called with, each half the one before. More than one belong with the
    objective pyramid-flow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for frames in {self.frames, *self.frame_counts}:
            if frames % self.patch_frames:
                raise ValueError(
                    f"patch_frames is {self.patch_frames}, which does not divide clips of {frames} frames; wanted one "
                    f"of {divisors(frames)}"
                )
        coarsest = 2 ** (self.levels - 1) * self.patch
        if self.image_size % coarsest:
            raise ValueError(
                f"levels is {self.levels}: image_size {self.image_size} is no multiple of {coarsest}, the patch of the "
                "coarsest; wanted fewer"
            )
        if self.positions == "sincos" and self.width < 6:
            raise ValueError(f"width {self.width} is less than the 6 that 3-D sin-cos positions need")
        if self.positions == "rope" and (self.head_dim % 2 or self.head_dim < 6):
            raise ValueError(
                f"heads of size {self.head_dim} cannot be rotated in 3-D: three axes of pairs need an even number of "
                "at least 6; change heads or width, or take positions sincos"
            )
        if self.conditioning == "adaln" and self.text is not None:
            raise ValueError("text is given, which conditioning adaln does not read; drop it, or take cross")

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        text = ClassNames() if options.get("conditioning") == "cross" else None
        clip = {"frames": 4, "patch_frames": 2, "text": text, **options}
        return super().example(width=width, depth=depth, head_dim=head_dim, **clip)

    def _check_text(self) -> None:
        if self.conditioning == "cross":
            super()._check_text()

    @property
    def resolutions(self) -> int:
        return self.levels

    @property
    def views(self) -> tuple[View, ...]:
        """Of every resolution, clips of every length."""
        whole = super().views
        return tuple(View(frames, side >> level) for level in range(self.levels) for frames, side in whole)

    @property
    def tokens(self) -> int:
        """Tokens of one clip: spacetime patches, the mean where clips have several sizes."""
        return mean_tokens([self.tokens_of(view) for view in self.views])

    def tokens_of(self, view: View) -> int:
        """Tokens of a clip of one size."""
        return view.frames // self.patch_frames * (view.image_size // self.patch) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers of one spacetime patch."""
        return self.channels * self.patch_frames * self.patch**2

    def pattern(self, block: int) -> Pattern:
        """What the tokens of a block attend over. Factorised blocks take turns, but never over an axis of one token."""
        if self.attention != "factorised":
            return self.attention
        if self.frames == self.patch_frames:
            return "space"
        return "time" if self.side == 1 or block % 2 else "space"

    @property
    def plain(self) -> DiTConfig:
        """The DiT whose blocks these are, but for what they attend over."""
        return plain_dit(self, qk_norm=self.qk_norm, positions="learned")


def attention_tally(tally: Tally, pattern: Pattern, *, frames: int, places: int, width: int, window: int) -> None:
    """The products of attention among `frames` x `places` tokens."""
    if pattern == "full":
        tally.attention(frames * places, frames * places, width)
    elif pattern == "space":
        tally.attention(frames * places, places, width)
    elif pattern == "time":
        tally.attention(frames * places, frames, width)
    else:
        before, after = (None, 0) if pattern == "causal" else (window, window)
        for _, seen in windows(frames, before=before, after=after):
            tally.attention(places, len(seen) * places, width)


@cost.register
def _video_dit_cost(config: VideoDiTConfig) -> Cost:
    return mean_cost([_cost_of(config, view) for view in config.views])


def _cost_of(config: VideoDiTConfig, view: View) -> Cost:
    tally, width, tokens = Tally(), config.width, config.tokens_of(view)
    frames = view.frames // config.patch_frames
    tally.linear(config.patch_values, width, uses=tokens)
    tally.timestep(config.frequency_size, width)
    text = config.captions if config.conditioning == "cross" else None
    if text is None:
        tally.tables += (config.num_classes + 1) * width
    else:
        tally.linear(text.width, width, uses=text.tokens)
    for block in range(config.depth):
        stream(tally, config, tokens=tokens, gains=config.qk_norm)
        attention_tally(
            tally, config.pattern(block), frames=frames, places=tokens // frames, width=width, window=config.window
        )
        if text is not None:
            tally.linear(width, width, uses=tokens)
            tally.linear(width, 2 * width, uses=text.tokens)
            tally.linear(width, width, uses=tokens)
            tally.vectors += 2 * config.head_dim if config.qk_norm else 0
            tally.attention(tokens, text.tokens, width)
    tally.linear(width, 2 * width, uses=1)
    tally.linear(width, config.patch_values, uses=tokens)
    return tally.cost(tokens)


@activation_bytes.register
def _video_dit_activation_bytes(config: VideoDiTConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound, of whole clips at full resolution: see `models.tally.block_values`. Attention over part of the tokens
    keeps copies of queries, keys and values by part."""
    size, width = 4 if precision == "fp32" else 2, config.width
    tokens = config.tokens_of(View(config.frames, config.image_size))
    block = block_values(tokens=tokens, width=width, hidden=config.mlp_hidden, heads=config.heads)
    if config.attention == "factorised":
        block += 3 * tokens * width
    text = config.captions if config.conditioning == "cross" else None
    if text is not None:
        block += tokens * (7 * width + 4 * config.heads) + text.tokens * 4 * width
    kept = config.depth * tokens * width + block if checkpointing else config.depth * block
    outer = tokens * config.patch_values + config.frequency_size + 16 * width + 6 * tokens * width
    outer += text.tokens * text.width if text is not None else 0
    return size * (outer + kept) + 4 * config.channels * config.frames * config.image_size**2
