"""Tables of the report."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.bootstrap import Interval
from analysis.findings import ArmFindings, Findings
from analysis.magnitudes import duration, scientific, with_unit
from analysis.report_page import escape, paragraph, table
from orchestrator.results.ledger import ledger


def spent(findings: Findings) -> str:
    """One line: measurements, trials, FLOPs."""
    rows = findings.measurements
    if not len(rows):
        return "no measurements yet"
    return (
        f"{len(rows)} measurements of {rows['trial_id'].nunique()} trials · {_magnitude(_flops_spent(rows))} training "
        f"FLOPs · {duration(_hours(rows))} of device time"
    )


def _per_trial(rows: pd.DataFrame, column: str) -> float:
    """Cost columns count up along a trial: its total is at its last milestone."""
    return float(rows.groupby("trial_id")[column].max().sum()) if len(rows) else 0.0


def _flops_spent(rows: pd.DataFrame) -> float:
    return _per_trial(rows, "flops_useful") + _per_trial(rows, "flops_wasted")


def _hours(rows: pd.DataFrame) -> float:
    return _per_trial(rows, "gpu_hours")


def run_table(findings: Findings) -> list[str]:
    """What was run: a row an arm, and the totals in words."""
    columns = [("arm", True), ("sizes", True), ("budgets", True), ("learning rates", False), ("seeds", False)]
    columns += [("trials", False), ("measured", False), ("diverged", False), ("FLOPs spent", False)]
    columns += [("device time", False)]
    rows = [_run_row(findings, arm) for arm in findings.arms]
    pending = sorted({str(t.get("arm")) for t in _planned(findings)} - {a.arm for a in findings.arms})
    rows += [
        [escape(arm), "", "", "", "", f"0 of {len(_planned(findings, arm))}", "0", "0", "0", ""] for arm in pending
    ]
    parts = [table(columns, rows)] if rows else [paragraph("Nothing was measured yet.")]
    return [*parts, *(paragraph(text) for text in _totals(findings))]


def _planned(findings: Findings, arm: str | None = None) -> list[dict[str, object]]:
    trials = findings.plan.get("trials")
    known = [t for t in trials if isinstance(t, dict)] if isinstance(trials, list) else []
    return [t for t in known if arm is None or t.get("arm") == arm]


def _run_row(findings: Findings, arm: ArmFindings) -> list[str]:
    rows, planned = arm.measured, _planned(findings, arm.arm)
    sizes = rows.groupby("size")["params"].first().sort_values()
    budgets = sorted(rows["budget_flops"].dropna().unique()) or sorted(rows["flops"].unique())
    trials = rows["trial_id"].nunique()
    milestones = sum(len(m) for t in planned if isinstance(m := t.get("milestones"), list))
    flops = sum(float(str(t.get("flops") or 0)) for t in planned)
    return [
        escape(arm.arm),
        escape(
            f"{len(sizes)}: {with_unit(sizes.iloc[0])} to {with_unit(sizes.iloc[-1])}"
            if len(sizes) > 1
            else sizes.index[0]
        ),
        f"{len(budgets)}: {scientific(budgets[0])} to {scientific(budgets[-1])}"
        if len(budgets) > 1
        else scientific(budgets[0]),
        str(rows["learning_rate"].nunique()),
        str(rows["seed"].nunique()),
        f"{trials} of {len(planned)}" if planned else str(trials),
        f"{len(rows) - arm.num_diverged}" + (f" of {milestones}" if milestones else ""),
        f'<span class="diverged">{arm.num_diverged}</span>' if arm.num_diverged else "0",
        _magnitude(_flops_spent(rows)) + (f" of {scientific(flops)}" if flops else ""),
        duration(_hours(rows)),
    ]


def _span(values: list[str]) -> str:
    return f"{len(values)}: {values[0]} to {values[-1]}" if len(values) > 1 else values[0]


def _magnitude(value: float) -> str:
    return scientific(value) if value > 0 else "0"


def _totals(findings: Findings) -> list[str]:
    plan, attempts, rows = findings.plan, findings.attempts, findings.measurements
    texts = []
    planned, separate = plan.get("flops_planned"), plan.get("flops_separate")
    if isinstance(planned, int | float) and isinstance(separate, int | float) and planned > 0:
        texts.append(
            f"Planned: {plan.get('num_cells')} measurements from {plan.get('num_trials')} trials, "
            f"{scientific(planned)} training FLOPs; one run per measurement would have cost "
            f"{separate / planned:.2f} times as much."
        )
    if len(attempts):
        texts.append(_ledger(ledger(attempts, rows)))
    if len(attempts):
        hours = (attempts["ended_at"].max() - attempts["started_at"].min()).total_seconds() / 3600
        counts = ", ".join(f"{count} {escape(name)}" for name, count in attempts["outcome"].value_counts().items())
        texts.append(f"{len(attempts)} attempts ({counts}) in {duration(hours)} of wall time.")
    return texts


def _ledger(rows: pd.DataFrame) -> str:
    """Where the FLOPs went, in a sentence."""
    total = rows.drop(columns="trial_id").sum()
    spent = float(total["flops_spent"])
    if spent <= 0:
        return "Nothing was spent: all of it had been trained by other sweeps."
    shares = [
        (float(total[f"flops_{account}"]) / spent, words)
        for account, words in (
            ("replayed", "was trained again after faults"),
            ("failed", "was lost with attempts that failed"),
            ("pending", "waits to be gone on with"),
        )
    ]
    lost = [f"{share:.1%} {words}" for share, words in shares if share > 0]
    shared = f" Sharing saved {_magnitude(float(total['flops_shared']))} more." if total["flops_shared"] > 0 else ""
    return (
        f"Spent: {_magnitude(spent)} training FLOPs, {total['flops_useful'] / spent:.1%} of them useful"
        f"{'; ' + ', '.join(lost) if lost else ', none lost to faults'}.{shared}"
    )


def minima_table(findings: Findings) -> str:
    """Minima of every arm and budget, bracketed or not."""
    columns = [("arm", True), ("budget, FLOPs", False), ("N*", False), ("95%", False), ("D*", False), ("loss*", False)]
    columns += [("cubic N*", False), ("sizes", False), ("bracketed", True)]
    rows = [
        [
            escape(arm.arm),
            scientific(m.flops),
            with_unit(m.params) if m.params else "",
            f"{with_unit(m.params_ci95[0])} to {with_unit(m.params_ci95[1])}" if m.params_ci95 else "",
            with_unit(m.samples) if m.samples else "",
            f"{m.loss:.4g}" if m.loss else "",
            with_unit(m.cubic_params) if m.cubic_params else "",
            str(m.num_sizes),
            "yes" if m.bracketed else f"no: {escape(m.reason)}",
        ]
        for arm in findings.arms
        if arm.isoflop is not None
        for m in arm.isoflop.minima
    ]
    return table(columns, rows) if rows else ""


def approaches_table(findings: Findings) -> str:
    """N* exponents by each approach, side by side, and back-tests."""
    columns = [("arm", True), ("approach", True), ("N* exponent", False), ("95%", False), ("outcome", True)]
    rows = []
    for arm in findings.arms:
        fit = arm.isoflop
        if fit is not None and fit.params:
            band = _interval(fit.ci95.get("N_exponent"))
            rows.append(
                [escape(arm.arm), "isoFLOP parabolas", f"{fit.params['N_exponent']:.3f}", band, escape(fit.outcome)]
            )
            if fit.cubic_exponent is not None:
                rows.append([escape(arm.arm), "isoFLOP cubics", f"{fit.cubic_exponent:.3f}", "", ""])
        if arm.surface_exponent is not None:
            value, interval = arm.surface_exponent
            outcome = arm.surface.outcome.replace("_", " ")
            rows.append([escape(arm.arm), "surface L(N, D)", f"{value:.3f}", _interval(interval), escape(outcome)])
    tests = [
        paragraph(f"<b>{escape(arm.arm)}</b> {escape(t.sentence())}.", "note")
        for arm in findings.arms
        for t in arm.backtests
    ]
    return (table(columns, rows) if rows else "") + "".join(tests)


def _interval(band: Interval | None) -> str:
    return f"{band[0]:.3f} to {band[1]:.3f}" if band else ""


def differences_table(findings: Findings) -> list[str]:
    """Each comparison, a row a size and budget."""
    parts = []
    for c in findings.comparisons:
        columns = [
            ("size", True),
            ("N", False),
            ("FLOPs", False),
            (f"{c.first} loss", False),
            (f"{c.second} loss", False),
        ]
        columns += [("difference", False), (f"{c.first} lr", False), (f"{c.second} lr", False)]
        rows = [
            [
                escape(p.size),
                with_unit(p.params),
                scientific(p.flops),
                f"{p.loss:.4g}",
                f"{p.other_loss:.4g}",
                f"{p.loss / p.other_loss - 1:+.2%}",
                f"{p.learning_rate:g}" if p.learning_rate else "",
                f"{p.other_learning_rate:g}" if p.other_learning_rate else "",
            ]
            for p in c.pairs
        ]
        parts += [table(columns, rows, tall=len(rows) > 18)] if rows else []
    return parts


def measurements_table(findings: Findings, link: Callable[[pd.Series], str | None]) -> list[str]:
    """Every measurement, diverged ones too, with a link to its run where there is one."""
    frame = findings.measurements
    if not len(frame):
        return [paragraph("None yet.")]
    extra = [name for name in ("fid", "fd") if frame[name].notna().any()]
    columns = [
        ("arm", True),
        ("size", True),
        ("N", False),
        ("lr", False),
        ("seed", False),
        ("FLOPs", False),
        ("samples", False),
    ]
    columns += [
        ("loss", False),
        *((name.upper(), False) for name in extra),
        ("outcome", True),
        ("device time", False),
        ("run", True),
    ]
    ordered = frame.sort_values(["arm", "params", "learning_rate", "seed", "samples"])
    rows = [_measurement_row(row, extra, link(row)) for _, row in ordered.iterrows()]
    return [table(columns, rows, tall=len(rows) > 18)]


def _measurement_row(row: pd.Series, extra: list[str], link: str | None) -> list[str]:
    bad = row["outcome"] == "diverged"
    outcome = (
        f'<span class="diverged" title="{escape(row["reason"])}">diverged</span>' if bad else escape(row["outcome"])
    )
    trial = escape(str(row["trial_id"])[:8])
    return [
        escape(row["arm"]),
        escape(row["size"]),
        with_unit(row["params"]),
        f"{row['learning_rate']:g}",
        str(row["seed"]),
        scientific(row["flops"]),
        f"{row['samples']:,}",
        f"{row['loss']:.5g}" if pd.notna(row["loss"]) else "",
        *(f"{row[name]:.4g}" if pd.notna(row[name]) else "" for name in extra),
        outcome,
        duration(row["gpu_hours"]),
        f'<a href="{escape(link)}" target="_blank" rel="noopener">{trial}</a>' if link else f"<code>{trial}</code>",
    ]
