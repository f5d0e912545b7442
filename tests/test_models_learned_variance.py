"""The learned variance: its bounds, the variational bound term, and who may have it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models import config
from models.learned_variance import bound, log_variance
from models.objectives import build_objective
from models.paths import BETAS

PATH = BETAS["linear"]
BETA = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETA)
OBJECTIVE = build_objective(config.DDPM(learn_variance=True))


def at(k: int) -> Tensor:
    return torch.full((1, 1, 1, 1), k / 1000, dtype=torch.float64)


def posterior_variance(k: int) -> float:
    """beta~_k (Ho et al. 2020, equation 7); of the second step for the first."""
    k = max(k, 2)
    return (1 - BAR[k - 2]) / (1 - BAR[k - 1]) * BETA[k - 1]


@pytest.mark.parametrize("k", [1, 2, 40, 1000])
def test_the_variance_lies_between_its_bounds(k: int) -> None:
    ends = [log_variance(PATH, torch.full((1, 1, 1, 1), v).double(), at(k), at(k - 1)).exp().item() for v in (-1, 1)]
    assert ends == pytest.approx([posterior_variance(k), BETA[k - 1]], rel=1e-6)
    middle = log_variance(PATH, torch.zeros(1, 1, 1, 1).double(), at(k), at(k - 1)).exp().item()
    assert middle == pytest.approx(math.sqrt(ends[0] * ends[1]))


def test_the_exact_reverse_step_has_no_divergence() -> None:
    x, x_t = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lower = torch.full_like(x, -1.0)
    assert bound(PATH, x, x_t, x, lower, at(300)).item() == pytest.approx(0.0, abs=1e-12)
    assert bound(PATH, x, x_t, x, lower + 0.5, at(300)).item() > 1e-7
    assert bound(PATH, x, x_t, x + 0.1, lower, at(300)).item() > 1e-5


def test_divergence_of_two_normals() -> None:
    """KL(q | p) by the formula, with the paper's coefficients from the betas; in bits a dimension."""
    k, x, x_t, x0, v = 40, 0.3, 0.5, -0.2, 0.25
    of_x = math.sqrt(BAR[k - 2]) * BETA[k - 1] / (1 - BAR[k - 1])
    q, low, high = posterior_variance(k), math.log(posterior_variance(k)), math.log(BETA[k - 1])
    p = math.exp(low + (v + 1) / 2 * (high - low))
    wanted = (math.log(math.sqrt(p / q)) + (q + (of_x * (x - x0)) ** 2) / (2 * p) - 0.5) / math.log(2)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert bound(PATH, x * one, x_t * one, x0 * one, v * one, at(k)).item() == pytest.approx(wanted, rel=1e-6)


def test_the_first_step_is_a_likelihood_of_8_bit_images() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    x_t = torch.full_like(levels, 0.1)
    bits = bound(
        PATH, levels, x_t, torch.full_like(levels, 0.103), torch.zeros_like(levels), at(1).expand(256, 1, 1, 1)
    )
    assert (2 ** (-bits)).sum().item() == pytest.approx(1.0, abs=1e-6)  # cut at 1e-12 a level
    assert bits.argmin() == round((0.103 + 1) * 127.5)


def test_loss_is_simple_plus_the_bound_and_only_the_variance_learns_from_the_latter() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=generator)
    t, y = torch.tensor([0.001, 0.3, 1.0]), torch.zeros(3, dtype=torch.long)
    output = torch.randn(3, 2, 4, 4, generator=generator).mul(0.3).requires_grad_()
    loss = OBJECTIVE.loss(lambda *_: output, x, y, t, noise)
    simple = build_objective(config.DDPM()).loss(lambda *_: output, x, y, t, noise)
    x_t = OBJECTIVE.noised(x, noise, t)
    x0, _ = OBJECTIVE.x0_and_eps(output[:, :1], x_t, t)
    term = bound(OBJECTIVE.path, x, x_t, x0, output[:, 1:], t.view(-1, 1, 1, 1))
    torch.testing.assert_close(loss, simple + term)
    (of_loss,) = torch.autograd.grad(loss.sum(), output, retain_graph=True)
    (of_simple,) = torch.autograd.grad(simple.sum(), output)
    assert torch.equal(of_loss[:, 0], of_simple[:, 0])
    assert of_loss[1:, 1].abs().min() > 0
    assert of_loss.isfinite().all()


def test_a_model_without_the_channels_is_refused() -> None:
    x, t, y = torch.zeros(2, 1, 4, 4), torch.tensor([0.5, 1.0]), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="the model predicts 1 channels for 1; a learned variance wants twice as many"):
        OBJECTIVE.loss(lambda x, t, y: x, x, y, t, x)
