"""The coverage benchmark: its cases, its tally, the tables it writes, and that what it measures is coverage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.bench.coverage import METHODS, Tally, default_table, run, write_tables
from orchestrator.bench.coverage_cases import SIGMA, SIZES, cases
from orchestrator.cli.benching import bench

DOCS = Path(__file__).parent.parent / "docs"


def test_every_case_has_the_points_it_names_and_the_noise_it_says() -> None:
    for case in cases():
        errors = np.concatenate([case.errors(np.random.default_rng(seed)) for seed in range(40)])
        assert len(errors) == 40 * len(case.trials())
        assert abs(len(case.trials()) - case.num_points) <= 1
        assert np.std(errors) == pytest.approx(SIGMA, rel=0.4)
    assert {case.num_points for case in cases()} == set(SIZES)
    assert len({case.name for case in cases()}) == len(cases())


@pytest.mark.parametrize("name", ["surface, trials, 24", "isoflop, normal, 12", "power, floor unknown (faint"])
def test_a_study_has_an_interval_of_everything_that_was_planted(name: str) -> None:
    case = next(c for c in cases() if c.name.startswith(name))
    bands = case.bands(np.random.default_rng(0))
    assert set(case.truth) <= set(bands)
    assert all(band is not None and band[0] < band[1] for band in bands.values())


def test_a_run_is_continued_not_repeated(tmp_path: Path) -> None:
    raw = tmp_path / "coverage.json"
    run(10, 1, raw, "power, normal, 24", processes=2)
    result = run(20, 2, raw, "power, normal, 24")
    assert json.loads(raw.read_text()) == result
    tallies = {method: Tally(**tally) for method, tally in result["table"]["power, normal, 24"].items()}
    assert (tallies["auto"].repetitions, tallies["delta"].repetitions) == (20, 2)
    assert 0.8 <= tallies["auto"].mean <= 1.0
    assert tallies["auto"].held == run(20, 0, None, "power, normal, 24")["table"]["power, normal, 24"]["auto"]["held"]


def test_the_command_prints_one_flat_object_and_writes_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: default -->\nold\n<!-- end -->\nb\n<!-- table: methods -->\n<!-- end -->\nc\n")
    arguments = ["coverage", "--repetitions", "1", "--only", "power, normal, 12", "--json", "--page", str(page)]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    assert {f"power, normal, 12: {method}" for method in ("auto", *METHODS)} <= set(figures)
    text = page.read_text()
    assert "| power, normal, 12 | 12 | profile |" in text
    assert "old" not in text
    assert [line for line in text.splitlines() if len(line) == 1] == ["a", "b", "c"]


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="has no '<!-- table: default -->'"):
        write_tables({"table": {}}, page)


def test_the_tables_of_the_docs_are_those_of_their_raw_figures() -> None:
    result, page = json.loads((DOCS / "data" / "coverage.json").read_text()), (DOCS / "coverage.md").read_text()
    assert default_table(result) in page
