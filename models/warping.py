"""Frames of clips moved by optical flow, how far they are from the frames they should be, and flow by estimation.

Warping is backward: the frame k + 1 is looked up in frame k, at the pixels from which its content came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TAPS = 4
"""Pixels along each axis that interpolation reads: Lagrange's cubic through them."""


class Flow(NamedTuple):
    """Optical flow of clips of f frames."""

    displacement: Float[Tensor, "n f-1 2 h w"]
    """(x, y) in pixels, from a pixel of frame k + 1 to where its content was in frame k."""
    covered: Bool[Tensor, "n f-1 h w"]
    """Pixels at which warping means something: what they show was there in frame k, away from edges of what moves."""


def _weights(fraction: Tensor, taps: int) -> list[Tensor]:
    """Lagrange's weights of the `taps` pixels around a position `fraction` beyond the middle left one."""
    nodes = [tap - (taps // 2 - 1) for tap in range(taps)]
    weights = []
    for node in nodes:
        weight = torch.ones_like(fraction)
        for other in nodes:
            if other != node:
                weight = weight * (fraction - other) / (node - other)
        weights.append(weight)
    return weights


def _taps(flow: Float[Tensor, "n 2 h w"], taps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each pixel that interpolation reads: its index in a flattened frame [n, h w], cut to the frame, and its
    weight."""
    h, w = flow.shape[2:]
    x = torch.arange(w, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(h, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    left, top = x.floor(), y.floor()
    across, down = _weights(x - left, taps), _weights(y - top, taps)
    first = taps // 2 - 1
    for row in range(taps):
        at_row = (top.long() + row - first).clamp(0, h - 1) * w
        for column in range(taps):
            index = at_row + (left.long() + column - first).clamp(0, w - 1)
            yield index.flatten(1), (down[row] * across[column]).flatten(1)


def warped(frames: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"], taps: int = TAPS) -> Tensor:
    """frames[p + flow[p]] at every pixel p, by Lagrange interpolation; differentiable in the frames."""
    flat = frames.flatten(2)
    moved = torch.zeros_like(flat)
    for index, weight in _taps(flow, taps):
        moved = moved + flat.gather(2, index[:, None].expand_as(flat)) * weight[:, None]
    return moved.view_as(frames)


def solid(mask: Bool[Tensor, "n h w"], flow: Float[Tensor, "n 2 h w"], taps: int = TAPS) -> Bool[Tensor, "n h w"]:
    """Pixels for which everything that `warped` reads lies within the frame and is in the mask."""
    h, w = mask.shape[1:]
    x = torch.arange(w, device=flow.device) + flow[:, 0]
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    before, after = taps // 2 - 1, taps // 2
    inside = (x.floor() >= before) & (x.floor() + after < w) & (y.floor() >= before) & (y.floor() + after < h)
    flat, every = mask.flatten(1), torch.ones_like(mask.flatten(1))
    for index, _ in _taps(flow, taps):
        every &= flat.gather(1, index)
    return inside & every.view_as(mask)


def warping_error(clips: Float[Tensor, "n c f h w"], flow: Flow, taps: int = TAPS) -> Float[Tensor, " n"]:
    """Mean squared difference of frames k + 1 from frames k warped onto them, over covered pixels and channels (Lai et
    al. 2018, arXiv 1808.00449, section 4.2); 0 of a clip where nothing is covered."""
    n = len(clips)
    before, after = (clips[:, :, part].transpose(1, 2).flatten(0, 1) for part in (slice(0, -1), slice(1, None)))
    moved = warped(before, flow.displacement.flatten(0, 1).to(clips.dtype), taps)
    error = (moved - after).square().mean(1).view(n, -1)
    covered = flow.covered.flatten(1).to(clips.dtype)
    return (error * covered).sum(1) / covered.sum(1).clamp(min=1)


ROUNDS = 4
"""Steps of Newton's method at each resolution."""
WINDOW = 5
"""Side of the window of neighbours that move alike, in pixels."""
SMALLEST = 64
"""Side of the frames from which the estimate starts: it is refined from each resolution to the next, twice as fine."""
RIDGE = 0.02
"""What holds the flow back where the window shows no texture across it, as a share of the frame's mean texture."""
AGREEMENT = 0.5
"""Pixels by which the flow there and back may miss the start, where it is believed."""


@torch.no_grad()
def estimated_flow(clips: Float[Tensor, "n c f h w"]) -> Flow:
    """The flow of clips by Lucas and Kanade's method (1981), from coarse to fine.

    Covered are the pixels where the flow there and back agree to half a pixel and that came from within the frame.
    """
    n, _, f = clips.shape[:3]
    before, after = (clips[:, :, part].transpose(1, 2).flatten(0, 1) for part in (slice(0, -1), slice(1, None)))
    there, back = lucas_kanade(after, before), lucas_kanade(before, after)
    agree = (there + warped(back, there, 2)).square().sum(1).sqrt() < AGREEMENT
    covered = agree & solid(torch.ones_like(agree), there)
    return Flow(there.view(n, f - 1, *there.shape[1:]), covered.view(n, f - 1, *covered.shape[1:]))


def lucas_kanade(one: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2 h w"]:
    """Displacements d with other[p + d] = one[p], in pixels, the same in all channels (Lucas & Kanade 1981)."""
    levels = [(one.float(), other.float())]
    while min(levels[-1][0].shape[2:]) >= 2 * SMALLEST:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    coarsest = levels[-1][0]
    flow = torch.zeros(len(one), 2, *coarsest.shape[2:], device=one.device)
    for first, second in reversed(levels):
        if flow.shape[2:] != first.shape[2:]:
            flow = 2 * F.interpolate(flow, size=first.shape[2:], mode="bilinear", align_corners=False)
        flow = _refined(first, second, flow)
    return flow


def _refined(one: Tensor, other: Tensor, flow: Tensor) -> Tensor:
    """Newton's steps towards other[p + d] = one[p], in the least squares of a window."""
    padded = F.pad(one, (1, 1, 1, 1), mode="replicate")
    gx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    gy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    xx, xy, yy = _windowed(gx * gx), _windowed(gx * gy), _windowed(gy * gy)
    ridge = RIDGE * (xx + yy).mean(dim=(1, 2), keepdim=True) + 1e-8
    xx, yy = xx + ridge, yy + ridge
    determinant = xx * yy - xy * xy
    for _ in range(ROUNDS):
        difference = one - warped(other, flow, 2)
        dx, dy = _windowed(gx * difference), _windowed(gy * difference)
        step = torch.stack([yy * dx - xy * dy, xx * dy - xy * dx], dim=1) / determinant[:, None]
        flow = flow + step.clamp(-1.0, 1.0)
    return flow


def _windowed(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """The mean over channels and the window around each pixel, of which only what is within the frame counts."""
    mean = x.mean(1, keepdim=True)
    return F.avg_pool2d(mean, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)[:, 0]
