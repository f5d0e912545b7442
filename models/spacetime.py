"""Tokens in space and time: patches, positions, and attention over all of them or over some."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.blocks import Attention, Heads, Linear, attend
from models.configs.clips import windows
from models.configs.video_dit import Pattern


class SpacetimePatchEmbed(nn.Module):
    """Boxes of `patch_frames` x `patch` x `patch` through one linear map, ordered by frame, row and column."""

    def __init__(self, *, channels: int, patch_frames: int, patch: int, width: int) -> None:
        super().__init__()
        self.sides = {"r": patch_frames, "p": patch, "q": patch}
        self.proj = Linear(channels * patch_frames * patch**2, width)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(rearrange(x, "b c (t r) (h p) (w q) -> b (t h w) (c r p q)", **self.sides))


def unpatched_clips(
    x: Float[Tensor, "b n o"], *, side: int, patch_frames: int, patch: int
) -> Float[Tensor, "b c f h w"]:
    """Clips of the tokens' boxes, `side` x `side` of them in each frame of tokens."""
    sides = {"h": side, "w": side, "r": patch_frames, "p": patch, "q": patch}
    return rearrange(x, "b (t h w) (r p q c) -> b c (t r) (h p) (w q)", **sides)


def angles_3d(frames: int, side: int, pairs: int, *, spacing: float = 1.0) -> Float[Tensor, "frames n pairs"]:
    """Angles of time, row and column at `frames` x `side` x `side` places, `pairs` of them in about equal parts.

    An axis of m pairs has the frequencies 10000^(-i / m). Places of a grid that is `spacing` times as coarse lie in the
    middle of those of the fine grid that they stand for.
    """
    parts = [pairs // 3, (pairs - pairs // 3) // 2, pairs - pairs // 3 - (pairs - pairs // 3) // 2]
    time = torch.arange(frames, dtype=torch.float64)
    place = (torch.arange(side, dtype=torch.float64) + 0.5) * spacing - 0.5
    turned = []
    for axis, (positions, count) in enumerate(zip((time, place, place), parts, strict=True)):
        omega = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
        shape = [1, 1, 1, count]
        shape[axis] = len(positions)
        turned.append((positions[:, None] * omega).view(shape).expand(frames, side, side, count))
    return torch.cat(turned, dim=-1).flatten(1, 2)


def positions_3d(frames: int, side: int, width: int, *, spacing: float = 1.0) -> Float[Tensor, "frames n width"]:
    """Fixed sines, then cosines, of time, row and column (`angles_3d`); an odd width has a zero at its end."""
    angles = angles_3d(frames, side, width // 2, spacing=spacing)
    rest = torch.zeros(frames, side**2, width % 2, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos(), rest], dim=-1).float()


def rotations_3d(frames: int, side: int, head_dim: int, *, spacing: float = 1.0) -> Float[Tensor, "2 frames n half"]:
    """Cosines and sines that rotate the pairs of a head by time, row and column: axial rotary positions (Su et al.
    2021, arXiv 2104.09864) along three axes."""
    angles = angles_3d(frames, side, head_dim // 2, spacing=spacing)
    return torch.stack([angles.cos(), angles.sin()]).float()


class SpacetimeAttention(Attention):
    """Self-attention of tokens that are ordered by frame, over those that a pattern says.

    Attention over windows of frames is one attention a frame of queries: nothing is computed to be masked.
    """

    def __init__(self, *, width: int, heads: int, pattern: Pattern, window: int = 1, qk_norm: bool = False) -> None:
        super().__init__(width=width, heads=heads, qk_norm=qk_norm)
        self.pattern = pattern
        self.reach = (None, 0) if pattern == "causal" else (window, window)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b n d"], frames: int, rotation: Float[Tensor, "2 n half"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.proj(self._attended(self.split(x, rotation), frames))

    def _attended(self, heads: Heads, frames: int) -> Float[Tensor, "b n d"]:
        if self.pattern == "full":
            return attend(*heads)
        if self.pattern == "space":
            apart = attend(*(rearrange(part, "b (t s) h d -> (b t) s h d", t=frames) for part in heads))
            return rearrange(apart, "(b t) s d -> b (t s) d", t=frames)
        if self.pattern == "time":
            places = heads[0].shape[1] // frames
            apart = attend(*(rearrange(part, "b (t s) h d -> (b s) t h d", t=frames) for part in heads))
            return rearrange(apart, "(b s) t d -> b (t s) d", s=places)
        places = heads[0].shape[1] // frames
        q, k, v = heads
        before, after = self.reach
        return torch.cat(
            [
                attend(
                    q[:, frame * places : (frame + 1) * places],
                    k[:, seen.start * places : seen.stop * places],
                    v[:, seen.start * places : seen.stop * places],
                )
                for frame, seen in windows(frames, before=before, after=after)
            ],
            dim=1,
        )
