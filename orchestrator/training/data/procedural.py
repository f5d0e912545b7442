"""Class-conditional images without end: each is a function of its index alone, so no two batches share a sample.

An image is one shape, whose outline is its class, on a background of slow waves; place, size, angle, stretch, blur,
colours and texture are drawn from the index. Everything is element-wise but for products of small matrices (a plane
wave is the product of a row and a column), so that a batch costs little beside a training step, on a CPU or a GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

FIRST_VALIDATION = 2**62
"""Indices from here on are the validation images'; training has those below."""

_WAVES = 2
"""Plane waves of a background."""
_NO_HOLE = -10.0


def render(
    indices: Int64[Tensor, " n"], size: int, channels: int
) -> tuple[UInt8[Tensor, "n c s s"], Int64[Tensor, " n"]]:
    """The images of some indices as bytes 0 to 255, and their classes 0 to 9, on the device of `indices`.

    An index gives the same image whatever the batch, but for the last bit of a byte where devices or numbers of threads
    round differently.
    """
    draws = iter(uniforms(indices, 7 + (3 + channels) * (_WAVES + 1) + 2 * channels).unbind(1))

    def take(count: int, low: float, high: float) -> Tensor:
        """[n, count] uniform numbers."""
        return torch.stack([next(draws) for _ in range(count)], dim=1) * (high - low) + low

    labels = take(1, 0.0, 10.0)[:, 0].long().clamp_(max=9)
    axis = (torch.arange(size, device=indices.device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    ground = take(channels, -0.8, 0.8)
    # At least half a unit from the background, around a circle of colours.
    figure = (ground + 1.0 + take(channels, 0.5, 1.5)) % 2.0 - 1.0
    coverage = _coverage(labels, take(6, 0.0, 1.0), axis)[:, None]
    slow = take(2 * _WAVES, -0.7, 0.7), take(_WAVES, 0.0, 1.0), take(channels * _WAVES, -0.3, 0.3)
    fast = take(2, -4.0, 4.0), take(1, 0.0, 1.0), take(channels, -0.35, 0.35)
    image = torch.lerp(_waves(ground, *slow, axis), _waves(figure, *fast, axis), coverage)
    return image.mul_(127.5).add_(128.0).clamp_(0.0, 255.0).to(torch.uint8), labels


def _waves(
    base: Float[Tensor, "n c"],
    frequency: Float[Tensor, "n 2k"],
    phase: Float[Tensor, "n k"],
    amplitude: Float[Tensor, "n ck"],
    axis: Float[Tensor, " s"],
) -> Float[Tensor, "n c s s"]:
    """A colour plus plane waves: cos(a + b) = cos a cos b - sin a sin b, with a along x and b along y."""
    n, c, k, size = len(base), base.shape[1], phase.shape[1], len(axis)
    along_x, along_y = (math.pi * frequency).view(n, 2, k, 1).unbind(1)
    a = along_x * axis + 2.0 * math.pi * phase[:, :, None]  # [n, k, s]
    b = along_y * axis
    one = torch.ones_like(axis).expand(n, 1, size)
    rows = torch.cat([a.cos(), -a.sin(), one], dim=1)  # [n, 2k + 1, s]
    columns = torch.cat([b.cos(), b.sin(), one], dim=1)
    weights = amplitude.view(n, c, k)
    weights = torch.cat([weights, weights, base[:, :, None]], dim=2)  # [n, c, 2k + 1]
    left = (weights[:, :, None, :] * columns.transpose(1, 2)[:, None]).reshape(n, c * size, 2 * k + 1)
    return (left @ rows).view(n, c, size, size)


def _coverage(
    labels: Int64[Tensor, " n"], draws: Float[Tensor, "n 6"], axis: Float[Tensor, " s"]
) -> Float[Tensor, "n s s"]:
    """How much of each pixel the shape covers, 0 to 1: the outline is a polynomial of the cosine of the angle."""
    right, down, radius, angle, stretch, blur = (column[:, None, None] for column in draws.unbind(1))
    radius, stretch = 0.3 + 0.4 * radius, torch.exp(0.5 * stretch - 0.25)
    cos, sin = torch.cos(2.0 * math.pi * angle), torch.sin(2.0 * math.pi * angle)
    x, y = axis[None, None, :] - (0.8 * right - 0.4), axis[None, :, None] - (0.8 * down - 0.4)
    u = (cos * x + sin * y) / (radius * stretch)  # [n, s, s]
    v = (cos * y - sin * x) * (stretch / radius)
    distance = torch.addcmul(u * u, v, v).sqrt_()
    cosine = u / (distance + 1e-6)
    outlines, holes = _outlines(labels.device.type)
    coefficients = outlines[labels]
    outline = coefficients[:, -1, None, None].expand_as(cosine)
    for power in range(outlines.shape[1] - 2, -1, -1):  # Horner's scheme
        outline = torch.addcmul(coefficients[:, power, None, None], outline, cosine)
    depth = torch.minimum(outline - distance, distance - holes[labels][:, None, None] * outline)
    sharpness = radius * len(axis) / (2.0 + 4.0 * blur)  # an edge is one to three pixels wide
    return (depth * sharpness + 0.5).clamp_(0.0, 1.0)


@lru_cache(maxsize=4)
def _outlines(device: str) -> tuple[Float[Tensor, "10 9"], Float[Tensor, " 10"]]:
    """Radius over the cosine of the angle as polynomials, and the share of the radius within which there is a hole."""
    series = {
        "disc": [1.0],
        "ring": [1.0],
        "triangle": _polygon(3),
        "square": _polygon(4),
        "frame": _polygon(4),
        "star": [0.75, 0.0, 0.0, 0.0, 0.0, 0.35],
        "clover": [0.65, 0.0, 0.0, 0.4],
        "cross": [0.65, 0.0, 0.0, 0.0, 0.4],
        "gear": [0.85, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2],
        "drop": [0.52, 0.5],
    }
    table = np.zeros((len(series), 9), dtype=np.float32)
    for row, cosines in zip(table, series.values(), strict=True):
        polynomial = np.polynomial.chebyshev.cheb2poly(cosines)  # cos(m x) = T_m(cos x)
        row[: len(polynomial)] = polynomial
    holes = [0.55 if name in ("ring", "frame") else _NO_HOLE for name in series]
    return torch.from_numpy(table).to(device), torch.tensor(holes, device=device)


def _polygon(corners: int) -> list[float]:
    """The first cosines of the outline of a regular polygon: cos(m x) for m up to 8."""
    x = np.arange(4096) * (2.0 * math.pi / 4096)
    sector = 2.0 * math.pi / corners
    outline = math.cos(sector / 2) / np.cos((x + sector / 2) % sector - sector / 2) * 1.2
    spectrum = np.fft.rfft(outline).real / 4096
    return [float(spectrum[0]), *(float(2.0 * value) for value in spectrum[1:9])]


def uniforms(indices: Int64[Tensor, " n"], count: int) -> Float[Tensor, "n k"]:
    """Numbers in [0, 1) that depend on the index alone: integer hashing, the same on every device.

    Both halves of the index go through a bijection, so that different indices never share all their numbers.
    """
    stream = _mixed(torch.arange(1, count + 1, device=indices.device))
    low = _mixed((indices & 0xFFFFFFFF) ^ 0x9E3779B9)
    high = _mixed((indices >> 32) ^ 0x85EBCA6B)
    bits = _mixed((_mixed(low[:, None] ^ stream) + high[:, None]) & 0xFFFFFFFF)
    return (bits >> 8).float() * 2.0**-24


def _mixed(bits: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """A bijection of 32-bit words, held in int64 (Ellis 2018, "lowbias32")."""
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ (bits >> 16)
