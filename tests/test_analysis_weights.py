"""Rows that carry the noise of their loss: they count by how little they have, and the units of it change nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_analysis_isoflop import parabolas

from analysis import load
from analysis.estimating import Options
from analysis.fit_table import fit_loaded
from analysis.fitting import fit_law
from analysis.frontier import average_seeds
from analysis.isoflop import fit_isoflop
from analysis.laws import SurfaceLaw

PLANTED = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
LOUD = np.where(np.arange(40) % 2, 0.001, 0.05)


def runs(seed: int = 0) -> pd.DataFrame:
    """Every other run fifty times as noisy as the rest; `s` says so."""
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(16, 23, 40)), np.exp(rng.uniform(20, 27, 40))
    exact = SurfaceLaw().predict(PLANTED, (N, D))
    loss = exact * np.exp(LOUD * rng.standard_normal(40))
    return pd.DataFrame({"params": N, "samples": D, "flops": 6 * N * D, "loss": loss, "s": LOUD * loss})


def alpha(frame: pd.DataFrame, **options: object) -> float:
    x, y = frame[["params", "samples"]].to_numpy(), frame["loss"].to_numpy()
    return fit_law(SurfaceLaw(), x, y, num_resamples=0, identify=False, **options).params["alpha"]  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["varpro", "least-squares"])
def test_noisy_rows_count_less(recipe: str) -> None:
    frames = [runs(seed) for seed in range(12)]
    plain = [alpha(f, recipe=recipe) - 0.34 for f in frames]
    weighed = [alpha(f, recipe=recipe, sd=f["s"].to_numpy()) - 0.34 for f in frames]
    assert np.std(weighed) < 0.75 * np.std(plain)


def test_alike_noise_changes_nothing_and_its_unit_neither() -> None:
    frame = runs()
    assert alpha(frame, sd=3 * frame["loss"].to_numpy()) == pytest.approx(alpha(frame), rel=1e-9)
    assert alpha(frame, sd=1e6 * frame["s"].to_numpy()) == pytest.approx(
        alpha(frame, sd=frame["s"].to_numpy()), rel=1e-7
    )


@pytest.mark.parametrize("interval", ["pairs", "residual", "wild", "profile", "delta"])
def test_intervals_know_of_it(interval: str) -> None:
    frame = runs(3)
    x, y = frame[["params", "samples"]].to_numpy(), frame["loss"].to_numpy()
    plain, weighed = (
        fit_law(SurfaceLaw(), x, y, num_resamples=80, interval=interval, sd=sd, identify=False).ci95["alpha"]  # type: ignore[arg-type]
        for sd in (None, frame["s"].to_numpy())
    )
    assert plain is not None
    assert weighed is not None
    assert weighed[1] - weighed[0] < plain[1] - plain[0]


def test_a_table_names_its_column_and_is_told_where_the_scatter_is_another() -> None:
    options = Options(num_resamples=0)
    honest = fit_loaded(load(runs(), {"sd": "s"}), "surface", options=options)
    assert honest.table.columns["sd"] == "s"
    assert not any("scatter" in text for text in honest.warnings)
    frame = runs()
    wrong = fit_loaded(load(frame.assign(s=frame["s"] / 1000), {"sd": "s"}), "surface", options=options)
    assert any("times as far as the column of standard deviations says" in text for text in wrong.warnings)
    assert wrong.params == pytest.approx(honest.params, rel=1e-6)
    with pytest.raises(ValueError, match=r"column 's' .* must hold positive finite numbers"):
        fit_loaded(load(frame.assign(s=0.0), {"sd": "s"}), "surface", options=options)


def test_parabolas_are_weighed_too() -> None:
    frame = parabolas(0.47).assign(sd=1e-3)
    odd = frame.index[3::7]
    spoiled = frame.assign(loss=frame["loss"].where(~frame.index.isin(odd), frame["loss"] * 1.02))
    told = spoiled.assign(sd=frame["sd"].where(~frame.index.isin(odd), 1e3))
    assert fit_isoflop(told, num_resamples=0).params["N_exponent"] == pytest.approx(0.47, rel=1e-6)
    assert [m.params for m in fit_isoflop(told, num_resamples=0).minima] == pytest.approx(
        [m.params for m in fit_isoflop(frame, num_resamples=0).minima], rel=1e-6
    )


def test_the_mean_of_seeds_has_the_noise_of_a_mean() -> None:
    frame = pd.DataFrame({"params": [1e6] * 4, "samples": [1e8] * 4, "seed": range(4), "loss": 2.0, "sd": 0.02})
    (row,) = average_seeds(frame).to_dict("records")
    assert row["sd"] == pytest.approx(0.01)
