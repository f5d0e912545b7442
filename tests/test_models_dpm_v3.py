"""DPM-Solver-v3: statistics known in closed form, and what they are good for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gaussian_oracle import GaussianOracle, S
from torch import Tensor

from models import config
from models.dpm_v3 import Statistics, estimate_statistics
from models.field import Field
from models.objectives import build_objective
from models.samplers import SAMPLERS, Draws

OBJECTIVE = build_objective(config.VPrediction())
MEAN = 0.4
NUM = 256


def statistics_of(model: object, y: Tensor | None = None, num_points: int = 33, batch_size: int = NUM) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    images = MEAN + S * torch.randn(NUM, 1, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.zeros(NUM, dtype=torch.long) if y is None else y
    return estimate_statistics(
        model,  # type: ignore[arg-type]
        OBJECTIVE,
        images,
        labels,
        generator,
        num_points=num_points,
        batch_size=batch_size,
    )


def test_statistics_of_normal_data() -> None:
    """l = sigma^2 / (alpha^2 S^2 + sigma^2), sigma eps - l x = -l alpha mean: f = -l mean, s = 0, b = df/d lambda."""
    found = statistics_of(GaussianOracle(OBJECTIVE, MEAN), num_points=65, batch_size=100)
    growth = S**2 * (2 * found.half_log_snr).exp()
    l = 1 / (1 + growth)  # noqa: E741
    wide = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(found.l, l.view(-1, 1, 1, 1) * wide, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.s, torch.zeros_like(found.l), atol=1e-3, rtol=0)
    # l is linear between the points, and its slope at a point is the mean of those on either side.
    b = (2 * growth * l**2 * MEAN).view(-1, 1, 1, 1) * wide
    torch.testing.assert_close(found.b[1:-1], b[1:-1], atol=4e-3, rtol=0)


def test_statistics_of_a_constant_noise() -> None:
    """eps = g(y) + e^lambda: f = e^-lambda g + 1, so df/d lambda = -f + 1 exactly."""

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        path, at = OBJECTIVE.path, t.view(-1, 1, 1, 1)
        eps = (y.view(-1, 1, 1, 1) - 1.5 + path.half_log_snr(at).exp()).expand_as(x)
        return OBJECTIVE.target((x - path.sigma(at) * eps) / path.alpha(at), eps, t)

    found = statistics_of(model, torch.arange(NUM) % 4)
    middle = found.half_log_snr.abs() < 1
    assert middle.sum() > 4
    torch.testing.assert_close(found.l[middle], torch.zeros_like(found.l[middle]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.s[middle], -torch.ones_like(found.s[middle]), atol=5e-3, rtol=0)
    torch.testing.assert_close(found.b[middle], torch.ones_like(found.b[middle]), atol=1e-2, rtol=0)


def test_few_steps_with_statistics_are_better_than_without() -> None:
    """Eight steps of the flow of normal data from t = 0.95 to 0.1; from its mean it leads to that of x_t there."""
    model = GaussianOracle(OBJECTIVE, MEAN)
    times = [0.95 - 0.85 * i / 8 for i in range(9)]
    ends = torch.tensor([0.95, 0.1], dtype=torch.float64)
    alpha, sigma = OBJECTIVE.path.alpha(ends), OBJECTIVE.path.sigma(ends)
    spread = torch.sqrt(alpha**2 * S**2 + sigma**2)
    z = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    field = Field(model, OBJECTIVE, torch.zeros(2, dtype=torch.long))

    statistics = statistics_of(model, num_points=129)

    def worst(sampler: str) -> float:
        draws = Draws(None, statistics, sampler)
        got = SAMPLERS[sampler].walk(field, alpha[0] * MEAN + spread[0] * z, times, draws)
        return float((got - (alpha[1] * MEAN + spread[1] * z)).abs().max())

    assert worst("dpm-v3") < 0.2 * worst("dpmpp-2m")


def test_statistics_are_kept_in_a_file(tmp_path: Path) -> None:
    grid = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    values = torch.randn(3, 3, 1, 2, 2, dtype=torch.float64)
    kept = Statistics(grid, *values)
    kept.save(tmp_path / "statistics.safetensors")
    read = Statistics.load(tmp_path / "statistics.safetensors")
    for name in ("half_log_snr", "l", "s", "b"):
        assert torch.equal(getattr(read, name), getattr(kept, name))
    torch.testing.assert_close(kept.at(0.5)[1], 0.75 * values[1, 1] + 0.25 * values[1, 2])
    assert torch.equal(kept.at(-9.0)[0], values[0, 0])
    assert torch.equal(kept.at(9.0)[2], values[2, 2])


def test_bad_statistics_are_named() -> None:
    grid, values = torch.tensor([0.0, 1.0]), torch.zeros(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"half_log_snr is \[1\.0, 0\.0\]; wanted two ascending values or more"):
        Statistics(grid.flip(0), values, values, values)
    with pytest.raises(ValueError, match=r"s has shape \[2, 1, 1, 1\]; wanted 2 finite rows"):
        Statistics(grid, values, values + math.nan, values)
    with pytest.raises(ValueError, match="got num_points 1 and 256 images; wanted at least 2 and 1"):
        statistics_of(GaussianOracle(OBJECTIVE), num_points=1)
