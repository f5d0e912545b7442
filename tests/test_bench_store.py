"""The store takes points much faster than MLflow does; bounds leave room for a busy machine."""

from __future__ import annotations

import json

from click.testing import CliRunner

from orchestrator.cli import main


def test_points_are_written_faster_than_mlflow_takes_them(tmp_path):
    options = ["--parts", "5", "--mlflow-points", "500", "--repeats", "1", "--folder", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, ["bench", "store", *options], catch_exceptions=False)
    assert done.exit_code == 0
    figures = json.loads(done.output)
    assert figures["points"] == 200_000
    assert figures["points_per_s"] > 10 * figures["mlflow_points_per_s"] > 0
    assert figures["read_points_per_s"] > 0
    assert list(tmp_path.iterdir()) == []
