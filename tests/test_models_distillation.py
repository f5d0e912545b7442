"""Guidance distillation: the student of a teacher gives its guided prediction in one pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.config import SP, RectifiedFlow
from models.configs.flux import FluxConfig
from models.distillation import AtGuidance, GuidanceDistillation
from models.families import build
from models.objectives import build_objective
from models.parameterization import parameter_groups


def teacher(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A direction for every class, none for the null class."""
    return torch.where(y == 10, 0.0, 0.1 * (y + 1.0)).view(-1, 1, 1, 1).expand_as(x)


def test_a_student_learns_the_guided_prediction_at_every_scale() -> None:
    objective = GuidanceDistillation(build_objective(RectifiedFlow()), teacher, null_class=10, scales=(1.0, 4.0))
    student = build(FluxConfig.example(width=32, depth=1, head_dim=16, guidance=True), SP(), 0)
    optimizer = torch.optim.AdamW(parameter_groups(student, SP(), 4e-3, 0.0), betas=(0.9, 0.99))
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(100):
        x, noise = torch.randn(2, 32, 1, 8, 8, generator=generator)
        y, t = torch.randint(0, 10, (32,), generator=generator), torch.rand(32, generator=generator)
        loss = objective.loss(student, x, y, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    x, t, y = torch.randn(10, 1, 8, 8, generator=generator), torch.full((10,), 0.5), torch.arange(10)
    with torch.no_grad():
        weak, strong = (AtGuidance(student, scale)(x, t, y).mean((1, 2, 3)) for scale in (1.5, 3.5))
    assert ((strong - weak)[5:] > 0.5).all(), "the teacher's differ by 0.2 (y + 1), from 1.2 to 2"


def test_scales_fill_their_range_and_tell_nothing_of_the_noise() -> None:
    objective = GuidanceDistillation(build_objective(RectifiedFlow()), teacher, null_class=10, scales=(1.0, 5.0))
    noise = torch.randn(20_000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scales = objective.guidance_scales(noise)
    assert scales.mean() == pytest.approx(3.0, abs=0.03)
    assert 1.0 <= scales.min() < 1.05 < 4.95 < scales.max() <= 5.0
    assert abs(torch.corrcoef(torch.stack([scales, noise.flatten(1).sum(1)]))[0, 1]) < 0.03, "4 deviations"


def test_what_cannot_be_distilled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scales are \(0.5, 2.0\); wanted \(low, high\) with 1 <= low < high"):
        GuidanceDistillation(build_objective(RectifiedFlow()), teacher, null_class=10, scales=(0.5, 2.0))
    plain = build(FluxConfig.example(width=16, depth=1, head_dim=8), SP(), 0)
    with pytest.raises(ValueError, match="no embedding of guidance scales; wanted `guidance: true`"):
        AtGuidance(plain, 2.0)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
