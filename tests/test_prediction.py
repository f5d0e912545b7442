"""Predictions out of sample: written before the budget is run, and held against what is measured then."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import test_planning_followup
from click.testing import CliRunner
from test_planning_followup import SPEC, measured

from analysis.allocation import CostRelation
from analysis.findings import Findings, find
from analysis.planted import CostLine, PlantedLaw
from analysis.prediction import Prediction, judge, predict, read_prediction
from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.results.holdings import holdings

TARGET = 6.4e12
LAW = PlantedLaw(E=0.15, A=12.0, B=6.0, alpha=0.45, beta=0.35)
MADE_WITH = {"written_at": "2026-11-28T10:00:00+00:00", "commit": "0" * 40, "versions": {"ditlaw": "0.1.0"}}


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose sizes bracket the planted minima of all budgets."""
    folder = tmp_path_factory.mktemp("study") / "results" / "pilot"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_planning_followup, "LAW", LAW)
        measured(folder, SPEC.replace("2e11]", "2e11, 4e11, 8e11]"))
    return folder


@pytest.fixture(scope="module")
def findings(pilot: Path) -> Findings:
    return find(pilot)


@pytest.fixture(scope="module")
def made(findings: Findings) -> Prediction:
    return predict(findings.arms[0], TARGET, findings.plan, MADE_WITH)


@pytest.fixture
def rows(findings: Findings) -> pd.DataFrame:
    """The pilot's measurements, and one of its largest model at the target."""
    frame = findings.measurements
    one = frame[(frame["arm"] == "mup") & (frame["size"] == "w64")].iloc[[-1]]
    new = {"trial_id": "f" * 16, "samples": 10**6, "flops": 1.001 * TARGET, "budget_flops": TARGET}
    new |= {"loss": 0.31, "fid": 9.0, "created_at": pd.Timestamp(MADE_WITH["written_at"]) + timedelta(hours=1)}
    return pd.concat([frame, one.assign(**new)], ignore_index=True)


def test_a_prediction_says_what_it_rests_on_and_is_read_back_whole(findings, made):
    frame = findings.measurements.query("arm == 'mup'")
    assert [(one.what, one.by) for one in made.expected] == [
        ("loss", "power law"),
        ("FID", "power law"),
        ("loss", "surface"),
    ]
    assert made.times_largest == pytest.approx(8)
    assert (made.fitted.count, made.fitted.newest) == (len(frame), frame["created_at"].max().isoformat())
    assert made.conditions["sampler_steps"] == 20
    assert made.params_ci95[0] < made.params < made.params_ci95[1]
    for one in made.expected:
        assert one.ci95[0] <= one.law_ci95[0] < one.value < one.law_ci95[1] <= one.ci95[1]
    assert read_prediction(made.as_json(), "here") == made


def test_a_planted_law_is_predicted_eight_times_beyond(findings, made):
    cost = CostRelation.of(findings.arms[0].fitted)
    N, D = LAW.optimum(CostLine(coefficient=cost.coefficient, exponent=cost.params_exponent), TARGET)
    least, (line, _, surface) = float(LAW.loss(N, D)), made.expected
    assert surface.law_ci95[0] < least < surface.law_ci95[1]
    assert surface.value == pytest.approx(least, rel=0.01)
    assert line.value == pytest.approx(least, rel=0.03)
    assert made.params == pytest.approx(float(N), rel=0.2)


def test_what_is_measured_since_is_held_against_it(made, rows):
    verdict = judge(made, rows, made.dataset_digest)
    loss, fid, surface = verdict.tested
    assert (surface.measured, surface.expected) == (0.31, made.expected[2])
    assert (loss.measured, fid.measured, loss.size) == (0.31, 9.0, "w64")
    assert loss.error == pytest.approx(made.expected[0].value / 0.31 - 1)
    assert loss.inside is (made.expected[0].ci95[0] <= 0.31 <= made.expected[0].ci95[1])
    assert verdict.notes == []


def test_what_was_known_before_is_no_test(made, rows, findings):
    again = predict(findings.arms[0], 8e11, {}, MADE_WITH)
    verdict = judge(again, rows, None)
    assert verdict.tested == []
    assert verdict.notes == ["5 of 5 measurements at this budget were part of the fit: no test, left out"]
    rows["created_at"] = rows["created_at"].where(rows["trial_id"] != "f" * 16, datetime(2026, 1, 1, tzinfo=UTC))
    assert judge(made, rows, None).notes == ["1 of 1 measurements were made before the prediction was written"]


def test_what_does_not_compare_is_said(made, rows):
    new = rows["trial_id"] == "f" * 16
    apart = judge(made, rows.assign(sampler_steps=rows["sampler_steps"].where(~new, 10)), "other")
    assert apart.notes == [
        "these measurements are of other data than those of the fit",
        "measured otherwise than what was fitted: sampler_steps 10 against 20",
    ]
    changed = judge(made, rows.assign(loss=rows["loss"] * 1.1), None)
    assert changed.notes == ["the measurements that it was fitted to are others now: their digest differs"]
    alone = judge(made, rows[new].assign(fid=None), None)
    assert alone.notes == ["what it was fitted to is not (all) in this folder", "FID not measured at this budget"]
    lost = judge(made, rows.assign(outcome=rows["outcome"].where(~new, "diverged")), None)
    assert (lost.tested, lost.notes) == ([], ["1 of 1 measurements at this budget diverged"])
    assert judge(made, rows[~new], None).notes == ["not measured yet"]


def test_another_file_is_refused(made):
    for text in ("{}", "nothing", made.as_json().replace("prediction 1", "prediction 9")):
        with pytest.raises(ValueError, match=r"p\.json is no prediction .* wanted a file that `ditlaw predict` wrote"):
            read_prediction(text, "p.json")


def ditlaw(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_from_a_prediction_to_its_report(pilot, tmp_path):
    out, spec, page = tmp_path / "prediction.json", tmp_path / "test.yaml", tmp_path / "page.html"
    command = ["predict", pilot, "--target-flops", TARGET, "--arm", "mup", "-o", out]
    said = ditlaw(*command, "--spec", spec, "--sizes", 2)
    assert "8 times the largest of 30 measurements" in said
    assert "Commit it before the budget is run." in said
    again = CliRunner().invoke(main, [*map(str, command)])
    assert (again.exit_code, "is there already, and a prediction is never written over" in again.output) == (2, True)
    plan = make(spec)
    assert plan.sweep.name == "pilot-test"
    new = [trial for trial in plan.trials if TARGET in trial.budgets]
    predicted = json.loads(out.read_text())["params"]
    assert len(new) == 2
    assert all(0.5 < trial.params_backbone / predicted < 2 for trial in new)
    trials = {trial.trial_id: trial for trial in plan.trials}
    known = {(trial, samples) for trial, samples in holdings(pilot.parent / "pilot-test", trials).measured}
    assert len(known) == 30, "what the pilot has measured is taken over"
    ditlaw("report", pilot, "--prediction", out, "-o", page)
    words = unescape(re.sub(r"<[^>]+>", " ", page.read_text().split('id="predictions"')[1][:6000]))
    assert "Predictions put to the test" in words
    assert "not measured" in words
    assert "from 30 measurements of sweep pilot up to 8×10¹¹ FLOPs" in words


def test_a_follow_up_measures_a_distance_on_as_many_images_as_its_sweep(tmp_path):
    folder = tmp_path / "results" / "pilot"
    plan = measured(folder, SPEC.replace("arms:", "evaluation: {distance: {encoder: fmnist-cnn}}\narms:"))
    (images,) = {trial.evaluation.distance.images for trial in plan.trials}
    command = ["predict", folder, "--target-flops", 25 * TARGET, "--arm", "mup", "-o", tmp_path / "p.json"]
    ditlaw(*command, "--spec", tmp_path / "test.yaml")
    assert {trial.evaluation.distance.images for trial in make(tmp_path / "test.yaml").trials} == {images}


def test_what_cannot_be_predicted_is_refused(pilot, tmp_path):
    for options, words in [
        (["--target-flops", "-1", "--arm", "mup"], "--target-flops got -1; wanted a positive number"),
        (["--target-flops", "1e12"], "there are several arms: mup, sp. Say which with --arm."),
        (["--target-flops", "1e12", "--arm", "x"], "there is no measured arm 'x'; wanted one of mup, sp"),
    ]:
        done = CliRunner().invoke(main, ["predict", str(pilot), *options, "-o", str(tmp_path / "p.json")])
        assert (done.exit_code, words in " ".join(done.output.split())) == (2, True), done.output
        assert not (tmp_path / "p.json").exists()
