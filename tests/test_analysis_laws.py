"""Every law: recovered from its own values, gradients against differences, units, and what cannot identify it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import fit
from analysis.allocation import CostRelation, law_optimum
from analysis.fit_table import fit_table
from analysis.fitting import fit_law
from analysis.kaplan import KaplanLaw
from analysis.laws import Law, PowerLaw, SurfaceLaw, TiedLaw
from analysis.repetition import RepeatedLaw

SURFACE = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
PLANTED: dict[str, tuple[Law, dict[str, float]]] = {
    "power": (PowerLaw(), {"A": 1e3, "beta": 0.15, "floor": 1.5}),
    "without a floor": (PowerLaw(has_floor=False), {"A": 2.3943, "beta": 0.0273}),
    "surface": (SurfaceLaw(), SURFACE),
    "tied": (TiedLaw(), {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353}),
    "kaplan": (KaplanLaw(), {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}),
    "repeated": (
        RepeatedLaw(),
        {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.36, "R_D": 15.4, "R_N": 5.3},
    ),
}
"""Muennighoff et al. 2023, arXiv 2305.16264: R_D 15.4, R_N 5.3; Kaplan et al. 2020, arXiv 2001.08361, table 2."""


def points_of(law: Law) -> np.ndarray:
    if len(law.variables) == 1:
        return np.geomspace(1e17, 1e21, 9)[:, None]
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    unique = np.minimum(D, np.tile([1e8, 1e9, 1e10], 12))
    return np.stack([N, D, unique], axis=1)[:, : len(law.variables)]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_law_is_recovered_without_noise(name: str) -> None:
    law, planted = PLANTED[name]
    x = points_of(law)
    found = fit_law(law, x, law.predict(planted, tuple(x.T)), num_resamples=0)
    assert found.params == pytest.approx(planted, rel=1e-6)
    assert found.outcome == "converged"
    assert list(found.params) == list(law.params)


@pytest.mark.parametrize("name", PLANTED)
def test_gradients_are_those_of_differences(name: str) -> None:
    law, planted = PLANTED[name]
    log_x, theta = np.log(points_of(law)), law.to_theta(planted)[None]
    gradient = law.gradient(theta, log_x)[0]
    for k, step in enumerate(1e-6 * np.eye(law.num_params)):
        difference = (law.log_y(theta + step, log_x) - law.log_y(theta - step, log_x))[0] / 2e-6
        np.testing.assert_allclose(gradient[:, k], difference, atol=1e-6)


@pytest.mark.parametrize("name", PLANTED)
def test_theta_and_params_are_one_another(name: str) -> None:
    law, planted = PLANTED[name]
    back = law.to_params(law.to_theta(planted))
    assert {key: float(value) for key, value in back.items()} == pytest.approx(planted, rel=1e-12)
    x = points_of(law)
    both = law.predict({key: np.array([value, value]) for key, value in planted.items()}, tuple(x.T))
    assert both.shape == (len(x), 2)
    np.testing.assert_allclose(both[:, 1], law.predict(planted, tuple(x.T)))


def test_a_repeated_law_is_the_surface_where_nothing_is_repeated_nor_too_large() -> None:
    planted = PLANTED["repeated"][1]
    x = points_of(SurfaceLaw())
    largest = (planted["alpha"] * planted["A"] / planted["beta"] / planted["B"]) ** (1 / planted["alpha"])
    x = x[x[:, 0] <= largest * x[:, 1] ** (planted["beta"] / planted["alpha"])]
    assert len(x) > 15
    surface = SurfaceLaw().predict(planted, tuple(x.T))
    np.testing.assert_allclose(RepeatedLaw().predict(planted, (*x.T, 1e14)), surface, rtol=1e-12)
    assert (RepeatedLaw().predict(planted, (*x.T, 1e7)) > surface).all()


def test_the_best_size_of_each_law_is_where_its_loss_is_least() -> None:
    cost = CostRelation(coefficient=6.0, params_exponent=1.0, spread=0.0)
    N = np.geomspace(1e5, 1e12, 70_001)
    for name in ("surface", "tied", "kaplan"):
        law, planted = PLANTED[name]
        loss = law.predict(planted, (N, 1e20 / (6 * N)))
        found = law_optimum(name, planted, cost, 1e20)
        assert float(found["params"]) == pytest.approx(N[loss.argmin()], rel=3e-4)
        assert float(found["loss"]) == pytest.approx(loss.min(), rel=1e-9)
        assert float(found["samples_per_param"]) == pytest.approx(1e20 / 6 / float(found["params"]) ** 2)


@pytest.mark.parametrize(
    ("law", "x", "reason"),
    [
        (PowerLaw(), np.geomspace(1, 9, 4)[:, None], "needs 5 distinct points; there are 4"),
        (TiedLaw(), np.array([[1.0, k] for k in range(1, 9)]), "needs 3 different values of params; there are 1"),
        (KaplanLaw(), np.array([[k, 2.0] for k in range(1, 9)]), "needs 3 different values of samples; there are 1"),
        (RepeatedLaw(), np.ones((40, 3)), "needs 8 distinct points; there are 1"),
    ],
)
def test_too_few_points_are_a_value_with_its_reason(law: Law, x: np.ndarray, reason: str) -> None:
    found = fit_law(law, x, np.linspace(3, 2, len(x)), num_resamples=0)
    assert (found.outcome, found.params) == ("too_few_points", {})
    assert reason in str(found.reason)


def test_repeats_that_were_not_run_are_not_identified() -> None:
    law, planted = PLANTED["repeated"]
    x = points_of(law)
    x[:, 2] = x[:, 1]
    found = fit_law(law, x, law.predict(planted, tuple(x.T)), num_resamples=0)
    assert found.outcome == "not_identified"
    assert str(found.reason).startswith("R_D is not identified: 0 runs see their samples more than twice")


@pytest.mark.parametrize("name", ["tied", "kaplan", "repeated"])
def test_the_table_takes_every_law(name: str) -> None:
    law, planted = PLANTED[name]
    x = points_of(law)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(x)))
    frame = pd.DataFrame(dict(zip(law.variables, x.T, strict=True)))
    frame = frame.assign(flops=6 * x[:, 0] * x[:, 1], loss=law.predict(planted, tuple(x.T)) * noise)
    result = fit_table(frame, name, target_flops=1e21, num_resamples=60)
    assert result["law"] == name
    assert list(result["params"]) == list(law.params)
    assert result["params"][law.exponents[0]] == pytest.approx(planted[law.exponents[0]], rel=0.1)
    allocation = result["allocation"]
    assert allocation["samples_per_param"] == pytest.approx(allocation["samples"] / allocation["params"])
    low, high = allocation["ci95"]["samples_per_param"]
    assert low < allocation["samples_per_param"] < high


def test_any_law_by_its_name() -> None:
    law, planted = PLANTED["tied"]
    x = points_of(law)
    frame = pd.DataFrame({"params": x[:, 0], "samples": x[:, 1], "loss": law.predict(planted, tuple(x.T))})
    assert fit(frame, "tied", num_resamples=0).params == pytest.approx(planted, rel=1e-6)
    with pytest.raises(ValueError, match="no law 'tide'; the laws are power, surface, tied, kaplan, repeated"):
        fit(frame, "tide")


def test_a_repeated_law_asks_for_unique_samples() -> None:
    frame = pd.DataFrame({"params": [1e6, 2e6], "samples": [1e8, 2e8], "flops": [1e15, 4e15], "loss": [3.0, 2.0]})
    with pytest.raises(ValueError, match="no column for unique_samples"):
        fit_table(frame, "repeated")


def test_kaplan_has_no_grid_of_starts() -> None:
    x = points_of(KaplanLaw())
    with pytest.raises(ValueError, match="recipe 'hoffmann' is of sums of powers"):
        fit_law(KaplanLaw(), x, np.ones(len(x)), recipe="hoffmann")
