"""Planning 10,000 cells is quick, small and imports nothing heavy; bounds leave room for a busy machine."""

from __future__ import annotations

import json

from click.testing import CliRunner

from orchestrator.cli import main


def test_ten_thousand_cells_are_planned_at_once():
    done = CliRunner().invoke(main, ["bench", "plan", "--repeats", "1", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    figures = json.loads(done.output)
    for prefix in ("", "cooldown_"):
        assert figures[f"{prefix}cells"] == 10_000
        assert figures[f"{prefix}heavy_imports"] == []
        assert figures[f"{prefix}megabytes"] < 500
        assert 0 < figures[f"{prefix}cpu_seconds"] < 8
    assert figures["trials"] == 2000
    assert figures["cooldown_trials"] == 12_000
