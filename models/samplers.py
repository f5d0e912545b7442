"""Samplers: the probability-flow ODE from noise (t = 1) to images (t = 0) on equal steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.objectives import Denoiser, Objective

Velocity = Callable[[Tensor, float], Tensor]
"""dx/dt at images [b, c, h, w] and a time that all of them share."""


@torch.no_grad()
def sample(
    model: Denoiser,
    objective: Objective,
    noise: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    *,
    sampler: Literal["euler", "heun"],
    steps: int,
    guidance: float,
    null_class: int,
) -> Float[Tensor, "b c h w"]:
    """Images from noise, in float32.

    Args:
        model: called with images, times and labels.
        objective: gives the velocity from the model's prediction.
        noise: the state at t = 1.
        y: labels.
        sampler: "euler" (one evaluation a step, first order) or "heun" (two, second order).
        steps: equal steps of t from 1 to 0.
        guidance: scale w of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) in the convention
            u + w (c - u): 1 is no guidance and costs one forward pass an evaluation; any other costs one of twice
            the batch.
        null_class: label of the unconditional prediction.

    Raises:
        ValueError: `sampler` is unknown or `steps` is below 1.
    """
    if sampler not in _STEPS:
        raise ValueError(f"sampler is {sampler!r}; wanted one of {list(_STEPS)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; wanted at least 1")
    velocity = _velocity(model, objective, y, guidance, null_class)
    step = _STEPS[sampler]
    x = noise.float()
    for i in range(steps):
        x = step(velocity, x, 1 - i / steps, 1 - (i + 1) / steps)
    return x


def _euler_step(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    return x + (t_next - t) * velocity(x, t)


def _heun_step(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    # The trapezoidal rule with an Euler predictor (Karras et al. 2022, arXiv 2206.00364, algorithm 1).
    h = t_next - t
    first = velocity(x, t)
    second = velocity(x + h * first, t_next)
    return x + h * 0.5 * (first + second)


_STEPS = {"euler": _euler_step, "heun": _heun_step}


def _velocity(model: Denoiser, objective: Objective, y: Tensor, guidance: float, null_class: int) -> Velocity:
    def conditional(x: Tensor, t: float) -> Tensor:
        times = torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)
        return objective.velocity(objective.predict(model, x, times, y), x, times)

    both = torch.cat([y, torch.full_like(y, null_class)])

    def guided(x: Tensor, t: float) -> Tensor:
        twice = torch.cat([x, x])
        times = torch.full((twice.shape[0],), t, dtype=torch.float32, device=x.device)
        velocity = objective.velocity(objective.predict(model, twice, times, both), twice, times)
        with_class, without_class = velocity.chunk(2)
        return torch.lerp(without_class, with_class, guidance)

    return conditional if guidance == 1.0 else guided
