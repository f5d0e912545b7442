"""What must not change a fit: units, the order of rows, repeated points, an outlier. And bad input, said clearly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fit_table import fit_table
from analysis.fitting import fit_law, fit_power
from analysis.laws import PowerLaw, SurfaceLaw
from analysis.uncertainty import resamples_for

PLANTED = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}


def study(seed: int = 0, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 5)))
    x = np.stack([N, D], axis=1)
    error = np.exp(noise * np.random.default_rng(seed).standard_normal(len(x)))
    return x, SurfaceLaw().predict(PLANTED, (N, D)) * error


@given(
    n=st.floats(-12, 12), d=st.floats(-12, 12), y=st.floats(-6, 6), order=st.integers(0, 999), seed=st.integers(0, 50)
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_units_and_order_change_nothing(n: float, d: float, y: float, order: int, seed: int) -> None:
    x, loss = study(seed)
    rows = np.random.default_rng(order).permutation(len(loss))
    one = fit_law(SurfaceLaw(), x, loss, num_resamples=0).params
    other = fit_law(SurfaceLaw(), x[rows] * [10**n, 10**d], loss[rows] * 10**y, num_resamples=0).params
    expected = {
        "E": one["E"] * 10**y,
        "A": one["A"] * 10 ** (y + n * one["alpha"]),
        "B": one["B"] * 10 ** (y + d * one["beta"]),
        "alpha": one["alpha"],
        "beta": one["beta"],
    }
    assert other == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("interval", ["pairs", "residual", "wild", "profile", "delta"])
def test_units_change_no_interval(interval: str) -> None:
    flops = np.geomspace(1e17, 1e21, 30)
    loss = (1e3 * flops**-0.15 + 1.5) * np.exp(0.003 * np.random.default_rng(0).standard_normal(30))
    bands = [
        fit_law(PowerLaw(), flops[:, None] / unit, loss, num_resamples=80, interval=interval).ci95  # type: ignore[arg-type]
        for unit in (1.0, 1e18)
    ]
    for name in ("beta", "floor"):
        assert bands[1][name] == pytest.approx(bands[0][name], rel=2e-3)


def test_points_that_repeat_their_trial_add_nothing() -> None:
    x, loss = study()
    trials = np.arange(len(loss))
    once = fit_law(SurfaceLaw(), x, loss, trials=trials, num_resamples=60)
    twice = fit_law(SurfaceLaw(), np.tile(x, (3, 1)), np.tile(loss, 3), trials=np.tile(trials, 3), num_resamples=60)
    assert twice.num_points == once.num_points
    assert twice.params == once.params
    assert twice.ci95 == once.ci95


def test_three_outliers_move_a_surface_little_and_least_squares_much() -> None:
    x, loss = study(noise=0.002)
    spoiled = loss.copy()
    spoiled[[3, 11, 26]] *= [1.3, 1.2, 1.4]
    robust = fit_law(SurfaceLaw(), x, spoiled, num_resamples=0).params
    squares = fit_law(SurfaceLaw(), x, spoiled, num_resamples=0, recipe="least-squares").params
    assert robust["alpha"] == pytest.approx(PLANTED["alpha"], rel=0.08)
    assert abs(squares["alpha"] / PLANTED["alpha"] - 1) > 3 * abs(robust["alpha"] / PLANTED["alpha"] - 1)


def test_a_loss_that_is_wrong_by_a_factor_of_ten_binds_no_floor() -> None:
    x, loss = study(noise=0.002)
    for row in (3, 29):
        spoiled = loss.copy()
        spoiled[row] /= 10
        fit = fit_law(SurfaceLaw(), x, spoiled, num_resamples=0)
        assert fit.outcome == "converged", fit.reason
        assert fit.params["E"] == pytest.approx(PLANTED["E"], rel=0.02)
        assert fit.profile is not None
        assert fit.profile.interval[0] <= fit.params["E"] <= fit.profile.interval[1]


def test_a_floor_may_be_held_at_a_value() -> None:
    flops = np.geomspace(1e17, 1e21, 12)
    loss = 1e3 * flops**-0.15 + 1.5
    held = fit_power(flops, loss, floor=1.5, num_resamples=60)
    assert held.params == pytest.approx({"A": 1e3, "beta": 0.15, "floor": 1.5}, rel=1e-6)
    assert held.ci95["floor"] == pytest.approx((1.5, 1.5))
    above = fit_power(flops, loss, floor=float(loss.min()) * 1.1, num_resamples=0)
    assert above.outcome == "at_bound"
    assert "no A C^-beta lies below it" in str(above.reason)


def test_big_tables_draw_fewer_resamples_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resamples_for(4000, 240) == 4000
    assert resamples_for(1000, 10_000) == 400
    assert resamples_for(1000, 1_000_000) == 200
    monkeypatch.setattr("analysis.uncertainty.MOST_CELLS", 6000)
    fit = fit_law(SurfaceLaw(), *study(), num_resamples=500)
    assert len(fit.draws["beta"]) == 200
    assert "200 resamples of 30 independent runs" in fit.rule
    assert "500 were asked for" in fit.rule


@pytest.mark.parametrize(
    ("law", "frame", "message"),
    [
        ("surface", {"params": [1e6] * 8, "samples": np.geomspace(1e8, 1e9, 8)}, "3 different params; got 1"),
        ("tied", {"params": np.geomspace(1e6, 1e7, 8), "samples": [1e8] * 8}, "3 different samples; got 1"),
        (
            "kaplan",
            {"params": [1e6, 2e6, 3e6], "samples": [1e8, 2e8, 3e8]},
            "at least 5 different .params, samples",
        ),
        ("learning-rate", {"params": [1e6, 2e6, 3e6], "samples": [1e8, 2e8, 3e8]}, "at least 3 learning rates"),
        ("isoflop", {"params": [1e6] * 6, "samples": np.geomspace(1e8, 1e9, 6)}, "at least 3 sizes each; got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(law: str, frame: dict[str, object], message: str) -> None:
    table = pd.DataFrame(frame)
    table = table.assign(flops=6 * table["params"] * table["samples"], loss=np.linspace(3, 2, len(table)))
    table["budget_flops"] = 1e15
    with pytest.raises(ValueError, match=message):
        fit_table(table, law)
