"""Learning-rate transfer: a planted drift, its interval, what a transferred rate costs, and rates that diverged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import transfer_of_learning_rate
from analysis.answer import answer
from analysis.findings import find
from analysis.frontier import Level, common_level
from analysis.transfer import learning_rate_transfer

WIDTHS = (64, 128, 256, 512)


def sweep(drift: float, rng: np.random.Generator | None = None, noise: float = 0.003, rates: int = 6) -> pd.DataFrame:
    """log loss = 0.03 (log rate - best)^2 + const, with best = 0.01 (width / 64)^drift."""
    rows = []
    for width in WIDTHS:
        best = np.log(1e-2) + drift * np.log(width / 64)
        for rate in np.geomspace(1e-3, 1e-1, rates):
            error = 0.0 if rng is None else noise * rng.standard_normal()
            loss = (0.3 + 3 / width) * np.exp(0.03 * (np.log(rate) - best) ** 2 + error)
            rows.append({"width": width, "params": 12 * width**2, "learning_rate": rate, "loss": loss})
            rows[-1] |= {"flops": 1e18, "samples": 1e18 / (72 * width**2)}
    return pd.DataFrame(rows)


@pytest.mark.parametrize("drift", [0.0, -0.5])
def test_a_planted_drift_is_recovered(drift: float) -> None:
    found = learning_rate_transfer(sweep(drift), "arm")
    assert found is not None
    assert found.variable == "width"
    assert found.drift_per_doubling == pytest.approx(drift, abs=1e-6)
    assert [o.rate for o in found.optima] == pytest.approx([1e-2 * (w / 64) ** drift for w in WIDTHS])
    costs = [float(np.expm1(0.03 * (drift * np.log(w / 64)) ** 2)) for w in WIDTHS]
    assert [o.transferred_loss for o in found.optima] == pytest.approx(costs, abs=1e-6)


def test_intervals_hold_the_planted_drift_and_cost() -> None:
    rng = np.random.default_rng(0)
    drifts, costs = [], []
    for _ in range(60):
        found = learning_rate_transfer(sweep(-0.5, rng), "arm", num_resamples=200)
        assert found is not None
        assert found.drift_ci95 is not None
        drifts.append(found.drift_ci95[0] <= -0.5 <= found.drift_ci95[1])
        band = found.optima[-1].transferred_ci95
        assert band is not None
        costs.append(band[0] <= np.expm1(0.03 * (0.5 * np.log(8)) ** 2) <= band[1])
    assert np.mean(drifts) >= 0.87
    assert np.mean(costs) >= 0.87


def test_where_budgets_are_samples_sizes_are_compared_at_the_most_that_all_have_seen() -> None:
    rows = sweep(-0.5).assign(samples=6400.0)
    rows["flops"] = rows["samples"] * rows["width"] ** 2  # no size shares its compute with another
    longer = rows[rows["width"] == 64].assign(samples=12800.0, flops=lambda part: 2 * part["flops"], loss=9.0)
    gone = rows[(rows["width"] == 512) & (rows["learning_rate"] > 0.05)]
    found = learning_rate_transfer(pd.concat([rows, longer]).drop(gone.index), "arm", gone)
    assert found is not None
    assert found.level == Level("samples", 6400.0)
    assert found.drift_per_doubling == pytest.approx(-0.5, abs=1e-6)
    assert [o.moved_octaves for o in found.optima] == pytest.approx([0, -0.5, -1, -1.5], abs=1e-6)
    low, high = found.optima[-1].moved_ci95 or (0, 0)
    assert low <= -1.5 + 1e-6
    assert high >= -1.5 - 1e-6
    assert common_level(sweep(0.0), "width") == Level("flops", pytest.approx(1e18))


def test_no_drift_costs_nothing_that_can_be_told() -> None:
    found = learning_rate_transfer(sweep(0.0, np.random.default_rng(1)), "muP")
    assert found is not None
    assert found.transfers is True
    assert all(o.transferred_ci95 is not None and o.transferred_ci95[0] == 0.0 for o in found.optima)
    assert learning_rate_transfer(sweep(-0.5, np.random.default_rng(1)), "SP").transfers is False  # type: ignore[union-attr]


def test_divergence_ends_a_valley() -> None:
    frame = sweep(0.0)
    kept = frame[frame["learning_rate"] < 0.008]
    found = learning_rate_transfer(kept, "arm", frame[frame["learning_rate"] > 0.008])
    assert found is not None
    assert found.drift_per_doubling is None
    assert found.reason == "0 of 4 sizes have a bracketed best learning rate; it needs 2"
    assert found.optima[0].reason == "the best rate that trained is the last before divergence, at 0.0158"
    assert found.optima[0].rate == pytest.approx(10 ** (-3 + 0.8))
    alone = learning_rate_transfer(kept, "arm")
    assert alone is not None
    assert alone.optima[0].reason == "the loss is lowest at the largest learning rate that was run, 0.00631"
    assert alone.optima[0].rate is None


def test_a_table_of_arms_gives_one_transfer_each() -> None:
    frame = pd.concat([sweep(0.0).assign(arm="muP"), sweep(-0.5).assign(arm="SP")])
    found = transfer_of_learning_rate(frame)
    assert [t.arm for t in found] == ["SP", "muP"]
    assert "per doubling of width the best learning rate moves by -0.500 octaves" in str(found[0])
    assert "at width 512 the best rate of 64, 0.01, costs 3.30% of loss" in str(found[0])
    with pytest.raises(ValueError, match="no arm has 3 learning rates"):
        transfer_of_learning_rate(frame[frame["learning_rate"] < 0.002])


STUDY = Path(__file__).parents[1] / "sweeps/studies/h100/h100_transfer"


def test_the_answer_of_a_sweep_of_rates_is_of_rates_alone() -> None:
    """On what an H100 measured: under µP the rate stays, under SP it falls until the smallest size's diverges."""
    mup, sp, best, compared = answer(find(STUDY))
    assert re.search(r"mup: .* moves by [+]0\.\d\d half octaves", mup)
    assert re.search(r"sp: .* moves by -4\.\d\d half octaves.*diverges at 0\.004", sp)
    assert best.startswith("<strong>Best run: mup w1024")
    assert "N*(C)" not in best
    assert "beats sp</strong> at 4 of 4 sizes" in compared
    assert "times the compute" not in compared
