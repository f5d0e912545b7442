"""What a person sees of a sweep's status: a summary, a table of trials, the best losses, the latest faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.best_losses import Best
from orchestrator.magnitudes import count, duration
from orchestrator.status import SweepStatus, TrialStatus

MOST_TRIALS = 40
"""Trials that a table shows one by one, unless all are asked for."""
ORDER = ("running", "failed", "diverged", "waiting", "blocked", "done")
"""Those that need a look come first."""


def status_view(status: SweepStatus, every: bool = False) -> RenderableType:
    """All of it; where trials are many, those that run or failed, and how many others there are."""
    parts: list[RenderableType] = [_summary(status), Text(""), _trials(status.trials, every)]
    if status.best:
        parts += [Text("\nbest loss"), best_table(status.best)]
    if status.faults:
        parts += [Text("\nlatest faults"), _faults(status)]
    return Group(*parts)


def headline(status: SweepStatus) -> str:
    """The status in a line, for logs."""
    parts = [f"{status.sweep} {status.state}", _counts(status)]
    parts.append(
        f"{status.cells_measured}/{status.num_cells} measured, {status.flops_done:.2e} FLOPs ({_share(status)})"
    )
    if status.flops_per_second and status.eta_seconds is not None:
        mfu = f" (MFU {status.mfu:.0%})" if status.mfu else ""
        parts.append(f"{status.flops_per_second / 1e9:,.1f} GFLOP/s{mfu}, about {duration(status.eta_seconds)} left")
    if status.attempts_failed:
        parts.append(f"{status.attempts_failed} failed attempts")
    return "; ".join(parts)


def _summary(status: SweepStatus) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, text in _lines(status):
        table.add_row(name, Text(text))
    return table


def _lines(status: SweepStatus) -> Iterator[tuple[str, str]]:
    by = {"running": f", by {status.driver}", "stopping": f", {status.driver} saves checkpoints"}
    died = f", with {status.driver}; the same run or submit goes on from here"
    yield "sweep", f"{status.sweep}: {status.state}{by.get(status.state, died if status.state == 'died' else '')}"
    yield "trials", _counts(status)
    yield "measured", f"{status.cells_measured:,} of {status.num_cells:,} cells"
    yield "budget", f"{status.flops_done:.3g} of {status.flops_planned:.3g} FLOPs ({_share(status)})"
    spent = f"{status.flops_spent:.3g} FLOPs in attempts that have ended, {status.device_hours:.3g} device-hours"
    yield "spent", spent
    if status.flops_per_second and status.samples_per_second:
        mfu = f", {status.mfu:.0%} of the devices' peak (MFU)" if status.mfu else ""
        rate = f"{status.flops_per_second / 1e9:,.1f} GFLOP/s, {status.samples_per_second:,.0f} samples/s"
        yield "speed", f"{rate} with all that is waited for{mfu}"
    if status.eta_seconds is not None:
        yield "left", f"about {duration(status.eta_seconds)}"
    yield "attempts", f"{status.attempts:,}, of which {status.attempts_failed:,} failed"
    yield "results", status.folder


def _counts(status: SweepStatus) -> str:
    named = [f"{number} {state}" for state, number in status.counts.items() if number]
    return f"{', '.join(named)} of {len(status.trials)}"


def _share(status: SweepStatus) -> str:
    return f"{status.flops_done / status.flops_planned:.0%}" if status.flops_planned else "100%"


def _trials(trials: Sequence[TrialStatus], every: bool) -> RenderableType:
    ordered = sorted(trials, key=lambda trial: ORDER.index(trial.state))
    shown = ordered if every else ordered[:MOST_TRIALS]
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "name", "state", "samples", "loss", "samples/s", "MFU", "attempts", "reason"):
        right = title in ("samples", "loss", "samples/s", "MFU", "attempts")
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "reason")
    for trial in shown:
        table.add_row(
            trial.trial_id[:8],
            Text(trial.name),
            trial.state,
            f"{count(trial.samples)}/{count(trial.last)}",
            f"{trial.loss:.4f}" if trial.loss is not None else "",
            f"{trial.samples_per_second:,.0f}" if trial.samples_per_second else "",
            f"{trial.mfu:.0%}" if trial.mfu else "",
            f"{trial.attempts}" + (f" ({trial.failures} failed)" if trial.failures else ""),
            Text(trial.reason if trial.reason and trial.state in ("failed", "diverged") else ""),
        )
    if len(shown) == len(ordered):
        return table
    return Group(table, Text(f"and {len(ordered) - len(shown):,} others (--all shows them)", style="dim"))


def best_table(best: Sequence[Best]) -> RenderableType:
    """The lowest loss of each budget and arm; a table an objective, as losses of different ones do not compare."""
    objectives = sorted({row.objective for row in best})
    if len(objectives) == 1:
        return _of_one_objective(best)
    parts: list[RenderableType] = [Text("of different objectives, which do not compare", style="dim")]
    for objective in objectives:
        parts += [Text(objective), _of_one_objective([row for row in best if row.objective == objective])]
    return Group(*parts)


def _of_one_objective(best: Sequence[Best]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("budget", "arm", "loss", "size", "trial"):
        table.add_column(title, justify="right" if title in ("budget", "loss") else "left")
    for row in best:
        table.add_row(budget_of(row), Text(row.arm), f"{row.loss:.4f}", Text(row.size), row.trial_id[:8])
    return table


def budget_of(best: Best) -> str:
    """What a loss was reached with, in words."""
    return f"{best.budget_flops:.3g} FLOPs" if best.budget_flops is not None else f"{best.samples:,} samples"


def _faults(status: SweepStatus) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for fault in status.faults:
        when, which = f"{fault.at.astimezone():%Y-%m-%d %H:%M:%S}", f"{fault.trial_id[:8]} attempt {fault.attempt}"
        table.add_row(when, which, Text(fault.name), Text(fault.reason))
    return table
