"""The best learning rate: planted quadratics, their drift, one optimum for law and transfer, and refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_analysis_transfer import WIDTHS, sweep

from analysis import load
from analysis.estimating import Options
from analysis.fit_table import fit_loaded, fit_table
from analysis.learning_rate import fit_rates
from analysis.transfer import learning_rate_transfer


@pytest.mark.parametrize("drift", [0.0, -0.5, 0.3])
def test_planted_optima_and_their_drift_are_recovered(drift: float) -> None:
    fit = fit_rates(sweep(drift), num_resamples=0)
    assert fit is not None
    assert fit.outcome == "converged"
    assert fit.params == pytest.approx({"rate_coefficient": 1e-2 * 64**-drift, "rate_exponent": drift}, abs=1e-6)
    assert [o.scale for o in fit.optima] == list(WIDTHS)


def test_transfer_and_the_law_have_one_optimum() -> None:
    frame = sweep(-0.5, np.random.default_rng(0))
    law, transfer = fit_rates(frame), learning_rate_transfer(frame, "arm")
    assert law is not None
    assert transfer is not None
    assert transfer.drift_per_doubling == law.params["rate_exponent"]
    assert transfer.drift_ci95 == law.ci95["rate_exponent"]
    assert [o.rate for o in transfer.optima] == [o.rate for o in law.optima]


def test_the_table_gives_the_optima_and_a_figure() -> None:
    frame = sweep(-0.5, np.random.default_rng(0))
    result = fit_loaded(load(frame), "learning-rate", options=Options(num_resamples=100))
    told = result.to_dict()
    assert told["params"]["rate_exponent"] == pytest.approx(-0.5, abs=0.2)
    assert [o["bracketed"] for o in told["optima"]] == [True] * 4
    assert told["ci95"]["rate_exponent"][0] < -0.5 < told["ci95"]["rate_exponent"][1]
    assert "rate* = rate_coefficient * width^rate_exponent" in str(result)
    assert "best rate" in str(result)
    assert result.plot().axes
    with pytest.raises(ValueError, match="learning-rate gives rate"):
        result.predict(64.0)


def test_two_widths_are_a_line_with_nothing_to_check_it() -> None:
    frame = sweep(-0.5)
    result = fit_table(frame[frame["width"] <= 128], "learning-rate", num_resamples=0)
    assert result["outcome"] == "too_few_points"
    assert result["params"]["rate_exponent"] == pytest.approx(-0.5)
    one = fit_table(frame[frame["width"] == 64], "learning-rate", num_resamples=0)
    assert one["params"]["rate_exponent"] is None
    assert any("1 of 1 sizes have a bracketed best learning rate; it needs 2" in text for text in one["warnings"])


def test_an_optimum_at_the_edge_is_listed_and_left_out() -> None:
    frame = sweep(0.0)
    wide = (frame["width"] == 512) & (frame["learning_rate"] > 0.008)
    result = fit_table(frame[~wide], "learning-rate", num_resamples=0)
    assert [o["bracketed"] for o in result["optima"]] == [True, True, True, False]
    assert any("width 512 left out of the drift" in text for text in result["warnings"])


def test_options_of_other_laws_are_refused() -> None:
    table = load(pd.DataFrame(sweep(0.0)))
    with pytest.raises(ValueError, match="quadratics by least squares and has no recipe; got 'hoffmann'"):
        fit_loaded(table, "learning-rate", options=Options(recipe="hoffmann"))
    with pytest.raises(ValueError, match=r"gives no N\* or loss"):
        fit_loaded(table, "learning-rate", target_flops=1e20)
