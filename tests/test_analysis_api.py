"""The Python interface and the command: three lines in a notebook, import at no cost, and what the command prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import analysis
from analysis import fit_isoflop, fit_power, fit_surface, load
from analysis.estimating import Options
from analysis.fit_table import fit_loaded
from orchestrator.cli.analysing import fit as command

DATA = Path(__file__).parent / "data"


def test_importing_the_package_loads_nothing() -> None:
    heavy = "[m for m in ('numpy', 'pandas', 'scipy', 'matplotlib', 'pyarrow') if m in sys.modules]"
    code = f"import sys, analysis; dir(analysis); assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_is_there() -> None:
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fit_everything'"):
        _ = analysis.fit_everything  # type: ignore[attr-defined]


def test_three_lines_in_a_notebook() -> None:
    fit = fit_surface(load(DATA / "chinchilla_points.csv"), num_resamples=60)
    assert fit.plot().axes
    page = fit._repr_html_()
    assert "<th>alpha</th>" in page
    assert "loss = E + A / N^alpha + B / D^beta" in page
    assert "! no column of samples" in str(fit)
    value, band = fit.predict(7e9, 1.4e12)
    assert band is not None
    assert band[0] < value < band[1]


def test_a_prediction_carries_its_back_test() -> None:
    result = fit_isoflop(load(DATA / "llama3_points.csv"), target_flops=3.8e25, num_resamples=60)
    as_json = result.to_dict()
    errors = as_json["allocation"]["backtest_error"]
    assert errors["params"] == pytest.approx(0.418, abs=0.001)
    assert [test["what"] for test in as_json["backtest"]] == ["N*", "loss"]
    assert as_json["allocation"]["times_largest_budget"] == pytest.approx(3800)
    assert "back-test +41.8%" in str(result)
    assert any("the fit missed N* by +41.8%, loss by" in text for text in as_json["warnings"])
    assert as_json["approaches_agree"] is False
    with pytest.raises(ValueError, match="no law to predict from: isoflop gives"):
        result.predict(1e20)


def test_a_floor_may_be_held_at_zero() -> None:
    flops = np.geomspace(1e17, 1e20, 8)
    frame = pd.DataFrame({"flops": flops, "fid": 2e6 * flops**-0.234})
    result = fit_power(frame, floor="zero", num_resamples=0)
    assert result.params == pytest.approx({"A": 2e6, "beta": 0.234, "floor": 0.0}, rel=1e-6)
    assert result.quantity == "fid"
    assert str(result).startswith("fid = A * C^-beta + floor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "magic"}, "there is no recipe 'magic'; wanted one of varpro"),
        ({"interval": "magic"}, "there is no interval 'magic'"),
        ({"floor": -1.0}, "floor must be a number from 0 on; got -1.0"),
        ({"floor": "high"}, "floor must be free, zero or a number; got 'high'"),
        ({"num_resamples": 3}, "resamples must be 0 .no intervals. or at least 40; got 3"),
        ({"target_flops": -1.0}, "target FLOPs must be a positive number; got -1.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    frame = pd.DataFrame({"flops": np.geomspace(1e17, 1e20, 8), "loss": np.geomspace(3, 2, 8)})
    with pytest.raises(ValueError, match=message):
        fit_power(frame, **options)  # type: ignore[arg-type]


def test_options_that_a_law_does_not_have_are_refused() -> None:
    table = load(DATA / "llama3_points.csv")
    with pytest.raises(ValueError, match="floor 'zero' is of a power law; a surface has its own constant"):
        fit_loaded(table, "surface", options=Options(floor="zero"))
    with pytest.raises(ValueError, match="isoflop is parabolas by least squares and has no recipe; got 'hoffmann'"):
        fit_loaded(table, "isoflop", options=Options(recipe="hoffmann"))


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_json_and_writes_figures(tmp_path: Path) -> None:
    table = DATA / "llama3_points.csv"
    options = ("--law", "power", "--floor", "zero", "--resamples", 60, "--flops-rule", "6ND", "--json")
    code, out, _ = run(table, *options, "--plots", tmp_path / "figures", "--format", "pdf")
    result = json.loads(out)
    assert code == 0
    assert result["options"] | {"rule": ""} == {
        "recipe": "varpro",
        "interval": "auto",
        "floor": "zero",
        "num_resamples": 60,
        "seed": 0,
        "force": False,
        "rule": "",
    }
    assert result["params"]["floor"] == 0.0
    assert result["columns"] == {"samples": "samples", "flops": "flops", "loss": "loss"}
    assert sorted(f.name for f in (tmp_path / "figures").iterdir())[:2] == ["approaches.pdf", "backtest.pdf"]


def test_the_same_seed_gives_the_same_intervals() -> None:
    options = (
        DATA / "chinchilla_points.csv",
        "--law",
        "power",
        "--floor",
        "zero",
        "--resamples",
        60,
        "--json",
        "--seed",
    )
    one, again, other = (json.loads(run(*options, seed)[1])["ci95"] for seed in (0, 0, 1))
    assert one == again
    assert one["beta"] != other["beta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--floor", "low"), "--floor got 'low'; wanted free, zero, or the value"),
        (("--columns", "params"), "wanted name=column pairs"),
        (("--columns", "loss=final"), "no column 'final' (for loss)"),
        (("--loss", "fid"), "no column for fid"),
        (("--arm", "mup"), "arm 'mup' cannot be selected"),
        (("--resamples", "2"), "resamples must be 0"),
        (("--flops-rule", "none"), "say so with --flops-rule 6ND"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    law = "power" if arguments[0] in ("--floor", "--loss") else "surface"
    code, out, error = run(DATA / "chinchilla_points.csv", "--law", law, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert "Traceback" not in error
