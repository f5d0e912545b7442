"""What a person sees of a simulation: a summary, a JSON object, a figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from orchestrator.magnitudes import duration
from orchestrator.scheduling.backend import Node
from orchestrator.scheduling.study import Outcome, Span, Work

if TYPE_CHECKING:
    from analysis.schedule_plot import Bar

HOUR = 3600.0
MOST_LEVELS = 4000
"""Points of the curve over time that a figure shows."""


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything but the single attempts."""
    return {
        "makespan_hours": outcome.seconds / HOUR,
        "makespan_bound_hours": outcome.bound / HOUR,
        "utilisation": outcome.utilisation,
        "device": outcome.device,
        "device_hours_available": outcome.available / HOUR,
        "device_hours_held": outcome.held / HOUR,
        "device_hours_busy": outcome.busy / HOUR,
        "device_hours_lost": outcome.lost / HOUR,
        "flops_planned": outcome.flops,
        "flops_wasted": outcome.flops_wasted,
        "wasted_share": outcome.wasted_share,
        "num_trials": outcome.trials,
        **({"num_packs": outcome.packs} if outcome.packs < outcome.trials else {}),
        "attempts": outcome.attempts,
        "attempts_lost": outcome.attempts_lost,
        "gangs": outcome.gangs,
        "failures": outcome.failures,
        "preemptions": outcome.preemptions,
        "last_start_hours": outcome.last_start / HOUR,
        "sweep_hours": {sweep: seconds / HOUR for sweep, seconds in outcome.sweep_seconds.items()},
        "events": outcome.events,
    }


def view(outcome: Outcome, nodes: Sequence[Node]) -> Table:
    """The summary as a table."""
    device, table = outcome.device, Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    devices = sum(node.gpus if device == "GPU" else node.cpus for node in nodes)
    nodes_text = f"{len(nodes):,} node" + ("s" if len(nodes) > 1 else "")
    table.add_row("cluster", f"{devices:,g} {device}s on {nodes_text}")
    over = f"{outcome.seconds / outcome.bound:.2f}x the lower bound of {duration(outcome.bound)}"
    table.add_row("makespan", f"{duration(outcome.seconds)}, {over}")
    for sweep, seconds in outcome.sweep_seconds.items() if len(outcome.sweep_seconds) > 1 else ():
        table.add_row("", f"{sweep} done after {duration(seconds)}")
    tail = outcome.seconds - outcome.last_start
    table.add_row("tail", f"the last trial began {duration(tail)} before the end")
    idle = (outcome.held - outcome.busy) / outcome.available
    free = 1 - outcome.held / outcome.available
    table.add_row("busy", f"{outcome.utilisation:.1%} of the {device}-hours that were up")
    table.add_row("", f"{idle:.1%} in gangs that started or waited, {free:.1%} free")
    packed = f" in {outcome.packs:,} packs" if outcome.packs < outcome.trials else ""
    table.add_row("attempts", f"{outcome.attempts:,} of {outcome.trials:,} trials{packed}, on {outcome.gangs:,} gangs")
    lost = f"{outcome.failures:,} nodes failed, {outcome.preemptions:,} were taken away"
    table.add_row("faults", f"{lost}; {outcome.attempts_lost:,} attempts were cut off")
    table.add_row("wasted", f"{outcome.flops_wasted:.3g} FLOPs ({outcome.wasted_share:.3%} of what was spent)")
    return table


def save_figure(outcome: Outcome, works: Sequence[Work], nodes: Sequence[Node], path: Path) -> None:
    """Write the schedule as a picture; colours are the sizes of gangs, or the sweeps where there are several."""
    from analysis.schedule_plot import Level, schedule_plot

    stride = max(1, len(outcome.moments) // MOST_LEVELS)
    moments = [*outcome.moments[:-1:stride], outcome.moments[-1]]
    levels = [Level(time=m.time / HOUR, up=m.up, held=m.held, busy=m.busy) for m in moments]
    gpus = outcome.device == "GPU"
    rows = list(itertools.accumulate((int(node.gpus) if gpus else 1 for node in nodes), initial=0))
    first = dict(zip((node.name for node in nodes), rows, strict=False))
    groups = _groups(works)
    bars = [bar for span in outcome.spans for bar in _bars(span, groups[span.trial_id], first, gpus)]
    title = f"{outcome.trials:,} trials in {duration(outcome.seconds)}, {outcome.utilisation:.0%} busy"
    row = "GPU" if gpus else "node"
    schedule_plot(bars, levels, rows[-1], row=row, device=outcome.device, title=title).savefig(path, dpi=150)


def _groups(works: Sequence[Work]) -> dict[str, str]:
    """What each trial's colour stands for."""
    kinds = [work.job.kind for work in works]
    several = len({kind.sweep for kind in kinds}) > 1
    names = [kind.sweep if several else f"gangs of {kind.shape.workers}" for kind in kinds]
    return {work.job.trial_id: name for work, name in zip(works, names, strict=True)}


def _bars(span: Span, group: str, first: Mapping[str, int], gpus: bool) -> Iterator[Bar]:
    """The bars of one attempt: on each of its GPUs, or each of its nodes."""
    from analysis.schedule_plot import Bar

    start, end, lost = span.start / HOUR, span.end / HOUR, span.outcome == "lost"
    for allotment in span.placement:
        devices = {device for device, _ in allotment.gpus} if gpus else {0}
        for device in sorted(devices):
            yield Bar(row=first[allotment.node] + device, start=start, end=end, group=group, lost=lost)
