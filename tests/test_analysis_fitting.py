"""Fits against planted laws, and what is not identified."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.fitting import fit_law, fit_power
from analysis.laws import PowerLaw, SurfaceLaw

BUDGETS = np.geomspace(1e17, 1e21, 9)


def test_planted_surface_is_recovered() -> None:
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    planted = {"E": 0.31, "A": 40.0, "B": 300.0, "alpha": 0.29, "beta": 0.36}
    loss = planted["E"] + planted["A"] / N ** planted["alpha"] + planted["B"] / D ** planted["beta"]
    fit = fit_law(SurfaceLaw(), np.stack([N, D], axis=-1), loss, num_resamples=0)
    assert fit.params == pytest.approx(planted, rel=1e-6)
    assert fit.outcome == "converged"


@pytest.mark.parametrize(("A", "beta", "floor"), [(1e3, 0.15, 1.5), (2.2566e6, 0.234, 5.0), (30.0, 0.05, 0.3)])
def test_planted_power_law_is_recovered(A: float, beta: float, floor: float) -> None:
    fit = fit_power(BUDGETS, A * BUDGETS**-beta + floor, num_resamples=50)
    assert fit.floor_identified
    assert fit.params == pytest.approx({"A": A, "beta": beta, "floor": floor}, rel=1e-6)


def test_a_floor_that_is_not_there_is_refused() -> None:
    fit = fit_power(BUDGETS, 2.3943 * BUDGETS**-0.0273, num_resamples=50)
    assert fit.floor_identified is False
    assert "flat down to 0" in str(fit.floor_reason)
    assert fit.params == pytest.approx({"A": 2.3943, "beta": 0.0273}, rel=1e-6)


def test_a_floor_hidden_by_noise_is_refused_with_the_floors_left_open() -> None:
    noise = np.exp(0.05 * np.random.default_rng(1).standard_normal(len(BUDGETS)))
    fit = fit_power(BUDGETS, (1e3 * BUDGETS**-0.15 + 1.5) * noise, num_resamples=50)
    assert fit.floor_identified is False
    low, high = fit.ci95["floor"]
    assert low == 0
    assert high > 1.0


def test_gradients_match_finite_differences() -> None:
    rng = np.random.default_rng(0)
    for law, variables in ((PowerLaw(), 1), (PowerLaw(has_floor=False), 1), (SurfaceLaw(), 2)):
        log_x = rng.standard_normal((7, variables))
        theta = rng.standard_normal((1, law.num_params))
        gradient = law.gradient(theta, log_x)[0]
        for k in range(law.num_params):
            step = np.eye(law.num_params)[[k]] * 1e-6
            difference = (law.log_y(theta + step, log_x) - law.log_y(theta - step, log_x))[0] / 2e-6
            np.testing.assert_allclose(gradient[:, k], difference, atol=1e-8)


def test_too_few_points_is_a_value() -> None:
    fit = fit_law(SurfaceLaw(), np.array([[1e6, 1e8], [1e7, 1e9], [1e8, 1e10]]), np.array([3.0, 2.0, 1.5]))
    assert fit.outcome == "too_few_points"
    assert fit.params == {}
    assert "needs 6 distinct points; there are 3" in str(fit.reason)


def test_a_surface_along_one_line_is_not_identified() -> None:
    N = np.geomspace(1e6, 1e9, 12)
    fit = fit_law(SurfaceLaw(), np.stack([N, 20 * N], axis=-1), 0.3 + 40 / N**0.29 + 300 / (20 * N) ** 0.36)
    assert fit.outcome == "not_identified"
    assert "do not vary apart" in str(fit.reason)


def test_one_outlier_neither_moves_the_law_nor_hides_its_floor() -> None:
    loss = 1e3 * BUDGETS**-0.15 + 1.5
    loss[4] *= 1.3
    fit = fit_power(BUDGETS, loss, num_resamples=0)
    assert fit.floor_identified
    assert fit.params == pytest.approx({"A": 1e3, "beta": 0.15, "floor": 1.5}, rel=0.03)


def test_losses_that_rise_with_compute_end_at_a_bound() -> None:
    fit = fit_power(BUDGETS, BUDGETS**0.1, num_resamples=0)
    assert fit.outcome == "at_bound"
    assert "beta ended at the edge" in str(fit.reason)


def test_one_loss_everywhere_is_no_law() -> None:
    fit = fit_power(BUDGETS, np.full(len(BUDGETS), 2.0))
    assert (fit.outcome, fit.params) == ("not_identified", {})
    assert fit.reason == "y is 2 at every point: nothing falls"
