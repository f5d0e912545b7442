"""Generated pictures along compute, as a report shows them."""

from __future__ import annotations

import pandas as pd

from analysis import report_page as page
from analysis.findings import ArmFindings, Findings
from analysis.magnitudes import scientific
from orchestrator.results.location import Location, entries

MAX_PICTURE_BYTES = 4_000_000
MAX_ALL_BYTES = 8_000_000
"""Of all pictures of a report together: it must stay a file that can be sent."""
GRIDS = ("png", "gif")
"""Suffixes of grids that a page can show: of images, and of clips."""
MAX_PICTURES = 8
"""Sample grids of one arm."""


def samples(findings: Findings) -> str:
    """A strip an arm: the best run of each budget, or where those have none, the best runs that do."""
    try:
        there = {path.name for path in entries(findings.folder / "samples")}
    except FileNotFoundError:
        there = set()
    trained = [arm for arm in findings.arms if len(arm.trained)]
    left = MAX_ALL_BYTES
    strips, num_left_out = [], 0
    for arm in trained:
        pictures = []
        for row, name in _chosen(arm, there):
            path = findings.folder / "samples" / name
            size = path.stat().st_size
            if size <= min(MAX_PICTURE_BYTES, left):
                left -= size
                pictures.append(_picture(path, row))
            else:
                num_left_out += 1
        if pictures:
            strips.append(f"<h3>{page.escape(arm.arm)}</h3>")
            label = page.escape(f"Samples of {arm.arm} along compute")
            strips.append(
                f'<div class="strip" tabindex="0" role="group" aria-label="{label}">{"".join(pictures)}</div>'
            )
    words = "" if strips or num_left_out else "No sample grids are in the results folder."
    if num_left_out:
        words = (
            f"{num_left_out} sample grid{'s are' if num_left_out > 1 else ' is'} left out, to keep the page small: "
            "samples/ in the results folder has all of them."
        )
    return page.section("samples", "Samples along compute", *strips, page.paragraph(words, "note") if words else "")


def _chosen(arm: ArmFindings, there: set[str]) -> list[tuple[pd.Series, str]]:
    """Rows with the names of their grids."""
    best = _with_grids(arm.frontier, there)
    if best:
        return best[-MAX_PICTURES:]
    rows = _with_grids(arm.trained.sort_values("loss"), there)[:4]
    return sorted(rows, key=lambda pair: pair[0]["flops"])


def _with_grids(rows: pd.DataFrame, there: set[str]) -> list[tuple[pd.Series, str]]:
    found = []
    for _, row in rows.iterrows():
        names = (f"{row['trial_id']}-{row['samples']}.{suffix}" for suffix in GRIDS)
        name = next((name for name in names if name in there), None)
        if name is not None:
            found.append((row, name))
    return found


def _picture(path: Location, row: pd.Series) -> str:
    words = f"{row['size']}, {scientific(row['flops'])} FLOPs, loss {row['loss']:.4g}"
    return page.picture(path, f"Samples of {row['arm']} {words}, one class a row or column", page.escape(words))
