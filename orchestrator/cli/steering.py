"""Commands that ask something of a sweep: `cancel`, `retry`. They leave requests in the results folder."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.refusals import Refused, fail, refusing
from orchestrator.cli.sweeps import known_trials, sweep_folder, trials_named

if TYPE_CHECKING:
    from orchestrator.results.location import Location

LOOK_SECONDS = 0.5


@click.command()
@click.argument("sweep")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds to wait for the sweep to end; 0 only asks.",
)
@click.option("--address", help="Ask through Ray Jobs, as http://HEAD:8265, where the results folder is not seen here.")
def cancel(sweep: str, wait: float, address: str | None) -> None:
    """Let every attempt of SWEEP save a checkpoint and end. The same `run` or `submit` goes on from there.

    It works for a driver on any machine that sees the results folder, and for a submitted one.

    \b
    ditlaw cancel quickstart
    ditlaw cancel ladder --address http://127.0.0.1:8265
    """
    if address is not None:
        from orchestrator.scheduling.submission import Jobs

        with refusing():
            stopped = Jobs(address).stop(sweep, wait)
        for job in stopped:
            click.echo(f"{job.submission_id}: {job.status.lower()}")
        if wait and not all(job.ended for job in stopped):
            fail(f"It is still at work after {wait:g} s.")
        return
    folder = sweep_folder(sweep)
    with refusing():
        _cancel(folder, wait)


def _cancel(folder: Location, wait: float) -> None:
    from orchestrator.results.requests import ask
    from orchestrator.results.store import Store

    store = Store(folder)
    holder = store.holder()
    if holder is None or not holder[2]:
        click.echo(f"Nothing to cancel: no driver is at work in {folder}.")
        return
    ask(folder, "stop")
    click.echo(f"Asked {holder[0]} to stop: every attempt saves a checkpoint first.")
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        time.sleep(min(LOOK_SECONDS, wait))
        holder = store.holder()
        if holder is None or not holder[2]:
            click.echo("Stopped. The same command goes on from here.")
            return
    if wait:
        fail(f"It is still at work after {wait:g} s; ditlaw status {folder} says how it goes.")


@click.command()
@click.argument("sweep")
@click.argument("trials", nargs=-1)
def retry(sweep: str, trials: tuple[str, ...]) -> None:
    """Give trials of SWEEP that ran out of retries a fresh count; TRIALs are (beginnings of) ids, default all such.

    A driver at work tries them again at once, else the next `run` or `submit` does. Divergence is a result, so diverged
    trials are tried again only where they are named: their rows go to retracted/, and training goes on from the newest
    checkpoint before they diverged.

    \b
    ditlaw retry quickstart
    ditlaw retry quickstart 3fa85f64
    """
    folder = sweep_folder(sweep)
    with refusing():
        _retry(folder, list(trials))


def _retry(folder: Location, wanted: list[str]) -> None:
    from orchestrator.results.requests import ask
    from orchestrator.results.retraction import retract_diverged
    from orchestrator.results.store import Store
    from orchestrator.status import StatusReader

    named = trials_named(known_trials(folder), wanted)
    now = StatusReader(folder).read()
    alive = now.state in ("running", "stopping")
    by_id = {trial.trial_id: trial for trial in now.trials}
    for trial_id in named:
        if by_id[trial_id].state not in ("failed", "diverged", "waiting", "blocked"):
            raise ValueError(
                f"trial {trial_id} ({by_id[trial_id].name}) is {by_id[trial_id].state}; wanted one that failed or "
                "diverged. Leave it out."
            )
    failed = [trial.trial_id for trial in now.trials if trial.failures and (trial.trial_id in named or not named)]
    failed = [trial_id for trial_id in failed if by_id[trial_id].state != "done"]
    diverged = [trial_id for trial_id in named if by_id[trial_id].state == "diverged"]
    if not failed and not diverged:
        click.echo(f"Nothing to retry: no trial{' of those' if named else ''} of {now.sweep} has failed.")
        return
    if diverged:
        if alive:
            raise Refused(f"{now.sweep} is run by {now.driver}; cancel it before diverged trials are tried again.")
        store = Store(folder)
        with store.lock():
            diverged = retract_diverged(store, diverged)
    ask(folder, "retry", {*failed, *diverged})
    for trial_id in dict.fromkeys([*failed, *diverged]):
        click.echo(f"{trial_id}  {by_id[trial_id].name}  ({by_id[trial_id].reason})")
    num = len({*failed, *diverged})
    when = f"{now.driver} tries them again." if alive else "The next ditlaw run or submit of its spec tries them again."
    click.echo(f"{num} {'trial' if num == 1 else 'trials'} of {now.sweep} with a fresh count of retries. {when}")
