"""Frechet and kernel distances against closed forms, scipy's sqrtm, other implementations, and their own noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from models.fid.frechet import (
    Extrapolation,
    Reference,
    expected_bias,
    extrapolated_distance,
    frechet_distance,
    influences,
    sampling_sd,
)
from models.fid.kid import kernel_distance, squared_mmd
from models.fid.moments import Moments


def normal(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Moments whose covariance is exactly `covariance`."""
    return Moments(101, mean.double(), covariance.double() * 100)


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed)).Q


def scipy_frechet(a: Moments, b: Moments) -> float:
    """The textbook formula with the root of the (not symmetric) product, in float64."""
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    difference = (a.mean - b.mean).numpy()
    spread = np.trace(a.covariance.numpy()) + np.trace(b.covariance.numpy()) - 2 * np.trace(root.real)
    return float(difference @ difference + spread)


def sd_of(features: torch.Tensor, reference: Reference) -> float:
    return sampling_sd(influences(features, reference))


def extrapolated(features: torch.Tensor, reference: Reference) -> Extrapolation:
    return extrapolated_distance(features, reference, influences(features, reference))


def test_two_gaussians_that_commute_have_a_closed_form():
    basis = rotation(6, 1)
    one, other = torch.tensor([4.0, 1, 9, 0.25, 2, 16]), torch.tensor([1.0, 1, 4, 1, 8, 0])
    a = gaussian(torch.arange(6.0), basis @ torch.diag(one.double()) @ basis.T)
    b = gaussian(torch.zeros(6), basis @ torch.diag(other.double()) @ basis.T)
    wanted = 55 + float((one.double().sqrt() - other.double().sqrt()).square().sum())
    assert frechet_distance(a, Reference.of(b)) == pytest.approx(wanted, rel=1e-9)


def test_one_dimension_is_the_difference_of_means_and_deviations():
    a, b = gaussian(torch.tensor([3.0]), torch.tensor([[4.0]])), gaussian(torch.tensor([1.0]), torch.tensor([[9.0]]))
    assert frechet_distance(a, Reference.of(b)) == pytest.approx(4 + 1, rel=1e-12)


@pytest.mark.parametrize("d", [3, 64, 200])
def test_equal_to_scipys_sqrtm(d):
    mixing = normal(d, d, 2) / math.sqrt(d)
    a, b = Moments.of(normal(4 * d, d, 3) @ mixing), Moments.of(normal(5 * d, d, 4) + 0.1)
    assert frechet_distance(a, Reference.of(b)) == pytest.approx(scipy_frechet(a, b), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 20, 63])
def test_covariances_without_full_rank_are_no_special_case(rank):
    """Both of rank below d, in one basis: known in closed form, where sqrtm of the product is not defined."""
    basis = rotation(128, 5)[:, :rank]
    a = gaussian(torch.zeros(128), 4 * basis @ basis.T)
    b = gaussian(torch.zeros(128), basis @ basis.T)
    assert frechet_distance(a, Reference.of(b)) == pytest.approx(rank, rel=1e-6)
    assert frechet_distance(b, Reference.of(b)) == pytest.approx(0, abs=1e-6 * rank)


def test_few_images_of_many_features():
    few, many = Moments.of(normal(20, 100, 6)), Moments.of(normal(3000, 100, 7))
    assert frechet_distance(few, Reference.of(many)) == pytest.approx(scipy_frechet(few, many), rel=1e-6)


def test_real_against_real_halves_is_near_its_expected_bias():
    found, wanted = [], []
    for seed in range(20):
        x = normal(800, 24, seed) @ torch.diag(torch.linspace(0.1, 3, 24, dtype=torch.float64))
        halves = Moments.of(x[:400]), Reference.of(Moments.of(x[400:]))
        found.append(frechet_distance(*halves))
        wanted.append(2 * expected_bias(x, 400))
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.05)


def test_expected_bias_of_unit_gaussians_has_a_closed_form():
    """tr S = d from the means; d (d + 1) / 4 from the covariances."""
    d = 10
    assert expected_bias(normal(100_000, d, 8), 1000) == pytest.approx((d + d * (d + 1) / 4) / 1000, rel=0.02)


def test_sampling_sd_is_the_spread_over_draws():
    d = 12
    reference = Reference.of(gaussian(torch.zeros(d), torch.eye(d)))
    scale = torch.linspace(0.5, 2, d, dtype=torch.float64)
    draws = [normal(500, d, seed) * scale + 0.3 for seed in range(200)]
    spread = np.std([frechet_distance(Moments.of(x), reference) for x in draws], ddof=1)
    assert np.mean([sd_of(x, reference) for x in draws[:20]]) == pytest.approx(spread, rel=0.15)


def test_the_extrapolated_distance_covers_the_true_one():
    d = 12
    reference = Reference.of(gaussian(torch.zeros(d), torch.eye(d)))
    scale = torch.linspace(0.5, 2, d, dtype=torch.float64)
    true = float((scale - 1).square().sum()) + 0.09 * d
    found = [extrapolated(normal(480, d, seed) * scale + 0.3, reference) for seed in range(200)]
    assert 0.91 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.99
    assert np.mean([one.value for one in found]) == pytest.approx(true, rel=0.005)
    biased = [frechet_distance(Moments.of(normal(480, d, seed) * scale + 0.3), reference) for seed in range(50)]
    assert np.mean(biased) > true * 1.01


def test_the_extrapolated_distance_covers_zero():
    """Images of the reference itself, where the first order of the noise vanishes."""
    reference = Reference.of(gaussian(torch.zeros(12), torch.eye(12)))
    found = [extrapolated(normal(480, 12, seed), reference) for seed in range(100)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.9


def test_classes_that_take_turns_do_not_widen_the_interval():
    """As generated images come: ten classes far apart, one after the other. Parts with more of some classes than of
    others would be far from the reference for that alone."""
    centres = 3 * normal(10, 8, 1)
    real = Reference.of(Moments.of(normal(20_000, 8, 2) + centres.repeat(2000, 1)))
    made = 1.1 * normal(2000, 8, 3) + centres.repeat(200, 1)
    found = extrapolated(made, real)
    assert found.high - found.low < 5 * sd_of(made, real)
    shuffled = extrapolated(made[torch.randperm(2000, generator=torch.Generator().manual_seed(0))], real)
    assert found.value == pytest.approx(shuffled.value, abs=2 * shuffled.sd)


def test_moments_do_not_depend_on_batches_or_on_who_saw_them():
    x = normal(1000, 8, 9) + 1e4
    whole = Moments.of(x)
    for size in (1, 7, 1000):
        merged = Moments.empty(8)
        for part in x.split(size):
            merged = merged.merge(Moments.of(part))
        assert merged.count == 1000
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
        assert torch.allclose(merged.covariance, torch.from_numpy(np.cov(x.numpy().T)), rtol=1e-9, atol=1e-9)
    odd, even = Moments.of(x[1::2]), Moments.of(x[::2])
    assert torch.allclose(odd.merge(even).scatter, even.merge(odd).scatter, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Moments.of(torch.full((3, 2), math.nan)), "3 of 3 rows of features are not finite"),
        (lambda: Moments.of(torch.zeros(3)), r"features have shape \[3\]; wanted \[images, features\]"),
        (lambda: Moments.of(torch.zeros(1, 2)).covariance, "a covariance of 1 images; wanted at least 2"),
        (lambda: Moments.empty(2).merge(Moments.empty(3)), "moments of 2 and of 3 features"),
        (lambda: frechet_distance(Moments.of(normal(9, 2)), Reference.of(Moments.of(normal(9, 3)))), "of 2 features"),
        (lambda: extrapolated(normal(9, 2), Reference.of(Moments.of(normal(9, 2)))), "wanted at least 24"),
        (lambda: kernel_distance(normal(9, 2), normal(9, 3), torch.Generator()), "2 features against 3"),
        (lambda: kernel_distance(normal(1, 2), normal(9, 2), torch.Generator()), "at least 2 rows"),
        (lambda: kernel_distance(normal(9, 2) / 0, normal(9, 2), torch.Generator()), "features hold values"),
    ],
)  # fmt: skip
def test_what_has_no_distance_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_squared_mmd_is_the_sum_over_pairs():
    x, y = normal(5, 3, 10), normal(4, 3, 11)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / 3 + 1) ** 3

    within_x = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    found = [
        kernel_distance(normal(60, 8, seed), normal(60, 8, 1000 + seed), torch.Generator(), subsets=3, subset_size=60)
        for seed in range(200)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert all(one.subset_sd < 1e-12 for one in found[:3])  # each subset is all there is
    apart = kernel_distance(normal(300, 8), normal(300, 8, 1) + 1, torch.Generator().manual_seed(0), subset_size=100)
    assert apart.value > 0.1
    assert apart.subset_sd > 0
