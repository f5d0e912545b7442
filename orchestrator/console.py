"""What a person sees of a plan and of a running sweep. Builds what the CLI prints; prints nothing itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.planning.placement import state_bytes
from orchestrator.planning.plan import Plan
from orchestrator.scheduling.driver import Snapshot

CALM_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal."""


def plan_view(plan: Plan) -> RenderableType:
    """The plan as a table of trials and its totals."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("trial", "arm", "size", "parameters", "lr", "seed", "milestones (steps)", "FLOPs", "about"):
        table.add_column(column, justify="left" if column in ("trial", "arm", "size") else "right", overflow="fold")
    shown = plan.trials[:MAX_TRIALS_SHOWN]
    for trial in shown:
        table.add_row(
            trial.trial_id[:8],
            trial.arm,
            trial.size,
            f"{trial.params_total:,}",
            f"{trial.optimizer.learning_rate:g}",
            str(trial.seed),
            " ".join(str(milestone // trial.batch_size) for milestone in trial.milestones),
            f"{trial.flops:.3g}",
            duration(plan.seconds(trial)),
        )
    hidden = len(plan.trials) - len(shown)
    more = [Text(f"... and {hidden:,} more trials (--json lists them all)")] if hidden else []
    return Group(Text(plan.sweep.name, style="bold"), *_question(plan), Text(), table, *more, Text(), _totals(plan))


MAX_TRIALS_SHOWN = 60


def _question(plan: Plan) -> Iterator[Text]:
    if plan.sweep.question:
        yield Text(plan.sweep.question)


def _totals(plan: Plan) -> Table:
    compute = plan.sweep.compute
    saved = plan.flops_separate / plan.flops_planned
    gpus = compute.gpus_per_worker > 0
    totals = Table(box=None, show_header=False, pad_edge=False)
    totals.add_column(style="dim")
    totals.add_column()
    totals.add_row("cells", f"{plan.num_cells:,} measurements from {len(plan.trials):,} trials")
    totals.add_row("training", f"{plan.flops_planned:.3g} FLOPs; {saved:.2f}x less than one run a cell")
    share = plan.flops_evaluation / plan.flops_planned
    totals.add_row("evaluation", f"{plan.flops_evaluation:.3g} FLOPs ({share:.0%} of training)")
    totals.add_row(
        "gangs",
        f"{compute.gangs} of {compute.workers} x {compute.cpus_per_worker:g} CPU"
        + (f" + {compute.gpus_per_worker:g} GPU" if gpus else "")
        + f", {compute.precision}, ZeRO-{plan.trials[0].zero_stage}",
    )
    totals.add_row("state", f"{size(max(state_bytes(trial) for trial in plan.trials))} for the largest, no activations")
    totals.add_row("time", f"about {duration(3600 * plan.makespan_hours)}" + (" (assumed GPU speed)" if gpus else ""))
    totals.add_row("disk", f"{size(plan.checkpoint_bytes)} checkpoints, {size(plan.results_bytes)} results")
    return totals


class LiveView:
    """Shows snapshots of a running sweep: a live table on a terminal, calm lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=5, transient=True) if console.is_terminal else None
        self._told: set[str] = set()
        self._last_line = time.monotonic()
        self._losses: dict[str, float] = {}

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, highlight=False, markup=False)

    def listen(self, snapshot: Snapshot) -> None:
        """Show a snapshot; lines about what has ended stay."""
        for progress in snapshot.progress.values():
            if progress.loss is not None:
                self._losses[progress.trial_id] = progress.loss
        for note in snapshot.notes:
            self.say(f"! {note}")
        for trial_id in snapshot.state.done.keys() - self._told:
            self._told.add(trial_id)
            loss = f"  training loss {self._losses[trial_id]:.4f}" if trial_id in self._losses else ""
            trial = snapshot.trials[trial_id]
            self.say(f"{clock(snapshot.seconds)}  done  {trial.name:<28}{trial.flops:9.2e} FLOPs{loss}")
        if self._live:
            self._live.update(self._table(snapshot))
        elif time.monotonic() - self._last_line > CALM_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{clock(snapshot.seconds)}  {_headline(snapshot)}")

    def _table(self, snapshot: Snapshot) -> RenderableType:
        gangs = Table(box=None, show_header=False, pad_edge=False)
        for gang, known in snapshot.state.gangs.items():
            progress = snapshot.progress.get(gang)
            if progress is None:
                trial_id = snapshot.state.running.get(gang)
                name = snapshot.trials[trial_id].name if trial_id else known.status
                gangs.add_row(gang, name, "", "", "", "")
                continue
            trial = snapshot.trials[progress.trial_id]
            rate = f"{progress.samples_per_second:,.0f} samples/s" if progress.samples_per_second else ""
            gangs.add_row(
                gang,
                trial.name,
                ProgressBar(total=trial.last, completed=progress.samples, width=24),
                f"{progress.samples:,}/{trial.last:,}",
                f"loss {progress.loss:.4f}" if progress.loss is not None else progress.phase,
                progress.phase if progress.phase == "evaluating" else rate,
            )
        waiting = f"{len(snapshot.state.done)} trials done, {snapshot.state.num_waiting} waiting"
        total = ProgressBar(total=snapshot.flops_planned, completed=snapshot.flops_done, width=None)
        return Group(Text(_headline(snapshot)), total, gangs, Text(waiting, style="dim"))


def _headline(snapshot: Snapshot) -> str:
    share = snapshot.flops_done / snapshot.flops_planned
    parts = [f"{snapshot.flops_done:.2e} of {snapshot.flops_planned:.2e} FLOPs ({share:.0%})"]
    if snapshot.flops_here > 0 and snapshot.seconds > 0:
        rate = snapshot.flops_here / snapshot.seconds
        parts.append(f"{rate / 1e9:,.1f} GFLOP/s")
        parts.append(f"about {duration((snapshot.flops_planned - snapshot.flops_done) / rate)} left")
    if snapshot.state.stopping:
        parts.append("stopping: saving checkpoints")
    elif not snapshot.progress:
        parts.append("starting workers")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that suits, as 12 s, 3.5 min, 2.1 h, 4.0 days."""
    for unit, length, limit in (("s", 1.0, 120), ("min", 60.0, 7200), ("h", 3600.0, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.0f} s" if unit == "s" else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(num_bytes: float) -> str:
    """Bytes as 12 MB, 3.4 GB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.3g} {unit}"
    return f"{num_bytes:.0f} B"
