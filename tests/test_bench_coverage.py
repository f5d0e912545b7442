"""The coverage benchmark: its cases, its tally, and that what it measures is coverage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from orchestrator.bench.coverage import METHODS, cases, run
from orchestrator.cli.benching import bench


def test_every_case_has_the_points_it_names() -> None:
    for case in cases():
        x, trials = case.points()
        assert abs(len(x) - case.num_points) <= 1
        assert len(trials) == len(x)
        y = case.draw(x, trials, np.random.default_rng(0))
        exact = case.law.predict(case.params, tuple(x.T))
        assert 0 < np.std(np.log(y / exact)) < 0.03


def test_intervals_hold_most_of_what_was_planted(tmp_path: Path) -> None:
    raw = tmp_path / "coverage.json"
    result = run(20, 2, raw, "power, normal, 24")
    assert json.loads(raw.read_text()) == result
    (row,) = result["table"]
    assert row["default"] == "pairs"
    assert (row["pairs"]["repetitions"], row["delta"]["repetitions"]) == (20, 2)
    assert 0.8 <= row["pairs"]["mean"] <= 1.0


def test_the_command_prints_one_flat_object() -> None:
    arguments = ["coverage", "--repetitions", "1", "--only", "power, normal, 12", "--json"]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    assert figures["power, normal, 12: default"] == "profile"
    assert {f"power, normal, 12: {method}" for method in METHODS} <= set(figures)
