"""`fit`: tables of other people and ours, what is said of them, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_analysis_planted import N_EXPONENT, write_results

from analysis.fit_page import format_fit
from analysis.fit_table import fit_table

DATA = Path(__file__).parent / "data"


def surface_table(path: Path, **renamed: str) -> Path:
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    frame = pd.DataFrame({"params": N, "samples": D, "loss": (0.31 + 40 / N**0.29 + 300 / D**0.36) * noise})
    frame.rename(columns=renamed).to_csv(path, index=False)
    return path


def warned(result: dict[str, Any], words: str) -> bool:
    return any(words in warning for warning in result["warnings"])


def test_a_surface_from_a_foreign_csv(tmp_path: Path) -> None:
    path = surface_table(tmp_path / "runs.csv", params="N", samples="Tokens", loss="val_loss")
    result = fit_table(path, "surface", target_flops=1e20)
    keys = {"law", "params", "ci95", "outcome", "starts_agree", "num_points", "allocation", "warnings"}
    assert set(result) >= keys
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["params"]) == ["E", "A", "B", "alpha", "beta"]
    assert result["ci95"]["alpha"][0] < 0.29 < result["ci95"]["alpha"][1]
    allocation = result["allocation"]
    assert allocation["N_exponent"] == pytest.approx(0.36 / 0.65, abs=0.03)
    assert 6 * allocation["params"] * allocation["samples"] == pytest.approx(1e20, rel=1e-6)
    assert allocation["ci95"]["params"][0] < allocation["params"] < allocation["ci95"]["params"][1]
    assert warned(result, "no column of flops: derived from params and samples by flops = 6 params samples")


def test_llama3_minima_reproduce_the_published_exponent() -> None:
    result = fit_table(DATA / "llama3_points.csv", "isoflop", target_flops=3.8e25, num_resamples=200)
    assert result["allocation"]["N_exponent"] == pytest.approx(0.463, abs=0.001)
    assert len(result["minima"]) == 10
    assert set(result["minima"][0]) == {"flops", "params", "loss", "bracketed"}
    assert warned(result, "estimators disagree: N* exponent 0.4632 by parabola")
    assert warned(result, "3.8e+03 times the largest budget")


def test_all_rows_of_chinchilla_reproduce_the_published_control() -> None:
    result = fit_table(DATA / "chinchilla_points.csv", "surface", num_resamples=0)
    assert result["allocation"]["N_exponent"] == pytest.approx(0.565, abs=0.001)


def test_power_with_a_named_column_and_a_floor(tmp_path: Path) -> None:
    flops = np.geomspace(1e17, 1e20, 8)
    pd.DataFrame({"C": flops, "fid": 2e6 * flops**-0.234 + 5, "loss": 1.0}).to_parquet(tmp_path / "runs.parquet")
    result = fit_table(tmp_path / "runs.parquet", "power", {"loss": "fid"}, target_flops=1e20)
    assert result["floor_identified"] is True
    assert result["params"] == pytest.approx({"A": 2e6, "beta": 0.234, "floor": 5}, rel=1e-6)
    assert result["allocation"]["loss"] == pytest.approx(2e6 * 1e20**-0.234 + 5, rel=1e-6)
    pd.DataFrame({"C": flops, "fid": 2e6 * flops**-0.234}).to_csv(tmp_path / "plain.csv", index=False)
    plain = fit_table(tmp_path / "plain.csv", "power")
    assert plain["floor_identified"] is False
    assert plain["params"]["floor"] is None
    assert warned(plain, "no floor is reported: its profile is flat down to 0")


def test_our_results_folder(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", noise=0.001)
    both = fit_table(folder, "isoflop", num_resamples=100)
    assert warned(both, "several arms fitted together (SP, muP)")
    assert warned(both, "3 rows of diverged trials not fitted")
    mup = fit_table(folder / "measurements", "isoflop", arm="muP", num_resamples=100)
    assert mup["num_points"] == 25
    assert mup["allocation"]["N_exponent"] == pytest.approx(N_EXPONENT, abs=0.03)
    assert warned(mup, "25 rows at other than the best learning rate")
    surface = fit_table(folder, "surface", arm="muP", num_resamples=100)
    assert surface["allocation"]["N_exponent"] == pytest.approx(N_EXPONENT, abs=0.03)
    power = fit_table(folder, "power", arm="SP", num_resamples=100)
    assert warned(power, "fitted to the best run of each of 5 budgets")
    with pytest.raises(ValueError, match=r"no arm 'mup'. Its arms: SP, muP"):
        fit_table(folder, "power", arm="mup")


def test_duplicates_are_dropped_and_said(tmp_path: Path) -> None:
    frame = pd.read_csv(surface_table(tmp_path / "runs.csv"))
    pd.concat([frame, frame.iloc[:3]]).to_csv(tmp_path / "twice.csv", index=False)
    result = fit_table(tmp_path / "twice.csv", "surface", num_resamples=0)
    assert result["num_points"] == len(frame)
    assert warned(result, "3 duplicates dropped (identical rows)")


def test_errors_say_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    path = surface_table(tmp_path / "runs.csv", loss="final_los")
    with pytest.raises(ValueError, match=r"no column for loss .*It has: params, samples, final_los\."):
        fit_table(path, "surface")
    with pytest.raises(ValueError, match=r"no column 'final_loss' .*The nearest name is 'final_los'"):
        fit_table(path, "surface", {"loss": "final_loss"})
    with pytest.raises(ValueError, match="Did you mean params"):
        fit_table(path, "surface", {"param": "params"})
    with pytest.raises(ValueError, match="there is no law 'powr'"):
        fit_table(path, "powr")
    with pytest.raises(ValueError, match="there is no table at"):
        fit_table(tmp_path / "absent.csv", "power")
    frame = pd.read_csv(path)
    frame.loc[[2, 6], "final_los"] = [np.nan, -1.0]
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"'final_los'.* row 3 .*, row 7 \(.*-1.0"):
        fit_table(path, "surface", {"loss": "final_los"})
    pd.DataFrame({"flops": [1e18, 1e19], "loss": [3.0, 2.5]}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="at least 3 different budgets; got 2"):
        fit_table(path, "power")


def test_where_sizes_and_samples_do_not_vary_apart_there_is_no_best_size() -> None:
    N = np.geomspace(1e6, 1e9, 10)
    D = 1e20 / N**1.2
    frame = pd.DataFrame({"params": N, "samples": D, "flops": 6 * N * D, "loss": 0.31 + 40 / N**0.29 + 300 / D**0.36})
    result = fit_table(frame, "surface", target_flops=1e22, num_resamples=0)
    assert result["outcome"] == "not_identified"
    assert result["allocation"]["params"] is result["allocation"]["N_exponent"] is None


def test_a_target_far_below_the_table_is_doubted(tmp_path: Path) -> None:
    result = fit_table(surface_table(tmp_path / "runs.csv"), "surface", target_flops=1e3, num_resamples=0)
    assert any("times less than the smallest budget" in text for text in result["warnings"])


def test_kaplans_intervals_hold_what_follows_from_two_entries(tmp_path: Path) -> None:
    frame = pd.read_csv(surface_table(tmp_path / "runs.csv")).iloc[:16]
    result = fit_table(frame, "kaplan", num_resamples=100)
    for name, value in result["params"].items():
        low, high = result["ci95"][name]
        assert low <= value <= high, name


def test_the_page_for_people_names_every_parameter() -> None:
    result = fit_table(DATA / "llama3_points.csv", "power", num_resamples=100)
    text = format_fit(result)
    assert "loss = A * C^-beta + floor" in text
    assert f"{result['params']['beta']:.5g}" in text
    assert all(f"! {warning}" in text for warning in result["warnings"])


def test_a_column_of_words_is_said_to_be_one(tmp_path: Path) -> None:
    path = surface_table(tmp_path / "table.csv")
    frame = pd.read_csv(path)
    frame["loss"] = "low"
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"column 'loss' holds no numbers \(first: low\); wanted those of loss"):
        fit_table(path, "surface", None, None)


def test_a_power_law_of_rows_without_sizes_says_that_it_has_no_best_size() -> None:
    N, C = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, 4), np.geomspace(1e15, 1e18, 5)))
    frame = pd.DataFrame(
        {"params": N, "samples": C / 6 / N, "flops": C, "loss": 40 * C**-0.06 * (1 + np.log(N / 1e7) ** 2)}
    )
    frame.loc[frame.index[-4:], ["params", "samples"]] = np.nan
    result = fit_table(frame, "power", target_flops=1e19, num_resamples=0)
    assert result["params"]["beta"] == pytest.approx(0.06, rel=0.05)
    assert result["allocation"]["params"] is None
    assert any("no N* and D*: params or samples of 4 rows" in text for text in result["warnings"])
    format_fit(result)
