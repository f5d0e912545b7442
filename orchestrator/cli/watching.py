"""Commands that look at a sweep: `status`, `logs`. They read the results folder and touch nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from orchestrator.cli.refusals import Refused, refusing
from orchestrator.cli.sweeps import known_trials, sweep_folder, trials_named
from orchestrator.cli.terminal import wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.results.location import Location
    from orchestrator.status import StatusReader, SweepStatus

WATCH_SECONDS = 2.0
CALM_SECONDS = 30.0
"""Shortest time between two lines of `status --watch` where there is no terminal."""
FOLLOW_SECONDS = 0.5


@click.command()
@click.argument("sweep")
@click.option("--watch", is_flag=True, help="Go on showing it until the sweep's driver ends.")
@click.option("--all", "every", is_flag=True, help="Show every trial, however many there are.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one a line.")
def status(sweep: str, watch: bool, every: bool, as_json: bool) -> None:
    """Show how SWEEP is doing: a name below results/, or a results folder. Any machine that sees the folder can ask.

    \b
    ditlaw status quickstart
    ditlaw status /shared/results/ladder --watch
    """

    from orchestrator.status import StatusReader
    from orchestrator.status_view import status_view

    folder = sweep_folder(sweep)
    with refusing():
        reader = StatusReader(folder)
        now = reader.read()
    console = wide_console(160)
    if watch:
        _watch(reader, now, console, every, as_json)
    elif as_json:
        click.echo(json.dumps(now.as_json(), indent=2))
    else:
        console.print(status_view(now, every), highlight=False)


def _watch(reader: StatusReader, now: SweepStatus, console: Console, every: bool, as_json: bool) -> None:
    """Live on a terminal; elsewhere a line when something has changed, at most every CALM_SECONDS."""
    from rich.live import Live

    from orchestrator.status_view import headline, status_view

    if console.is_terminal and not as_json:
        with Live(status_view(now, every), console=console, refresh_per_second=2) as live:
            for moment in _moments(reader, now):
                live.update(status_view(moment, every))
        return
    told, at = "", -CALM_SECONDS
    for moment in _moments(reader, now):
        line = json.dumps(moment.as_json()) if as_json else headline(moment)
        over = moment.state not in ("running", "stopping")
        if line != told and (over or time.monotonic() - at >= CALM_SECONDS):
            click.echo(line)
            told, at = line, time.monotonic()


def _moments(reader: StatusReader, first: SweepStatus) -> Iterator[SweepStatus]:
    """The status again and again, until no driver is at work; Ctrl-C ends the watching, not the sweep."""
    now = first
    yield now
    try:
        while now.state in ("running", "stopping"):
            time.sleep(WATCH_SECONDS)
            now = reader.read()
            yield now
    except KeyboardInterrupt:
        return


@click.command()
@click.argument("sweep")
@click.argument("trial", required=False)
@click.option("--attempt", type=click.IntRange(min=0), help="Which attempt; default: the newest.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the sweep's driver ends.")
def logs(sweep: str, trial: str | None, attempt: int | None, follow: bool) -> None:
    """Print the log of an attempt of TRIAL (the beginning of its id), or the newest log of every trial of SWEEP.

    \b
    ditlaw logs quickstart
    ditlaw logs quickstart 3fa85f64 --attempt 0
    ditlaw logs quickstart 3fa85f64 --follow
    """
    folder = sweep_folder(sweep)
    with refusing():
        known = known_trials(folder)
        trial_ids = list(known) if trial is None else trials_named(known, [trial])
    if trial is None and attempt is not None:
        raise Refused("--attempt is of one trial; name it, as: ditlaw logs SWEEP TRIAL --attempt 0")
    files = {trial_id: _log(folder, trial_id, attempt) for trial_id in trial_ids}
    if trial is not None and not follow and files[trial_ids[0]] is None:
        from orchestrator.results.logs import claimed_attempts

        there = claimed_attempts(folder, trial_ids[0])
        have = f"it has {', '.join(map(str, there))}" if there else "it has not begun"
        raise Refused(f"trial {trial_ids[0]} has no attempt {attempt if attempt is not None else 0}; {have}.")
    _print_logs(folder, {key: known[key] for key in trial_ids}, attempt, follow, header=trial is None)


def _log(folder: Location, trial_id: str, attempt: int | None) -> Location | None:
    """The log of an attempt, the newest if none is named."""
    from orchestrator.results.logs import claimed_attempts, log_of

    claimed = claimed_attempts(folder, trial_id)
    wanted = attempt if attempt is not None else len(claimed) - 1
    return log_of(folder, trial_id, wanted) if wanted in claimed else None


def _print_logs(folder: Location, known: dict[str, str], attempt: int | None, follow: bool, header: bool) -> None:
    """What the logs hold, under a header each where there are several; following goes on with what is added."""
    from orchestrator.results.store import Store

    store, last = Store(folder), None
    offsets: dict[Location, int] = {}
    while True:
        over = not follow or (holder := store.holder()) is None or not holder[2]
        for trial_id, name in known.items():
            path = _log(folder, trial_id, attempt)
            text = _rest(path, offsets) if path is not None else ""
            if text and path is not None:
                if header and path != last:
                    click.echo(f"==> {trial_id} {name}, attempt {path.name.partition('.')[0]} <==")
                click.echo(text, nl=not text.endswith("\n"))
                last = path
        if over:
            return
        try:
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return


def _rest(path: Location, offsets: dict[Location, int]) -> str:
    """What a file holds beyond what was read of it before."""
    data = path.read_bytes()
    before, offsets[path] = offsets.get(path, 0), len(data)
    return data[before:].decode(errors="replace")
