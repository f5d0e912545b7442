"""Every measurement of a report, for its script to show on hover and in its table, and the table as it stands without.

Rows are numbered as in `Findings.measurements`: the marks of the plots are these numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from analysis.findings import Findings
from analysis.magnitudes import duration, scientific, with_unit
from analysis.report_page import escape, json_text, paragraph, table

NUM_STATIC = 200
"""Rows that stand in the page itself, for print and for readers without a script."""

Show = Callable[[Any], str]

OF_CLIPS = ("fd_per_frame", "warping_error", "warping_error_generated")
COLUMNS: dict[str, tuple[str, str, Show]] = {
    "arm": ("arm", "choice", str),
    "size": ("size", "choice", str),
    "params": ("N", "count", with_unit),
    "learning_rate": ("lr", "plain", "{:g}".format),
    "seed": ("seed", "whole", str),
    "flops": ("FLOPs", "power", scientific),
    "samples": ("samples", "whole", "{:,}".format),
    "loss": ("loss", "plain", "{:.5g}".format),
    "fid": ("FID", "plain", "{:.4g}".format),
    "fd": ("FD", "plain", "{:.4g}".format),
    "kid": ("KID", "plain", "{:.4g}".format),
    "fd_per_frame": ("FD of frames", "plain", "{:.4g}".format),
    "warping_error": ("warping error", "plain", "{:.4g}".format),
    "warping_error_generated": ("warping error of samples", "plain", "{:.4g}".format),
    "outcome": ("outcome", "choice", str),
    "gpu_hours": ("device time", "hours", duration),
    "trial": ("run", "trial", str),
    "reason": ("", "choice", str),
}
"""Column: its title, how the script shows it, and how the page does."""
MEASURED = ("loss", "fid", "fd", "kid", *OF_CLIPS)
WORDS = ("arm", "size", "outcome", "trial")
"""Columns of text, which stand to the left."""


class Rows:
    """The measurements of a report and the MLflow pages of their trials."""

    def __init__(self, findings: Findings, tracking_ui: str) -> None:
        self._links = _links(findings, tracking_ui)
        frame = findings.measurements
        self._frame = frame.assign(trial=frame["trial_id"].astype(str)) if len(frame) else frame
        absent = [name for name in MEASURED if name not in frame or not frame[name].notna().any()]
        self._names = [name for name in COLUMNS if name not in absent or name == "loss"]

    @property
    def linked(self) -> bool:
        """Whether points lead to MLflow pages."""
        return bool(self._links)

    def script(self) -> str:
        """The element that the page's script reads; nothing without a measurement."""
        if not len(self._frame):
            return ""
        codes: dict[str, Any] = {}
        columns = []
        for name in self._names:
            title, kind, _ = COLUMNS[name]
            values = sorted(self._frame[name].dropna().astype(str).unique())
            about = {"key": name, "title": title, "kind": kind, "words": name in WORDS, "measured": name in MEASURED}
            about["shown"] = bool(title)
            columns.append(about | ({"values": values} if kind == "choice" else {}))
            codes[name] = self._encoded(name, kind, values)
        trials = sorted(self._frame["trial"].unique())
        rows = list(map(list, zip(*(codes[name] for name in self._names), strict=True)))
        known = [[trial[:8], self._links.get(trial)] for trial in trials]
        data = {"columns": columns, "rows": rows, "trials": known}
        return f'<script type="application/json" id="rows">{json_text(data)}</script>'

    def _encoded(self, name: str, kind: str, values: list[str]) -> list[Any]:
        column = self._frame[name]
        if kind in ("choice", "trial"):
            place = {text: k for k, text in enumerate(values)}
            return [None if pd.isna(entry) else place[str(entry)] for entry in column]
        if kind == "whole":
            return [int(entry) for entry in column]
        numbers = column.to_numpy(dtype=float)
        return [float(f"{entry:.6g}") if np.isfinite(entry) else None for entry in numbers]

    def table(self) -> list[str]:
        """Every measurement, diverged ones too, with a link to its run where there is one."""
        if not len(self._frame):
            return [paragraph("None yet.")]
        names = [name for name in self._names if COLUMNS[name][0]]
        rows = [self._static(row, names) for row in self._frame.head(NUM_STATIC).to_dict("records")]
        parts = [table([(COLUMNS[name][0], name in WORDS) for name in names], rows, tall=len(rows) > 18)]
        if len(self._frame) > NUM_STATIC:
            left = (
                f"The first {NUM_STATIC} of {len(self._frame):,} measurements; a browser with scripts shows them all, "
            )
            parts.append(f"<noscript>{paragraph(left + 'and so do measurements/*.parquet.', 'note')}</noscript>")
        return parts

    def _static(self, row: dict[Any, Any], names: list[str]) -> list[str]:
        cells = {name: "" if pd.isna(row[name]) else escape(COLUMNS[name][2](row[name])) for name in names}
        if row["outcome"] == "diverged":
            cells["outcome"] = f'<span class="diverged" title="{escape(row["reason"])}">diverged</span>'
        link, trial = self._links.get(row["trial"]), escape(row["trial"][:8])
        open_in = f'<a href="{escape(link)}" target="_blank" rel="noopener">{trial}</a>' if link else ""
        return list((cells | {"trial": open_in or f"<code>{trial}</code>"}).values())


def linked_ui(findings: Findings, own_machine: bool) -> str:
    """The address of MLflow's pages that a report links to, or nothing; one of one's own machine only where asked."""
    kept = str(findings.tracking.get("ui") or "")
    return kept if own_machine or not _is_own_machine(kept) else ""


def _links(findings: Findings, tracking_ui: str) -> dict[str, str]:
    """The MLflow page of each trial, where it is known."""
    ui = tracking_ui.partition("/#/")[0].rstrip("/")
    experiment, frame = findings.tracking.get("experiment_id"), findings.measurements
    if not ui or experiment is None:
        return {}
    runs = dict(findings.tracking.get("runs") or {})
    if "mlflow_run_id" in frame:
        known = frame.dropna(subset="mlflow_run_id")
        runs |= dict(zip(known["trial_id"], known["mlflow_run_id"], strict=True))
    return {str(trial): f"{ui}/#/experiments/{experiment}/runs/{run}" for trial, run in runs.items()}


def _is_own_machine(address: str) -> bool:
    """Whether an address means another machine to every reader."""
    host = urlsplit(address).hostname or ""
    try:
        number = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback or number.is_unspecified
