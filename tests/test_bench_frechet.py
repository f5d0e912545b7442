"""`ditlaw bench frechet` prints what it promises, and the two ways agree."""

from __future__ import annotations

import json

from click.testing import CliRunner

from orchestrator.cli import main


def test_bench_frechet_agrees_with_sqrtm():
    result = CliRunner().invoke(main, ["bench", "frechet", "--dim", "96", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert {"seconds", "sqrtm_seconds", "relative_error"} <= set(figures)
    assert figures["relative_error"] < 1e-6
    assert figures["sqrtm_seconds"] > figures["seconds"]
