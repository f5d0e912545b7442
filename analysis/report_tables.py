"""Tables of the report."""

from __future__ import annotations

import pandas as pd

from analysis.answer import prediction
from analysis.bootstrap import Interval
from analysis.findings import ArmFindings, Findings
from analysis.isoflop import Minimum
from analysis.magnitudes import duration, scientific, with_unit
from analysis.report_page import escape, paragraph, table


def spent(findings: Findings) -> str:
    """One line: measurements, trials, FLOPs."""
    rows = findings.measurements
    if not len(rows):
        return "no measurements yet"
    return (
        f"{len(rows)} measurements of {rows['trial_id'].nunique()} trials · {scientific(_flops_spent(findings))} "
        f"training FLOPs · {duration(_hours(rows))} of device time"
    )


def _per_trial(rows: pd.DataFrame, column: str) -> float:
    """Cost columns count up along a trial: its total is at its last milestone."""
    return float(rows.groupby("trial_id")[column].max().sum()) if len(rows) else 0.0


def _flops_spent(findings: Findings, arm: str | None = None) -> float:
    """Of an arm or all: as the accounts have it, which do not hold what another sweep trained of a trial.

    Where no attempts were kept there are no accounts, and the measurements say what their trials cost.
    """
    if len(findings.attempts):
        accounts = findings.accounts
        mine = accounts if arm is None else accounts[_arms_of(findings) == arm]
        return float(mine["flops_spent"].sum())
    rows = findings.measurements if arm is None else findings.measurements.query("arm == @arm")
    return _per_trial(rows, "flops_useful") + _per_trial(rows, "flops_wasted")


def _arms_of(findings: Findings) -> pd.Series:
    """The arm of each row of the accounts."""
    arms = dict(zip(findings.measurements["trial_id"], findings.measurements["arm"], strict=True))
    arms |= {str(t.get("trial_id")): str(t.get("arm")) for t in _planned(findings) if t.get("arm")}
    return findings.accounts["trial_id"].map(arms).fillna("not of this plan")


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
        scientific(_flops_spent(findings, arm.arm)) + (f" of {scientific(flops)}" if flops else ""),
        duration(_hours(rows)),
    ]


def _totals(findings: Findings) -> list[str]:
    plan, attempts = findings.plan, findings.attempts
    texts = []
    planned, separate = plan.get("flops_planned"), plan.get("flops_separate")
    if isinstance(planned, int | float) and isinstance(separate, int | float) and planned > 0:
        texts.append(
            f"Planned: {plan.get('num_cells')} measurements from {plan.get('num_trials')} trials, "
            f"{scientific(planned)} training FLOPs; one run per measurement would have cost "
            f"{separate / planned:.2f} times as much."
        )
    if len(attempts):
        hours = (attempts["ended_at"].max() - attempts["started_at"].min()).total_seconds() / 3600
        counts = ", ".join(f"{count} {escape(name)}" for name, count in attempts["outcome"].value_counts().items())
        texts.append(f"{len(attempts)} attempts ({counts}) in {duration(hours)} of wall time.")
    return texts


ACCOUNTS = {
    "flops_spent": "spent",
    "flops_useful": "useful",
    "flops_replayed": "wasted: trained again",
    "flops_failed": "wasted: failed",
    "flops_pending": "pending",
    "flops_shared": "saved by sharing",
}


def cost_tables(findings: Findings) -> list[str]:
    """Where the training FLOPs went, a row an arm, in FLOPs and as shares; nothing where no attempts were kept."""
    accounts = findings.accounts
    if not len(accounts) or not len(findings.attempts):
        return []
    sums = accounts.groupby(_arms_of(findings))[list(ACCOUNTS)].sum()
    if len(sums) > 1:
        sums.loc["together"] = sums.sum()
    columns = [("arm", True), *((f"{words}, FLOPs", False) for words in ACCOUNTS.values())]
    rows = [[escape(str(arm)), *_shares(row)] for arm, row in sums.iterrows()]
    words = (
        "Useful: trained for the first time, up to a measurement. Trained again: what faults cost since the last "
        "checkpoint. Failed: past the last measurement, by attempts that failed. Pending: waits to go on. Saved by "
        "sharing was never spent, and is given as a share of what one training a measurement would have cost. Other "
        "shares are of what was spent."
    )
    return [table(columns, rows), paragraph(words, "note")]


def _shares(row: pd.Series) -> list[str]:
    spent = float(row["flops_spent"])
    cells = [scientific(spent)]
    for name in list(ACCOUNTS)[1:]:
        whole = spent + float(row[name]) if name == "flops_shared" else spent
        share = f" ({row[name] / whole:.1%})" if whole > 0 and row[name] > 0 else ""
        cells.append(scientific(float(row[name])) + share)
    return cells


def minima_table(findings: Findings) -> str:
    """Minima of every arm and budget. Of one that the sizes do not bracket only the side on which it lies is known."""
    columns = [("arm", True), ("budget, FLOPs", False), ("N*", False), ("95%", False), ("D*", False), ("loss*", False)]
    columns += [("cubic N*", False), ("sizes", False), ("bracketed", True)]
    rows = [
        [escape(arm.arm), scientific(m.flops), *_minimum(m)]
        for arm in findings.arms
        if arm.isoflop is not None
        for m in arm.isoflop.minima
    ]
    return table(columns, rows) if rows else ""


def _minimum(m: Minimum) -> list[str]:
    if not m.bracketed:
        side = ""
        if m.params is not None and m.params <= m.sizes[0]:
            side = f"&lt; {with_unit(m.sizes[0])}"
        elif m.params is not None and m.params >= m.sizes[1]:
            side = f"&gt; {with_unit(m.sizes[1])}"
        return [side, "", "", "", "", str(m.num_sizes), f"no: {escape(m.reason)}"]
    return [
        with_unit(m.params) if m.params else "",
        f"{with_unit(m.params_ci95[0])} to {with_unit(m.params_ci95[1])}" if m.params_ci95 else "",
        with_unit(m.samples) if m.samples else "",
        f"{m.loss:.4g}" if m.loss else "",
        with_unit(m.cubic_params) if m.cubic_params else "",
        str(m.num_sizes),
        "yes",
    ]


def approaches_table(findings: Findings) -> str:
    """N* exponents by each approach, side by side."""
    columns = [("arm", True), ("approach", True), ("N* exponent", False), ("95%", False), ("outcome", True)]
    rows = [
        [
            escape(arm.arm),
            escape(APPROACHES.get(a.name, a.name)),
            _exponent(a.N_exponent),
            _interval(a.ci95),
            escape(a.outcome.replace("_", " ")),
        ]
        for arm in findings.arms
        for a in arm.approaches.found
    ]
    return table(columns, rows) if rows else ""


APPROACHES = {"parabola": "isoFLOP parabolas", "cubic": "isoFLOP cubics", "surface": "surface L(N, D)"}


def backtests_table(findings: Findings) -> str:
    """What the smaller budgets predict of the largest, against what was found there."""
    columns = [("arm", True), ("what", True), ("by", True), ("at, FLOPs", False), ("predicted", False)]
    columns += [("95%", False), ("found", False), ("missed by", False), ("inside", True)]
    inside = {True: "yes", False: "no", None: "no interval"}
    rows = []
    for arm in findings.arms:
        tests = [*arm.backtests, *([arm.distance.backtest] if arm.distance and arm.distance.backtest else [])]
        for test in tests:
            show = with_unit if test.what == "N*" else "{:.4g}".format
            band = f"{show(test.ci95[0])} to {show(test.ci95[1])}" if test.ci95 else ""
            cells = [escape(arm.arm), escape(test.what), escape(test.by), scientific(test.flops)]
            cells += [show(test.predicted), band, show(test.observed), f"{test.error:+.2%}", inside[test.covered]]
            rows.append(cells)
    return table(columns, rows) if rows else ""


BEYOND = (1.0, 3.0, 10.0, 100.0)
"""Multiples of the largest run at which the laws are read off."""


def predictions_table(findings: Findings) -> str:
    """Best size, data, loss and distance at the target and beyond the runs, with intervals, for each arm.

    The last columns say how far that is beyond the largest run, for losses, and the largest bracketed minimum, for N*
    and D*.
    """
    columns = [("arm", True), ("compute, FLOPs", False), ("N*", False), ("95%", False), ("D*", False), ("95%", False)]
    columns += [("loss", False), ("95%", False)]
    distances = sorted({arm.distance.name for arm in findings.arms if arm.distance is not None})
    columns += [("/".join(distances), False), ("95%", False)] if distances else []
    columns += [("× largest run", True), ("× largest minimum", True)]
    rows = []
    for arm in findings.arms:
        if not len(arm.trained) or not (arm.law.succeeded or (arm.isoflop and arm.isoflop.params)):
            continue
        for flops in _asked(arm.largest_run, findings.target_flops):
            reaches = [_reach(flops, arm.largest_run), _reach(flops, arm.largest_minimum)]
            rows.append([escape(arm.arm), scientific(flops), *_predicted(arm, flops, bool(distances)), *reaches])
    return table(columns, rows) if rows else ""


def _asked(largest: float, target: float | None) -> list[float]:
    """Budgets of the table: the target, and multiples of the largest run that are not the target again."""
    multiples = [largest * factor for factor in BEYOND]
    if target is None:
        return multiples
    return sorted([target, *(flops for flops in multiples if abs(flops / target - 1) > 0.05)])


def _reach(flops: float, largest: float | None) -> str:
    """How far a prediction goes beyond what it is fitted to; runs end up to 5% beyond their budgets."""
    if largest is None:
        return "no N*(C)"
    times = flops / largest
    return "within" if times <= 1.05 else f"{times:.3g}" + (", far" if times > 10.5 else "")


def _predicted(arm: ArmFindings, flops: float, distance: bool) -> list[str]:
    said = prediction(arm, flops)
    cells: list[str] = []
    shown = [("params", with_unit), ("samples", with_unit), ("loss", _digits)]
    for name, show in [*shown, *([("distance", _digits)] if distance else [])]:
        value, band = said.get(name, (None, None))
        cells += [show(value) if value else "", f"{show(band[0])} to {show(band[1])}" if band else ""]
    return cells


def _digits(value: float) -> str:
    return f"{value:.4g}"


def _exponent(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"


def _interval(band: Interval | None) -> str:
    return f"{_exponent(band[0])} to {_exponent(band[1])}" if band else ""


def differences_table(findings: Findings) -> list[str]:
    """Each comparison, a row a size and budget."""
    parts = []
    for c in findings.comparisons:
        columns = [
            ("size", True),
            ("N", False),
            ("FLOPs", False),
            (f"{c.first} {c.quantity}", False),
            (f"{c.second} {c.quantity}", False),
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
