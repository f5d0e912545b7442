"""IsoFLOP minima and N*(C): planted parabolas, a published study, and coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_analysis_planted import BUDGETS, SIZES, flops_per_sample, planted_loss

from analysis.comparison import compare_arms
from analysis.isoflop import fit_isoflop


def parabolas(exponent: float = 0.5, sizes: int = 7) -> pd.DataFrame:
    """Loss exactly a parabola in log N, with N* = 2 C^exponent and N between N*/8 and 8 N*."""
    rows = []
    for flops in np.geomspace(1e16, 1e19, 6):
        best = 2 * flops**exponent
        for params in best * np.geomspace(1 / 8, 8, sizes):
            loss = 3 * flops**-0.02 + 0.01 * np.log(params / best) ** 2
            rows.append({"params": params, "samples": flops / (6 * params), "flops": flops, "loss": loss})
    return pd.DataFrame(rows)


def test_planted_parabolas_are_recovered() -> None:
    fit = fit_isoflop(parabolas(0.47), num_resamples=0)
    assert fit.params["N_exponent"] == pytest.approx(0.47, rel=1e-6)
    assert fit.params["N_coefficient"] == pytest.approx(2, rel=1e-6)
    assert fit.params["D_exponent"] == pytest.approx(0.53, rel=1e-6)
    assert fit.params["D_coefficient"] == pytest.approx(1 / 12, rel=1e-6)
    assert fit.cubic_exponent == pytest.approx(0.47, rel=1e-5)
    assert [m.loss for m in fit.minima] == pytest.approx([3 * m.flops**-0.02 for m in fit.minima], rel=1e-9)


def test_an_unbracketed_minimum_is_listed_and_not_used() -> None:
    frame = parabolas()
    flops = frame["flops"].max()
    cut = frame[(frame["flops"] < flops) | (frame["params"] > 2.5 * flops**0.5)]
    shifted = cut.assign(loss=cut["loss"] + 0.1 * (cut["flops"] == flops))
    fit = fit_isoflop(shifted, num_resamples=0)
    assert [m.bracketed for m in fit.minima] == [True] * 5 + [False]
    assert fit.minima[-1].reason == "the minimum lies below the smallest size near it"
    assert fit.params["N_exponent"] == pytest.approx(0.5, rel=1e-6)


def planted_table(rng: np.random.Generator, noise: float, shared: float) -> pd.DataFrame:
    """Five sizes at five budgets, one trial a size; a share of the noise variance is common to a trial."""
    rows = []
    for size, params in SIZES.items():
        common = rng.standard_normal()
        for flops in BUDGETS:
            error = noise * (np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal())
            samples = flops / flops_per_sample(params)
            loss = planted_loss(params, samples) * np.exp(error)
            rows.append({"params": params, "samples": samples, "flops": flops, "loss": loss, "trial_id": size})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_intervals_cover_the_planted_exponent(shared: float) -> None:
    rng = np.random.default_rng(1)
    truth = fit_isoflop(planted_table(rng, 0.0, 0.0), num_resamples=0).params["N_exponent"]
    bands = [fit_isoflop(planted_table(rng, 0.003, shared), num_resamples=200).ci95["N_exponent"] for _ in range(80)]
    covered = np.mean([band is not None and band[0] <= truth <= band[1] for band in bands])
    assert covered >= 0.90
    assert np.median([band[1] - band[0] for band in bands if band]) < 0.16


def test_compute_clusters_without_a_budget_column() -> None:
    frame = parabolas()
    jitter = np.exp(np.random.default_rng(0).uniform(-0.03, 0.03, len(frame)))
    fit = fit_isoflop(frame.assign(flops=frame["flops"] * jitter), num_resamples=0)
    assert len(fit.minima) == 6
    continuum = frame.assign(flops=np.geomspace(1e16, 1e19, len(frame) * 4)[: len(frame)])
    with pytest.raises(ValueError, match="form a continuum, not groups within 10%"):
        fit_isoflop(continuum)


def test_too_few_sizes_says_what_is_needed() -> None:
    frame = parabolas(sizes=2)
    with pytest.raises(ValueError, match=r"at least 2 budgets with at least 3 sizes each; got 0 of 6 .*Run more sizes"):
        fit_isoflop(frame)


def test_arms_are_compared_at_their_best_learning_rates() -> None:
    base = planted_table(np.random.default_rng(0), 0.0, 0.0)
    good = base.assign(arm="muP", learning_rate=1e-3)
    poor = base.assign(arm="muP", learning_rate=4e-3, loss=base["loss"] * 1.05)
    other = base.assign(arm="SP", learning_rate=2e-3, loss=base["loss"] * 1.02)
    comparison = compare_arms(pd.concat([poor, good, other]), "muP", "SP")
    assert (comparison.wins, len(comparison.pairs)) == (25, 25)
    assert comparison.mean_difference == pytest.approx(1 / 1.02 - 1)
    assert {(p.learning_rate, p.other_learning_rate) for p in comparison.pairs} == {(1e-3, 2e-3)}


def test_sizes_far_above_the_minimum_do_not_pull_it() -> None:
    """A profile that is steep on one side, as when the smallest size has saturated: the minimum stays where it is."""
    rows = []
    for flops, best in ((1e10, 3e4), (4e10, 6e4), (1.6e11, 1.2e5)):
        for params in best * np.array([0.12, 0.5, 0.8, 1.25, 2.0, 8.0]):
            u = np.log(params / best)
            rows.append({"params": params, "flops": flops, "samples": flops / params, "loss": 0.4 + 0.1 * u**2})
            rows[-1]["loss"] += 0.4 if u < -2 else 0.0
    fit = fit_isoflop(pd.DataFrame(rows), num_resamples=0)
    assert [m.params for m in fit.minima] == pytest.approx([3e4, 6e4, 1.2e5], rel=1e-6)
    assert fit.params["N_exponent"] == pytest.approx(0.5, abs=1e-6)
    assert fit.num_points == 18


def test_the_sizes_beside_the_best_count_however_high_their_loss() -> None:
    rows = [
        {"params": params, "flops": flops, "samples": flops / params, "loss": loss}
        for flops in (1e10, 4e10, 1.6e11)
        for params, loss in ((1e4, 0.9), (3e4, 0.40), (5e4, 0.41), (7e4, 0.43), (1e5, 0.46), (2e5, 0.52))
    ]
    fit = fit_isoflop(pd.DataFrame(rows), num_resamples=0)
    assert [(m.bracketed, m.sizes[0]) for m in fit.minima] == [(True, pytest.approx(1e4))] * 3


def noisy(budgets: int, sizes: int, noise: float = 0.002) -> pd.DataFrame:
    frame = parabolas(0.5, sizes)
    frame = frame[frame["flops"].isin(sorted(frame["flops"].unique())[:budgets])]
    return frame.assign(loss=frame["loss"] * np.exp(noise * np.random.default_rng(0).standard_normal(len(frame))))


@pytest.mark.parametrize(("budgets", "sizes", "known"), [(2, 3, False), (3, 3, False), (4, 3, True), (2, 5, True)])
def test_no_interval_is_of_no_width(budgets: int, sizes: int, known: bool) -> None:
    """Three sizes a budget leave no residual: only minima that scatter about their line say what the noise is."""
    fit = fit_isoflop(noisy(budgets, sizes))
    band = fit.ci95["N_exponent"]
    assert (band is not None) == known
    if band is not None:
        assert band[1] - band[0] > 0.005
    else:
        assert fit.rule.startswith("no intervals: 3 sizes a budget")
        assert all(m.params_ci95 is None for m in fit.minima)


def test_what_the_window_does_to_the_minima_is_in_their_intervals() -> None:
    """A profile that is steeper on one side: a parabola's minimum moves with the sizes that it goes through."""
    frame = parabolas(0.5, 13)
    u = np.log(frame["params"] / (2 * frame["flops"] ** 0.5))
    skewed = frame.assign(loss=3 * (1 + 0.02 * u**2 + 0.003 * u**3) * frame["flops"] ** -0.02)
    fit = fit_isoflop(skewed)
    assert "as a narrower or a wider window moves the minima" in fit.rule
    for minimum in fit.minima:
        truth = 2 * minimum.flops**0.5
        assert minimum.params_ci95 is not None
        assert minimum.params_ci95[1] - minimum.params_ci95[0] > 0.02 * truth
