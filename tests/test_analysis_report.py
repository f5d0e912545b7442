"""The report: whole in itself, honest when there is little to say, and never a traceback."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_analysis_planted import write_results

from analysis import methods
from analysis.answer import answer
from analysis.approaches import exponent_words
from analysis.findings import Findings, find
from analysis.gallery import Gallery
from analysis.isoflop import IsoflopFit, Minimum
from analysis.magnitudes import scientific, with_unit
from analysis.references import REFERENCES
from analysis.report import write_report
from analysis.report_clips import consistency
from analysis.report_page import picture
from analysis.report_rows import Rows, linked_ui
from analysis.report_samples import samples
from analysis.report_sections import Sections, law_words, size_words
from analysis.report_tables import cost_tables, minima_table, predictions_table, run_table, spent
from models.config import FAMILIES, Objective
from orchestrator.results.store import read_measurements

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Links(HTMLParser):
    """Addresses a page would load or open."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                (self.opened if tag == "a" else self.loaded).append(value)
        assert tag not in ("link", "iframe")


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.split("</head>")[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_results(tmp_path_factory.mktemp("sweep") / "results")
    frame = read_measurements(folder)
    (folder / "samples").mkdir()
    for row in frame[frame["outcome"] == "ok"].itertuples():
        (folder / "samples" / f"{row.trial_id}-{row.samples}.png").write_bytes(PNG)
    track(folder)
    return folder


def track(folder: Path) -> None:
    """What an MLflow writer leaves: which run shows each trial."""
    runs = {trial: f"run-{trial}" for trial in read_measurements(folder)["trial_id"].unique()}
    (folder / "mlflow.json").write_text(json.dumps({"experiment_id": "7", "ui": "http://127.0.0.1:5000", "runs": runs}))


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    return find(folder)


def test_the_report_answers_first_and_loads_nothing(folder: Path) -> None:
    path = write_report(folder)
    page = path.read_text()
    assert path == folder / "report.html"
    text = words(page)
    assert re.search(
        r"At 4×10¹¹ FLOPs, muP: 1\d\dK \[1\d\dK, 1\d\dK\] parameters, 1[\d.]+K \[.*?\] samples; loss 0.2", text
    )
    assert text.index("Best size: N* ∝ C0.5") < text.index("Loss at equal compute")
    assert "muP beats SP at 25 of 25 sizes and budgets" in text
    assert "times the compute" in text
    assert "against compute" in text
    assert "FID" not in text.partition("Methods")[0]
    assert "3 measurements (1 trial) diverged" in text
    links = Links()
    links.feed(page)
    assert all(address.startswith("data:image/png;base64,") for address in links.loaded)
    assert any(links.loaded)
    frame = read_measurements(folder)
    assert frame["mlflow_run_id"].isna().all()
    assert "http://127.0.0.1:5000/#/experiments/7/runs/" in page
    assert "click for its run" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def data_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="rows">(.*?)</script>', page).group(1).replace("<\\/", "</"))


def test_every_measurement_can_be_looked_up_from_its_point(folder: Path, found: Findings) -> None:
    page, frame = (folder / "report.html").read_text(), found.measurements
    data = data_of(Rows(found, "http://127.0.0.1:5000").script())
    keys = [column["key"] for column in data["columns"]]
    assert len(data["rows"]) == len(frame)
    for row, (_, measured) in zip(data["rows"], frame.iterrows(), strict=True):
        shown = dict(zip(keys, row, strict=True))
        trial, link = data["trials"][shown["trial"]]
        assert measured["trial_id"].startswith(trial)
        assert link.endswith(f"runs/run-{measured['trial_id']}")
        assert shown["flops"] == pytest.approx(measured["flops"], rel=1e-5)
        assert shown["loss"] == (None if pd.isna(measured["loss"]) else pytest.approx(measured["loss"], rel=1e-5))
    drawn = [json.loads(text) for text in re.findall(r'class="points">(.*?)</script>', page)]
    assert len(drawn) >= 5
    compute = max(drawn, key=lambda points: len(points["i"]))
    assert set(compute["i"]) == set(range(len(frame)))
    order = np.argsort(np.array(compute["x"]), kind="stable")
    flops = frame["flops"].to_numpy()[np.array(compute["i"])[order]]
    assert (np.diff(np.log(flops)) > -0.01).all()  # a place in the drawing is its compute


def test_the_report_goes_where_it_is_asked_about_the_budget_asked_for_with_what_a_paper_takes(
    tmp_path: Path,
) -> None:
    folder = write_results(
        tmp_path / "results", arms=("muP",), sizes=("25K", "60K", "150K"), rates=(1e-3,), diverge=False
    )
    track(folder)
    target, paper = tmp_path / "deep" / "page.html", tmp_path / "paper"
    path = write_report(folder, target, tracking_ui="http://tracker:1/", target_flops=4e12, figures=paper)
    page = path.read_text()
    assert path == target
    assert "http://tracker:1/#/experiments/7/runs/" in page
    assert "click for its run" in page
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert "At 4×10¹² FLOPs, muP:" in words(page)
    assert "An extrapolation: 10 times the largest budget run." in words(page)
    names = {path.name for path in paper.iterdir()}
    assert {"answer.pdf", "answer.svg", "frontier.pdf", "optimum-N.pdf", "methods.tex", "references.bib"} <= names
    assert (paper / "answer.pdf").read_bytes().startswith(b"%PDF")
    tex, bib = ((paper / name).read_text() for name in ("methods.tex", "references.bib"))
    cited = {key for keys in re.findall(r"\\citep\{(.*?)\}", tex) for key in keys.split(", ")}
    assert cited == set(re.findall(r"^@\w+\{(\w+),", bib, re.MULTILINE))
    assert "hoffmann2022" in cited
    assert not re.search(r"(?<!\\)[%&_]|[⁰¹²³⁴⁵⁶⁷⁸⁹]", re.sub(r"\$.*?\$", "", tex))


def test_a_budget_below_zero_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="must be a positive number, got -1"):
        write_report(folder, target_flops=-1.0)


def test_arms_of_different_objectives_are_compared_by_distance_alone(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", diverge=False, rates=(1e-3,), budgets=(5e10, 1e11, 2e11))

    def rewrite(distance: bool) -> None:
        for part in (folder / "measurements").glob("*.parquet"):
            table = pd.read_parquet(part)
            table.loc[table["arm"] == "SP", "objective"] = "ddpm"
            if distance:
                worse = np.where(table["arm"] == "SP", 1.2, 1.0)
                table["fid"] = 3e6 * worse * table["flops"] ** -0.25 * (1 + np.log(table["params_backbone"] / 6e4) ** 2)
            table.to_parquet(part)

    rewrite(distance=False)
    found = find(folder)
    assert not found.comparisons
    assert any("muP and SP train different objectives, whose losses cannot" in text for text in found.warnings)
    rewrite(distance=True)
    found = find(folder)
    assert "muP beats SP</strong> at 15 of 15 sizes and budgets: 16.7% lower FID on average" in answer(found)[-1]
    assert not any("cannot be compared" in text for text in found.warnings)


def lose_everything(folder: Path) -> None:
    for part in (folder / "measurements").iterdir():
        pd.read_parquet(part).assign(loss=None, outcome="diverged", reason="<exploded>").to_parquet(part)


def remove_measurements(folder: Path) -> None:
    for name in ("measurements", "curves", "attempts"):
        shutil.rmtree(folder / name)


def test_no_measurements_says_so(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", sizes=("10K",))
    remove_measurements(folder)
    assert "No measurement is in yet. 4 trials are planned." in words(write_report(folder).read_text())


def test_every_trial_diverged_says_so(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", sizes=("10K", "60K"), rates=(1e-3,), budgets=(1e11, 2e11))
    lose_everything(folder)
    page = write_report(folder).read_text()
    assert "Every trial diverged" in words(page)
    assert "&lt;exploded&gt;" in page


def test_one_budget_gives_a_best_size_and_no_law(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", budgets=(1e11,), rates=(1e-3,), arms=("muP",), noise=0.0)
    (folder / "plan.json").write_text("{broken")
    text = words(write_report(folder).read_text())
    assert re.search(r"Best size at 10¹¹ FLOPs: (5|6)[\d.]*K parameters", text)
    assert "gives no N*(C): run more budgets" in text
    assert "No loss law" in text


def test_one_trial_is_shown(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", budgets=(1e11,), rates=(1e-3,), arms=("SP",), sizes=("60K",))
    text = words(write_report(folder).read_text())
    assert "Best run: SP 60K" in text
    assert "got 0 of 1" in text


def test_an_absent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no results folder"):
        write_report(tmp_path / "absent")


def test_frechet_distances_have_their_figure_and_law_where_they_were_measured(tmp_path: Path) -> None:
    def measure(folder: Path) -> None:
        for part in (folder / "measurements").glob("*.parquet"):
            table = pd.read_parquet(part)
            table["fd"] = 3e6 * table["flops"] ** -0.25 * (1 + 0.1 * np.abs(np.log(table["params_backbone"] / 6e4)))
            table["fd_encoder"] = "fmnist-cnn"
            table.to_parquet(part)

    folder = write_results(tmp_path / "planted", diverge=False, rates=(1e-3,), arms=("muP",))
    measure(folder)
    page = words(write_report(folder).read_text())
    assert "FD-fmnist-cnn against compute" in page
    assert "FD-fmnist-cnn = " in page
    law = re.search(r"FD-fmnist-cnn = [^;]*?C−(0\.\d+)", page)
    assert law is not None
    assert float(law[1]) == pytest.approx(0.25, abs=0.05)


def test_the_answer_is_about_the_first_arm_of_the_spec(found: Findings) -> None:
    named = found.plan["arms"]
    assert [arm.arm for arm in found.arms] == named
    assert (found.comparisons[0].first, found.comparisons[0].second) == tuple(named)


def test_methods_of_a_sweep_budgeted_in_samples_name_no_flops(found: Findings) -> None:
    in_samples = replace(found, measurements=found.measurements.assign(budget_flops=np.nan))
    assert "parameters, were trained, under" in methods.paragraphs(in_samples)[0]


def test_the_first_screen_has_the_intervals_of_the_sections(found: Findings) -> None:
    best = found.best
    assert best is not None
    band = best.law.ci95["beta"]
    told = f"{band[0]:.3g} to {band[1]:.3g}"
    law = next(text for text in answer(found) if text.startswith("<strong>Loss = "))
    assert told in law
    assert told in law_words(best.law)
    assert ("with or without a floor" in law) == ("with or without a floor" in law_words(best.law))


def test_the_title_says_that_the_best_size_grows_only_where_its_interval_does() -> None:
    assert size_words((0.2, 0.6)) == "the best size grows with compute"
    assert size_words((-0.07, 0.09)) == "loss at equal compute"
    assert size_words(None) == "loss at equal compute"
    assert size_words((-0.3, -0.1)) == "the best size shrinks with compute"


def test_what_is_beyond_the_runs_is_told_apart_from_what_is_beyond_the_minima(found: Findings) -> None:
    arm = found.arms[0]
    assert arm.isoflop is not None
    minima = [m if m.flops < 2e11 else replace(m, bracketed=False) for m in arm.isoflop.minima]
    few = replace(arm, isoflop=rebuilt(arm.isoflop, minima))
    assert few.largest_minimum == pytest.approx(1e11)
    told = words("</head>" + predictions_table(replace(found, arms=[few], target_flops=4e11)))
    assert "× largest run× largest minimum" in told
    assert re.search(r"within4 ", told)
    assert re.search(r"0\.\d+ to 0\.\d+312, far", told)
    assert told.count("4×10¹¹") == 1  # the target is the largest run: one row, not two
    said = answer(replace(found, arms=[few], target_flops=4e11))[0]
    assert "N* and D* are extrapolations: 4 times the largest budget whose minimum is bracketed." in said
    assert "An extrapolation" not in said


def rebuilt(fit: IsoflopFit, minima: list[Minimum]) -> IsoflopFit:
    copied = copy.copy(fit)
    object.__setattr__(copied, "minima", minima)
    return copied


def test_a_minimum_that_is_not_bracketed_has_no_number(found: Findings) -> None:
    arm = found.arms[0]
    assert arm.isoflop is not None
    first, *others = arm.isoflop.minima
    below = replace(first, params=515.0, bracketed=False, reason="the minimum lies below the smallest size near it")
    shown = minima_table(replace(found, arms=[replace(arm, isoflop=rebuilt(arm.isoflop, [below, *others]))]))
    row = shown.partition("<tbody>")[2].partition("</tr>")[0]
    assert "515" not in row
    assert f"<td>&lt; {with_unit(first.sizes[0])}</td><td></td><td></td><td></td><td></td>" in row


def test_flops_spent_are_those_of_the_accounts_and_savings_are_a_share_of_separate_runs(found: Findings) -> None:
    arms = [arm.arm for arm in found.arms]
    half = found.accounts.assign(flops_spent=1e10, flops_useful=1e10, flops_shared=3e10)
    other = replace(found, accounts=half)
    num = len(half)
    assert f"· {scientific(num * 1e10)} training FLOPs" in spent(other)
    table = "".join(run_table(other))
    mine = sum(1 for t in found.plan["trials"] if t["arm"] == arms[0])
    assert f"<td>{scientific(mine * 1e10)} of " in table
    costs = "".join(cost_tables(other))
    assert f"{scientific(num * 3e10)} (75.0%)" in costs
    assert not cost_tables(replace(found, attempts=found.attempts.iloc[:0]))


@pytest.mark.parametrize(
    ("kept", "linked"),
    [
        ("http://127.0.0.1:5000", False),
        ("http://localhost:5000", False),
        ("http://[::1]:5000", False),
        ("http://0.0.0.0:5000", False),
        ("https://mlflow.lab.example", True),
        ("http://10.0.0.7:5000", True),
    ],
)
def test_a_page_for_others_links_to_what_others_can_open(found: Findings, kept: str, linked: bool) -> None:
    known = replace(found, tracking=found.tracking | {"ui": kept})
    assert linked_ui(known, own_machine=False) == (kept if linked else "")
    assert Rows(known, linked_ui(known, own_machine=True)).linked
    assert not Rows(known, "").linked


def test_arms_of_different_objectives_have_axes_of_their_own(found: Findings) -> None:
    first, second = found.arms
    other = replace(second, trained=second.trained.assign(objective="ddpm betas=cosine"))
    page = Sections(replace(found, arms=[first, other]), Gallery()).compute()
    assert "losses do not compare" in page
    assert 'aria-label="Loss against training compute. muP: ' in page
    assert 'aria-label="Loss against training compute. SP: ' in page
    assert "losses do not compare" not in Sections(found, Gallery()).compute()


def test_tests_of_equal_laws_name_their_arms(found: Findings) -> None:
    assert "muP/SP: equal exponents" in Sections(found, Gallery()).arms()


def test_clips_have_their_consistency_in_time_and_pictures_stand_still(found: Findings, tmp_path: Path) -> None:
    assert not consistency(found)
    errors = {"warping_error": 0.0123, "warping_error_generated": np.nan}
    arm = replace(found.arms[0], frontier=found.arms[0].frontier.assign(**errors))
    clips = replace(found, arms=[arm], measurements=found.measurements.assign(**errors))
    shown = consistency(clips)
    assert "warping error, denoised" in shown
    assert shown.count("<td>0.0123</td>") == len(arm.frontier)
    assert "generated</th>" not in shown
    assert "warping error 0" not in Rows(found, "").script()
    assert '"warping error"' in Rows(clips, "").script()
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=125, loop=0)
    figure = picture(tmp_path / "clip.gif", "a clip", "a clip")
    before, _, after = figure.partition("</details>")
    assert "data:image/gif" in before
    assert "data:image/png" in after


def test_grids_left_out_for_their_size_are_told_from_none(found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "left out" not in samples(found)
    monkeypatch.setattr("analysis.report_samples.MAX_ALL_BYTES", 10)
    told = samples(found)
    assert re.search(r"\d+ sample grids are left out, to keep the page small", told)
    assert "No sample grids" not in told


def test_methods_say_what_a_run_again_needs(found: Findings) -> None:
    recipe = {"arms": ["muP"], "optimizer": "AdamW", "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.01}
    recipe |= {"gradient_clip": 1.0, "warmup_samples": 1024, "schedule": "wsd", "cooldown": "1-sqrt"}
    recipe |= {"ema_relative_std": 0.1, "loss_images": 512, "loss_draws": 4}
    constant = recipe | {"schedule": "constant", "cooldown": None, "gradient_clip": None}
    rows = found.measurements.assign(family="unet3d", objective="v-prediction")
    plan = found.plan | {"dataset": "moving-16-grey", "recipes": [recipe, constant]}
    training, measurement = methods.paragraphs(replace(found, plan=plan, measurements=rows))[:2]
    for words in ("on moving-16-grey", "AdamW [loshchilov2019]", "0.9 and 0.99", "weight decay 0.01", "norm of 1."):
        assert words in training
    for words in ("over 1024 samples", "cooldown to zero", "or then held constant", "[ho2022]", "[salimans2022]"):
        assert words in training
    assert "relative standard deviation 0.1" in measurement
    assert "512 samples, 4 of times and noise for each" in measurement
    assert "[loshchilov2019" not in methods.paragraphs(found)[0]  # a plan of before


def test_every_family_and_objective_has_its_citation() -> None:
    objectives = [get_args(get_type_hints(kind)["name"])[0] for kind in get_args(Objective)]
    assert set(objectives) <= set(methods.OBJECTIVES)
    assert set(FAMILIES) <= set(methods.FAMILIES)
    assert {*methods.OBJECTIVES.values(), *methods.FAMILIES.values()} <= set(REFERENCES)


def test_an_exponent_of_zero_is_not_written_as_rounding_left_it() -> None:
    assert exponent_words(1.656e-15) == "0"
    assert exponent_words(-2e-9) == "0"
    assert exponent_words(0.46318) == "0.4632"
