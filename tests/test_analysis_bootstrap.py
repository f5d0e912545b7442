"""Intervals: what they cover, and what is kept together in a resample."""

from __future__ import annotations

import numpy as np

from analysis.bootstrap import interval, pair_weights, residual_draws
from analysis.fitting import fit_law
from analysis.laws import PowerLaw
from analysis.uncertainty import choose_method


def test_intervals_cover_a_planted_power_law() -> None:
    rng = np.random.default_rng(3)
    flops = np.geomspace(1e17, 1e20, 8)
    hits = {"beta": 0, "A": 0}
    for _ in range(60):
        loss = 40 * flops**-0.06 * np.exp(0.01 * rng.standard_normal(8))
        fit = fit_law(PowerLaw(has_floor=False), flops[:, None], loss, num_resamples=200)
        for name, value in (("beta", 0.06), ("A", 40.0)):
            band = fit.ci95[name]
            assert band is not None
            hits[name] += band[0] <= value <= band[1]
    assert all(count / 60 >= 0.88 for count in hits.values()), hits


def test_intervals_narrow_with_the_noise() -> None:
    flops = np.geomspace(1e17, 1e20, 8)
    noise = np.random.default_rng(0).standard_normal(8)
    widths = []
    for scale in (0.001, 0.01):
        fit = fit_law(PowerLaw(has_floor=False), flops[:, None], 40 * flops**-0.06 * np.exp(scale * noise))
        band = fit.ci95["beta"]
        assert band is not None
        widths.append(band[1] - band[0])
    assert 5 < widths[1] / widths[0] < 20


def test_trials_are_drawn_whole() -> None:
    trials = np.repeat(np.arange(30), 3)
    weights = pair_weights(trials, 50, np.random.default_rng(0))
    assert (weights.reshape(50, 30, 3) == weights.reshape(50, 30, 3)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 90).all()
    assert choose_method(30, 5, 90) == "pairs"
    assert choose_method(4, 2, 12) == "delta"
    assert choose_method(12, 2, 12) == "profile"


def test_residuals_of_a_trial_stay_together() -> None:
    trials = np.repeat(np.arange(4), 5)
    residuals = np.repeat([1.0, 2.0, 3.0, 4.0], 5)
    noise = residual_draws(residuals, trials, 2, 40, np.random.default_rng(0)).reshape(40, 4, 5)
    assert np.allclose(noise, noise[:, :, :1])
    assert len(np.unique(np.round(np.abs(noise), 9))) == 4


def test_no_interval_from_resamples_that_mostly_failed() -> None:
    assert interval(np.array([1.0] * 30 + [np.nan] * 70)) is None
    assert interval(np.linspace(0, 1, 1001)) == (0.025, 0.975)
