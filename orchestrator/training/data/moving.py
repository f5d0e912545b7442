"""Class-conditional clips without end, with their true optical flow: each is a function of its index alone.

A clip is a figure over a background that drifts. Both are textures of plane waves that are given in closed form and
carried along by affine motions, so a frame is an exact sample of a moving pattern and the flow between two frames is
exact as well. A class is a kind of motion of one of two figures. No wave is shorter than `SHORTEST` pixels, so that a
frame warped by the flow (`models.warping`) is the next frame to 1e-3 wherever no edge is near. Clips are floats: bytes
would round them by more than that. Frame k of a clip does not depend on how many frames are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from models.warping import TAPS, Flow, solid
from orchestrator.spec.datasets import FIGURES, MOTIONS
from orchestrator.training.data.procedural import uniforms

SHORTEST = 10.0
"""Wavelength of the finest texture, in pixels, where it is smallest."""
LEAST_SCALE = 0.7
"""Smallest scale of a figure, against its size when it is drawn at 1."""
_WAVES = 2
"""Plane waves of a texture."""
_EDGE = 1.5
"""Pixels over which the edge of a figure fades."""


@dataclass(frozen=True)
class _Scene:
    """Clips as numbers. Positions and lengths are in pixels from the middle of the frame; times are frames."""

    labels: Int64[Tensor, " n"]
    square: Tensor
    """[n] whether the figure is a square."""
    radius: Tensor
    """[n] of a disc, or half the side of a square, at scale 1."""
    centre: Tensor
    """[n, f, 2], as x and y."""
    angle: Tensor
    """[n, f]"""
    scale: Tensor
    """[n, f]"""
    drift: Tensor
    """[n, 2] pixels that the background moves a frame."""
    grid: Tensor
    """[s] positions of pixels along an axis."""

    def figure_coordinates(self, x: Tensor, y: Tensor, frame: int | slice) -> tuple[Tensor, Tensor]:
        """Positions [n, f, s, s] in a frame as positions on the figure, at scale 1 and unturned."""
        x, y = x - _spread(self.centre[:, frame, 0]), y - _spread(self.centre[:, frame, 1])
        cos, sin = (_spread(part(self.angle[:, frame])) for part in (torch.cos, torch.sin))
        scale = _spread(self.scale[:, frame])
        return (cos * x + sin * y) / scale, (cos * y - sin * x) / scale

    def depth(self, u: Tensor, v: Tensor, frame: int | slice) -> Tensor:
        """How many pixels within the figure's edge positions on the figure lie, [n, f, s, s]."""
        square = self.square[:, None, None, None]
        distance = torch.where(square, torch.maximum(u.abs(), v.abs()), torch.hypot(u, v))
        return (self.radius[:, None, None, None] - distance) * _spread(self.scale[:, frame])


def _spread(values: Tensor) -> Tensor:
    """Numbers [n, f] as [n, f, 1, 1]."""
    return values[:, :, None, None]


def _scene(indices: Int64[Tensor, " n"], size: int, frames: int) -> tuple[_Scene, Tensor]:
    """The clips of some indices, and numbers [n, 24] for their textures."""
    draws = uniforms(indices, 12 + 24)
    labels = (draws[:, 0] * len(MOTIONS) * len(FIGURES)).long().clamp(max=len(MOTIONS) * len(FIGURES) - 1)
    motion = labels // len(FIGURES)
    time = torch.arange(frames, device=indices.device, dtype=torch.float32)

    def has(name: str) -> Tensor:
        return (motion == MOTIONS.index(name))[:, None].float()

    heading, speed, sign = 2 * math.pi * draws[:, 1:2], draws[:, 2:3], torch.sign(draws[:, 3:4] - 0.5)
    # Of a 16-pixel frame: 0.4 to 0.8 pixels a frame, or a swing of 1.2 to 2.4 pixels over 5 to 8 frames.
    along = has("drifting") * (time - 3.5) * (0.4 + 0.4 * speed) * size / 16
    swing = torch.sin(2 * math.pi * (time / (5 + 3 * draws[:, 4:5]) + draws[:, 5:6]))
    along = along + has("swinging") * swing * (1.2 + 1.2 * speed) * size / 16
    middle = (draws[:, 6:8] - 0.5) * 0.25 * size
    centre = middle[:, None] + along[:, :, None] * torch.stack([heading.cos(), heading.sin()], dim=-1)
    angle = heading + has("turning") * sign * (0.12 + 0.16 * speed) * time
    rate = (0.025 + 0.02 * speed) * (has("growing") - has("shrinking"))
    start = torch.where(has("shrinking") > 0, 1.2, torch.where(has("growing") > 0, 0.8, 1.0))
    scale = (start * torch.exp(rate * time)).clamp(min=LEAST_SCALE)
    scene = _Scene(
        labels=labels,
        square=labels % len(FIGURES) == FIGURES.index("square"),
        radius=(0.24 + 0.1 * draws[:, 8]) * size,
        centre=centre,
        angle=angle,
        scale=scale,
        drift=(draws[:, 9:11] - 0.5) * 0.8 * size / 16,
        grid=torch.arange(size, device=indices.device, dtype=torch.float32) - (size - 1) / 2,
    )
    return scene, draws[:, 12:]


def render_clips(
    indices: Int64[Tensor, " n"], size: int, frames: int, channels: int
) -> tuple[Float[Tensor, "n c f s s"], Int64[Tensor, " n"]]:
    """The clips of some indices, in [-1, 1], and their classes 0 to 9, on the device of `indices`."""
    scene, draws = _scene(indices, size, frames)
    x, y = scene.grid[None, None, None, :], scene.grid[None, None, :, None]
    u, v = scene.figure_coordinates(x, y, slice(None))
    coverage = (scene.depth(u, v, slice(None)) / _EDGE + 0.5).clamp(0.0, 1.0)
    time = torch.arange(frames, device=indices.device, dtype=torch.float32)[None, :, None, None]
    drift = scene.drift[:, :, None, None, None]
    ground = 1.2 * draws[:, :3] - 0.6
    figure = (ground + 1.0 + 0.5 + draws[:, 3:6]) % 2.0 - 1.0
    below = _texture(ground * 0.9, draws[:, 6:15], x - drift[:, 0] * time, y - drift[:, 1] * time, channels)
    above = _texture(figure * 0.6, draws[:, 15:24], u, v, channels)
    return torch.lerp(below, above, coverage[:, None]), scene.labels


def _texture(
    colour: Float[Tensor, "n 3"], draws: Float[Tensor, "n 9"], x: Tensor, y: Tensor, channels: int
) -> Float[Tensor, "n c f s s"]:
    """A colour plus plane waves at positions [n, f, s, s], all of them as strong in every channel, with signs."""
    image: Tensor = colour[:, :channels, None, None, None]
    for wave in range(_WAVES):
        strength, length, heading, phase = draws[:, 4 * wave : 4 * wave + 4, None, None, None].unbind(1)
        frequency = 2 * math.pi * LEAST_SCALE / (SHORTEST * (1 + length))
        heading = 2 * math.pi * heading
        pattern = torch.cos(frequency * (heading.cos() * x + heading.sin() * y) + 2 * math.pi * phase)
        signs = torch.tensor([1.0, -1.0, 1.0] if wave else [1.0, 1.0, -1.0], device=x.device)[:channels]
        image = image + (0.1 + 0.08 * strength)[:, None] * signs.view(-1, 1, 1, 1) * pattern[:, None]
    return image


def optical_flow(indices: Int64[Tensor, " n"], size: int, frames: int, *, forward: bool = False) -> Flow:
    """The true flow between the frames k and k + 1 of clips, as displacements (x, y) in pixels.

    Backward, which warping wants: where the content of a pixel of frame k + 1 was in frame k. Forward: where that of a
    pixel of frame k is in frame k + 1. A pixel whose content is the figure's moves with it, any other with the
    background. Covered are the pixels that see one of the two alone in both frames, with all that warping reads.
    """
    scene, _ = _scene(indices, size, frames)
    one, other = (slice(0, -1), slice(1, None)) if forward else (slice(1, None), slice(0, -1))
    x, y = scene.grid[None, None, None, :], scene.grid[None, None, :, None]
    u, v = scene.figure_coordinates(x, y, one)
    depth = scene.depth(u, v, one)
    cos, sin = (_spread(part(scene.angle[:, other])) for part in (torch.cos, torch.sin))
    scale, centre = _spread(scene.scale[:, other]), scene.centre[:, other]
    to_x = scale * (cos * u - sin * v) + _spread(centre[:, :, 0]) - x
    to_y = scale * (sin * u + cos * v) + _spread(centre[:, :, 1]) - y
    figure = depth > 0
    way = scene.drift[:, None, :, None, None] * (1 if forward else -1)
    flow = torch.stack(
        [torch.where(figure, to_x, way[:, :, 0]), torch.where(figure, to_y, way[:, :, 1])], dim=2
    )  # [n, f - 1, 2, s, s]
    return Flow(flow, _covered(scene, flow, depth, x, y, other))


def _covered(scene: _Scene, flow: Tensor, depth: Tensor, x: Tensor, y: Tensor, other: slice) -> Tensor:
    """[n, f - 1, s, s]: one layer alone at the pixel and at everything that warping reads for it."""
    far = scene.depth(*scene.figure_coordinates(x, y, other), other)
    covered = torch.zeros_like(depth, dtype=torch.bool)
    for here, there in ((depth > _EDGE / 2, far > _EDGE / 2), (depth < -_EDGE / 2, far < -_EDGE / 2)):
        whole = solid(there.flatten(0, 1), flow.flatten(0, 1), TAPS).view_as(covered)
        covered |= here & whole
    return covered
