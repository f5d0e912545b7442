"""Valleys of learning rates: cliffs end them, what is said of them is true, and costs are told from measurements."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.learning_rate import RateFit, RateOptimum, fit_rates
from analysis.rate_plots import learning_rate_curves, learning_rate_fans
from analysis.rate_valley import MeasuredRates
from analysis.transfer import as_transfer

NAN = float("nan")
HALF_OCTAVES = 1e-3 * 2 ** (np.arange(13) / 2 - 2.5)
CLIFF = [0.2205, 0.2176, 0.2134, 0.2101, 0.2082, 0.2050, 0.2042, 0.2036, 0.2622, NAN, 0.2330, 0.2355, NAN]
"""Losses of a width under the standard parameterization; NaN diverged."""
SMALL = [0.2459, 0.2376, 0.2300, 0.2250, 0.2203, 0.2150, 0.2110, 0.2080, 0.2060, 0.2045, 0.2042, 0.2050, 0.2110]


def fitted(*losses: list[float], rates: np.ndarray = HALF_OCTAVES, num_resamples: int = 200) -> RateFit:
    """One width an entry, doubling from 64."""
    rows = pd.DataFrame(
        [
            {"width": 64 * 2**k, "params": 4.0**k, "learning_rate": rate, "loss": loss, "flops": 1e18}
            for k, line in enumerate(losses)
            for rate, loss in zip(rates, line, strict=False)
        ]
    )
    fit = fit_rates(rows[rows["loss"].notna()], rows[rows["loss"].isna()], num_resamples=num_resamples)
    assert fit is not None
    return fit


def test_a_jump_above_the_best_rate_ends_the_valley() -> None:
    [only] = fitted(CLIFF).optima
    assert only.reason == "the best rate that trained is the last before a jump of the loss by 29%, at 0.00283"
    assert only.rate == pytest.approx(0.002)
    assert not only.bracketed
    assert only.rate_ci95 is None
    assert only.measured.rates[only.measured.valley].max() == pytest.approx(0.002)


def test_a_valley_before_divergence_has_its_vertex() -> None:
    losses = [0.2138, 0.2103, 0.2101, 0.2075, 0.2048, 0.2038, 0.2047, NAN, 0.2323, NAN, 0.2285, NAN, NAN]
    [only] = fitted(losses).optima
    assert only.bracketed
    assert only.rate == pytest.approx(0.00106, rel=0.01)


def test_a_slow_rise_is_no_cliff_however_far_it_goes() -> None:
    rates = np.geomspace(1e-3, 1e-1, 9)
    bowl = list(0.3 * np.exp(0.03 * np.log(rates / 8e-3) ** 2))
    [only] = fitted(bowl, rates=rates).optima
    assert only.measured.cliff_above is None
    assert only.rate == pytest.approx(8e-3)


def test_costs_among_the_measured_rates_are_told_from_them() -> None:
    small, large = fitted(SMALL, CLIFF).optima
    assert small.rate == pytest.approx(0.0052, rel=0.1)
    assert large.transferred_loss is None
    assert large.transferred_note == "diverges at 0.004, costs 14.44% at 0.00566"
    assert large.transferred_ci95 is None
    assert large.moved_ci95 is None
    said = str(as_transfer(fitted(SMALL, CLIFF), "SP"))
    assert f"SP: at width 128 the best rate of 64, {small.rate:.3g}: diverges at 0.004, costs 14.44% at 0.00566" in said


def test_between_two_rates_that_trained_the_cost_is_interpolated() -> None:
    measured = MeasuredRates(
        scale=1.0, rates=np.array([1.0, 2, 4, 8]), log_loss=np.log([1.0, 1.01, 1.2, 1.3]), diverged=np.array([16.0])
    )
    cost = measured.cost(np.sqrt(32.0), 0.0)
    assert cost is not None
    assert cost.loss == pytest.approx(np.sqrt(1.2 * 1.3) - 1)
    assert str(cost) == "24.90%, between measured rates"
    at = measured.cost(4.0, 0.0)
    assert at is not None
    assert at.loss == pytest.approx(0.2)
    assert str(measured.cost(16.0, 0.0)) == "diverges at 16"
    assert str(measured.cost(12.0, 0.0)) == "costs 30.00% at 8, diverges at 16"
    assert str(measured.cost(99.0, 0.0)) == "diverges at 16"
    assert measured.cost(0.5, 0.0) is None
    jumps = MeasuredRates(
        scale=1.0, rates=measured.rates, log_loss=np.log([1.1, 1.0, 1.01, 1.3]), diverged=np.array([])
    )
    assert str(jumps.cost(99.0, 0.0)) == "beyond a jump of the loss by 30%, at 8"


def test_beyond_all_rates_the_quadratic_extrapolates_without_an_interval() -> None:
    rates = np.geomspace(1e-3, 1e-1, 9)
    small, large = (list(0.3 * np.exp(0.03 * np.log(rates / best) ** 2)) for best in (5e-2, 3e-3))
    cut = [loss if rate < 2e-2 else None for rate, loss in zip(rates, large, strict=True)]
    rows = pd.DataFrame(
        [
            {"width": width, "params": width, "learning_rate": rate, "loss": loss, "flops": 1e18}
            for width, line in ((64, small), (128, cut))
            for rate, loss in zip(rates, line, strict=True)
            if loss is not None
        ]
    )
    fit = fit_rates(rows, num_resamples=200)
    assert fit is not None
    last = fit.optima[-1]
    assert last.transferred_by == "extrapolation"
    assert last.transferred_loss == pytest.approx(np.expm1(0.03 * np.log(5e-2 / 3e-3) ** 2))
    assert last.transferred_ci95 is None
    assert str(last.transferred).endswith("%, extrapolated")


def test_a_base_without_a_bracketed_optimum_is_its_best_rate() -> None:
    before, after = fitted(CLIFF, [loss * 0.9 for loss in SMALL]).optima
    assert before.rate == pytest.approx(0.002)
    assert after.moved_octaves == pytest.approx(np.log2(after.rate / 0.002))
    assert after.moved_ci95 is None
    assert after.transferred_by == "measured"
    assert after.transferred_loss == pytest.approx(0.9 * 0.2080 / np.exp(after.best_log_loss) - 1)
    falling = list(np.linspace(0.3, 0.2, 13))
    first, second = fitted(falling, SMALL).optima
    assert first.rate is None
    assert first.reason == "the loss is lowest at the largest learning rate that was run, 0.0113"
    assert second.moved_octaves == 0


def test_one_seed_that_diverged_makes_a_rate_diverge() -> None:
    rows = pd.DataFrame({"learning_rate": [1.0, 2.0, 4.0], "loss": [1.0, 0.9, 0.8]})
    found = MeasuredRates.of(1.0, rows, pd.DataFrame({"learning_rate": [4.0]}))
    assert found is not None
    assert list(found.rates) == [1, 2]
    assert list(found.diverged) == [4]
    every = MeasuredRates.of(1.0, rows, rows)
    assert every is not None
    assert list(every.rates) == [1, 2, 4]


def _is_true(optimum: RateOptimum) -> None:
    measured, reason = optimum.measured, optimum.reason or ""
    best, rates = measured.rates[measured.best], measured.rates
    every = np.concatenate([rates, measured.diverged])
    inner = every.min() < best < every.max()
    assert ("lowest at the" in reason) == (not inner)
    assert ("smallest" in reason) <= (best == every.min())
    assert ("largest" in reason) <= (best == every.max())
    assert optimum.bracketed == (optimum.reason is None)
    assert (optimum.rate is None) == (not inner)
    if "last before" in reason:
        beyond = every[every > best].min()
        assert f"at {beyond:.3g}" in reason
        assert ("divergence" in reason) == (beyond in measured.diverged)
    if optimum.bracketed:
        below, above = rates[measured.best - 1], rates[measured.best + 1]
        assert below < best < above
        assert not ((measured.diverged > below) & (measured.diverged < above)).any()
        assert rates[measured.valley].min() < optimum.rate < rates[measured.valley].max()
    else:
        assert optimum.rate_ci95 is None
        assert optimum.moved_ci95 is None


LOSS = st.one_of(st.floats(0.2, 0.22), st.floats(0.2, 0.5), st.just(NAN))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(LOSS, min_size=3, max_size=9), min_size=1, max_size=3))
def test_what_is_said_of_a_valley_is_true_whatever_the_losses(lines: list[list[float]]) -> None:
    lines = [line for line in lines if np.isfinite(line).any()] or [[0.2, 0.3, 0.4]]
    fit = fitted(*lines, num_resamples=20)
    for optimum in fit.optima:
        _is_true(optimum)
        cost = optimum.transferred
        if cost is not None:
            assert cost.loss is None or cost.loss >= -1e-12
            assert (cost.loss is None) == (cost.by == "unstable") == (cost.note is not None)
            assert optimum.transferred_ci95 is None or cost.by == "quadratic"
    assert str(as_transfer(fit, "arm"))


def test_figures_are_of_the_losses_before_cliffs_and_say_what_is_above() -> None:
    transfer = as_transfer(fitted(SMALL, CLIFF), "SP")
    fan, drift = learning_rate_fans([transfer]).axes
    assert fan.get_ylim()[1] < 12
    assert [text.get_text() for text in fan.get_legend().get_texts()] == ["64", "128", "above the axis", "diverged"]
    assert drift.get_ylim()[0] < 0.002 < drift.get_ylim()[1]
    rows = pd.DataFrame({"params": 1e6, "learning_rate": HALF_OCTAVES, "loss": CLIFF, "flops": 1e18})
    lost = rows["loss"].isna()
    [axes] = learning_rate_curves(rows[~lost], diverged=rows[lost], optima=fitted(CLIFF).optima[:0]).axes
    assert 0.2205 < axes.get_ylim()[1] < 0.23
    assert "above the axis, up to 0.262" in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("losses", [[NAN, 0.3, NAN], [0.3, NAN, NAN], [0.2, 0.2, 0.2], [0.3, 0.2, 0.4]])
def test_sizes_without_a_valley_have_figures_too(losses: list[float]) -> None:
    transfer = as_transfer(fitted(losses, SMALL), "SP")
    learning_rate_fans([transfer]).canvas.draw()
    learning_rate_fans([as_transfer(fitted(losses), "SP")]).canvas.draw()
