"""Intervals: what they cover, and what is kept together in a resample."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import uncertainty
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


@pytest.mark.parametrize("per_trial", [1, 4])
def test_pairs_of_big_tables_are_those_of_refits_to_first_order(
    monkeypatch: pytest.MonkeyPatch, per_trial: int
) -> None:
    """The rule for tables too big to be refitted, beside the refits that it stands for."""
    rng = np.random.default_rng(0)
    flops, trials = np.geomspace(1e17, 1e20, 1200), np.arange(1200) // per_trial
    noise = 0.004 * rng.standard_normal(1200) + 0.004 * rng.standard_normal(1200)[trials]
    loss = 40 * flops**-0.06 * np.exp(noise)

    def width(name: str) -> float:
        fit = fit_law(
            PowerLaw(has_floor=False), flops[:, None], loss, trials=trials, interval="pairs", num_resamples=600
        )
        band = fit.ci95[name]
        assert band is not None
        return band[1] - band[0]

    refitted = {name: width(name) for name in ("A", "beta")}
    monkeypatch.setattr(uncertainty, "MOST_POINTS", 1000)
    assert {name: width(name) for name in refitted} == pytest.approx(refitted, rel=0.15)
