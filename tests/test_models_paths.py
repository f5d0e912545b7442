"""Paths: data at t = 0, noise at t = 1, derivatives, and the discrete schedules at their steps."""

import math

import numpy as np
import pytest
import torch

from models.paths import BETAS, INTERPOLANTS, VarianceExploding, posterior

PATHS = {**INTERPOLANTS, **{f"betas-{name}": path for name, path in BETAS.items()}, "exploding": VarianceExploding()}
LEFT_AT_NOISE = {"vp": 0.0066, "betas-linear": 0.0064, "betas-cosine": 0.0001, "exploding": 1.0}
"""Largest alpha(1); the others have none."""


@pytest.mark.parametrize("name", PATHS)
def test_time_runs_from_data_to_noise(name: str) -> None:
    path, ends = PATHS[name], torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = path.alpha(ends).tolist(), path.sigma(ends).tolist()
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert 0 <= alpha[1] <= LEFT_AT_NOISE.get(name, 0.0)
    assert sigma[1] == pytest.approx(80.0 if name == "exploding" else 1.0, abs=3e-5)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    assert (path.half_log_snr(t[1:-1]).diff() < 0).all()


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name: str) -> None:
    path, t = PATHS[name], torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    h = 1e-6
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        torch.testing.assert_close(slope(t), (value(t + h) - value(t - h)) / (2 * h), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_log_snr_and_its_inverse(name: str) -> None:
    path, t = PATHS[name], torch.tensor([0.013, 0.4, 0.97], dtype=torch.float64)
    half = path.half_log_snr(t)
    torch.testing.assert_close(half, torch.log(path.alpha(t) / path.sigma(t)))
    assert [path.time_of(h) for h in half.tolist()] == pytest.approx(t.tolist(), abs=1e-8)
    assert path.time_of(-1e9) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discrete_schedules_at_their_steps(dtype: torch.dtype) -> None:
    k = torch.arange(1, 1001)
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    for name, alpha_bar in (("linear", linear), ("cosine", cosine)):
        path, t, wanted = BETAS[name], k.to(dtype) / 1000, torch.from_numpy(alpha_bar)
        tolerance = {"rtol": 1e-11, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-6}
        torch.testing.assert_close(path.alpha(t).double(), wanted.sqrt(), **tolerance)
        torch.testing.assert_close(path.sigma(t).double(), (1 - wanted).sqrt(), **tolerance)


def test_posterior_of_neighbouring_steps_is_the_papers() -> None:
    """Ho et al. 2020, equations 6 and 7, from the betas themselves."""
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    k = np.array([2, 10, 500, 1000])
    before, here = bar[k - 2], bar[k - 1]
    got = posterior(BETAS["linear"], torch.tensor(k / 1000), torch.tensor((k - 1) / 1000))
    np.testing.assert_allclose(got.step_variance, beta[k - 1], rtol=1e-5)
    np.testing.assert_allclose(got.variance, (1 - before) / (1 - here) * beta[k - 1], rtol=1e-5)
    np.testing.assert_allclose(got.of_x, np.sqrt(before) * beta[k - 1] / (1 - here), rtol=1e-5)
    np.testing.assert_allclose(got.of_x_t, np.sqrt(1 - beta[k - 1]) * (1 - before) / (1 - here), rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_posterior_is_consistent_with_the_marginals(name: str) -> None:
    """x_s from the posterior has, over x_t given x, the mean alpha_s x and the variance sigma_s^2."""
    path, t, s = PATHS[name], torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.55, dtype=torch.float64)
    step = posterior(path, t, s)
    assert float(step.of_x_t * path.alpha(t) + step.of_x) == pytest.approx(float(path.alpha(s)))
    assert float(step.of_x_t**2 * path.sigma(t) ** 2 + step.variance) == pytest.approx(float(path.sigma(s) ** 2))
    assert math.isclose(float(posterior(path, t, torch.zeros_like(t)).of_x), 1.0)
