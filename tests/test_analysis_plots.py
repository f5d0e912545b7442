"""Figures: every kind is drawn, says its units, stands in its limits, and is written in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import Result, fit_isoflop, fit_power, fit_surface, save
from analysis.drawing import ARM_COLOURS, LINES, MARKS
from analysis.law_plots import bootstrap_cloud, residual_panels
from analysis.rate_plots import learning_rate_fans
from analysis.transfer import learning_rate_transfer

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    table = pd.read_csv(DATA / "llama3_points.csv")
    return {
        "isoflop": fit_isoflop(table, num_resamples=60),
        "surface": fit_surface(table, num_resamples=60),
        "power": fit_power(table, num_resamples=60),
    }


KINDS = {
    "isoflop": ["law", "optimum-N", "optimum-D", "cloud", "backtest", "approaches"],
    "surface": ["law", "residuals", "floor", "cloud", "backtest", "approaches"],
    "power": ["law", "residuals", "floor", "cloud", "backtest", "approaches"],
}


@pytest.mark.parametrize("law", KINDS)
def test_every_law_has_its_figures_with_units_on_their_axes_and_all_labels(
    results: dict[str, Result], law: str
) -> None:
    figures = results[law].figures()
    assert list(figures) == KINDS[law]
    for figure in figures.values():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 > -0.02
        assert box.y0 > -0.02
        assert box.x1 < width + 0.02
        assert box.y1 < height + 0.02
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel()
            low, high = axes.get_xlim()
            assert np.isfinite([low, high]).all()
            assert low < high
    against = figures["law"].axes[0].get_xlabel()
    assert against == ("parameters N (backbone)" if law == "isoflop" else "training compute C (FLOPs)")


def test_figures_are_written_by_suffix(results: dict[str, Result], tmp_path: Path) -> None:
    figure = results["power"].plot("floor")
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    for suffix, start in starts.items():
        path = save(figure, tmp_path / "deep" / f"floor.{suffix}")
        assert path.read_bytes().startswith(start)
    one, two = (save(results["power"].plot("floor"), tmp_path / "again.svg").read_bytes() for _ in range(2))
    assert one == two
    with pytest.raises(ValueError, match=r"ends in '.gif'; a figure is written as svg, pdf, png"):
        save(figure, tmp_path / "floor.gif")
    files = results["power"].save_plots(tmp_path / "all")
    assert sorted(f.stem for f in files) == sorted(KINDS["power"])


def test_a_figure_that_there_is_not_is_an_error(results: dict[str, Result]) -> None:
    with pytest.raises(ValueError, match="no figure 'ridge'; it has law, residuals"):
        results["surface"].plot("ridge")


def test_the_ridge_and_the_contours_are_those_of_the_law(results: dict[str, Result]) -> None:
    result = results["surface"]
    axes = result.plot().axes[0]
    ridge = next(line for line in axes.get_lines() if line.get_label() == "best size N*(C)")
    flops, params = (np.asarray(values, dtype=float) for values in ridge.get_data())
    slope = np.polyfit(np.log(flops), np.log(params), 1)[0]
    assert slope == pytest.approx(result.allocation.N_exponent, rel=1e-6)


def test_the_back_test_stands_beside_every_curve_that_runs_beyond_the_data(results: dict[str, Result]) -> None:
    for law, kind in (("power", "law"), ("surface", "law"), ("isoflop", "optimum-N"), ("isoflop", "optimum-D")):
        error = results[law].backtests[0].error
        words = " ".join(text.get_text() for text in results[law].plot(kind).axes[0].texts)
        assert f"largest budget left out: {results[law].backtests[0].what} {error:+.1%}" in words


def test_residuals_far_out_are_marked_on_the_edge() -> None:
    residuals = np.append(0.001 * np.random.default_rng(0).standard_normal(60), 2.0)
    figure = residual_panels({"flops": np.geomspace(1e17, 1e20, 61)}, residuals)
    assert figure.axes[0].get_ylim()[1] < 5
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 61


def test_the_cloud_shows_the_estimate_and_drops_nothing_but_tails() -> None:
    draws = {"alpha": np.random.default_rng(0).normal(0.3, 0.02, 500), "beta": np.full(500, 0.4)}
    figure = bootstrap_cloud(draws, {"alpha": 0.3, "beta": 0.4}, "alpha", "beta")
    assert len(figure.axes[0].collections[0].get_offsets()) >= 490


def test_fans_have_a_panel_an_arm_and_one_of_drift() -> None:
    rows = [
        {"width": w, "params": w**2, "learning_rate": r, "flops": 1e18, "loss": 1 + (np.log(r) + 4 + k * d) ** 2 / 50}
        for d in (0.0,)
        for k, w in enumerate((64, 128, 256))
        for r in np.geomspace(2e-3, 2e-1, 6)
    ]
    transfer = learning_rate_transfer(pd.DataFrame(rows), "muP")
    assert transfer is not None
    figure = learning_rate_fans([transfer] * (len(ARM_COLOURS) + 1))  # arms beyond the colours start over
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["muP"] * (len(ARM_COLOURS) + 1) + ["drift of the optimum"]
    assert isinstance(transfer.plot(), Figure)


def test_arms_differ_in_more_than_colour() -> None:
    assert len(set(ARM_COLOURS)) == len(ARM_COLOURS)
    assert len(set(MARKS)) == len(MARKS)
    assert len({str(line) for line in LINES}) == len(LINES) >= len(ARM_COLOURS)
    greys = [sum(w * int(c[k : k + 2], 16) for w, k in ((0.299, 1), (0.587, 3), (0.114, 5))) for c in ARM_COLOURS]
    assert abs(greys[0] - greys[1]) > 25
