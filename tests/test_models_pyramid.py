"""Pyramidal flow matching: lines that meet between levels, weights, and a walk that an oracle takes to the clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.config import SP, PyramidFlow, RectifiedFlow
from models.configs.video_dit import VideoDiTConfig
from models.cost import cost
from models.families import build
from models.objectives import build_objective
from models.paths import over
from models.pyramid import PyramidFlow as Pyramid
from models.pyramid import doubled, halved, refined, walk
from models.samplers import sample


def clips(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_noise_is_independent_again_on_the_finer_level_and_of_its_variance() -> None:
    """From (1 - T) x + T eps at the coarse level to (1 - h) up(x) + h eps at the fine one, h = 2 T / (1 + T)."""
    generator = torch.Generator().manual_seed(0)
    level, signal = 0.4, torch.full((4000, 1, 1, 2, 2), 0.7)
    coarse = (1 - level) * signal + level * torch.randn(signal.shape, generator=generator)
    fine = refined(coarse, level, lambda like: torch.randn(like.shape, generator=generator)).flatten(1)
    high = 2 * level / (1 + level)
    assert fine.mean(0) == pytest.approx(torch.full((16,), 0.7 * (1 - high)), abs=0.04)
    assert torch.cov(fine.T) == pytest.approx(high**2 * torch.eye(16), abs=0.03)
    assert Pyramid((1.0, 1.0, 1.0)).noise_levels(0) == pytest.approx((0.0, 2 * (1 / 3) / (4 / 3)))


def test_the_walk_of_a_model_that_knows_the_clip_ends_there_on_any_number_of_levels() -> None:
    x = clips(3)
    for levels in (1, 2, 3):
        objective = Pyramid((1.0,) * levels)

        def velocity(x_t: Tensor, t: float, objective: Pyramid = objective) -> Tensor:
            """What the line through x_t at noise level t says, were x the clip."""
            level = {8: 0, 4: 1, 2: 2}[x_t.shape[-1]]
            low, high = objective.noise_levels(level)
            first, second = objective.ends(x, torch.zeros_like(x), level)  # of the signal alone
            share = (t - low) / (high - low)
            return (second - first) / (high - low) + (x_t - torch.lerp(first, second, share)) / t

        noise = clips(3, seed=1)
        made = walk(objective, velocity, noise, 6, lambda like: torch.randn_like(like))
        assert torch.allclose(made, x, atol=1e-4)


def test_the_loss_is_the_velocitys_on_each_level_with_its_weight() -> None:
    x, noise, y = clips(6), clips(6, seed=1), torch.zeros(6, dtype=torch.long)
    t = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 0.95])  # three of each of two levels

    def still(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    plain, weighted = (Pyramid(weights).loss(still, x, y, t, noise) for weights in ((1.0, 1.0), (3.0, 0.5)))
    assert weighted == pytest.approx(plain * torch.tensor([3.0, 3.0, 3.0, 0.5, 0.5, 0.5]))
    coarse = (halved(noise, 1) * 2 - halved(x, 1))[3:]
    assert plain[3:] == pytest.approx(coarse.square().flatten(1).mean(1), rel=1e-5)
    single, flow = Pyramid((1.0,)), build_objective(RectifiedFlow())
    assert single.loss(still, x, y, t, noise) == pytest.approx(flow.loss(still, x, y, t, noise), rel=1e-5)
    only_fine = Pyramid((1.0, 1.0)).loss(still, x, y, t * 0.4, noise)
    assert torch.isfinite(only_fine).all()
    assert torch.equal(halved(doubled(x), 1), x)
    assert over(t, x).shape == (6, 1, 1, 1, 1)


def test_a_model_of_two_levels_is_trained_and_sampled_and_costs_the_mean_of_both() -> None:
    config = VideoDiTConfig.example(width=12, depth=1, head_dim=12, levels=2, frames=2)
    model, objective = build(config, SP(), 0), build_objective(PyramidFlow(weights=(1.0, 2.0)))
    x, y, t = clips(4), torch.arange(4), torch.tensor([0.1, 0.4, 0.6, 0.9])
    objective.training_loss(model, x, y, t, clips(4, seed=1)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    settings = {"steps": 4, "guidance": 2.0, "null_class": 10, "generator": torch.Generator()}
    assert sample(model, objective, x, y, sampler="pyramid", **settings).shape == x.shape
    assert objective.denoised(model, x, y, x).shape == x.shape
    with pytest.raises(ValueError, match=r"'heun' for a model that predicts images; wanted one of \['pyramid"):
        sample(model, objective, x, y, sampler="heun", **settings)
    with pytest.raises(ValueError, match=r"'pyramid' for a model .* images; wanted one of .*ddpm.* go with Rect"):
        sample(model, build_objective(RectifiedFlow()), x, y, sampler="pyramid", **settings)
    assert cost(config).tokens == 10  # 16 of the fine and 4 of the coarse
    with pytest.raises(ValueError, match=r"weights are \[1.0, 0.0\]; wanted one finite number above 0 for each level"):
        PyramidFlow(weights=(1.0, 0.0))
