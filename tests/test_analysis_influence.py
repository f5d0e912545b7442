"""Leave-k-out: a planted outlier is found, refits are those of a fresh fit, and diverged runs bracket a valley."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import fit_isoflop
from analysis.approaches import Approach, Approaches
from analysis.bracketing import with_brackets
from analysis.fitting import Fit, fit_law
from analysis.influence import isoflop_influence, law_influence
from analysis.isoflop import fit_isoflop as fit_minima
from analysis.laws import SurfaceLaw
from analysis.refitting import Refitter


def surface(noise: float = 0.002, seed: int = 0) -> pd.DataFrame:
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    error = np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    loss = (0.31 + 40 / N**0.29 + 300 / D**0.36) * error
    return pd.DataFrame({"params": N, "samples": D, "flops": 6 * N * D, "loss": loss})


def test_a_planted_outlier_is_the_most_influential_row() -> None:
    frame = valleys()
    frame.loc[34, "loss"] *= 1.01
    frame = frame.assign(budget=frame["flops"], row=np.arange(1, 36))
    found = fit_minima(frame, num_resamples=0)
    (one,) = isoflop_influence(found, frame)
    assert (one.exponent, one.trial, one.num_trials) == ("N_exponent", "row 35", 35)
    assert one.without == pytest.approx(0.5, abs=1e-9)
    assert abs(found.params["N_exponent"] - 0.5) > 1e-4


def fitted(frame: pd.DataFrame) -> tuple[Fit, np.ndarray, np.ndarray]:
    x, loss = frame[["params", "samples"]].to_numpy(), frame["loss"].to_numpy()
    return fit_law(SurfaceLaw(), x, loss, num_resamples=0), x, loss


def without(frame: pd.DataFrame, *trials: str) -> dict[str, float]:
    left = frame.drop(index=[int(name.removeprefix("row ")) - 1 for name in trials])
    return fitted(left)[0].params


def test_left_out_refits_are_those_of_a_fresh_fit() -> None:
    frame = surface(noise=0.01)
    one = law_influence(*fitted(frame), frame)[0]
    assert (one.exponent, one.num_trials) == ("alpha", 36)
    assert without(frame, one.trial)["alpha"] == pytest.approx(one.without, rel=1e-5)
    assert one.pair is not None
    assert without(frame, *one.pair)["alpha"] == pytest.approx(one.pair_without, rel=1e-5)
    assert abs(one.pair_change or 0.0) >= abs(one.change)


def test_screening_by_first_order_influence_finds_a_trial_nearly_as_strong(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = surface(noise=0.01)
    points = fitted(frame)
    every = law_influence(*points, frame)
    monkeypatch.setattr("analysis.influence.MOST_REFITS", 24)
    for one, best in zip(law_influence(*points, frame), every, strict=True):
        assert abs(one.change) >= 0.8 * abs(best.change)


def test_trials_are_left_out_whole() -> None:
    frame = surface().assign(trial_id=[f"t{k % 6}" for k in range(36)])
    found = law_influence(*fitted(frame), frame)
    assert [one.exponent for one in found] == ["alpha", "beta"]
    assert all(one.num_trials == 6 and one.trial.startswith("trial t") for one in found)


def test_a_refitter_starts_at_the_estimate() -> None:
    fit, x, loss = fitted(surface())
    again = Refitter(fit, x, loss)
    assert np.abs(again.residuals - np.log(loss / fit.predict(*x.T))).max() < 1e-9
    assert {name: float(values[0]) for name, values in again.solve().items()} == pytest.approx(fit.params, rel=1e-6)


def valleys(budgets: int = 5) -> pd.DataFrame:
    rows = []
    for flops in np.geomspace(1e16, 1e18, budgets):
        best = 2 * flops**0.5
        for params in best * np.geomspace(1 / 4, 4, 7):
            loss = 3 * flops**-0.02 + 0.02 * np.log(params / best) ** 2
            rows.append({"params": params, "samples": flops / (6 * params), "flops": flops, "loss": loss})
    return pd.DataFrame(rows).assign(outcome="ok")


def test_a_valley_beside_divergence_is_bracketed_by_it() -> None:
    frame = valleys()
    top = frame["flops"] == frame["flops"].max()
    lost = top & (frame["params"] > 2.5 * frame["flops"] ** 0.5)
    frame.loc[lost, ["loss", "outcome"]] = [np.nan, "diverged"]
    found = fit_isoflop(frame, num_resamples=0)
    minima = found.to_dict()["minima"]
    assert [m["bracketed"] for m in minima] == [True] * 5
    assert any("bracketed by a diverged run alone" in text for text in found.warnings)
    assert minima[-1]["params"] < frame.loc[lost, "params"].max()
    assert found.trial_counts == {"measured": 32, "censored": 0, "diverged": 3}
    assert len(found.to_dict()["diverged"]) == 3
    assert not fit_minima(frame[~lost], num_resamples=0).minima[-1].bracketed


def test_divergence_beyond_a_bracketed_valley_changes_nothing() -> None:
    frame = valleys()
    far = frame[frame["flops"] == frame["flops"].max()].iloc[-1:].assign(loss=np.nan, outcome="diverged")
    far["params"] *= 3
    kept, said = with_brackets(frame, far)
    assert kept is frame
    assert said == []


def test_runs_that_ended_early_are_no_part_of_a_profile() -> None:
    frame = valleys().assign(budget_flops=lambda f: f["flops"])
    frame.loc[3, ["flops", "samples", "loss"]] = [frame["flops"][3] / 2, frame["samples"][3] / 2, 9.0]
    found = fit_isoflop(frame, num_resamples=0)
    assert found.trial_counts["censored"] == 1
    assert found.fit.num_points == len(frame) - 1
    assert any("ended before their budget" in text for text in found.warnings)


def approach(name: str, value: float, half: float | None, outcome: str = "converged") -> Approach:
    band = None if half is None else (value - half, value + half)
    return Approach(name=name, N_exponent=value, ci95=band, outcome=outcome)


@pytest.mark.parametrize(
    ("found", "agree"),
    [
        ([approach("parabola", 0.46, 0.014), approach("surface", 0.53, 0.05)], False),
        ([approach("parabola", 0.46, 0.014), approach("surface", 0.50, 0.05)], True),
        ([approach("parabola", 0.46, 0.014), approach("surface", 0.53, 0.05, "not_identified")], None),
        ([approach("parabola", 0.46, 0.014), approach("cubic", 0.48, None)], False),
        ([approach("parabola", 0.46, None), approach("surface", 0.53, None)], None),
    ],
)
def test_the_verdict_on_approaches(found: list[Approach], agree: bool | None) -> None:
    verdict = Approaches(found=found)
    assert verdict.agree is agree
    assert verdict.verdict.startswith(
        {True: "estimators agree", False: "estimators disagree: N* exponent 0.46", None: "the N* exponents cannot"}[
            agree
        ]
    )
