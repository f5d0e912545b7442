"""Pyramidal flow matching (Jin et al. 2024, arXiv 2410.05954): several resolutions of a clip in one model.

Early on the way from noise there is nothing to see that a coarse clip does not show, so most of the way is walked
coarse. With K levels, each half the resolution of the one before, the way t from 1 (noise) to 0 (data) has K equal
parts, the coarsest first. On level l a straight line leads from noise level h_l, where the signal is the next coarser
clip, to noise level l / K, where it is the level's own (equations 3 to 5 of the paper):

    at h_l:    (1 - h_l) up(x_{l+1}) + h_l eps        (for the coarsest h = 1: noise alone)
    at l / K:  (1 - l / K) x_l + l / K eps

Between levels a clip is doubled by nearest neighbours, which leaves blocks of four equal noises; scaling and noise of
correlation -1/3 within the blocks make them independent again (section 3.2), at the higher level h_l = 2 T / (1 + T)
for T = (l + 1) / K.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from models import config
from models.objectives import Denoiser, Objective, build_objective
from models.paths import Linear, over
from models.predictions import Velocity


def halved(x: Float[Tensor, "b c f h w"], times: int) -> Float[Tensor, "b c f h2 w2"]:
    """Clips at half the resolution, `times` times: means of blocks of pixels."""
    return F.avg_pool3d(x, (1, 2**times, 2**times)) if times else x


def doubled(x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h2 w2"]:
    """Clips at twice the resolution, by nearest neighbours."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class PyramidFlow(Objective):
    """Rectified flow within each of several resolutions, for models that take all of them.

    t is the part of the way that is left, uniform; what the model is told is the noise level there.

    Args:
        weights: of the squared error on each level, the finest first.
    """

    sampler = "pyramid"

    def __init__(self, weights: Sequence[float]) -> None:
        self.path, self.prediction = Linear(), Velocity()
        self.weights = tuple(weights)

    @property
    def levels(self) -> int:
        """Resolutions."""
        return len(self.weights)

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u

    def noise_levels(self, level: int) -> tuple[float, float]:
        """Of the end of a level's line towards data, and of its beginning."""
        low, above = level / self.levels, (level + 1) / self.levels
        return low, 1.0 if level == self.levels - 1 else 2 * above / (1 + above)

    def ends(self, x: Tensor, noise: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The two ends of the line of whole-resolution samples and noise on a level, towards data first."""
        low, high = self.noise_levels(level)
        own, eps = halved(x, level), halved(noise, level) * 2**level
        first = (1 - low) * own + low * eps
        if level == self.levels - 1:
            return first, eps
        return first, (1 - high) * doubled(halved(x, level + 1)) + high * eps

    def loss(
        self,
        model: Denoiser,
        x: Float[Tensor, "b c f h w"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c f h w"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each sample's velocity on its level, times the level's weight.

        A level that no sample of the batch is on is still passed through, by one of no weight: workers of a gang take
        the same steps.
        """
        level_of = (t * self.levels).long().clamp(0, self.levels - 1)
        losses = torch.zeros_like(t)
        for level, weight in enumerate(self.weights):
            rows = (level_of == level).nonzero()[:, 0]
            weight = weight if len(rows) else 0.0
            rows = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=t.device)
            share = (t[rows] * self.levels - level).clamp(0, 1)
            first, second = self.ends(x[rows], noise[rows], level)
            prediction = self._predicted(model, torch.lerp(first, second, over(share, first)), share, y[rows], level)
            low, high = self.noise_levels(level)
            error = (prediction - (second - first) / (high - low)).square().flatten(1).mean(1)
            losses = losses.index_add(0, rows, weight * error)
        return losses

    def denoised(
        self, model: Denoiser, x: Float[Tensor, "b c f h w"], y: Int[Tensor, " b"], noise: Float[Tensor, "b c f h w"]
    ) -> Float[Tensor, "b c f h w"]:
        """From the middle of the finest level."""
        share = torch.full((len(x),), 0.5, device=x.device)
        first, second = self.ends(x, noise, 0)
        x_t = torch.lerp(first, second, 0.5)
        return x_t - 0.5 * self.noise_levels(0)[1] * self._predicted(model, x_t, share, y, 0)

    def _predicted(self, model: Denoiser, x_t: Tensor, share: Tensor, y: Tensor, level: int) -> Tensor:
        low, high = self.noise_levels(level)
        return self.predict(model, x_t, low + share * (high - low), y)


def walk(
    objective: PyramidFlow,
    velocity: Callable[[Tensor, float], Tensor],
    noise: Float[Tensor, "b c f h w"],
    steps: int,
    normal: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b c f h w"]:
    """Clips from noise by Euler's method, with equal steps on every level, at least one.

    Args:
        velocity: what the model says at a clip of any level and its noise level.
        normal: gives standard normal numbers like a clip.
    """
    last = objective.levels - 1
    x = halved(noise, last) * 2**last
    for level in range(last, -1, -1):
        low, high = objective.noise_levels(level)
        if level < last:
            x = refined(x, (level + 1) / objective.levels, normal)
        each = max(1, steps // objective.levels)
        for t, s in itertools.pairwise([high + (low - high) * step / each for step in range(each + 1)]):
            x = x + (s - t) * velocity(x, t)
    return x


def refined(x: Tensor, noise_level: float, normal: Callable[[Tensor], Tensor]) -> Tensor:
    """A clip at the next finer level: doubled, scaled, and given the noise that makes its own independent again."""
    scale = 1 / (1 + noise_level)
    fine = doubled(x)
    fresh = normal(fine)
    fresh = (fresh - doubled(halved(fresh, 1))) * math.sqrt(4 / 3)  # of correlation -1/3 within a block
    return scale * (fine + math.sqrt(3) * noise_level * fresh)


@build_objective.register
def _build_pyramid(objective: config.PyramidFlow) -> Objective:
    return PyramidFlow(objective.weights)
