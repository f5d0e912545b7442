"""Profile likelihood and the delta method, against normal theory where it is exact, and their coverage in small."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.fitting import fit_law
from analysis.floors import flat_to_zero, profile_floor
from analysis.laws import PowerLaw, SurfaceLaw
from analysis.likelihood import profile_intervals
from analysis.points import Points, covariance
from analysis.solver import LEAST_SQUARES
from analysis.trial_effects import trial_effects

FLOPS = np.geomspace(1e17, 1e21, 20)


def line(seed: int, n: int = 20, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    flops = np.geomspace(1e17, 1e21, n)
    return flops[:, None], 40 * flops**-0.06 * np.exp(noise * np.random.default_rng(seed).standard_normal(n))


def test_the_delta_method_is_a_regressions_own() -> None:
    """Without a floor log y is a line in log C: least squares has the covariance of a linear regression."""
    x, y = line(0)
    fit = fit_law(PowerLaw(has_floor=False), x, y, recipe="least-squares", interval="delta", num_resamples=40_000)
    slope = stats.linregress(np.log(x[:, 0]), np.log(y))
    points = Points.of(PowerLaw(has_floor=False), x, y)
    theta = points.theta(fit.params)
    error = np.sqrt(covariance(points, theta, LEAST_SQUARES)[1, 1])
    assert fit.params["beta"] == pytest.approx(-slope.slope, rel=1e-9)
    assert error == pytest.approx(slope.stderr, rel=0.02)
    half = stats.t.ppf(0.975, 18) * slope.stderr
    assert fit.ci95["beta"] == pytest.approx((-slope.slope - half, -slope.slope + half), rel=0.02)


def test_a_profile_of_a_line_is_its_t_interval() -> None:
    x, y = line(3, n=200)
    points = Points.of(PowerLaw(has_floor=False), x, y)
    fit = fit_law(PowerLaw(has_floor=False), x, y, recipe="least-squares", num_resamples=0)
    low, high = profile_intervals(points, points.theta(fit.params))["beta"]
    slope = stats.linregress(np.log(x[:, 0]), np.log(y))
    half = stats.t.ppf(0.975, 198) * slope.stderr
    assert high - low == pytest.approx(2 * half, rel=0.15)  # Huber(1.345 s) is not quite least squares
    assert (low + high) / 2 == pytest.approx(-slope.slope, abs=0.3 * half)


def test_a_profile_ends_where_the_statistic_crosses() -> None:
    """Held at an end of its interval, a parameter fits as badly as is allowed, and worse beyond."""
    from analysis.likelihood import Likelihood, held

    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 5)))
    planted = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
    x, y = np.stack([N, D], axis=1), SurfaceLaw().predict(planted, (N, D)) * noise
    fit = fit_law(SurfaceLaw(), x, y, interval="profile", num_resamples=60)
    points = Points.of(SurfaceLaw(), x, y)
    likelihood = Likelihood.of(points, points.theta(fit.params))
    column = list(SurfaceLaw().theta_names).index("alpha")
    low, high = fit.ci95["alpha"] or (0.0, 0.0)
    assert low < planted["alpha"] < high
    for value, expected in ((low, 1.0), (high, 1.0), (high + 0.5 * (high - low), 3.0)):
        rows = held(points.problem(), np.array([column]), np.array([value]))
        statistic, _ = likelihood.statistic(rows, likelihood.theta[None])
        ratio = float(statistic[0]) / likelihood.threshold
        assert ratio == pytest.approx(1.0, abs=0.03) if expected == 1.0 else ratio > expected


@pytest.mark.parametrize("interval", ["auto", "profile", "delta"])
def test_intervals_of_twelve_points_hold_the_planted_exponent(interval: str) -> None:
    held = 0
    for seed in range(60):
        x, y = line(seed, n=12)
        fit = fit_law(PowerLaw(has_floor=False), x, y, num_resamples=100, interval=interval)  # type: ignore[arg-type]
        low, high = fit.ci95["beta"] or (0.0, 0.0)
        held += low <= 0.06 <= high
    assert 52 <= held <= 60


def test_runs_of_several_points_widen_the_delta_method() -> None:
    """Milestones of one run that err together count as one, not as five."""
    rng = np.random.default_rng(0)
    trials = np.tile(np.arange(12), 5)
    x = np.geomspace(1e17, 1e21, 12)[trials][:, None]
    y = 40 * x[:, 0] ** -0.06 * np.exp(0.01 * rng.standard_normal(12)[trials] + 0.001 * rng.standard_normal(60))
    alone, together = (
        fit_law(PowerLaw(has_floor=False), x, y, trials=units, interval="delta", num_resamples=400).ci95["beta"]
        for units in (None, trials)
    )
    assert alone is not None
    assert together is not None
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


def test_what_five_runs_tell_apart_has_few_degrees_of_freedom() -> None:
    """Five sizes of five milestones: alpha is known from three or four degrees of freedom, beta from many."""
    law = SurfaceLaw()
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5), indexing="ij"))
    trials, rng = np.repeat(np.arange(5), 5), np.random.default_rng(0)
    planted = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
    noise = 0.005 * rng.standard_normal(5)[trials] + 0.001 * rng.standard_normal(25)
    points = Points.of(law, np.stack([N, D], axis=1), law.predict(planted, (N, D)) * np.exp(noise), trials)
    effects = trial_effects(points, points.theta(planted), 1e-3)
    dof = dict(zip(law.theta_names, effects.dof, strict=True))
    assert 1 <= dof["alpha"] < 4
    assert dof["beta"] > 8


def test_one_run_alone_says_what_it_does_not_know() -> None:
    x, y = line(1)
    fit = fit_law(PowerLaw(has_floor=False), x, y, trials=np.zeros(20), num_resamples=60)
    low, high = fit.ci95["beta"] or (0.0, 0.0)
    assert low < fit.params["beta"] < high
    assert "one run alone" in fit.rule


def test_points_of_one_run_each_have_the_usual_degrees_of_freedom() -> None:
    """With as many runs as points but one, an effect of the run is noise like any other."""
    x, y = line(2, n=40)
    trials = np.repeat(np.arange(20), 2)
    points = Points.of(PowerLaw(has_floor=False), x, y, trials)
    fit = fit_law(PowerLaw(has_floor=False), x, y, recipe="least-squares", num_resamples=0)
    theta = points.theta(fit.params)
    effects = trial_effects(points, theta, LEAST_SQUARES)
    plain = covariance(points, theta, LEAST_SQUARES)
    assert np.sqrt(np.diag(effects.covariance)) == pytest.approx(np.sqrt(np.diag(plain)), rel=0.4)


def test_a_floors_profile_is_least_at_the_estimate_and_flat_where_there_is_none() -> None:
    y = (1e3 * FLOPS**-0.15 + 1.5) * np.exp(0.002 * np.random.default_rng(0).standard_normal(20))
    points = Points.of(PowerLaw(), FLOPS[:, None], y)
    fit = fit_law(PowerLaw(), FLOPS[:, None], y, num_resamples=0)
    profile = profile_floor(points, points.theta(fit.params))
    assert profile.interval[0] <= fit.params["floor"] <= profile.interval[1]
    assert not flat_to_zero(profile)
    least = int(profile.statistic.argmin())
    assert profile.statistic[least] < 0.01
    assert (np.diff(profile.statistic[least:]) >= -1e-9).all()
    assert (np.diff(profile.statistic[: least + 1]) <= 1e-9).all()
    bare = 40 * FLOPS**-0.06 * np.exp(0.01 * np.random.default_rng(1).standard_normal(20))
    points = Points.of(PowerLaw(), FLOPS[:, None], bare)
    fit = fit_law(PowerLaw(), FLOPS[:, None], bare, num_resamples=0)
    assert flat_to_zero(profile_floor(points, points.theta(fit.params)))
