"""Tables of the report: where the time of gangs went, and what share of a device's peak each size made use of."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.findings import Findings
from analysis.magnitudes import duration, with_unit
from analysis.report_page import escape, paragraph, table
from orchestrator.results.device_time import ACCOUNTS, device_time, share_of_steps

WORDS = (
    "Time of gangs, from when they are asked for (the first of a run: from when the command began) to the end of their "
    "last attempt. Waiting: a gang without an attempt, its start included. What comes when no gang is there any more, "
    "as this report, is not in it, nor are attempts that died with their driver."
)
MFU_WORDS = (
    "Training FLOPs as a share of the devices' peak: over the whole time of attempts, with evaluation and compiling "
    "(the plan counts no compiling), and over training alone."
)


def time_tables(findings: Findings) -> list[str]:
    """Where the time went, and MFU by size beside the plan's; nothing where no attempts were kept."""
    time = device_time(findings.attempts)
    share = share_of_steps(time)
    if share is None:
        return []
    sums = time[list(ACCOUNTS)].sum()
    whole = float(sums.sum())
    columns = [("gangs' time", False), *((name, False) for name in ACCOUNTS), ("in steps", False)]
    cells = [duration(whole / 3600), *(_part(float(sums[name]), whole) for name in ACCOUNTS), f"<b>{share:.1%}</b>"]
    unknown = int((~time["waits_known"]).sum())
    missing = f" And of {unknown} of {len(time)} attempts it was not recorded how long gangs waited and compiled."
    return [
        table(columns, [cells]),
        paragraph(WORDS + (missing if unknown else ""), "note"),
        *_utilisation(findings, time),
    ]


def _part(seconds: float, whole: float) -> str:
    return f"{duration(seconds / 3600)} ({seconds / whole:.1%})" if seconds > 0 else "0"


def _utilisation(findings: Findings, time: pd.DataFrame) -> list[str]:
    """A row a size, all arms together, smallest first."""
    planned = {str(trial["trial_id"]): trial for trial in _planned(findings)}
    flops = findings.attempts.groupby("trial_id")["flops"].sum()
    found: dict[str, list[dict[str, float]]] = {}
    for row in time.to_dict("records"):
        trials = [trial for trial in row["trial_ids"] if trial in planned]
        whole = sum(row[name] for name in ACCOUNTS if name != "waiting")
        for trial in trials:  # of a pack each has its share of the time
            share = 1 / len(row["trial_ids"])
            found.setdefault(trial, []).append({"whole": share * whole, "training": share * row["training"]})
    sizes: dict[tuple[float, str], list[str]] = {}
    for trial in found:
        plan = planned[trial]
        sizes.setdefault((float(plan["params_backbone"]), str(plan["size"])), []).append(trial)
    columns = [("size", True), ("N", False), ("trials", False), ("planned time", False), ("time", False)]
    columns += [("MFU as planned", False), ("MFU", False), ("MFU of training alone", False)]
    rows = []
    for (params, size), trials in sorted(sizes.items()):
        peaks = [float(planned[trial]["peak_flops_per_second"]) for trial in trials]
        done = sum(float(flops[trial]) / peak for trial, peak in zip(trials, peaks, strict=True))
        asked = sum(float(planned[t]["flops"]) / peak for t, peak in zip(trials, peaks, strict=True))
        expected = sum(float(planned[trial]["seconds"]) for trial in trials)
        whole, training = (sum(s[k] for t in trials for s in found[t]) for k in ("whole", "training"))
        cells = [escape(size), with_unit(params), str(len(trials)), duration(expected / 3600), duration(whole / 3600)]
        rows.append([*cells, _percent(asked, expected), _percent(done, whole), _percent(done, training)])
    return [table(columns, rows), paragraph(MFU_WORDS, "note")] if rows else []


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole > 0 else ""


def _planned(findings: Findings) -> list[dict[str, Any]]:
    """The trials of the plan that say what their devices could do."""
    trials = findings.plan.get("trials")
    known = [t for t in trials if isinstance(t, dict)] if isinstance(trials, list) else []
    return [t for t in known if t.get("peak_flops_per_second") and t.get("seconds") and t.get("params_backbone")]
