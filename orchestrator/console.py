"""What a person sees of a running sweep. Builds what the CLI prints; prints nothing itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.best_losses import Best, leaders
from orchestrator.magnitudes import clock, duration
from orchestrator.scheduling.snapshot import Snapshot, counted
from orchestrator.status_view import best_table, budget_of

CALM_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal."""
BEST_SECONDS = 15.0
"""Time between two looks at the measurements."""
MOST_BEST = 8
"""Best losses shown, of the largest budgets."""


class LiveView:
    """Shows snapshots of a running sweep: a live table on a terminal, calm lines elsewhere.

    Args:
        console: where.
        best: the lowest losses so far, read when they may have changed; None shows none.
        peaks: FLOP/s that a trial's gang could reach at most, by trial_id.
    """

    def __init__(
        self,
        console: Console,
        best: Callable[[], Sequence[Best]] | None = None,
        peaks: Mapping[str, float] | None = None,
    ) -> None:
        self._console = console
        self._read_best, self._peaks = best, peaks or {}
        self._best: Sequence[Best] = ()
        self._looked = -BEST_SECONDS
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
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def listen(self, snapshot: Snapshot) -> None:
        """Show a snapshot; lines about what has ended stay."""
        for whole in snapshot.progress.values():
            for progress in (whole, *whole.mates):
                if progress.loss is not None:
                    self._losses[progress.trial_id] = progress.loss
        for note in snapshot.notes:
            self.say(f"! {note}")
        self._look()
        for trial_id in snapshot.state.done.keys() - self._told:
            self._told.add(trial_id)
            for trial in snapshot.packs.get(trial_id, (snapshot.trials[trial_id],)):
                loss = self._losses.get(trial.trial_id)
                shown = "" if loss is None else f"  training loss {loss:.4f}"
                self.say(f"{clock(snapshot.seconds)}  done  {trial.name:<28}{trial.flops:9.2e} FLOPs{shown}")
        if self._live:
            self._live.update(self._table(snapshot))
        elif time.monotonic() - self._last_line > CALM_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{clock(snapshot.seconds)}  {self._headline(snapshot)}")

    def _look(self) -> None:
        """Read the best losses anew, at most once in a while."""
        if self._read_best is not None and time.monotonic() - self._looked >= BEST_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # storage that is away for a moment is no reason to end a sweep
                self._best = self._read_best()

    def _mfu(self, snapshot: Snapshot) -> float | None:
        """Mean share of peak over the gangs that train; the members of a pack have each a part of it."""
        shares = []
        for whole in snapshot.progress.values():
            if whole.samples_per_second and (peak := self._peaks.get(whole.trial_id)):
                flops = snapshot.trials[whole.trial_id].flops_per_sample  # that of its mates too: they are of one shape
                shares.append(flops * sum(p.samples_per_second or 0.0 for p in (whole, *whole.mates)) / peak)
        return sum(shares) / len(shares) if shares else None

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
            mates = f" and {len(progress.mates)} more" if progress.mates else ""
            rate = f"{progress.samples_per_second:,.0f} samples/s" if progress.samples_per_second else ""
            gangs.add_row(
                gang,
                trial.name + mates,
                ProgressBar(total=trial.last, completed=progress.samples, width=24),
                f"{progress.samples:,}/{trial.last:,}",
                f"loss {progress.loss:.4f}" if progress.loss is not None else progress.phase,
                progress.phase if progress.phase == "evaluating" else rate,
            )
        total = ProgressBar(total=snapshot.flops_planned, completed=snapshot.flops_done, width=None)
        parts: list[RenderableType] = [
            Text(self._headline(snapshot)),
            total,
            gangs,
            Text(_counts(snapshot), style="dim"),
        ]
        if self._best:
            parts += [Text("best loss", style="dim"), best_table(self._best[-MOST_BEST:])]
        return Group(*parts)

    def _headline(self, snapshot: Snapshot) -> str:
        share = snapshot.flops_done / snapshot.flops_planned
        parts = [f"{snapshot.flops_done:.2e} of {snapshot.flops_planned:.2e} FLOPs ({share:.0%})"]
        if snapshot.flops_here > 0 and snapshot.seconds > 0:
            rate, mfu = snapshot.flops_here / snapshot.seconds, self._mfu(snapshot)
            parts.append(f"{rate / 1e9:,.1f} GFLOP/s" + (f" (MFU {mfu:.0%})" if mfu else ""))
        if snapshot.seconds_left is not None:
            parts.append(f"about {duration(snapshot.seconds_left)} left")
        if self._best:
            parts += _best_words(self._best)
        if snapshot.diverged:
            parts.append(f"{snapshot.diverged} diverged")
        if snapshot.faults:
            parts.append(counted(snapshot.faults, "fault"))
        if snapshot.state.stopping:
            parts.append("stopping: saving checkpoints")
        elif not snapshot.progress:
            parts.append("starting workers")
        return ", ".join(parts)


def _best_words(best: Sequence[Best]) -> list[str]:
    """The lowest loss at the largest budget; one for each objective where there are several."""
    first = leaders(best)
    named = len(first) > 1
    return [
        f"best {row.objective + ' ' if named else ''}{row.loss:.4f} at {budget_of(row)} ({row.arm} {row.size})"
        for row in first
    ]


def _counts(snapshot: Snapshot) -> str:
    """Where the trials of this run are, each counted for itself, and what went wrong."""
    state = snapshot.state

    def trials(jobs: Iterable[str]) -> int:
        return sum(len(snapshot.packs.get(job, (job,))) for job in jobs)

    done, running, given_up = trials(state.done), trials(state.running.values()), trials(state.given_up)
    waiting = trials(state.jobs) - done - running - given_up
    told = f"{counted(done, 'trial')} done, {running} running, {waiting} waiting"
    told += f", {given_up} given up" if given_up else ""
    told += f"; {snapshot.diverged} diverged" if snapshot.diverged else ""
    return told + (f"; {counted(snapshot.faults, 'fault')}" if snapshot.faults else "; no faults")
