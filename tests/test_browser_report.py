"""The report in a real browser: Chromium through puppeteer, with axe's accessibility rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_analysis_planted import write_results

from analysis.report import write_report

BROWSER = Path("tests/browser")
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
MISSING = (
    "node is not installed"
    if shutil.which("node") is None
    else f"{CHROMIUM} is not there (set CHROMIUM)"
    if not CHROMIUM.exists()
    else "puppeteer-core and axe-core are not installed: make browser"
    if not (BROWSER / "node_modules").is_dir()
    else ""
)


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "all there")
def test_the_report_works_on_screens_phones_and_paper_and_axe_finds_nothing_serious(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", rates=(1e-3, 4e-3))
    page, pictures = write_report(folder, tmp_path / "report.html"), tmp_path / "pictures"
    done = subprocess.run(
        ["node", str(BROWSER / "look.mjs"), "report", str(page), str(pictures)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["requests"] == [], "the page loads something"
    assert all(pixels <= 0 for pixels in found["overflow"].values()), found["overflow"]
    serious = {
        name: [v for v in rules if v["impact"] in ("serious", "critical")] for name, rules in found["axe"].items()
    }
    assert not any(serious.values()), serious
    assert found["tip"].startswith("muP ")
    assert "FLOPs" in found["tip"]
    assert "loss" in found["tipByKey"]
    assert found["rows"] == 100
    assert found["filtered"] == "1 to 3 of 3"
    assert (pictures / "report-print.pdf").stat().st_size > 10_000
