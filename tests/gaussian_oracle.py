"""The exact model of normal data N(mean, S^2) under any objective, and the exact flow of its noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.field import Field
from models.objectives import EDM, Objective

S = 0.5


class GaussianOracle:
    """Predicts with E[x | x_t] and E[eps | x_t] for data N(mean, S^2): linear in x_t, so its flow is known."""

    def __init__(self, objective: Objective, mean: float = 0.0) -> None:
        self.objective, self.mean = objective, mean

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        objective, path = self.objective, self.objective.path
        t = t.view(-1, 1, 1, 1)
        if isinstance(objective, EDM):  # undo what EDM does to a model's inputs
            t = torch.exp((1 - t) * math.log(objective.t_min))
            x = x / objective.prediction.c_in(path, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 * S**2 + sigma**2
        centred = x - alpha * self.mean
        return objective.prediction.target(
            path, self.mean + alpha * S**2 * centred / variance, sigma * centred / variance, t
        )


def std(objective: Objective, t: float) -> float:
    """Standard deviation of x_t; the flow maps z std(t) to z std(s)."""
    return math.hypot(
        Field.scalar(objective.path.alpha, t) * S,
        Field.scalar(objective.path.sigma, t),
    )
