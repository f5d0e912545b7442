"""Commands that run a sweep: `run`, `sync`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.refusals import fail, refusing
from orchestrator.cli.speaking import is_quiet
from orchestrator.cli.sweeps import SPEC, data_folder, plan_of, results_of, say_where, tracking_uri_of, write_report

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.results.location import Location
    from orchestrator.results.store import Store
    from orchestrator.scheduling.backend import Backend
    from orchestrator.scheduling.books import Books
    from orchestrator.scheduling.driver import Driver
    from orchestrator.scheduling.snapshot import Ending, Snapshot
    from orchestrator.tracking.tracker import Outcome, Tracker

INBOX_SECONDS = 1.0
"""Time between two looks at the requests in the results folder."""
AWAY_SECONDS = 5.0
"""Added to that where the folder cannot be read: a look at storage that is away holds the driver up for seconds."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@click.command()
@SPEC
@click.option("--address", help="Ray cluster to join (HOST:PORT of its head, or auto); default: one on this machine.")
@click.option("--results", help="Results folder, or a URI as s3://bucket/prefix; default: results/<sweep>.")
@click.option("--tracking-uri", help="MLflow; default: a SQLite file in the results folder.")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option(
    "--retrain", is_flag=True, help="Train again from the start what has lost its checkpoints, or has damaged ones."
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Seconds to wait for another driver of the sweep to end; default: refuse at once.",
)
def run(
    spec: Path,
    address: str | None,
    results: str | None,
    tracking_uri: str | None,
    data: Path | None,
    retrain: bool,
    wait: float,
) -> None:
    """Train and measure what SPEC asks for and is not measured yet, then fit and report.

    Run it again to go on after an interruption; with everything measured it does nothing.

    \b
    ditlaw run sweeps/quickstart.yaml
    ditlaw run sweep.yaml --address 10.0.0.1:6379 --results /shared/results/sweep --data /shared/data/fashion-mnist
    """
    from orchestrator.results.location import location
    from orchestrator.results.store import Store
    from orchestrator.scheduling.books import Books

    began, planned = time.monotonic(), plan_of(spec)
    with refusing():
        folder = location(results) if results else Path("results") / planned.sweep.name
    tracking_uri = tracking_uri_of(tracking_uri, folder)
    store = Store(folder)
    with refusing(), _on_stop_signals(_interrupt):
        data = data_folder(planned, data)
        store.check(planned.sweep.name)
        books = Books(planned, store)
        if not books.waiting:
            click.echo(f"Nothing to do: all {planned.num_cells} measurements of {planned.sweep.name} are in {folder}.")
            _refresh(planned, store, tracking_uri)
            return
        books.check_trunks()
        if not retrain:
            _refuse_retraining(planned, folder, books)
        ending = _execute(planned, store, address, data, tracking_uri, wait, retrain, began)
    _finish(folder, ending)


@click.command()
@click.argument("sweep")
@click.option("--tracking-uri", help="MLflow; default: a SQLite file in the results folder.")
def sync(sweep: str, tracking_uri: str | None) -> None:
    """Bring MLflow up to date with the results of SWEEP, after an outage or into another server.

    SWEEP is a name below results/, a results folder, or a URI as s3://bucket/prefix.

    \b
    ditlaw sync quickstart
    ditlaw sync results/quickstart --tracking-uri http://mlflow:5000
    """
    folder = results_of(sweep)
    with refusing():
        from orchestrator.results.store import Store
        from orchestrator.tracking.mlflow_tracker import sync as show_all

        store = Store(folder)
        uri = tracking_uri_of(tracking_uri, folder)
        store.check_writable()
        with store.lock():
            whole = show_all(folder, uri, store.owner() or folder.name)
    if not whole:
        fail("MLflow has not taken everything. The results are complete; run this again when it answers.")
    say_where(folder, uri)


@click.command()
@click.argument("sweep")
def compact(sweep: str) -> None:
    """Merge the many small Parquet files of SWEEP into few large ones, which reads faster.

    SWEEP is a name below results/, a results folder, or a URI as s3://bucket/prefix. It may be running.

    \b
    ditlaw compact quickstart
    """
    folder = results_of(sweep)
    with refusing():
        from orchestrator.results.compaction import compact as merge
        from orchestrator.results.store import Store

        Store(folder).check_writable()
        for done in merge(folder):
            rows = f"{done.rows} rows rewritten" + (
                f", {done.repeated} repeated ones left out" if done.repeated else ""
            )
            files = f"{done.parts_before} -> {done.parts_after} files"
            click.echo(f"{done.kind:13} {files}" + (f" ({rows})" if done.rows else ""))


def _refuse_retraining(plan: Plan, folder: Location, books: Books) -> None:
    """Never start at 0 unasked what has been trained before."""
    lost = books.to_retrain()
    if lost:
        flops = sum(books.stops(trial)[-1] * trial.flops_per_sample for trial in lost)
        names = ", ".join(f"{trial.name} ({trial.trial_id})" for trial in lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise ValueError(
            f"{len(lost)} trials of {plan.sweep.name} were trained before and have no checkpoint in "
            f"{folder / 'checkpoints'} to go on from: {names}. Put the checkpoints back, or give --retrain to train "
            f"them again from the start ({flops:.3g} FLOPs)."
        )


def _refresh(plan: Plan, store: Store, tracking_uri: str) -> None:
    """Bring plan.json and the report up to date where the spec's names, or measurements, are newer; say where it is."""
    from orchestrator.results.store import write_json

    page, kept = store.folder / "report.html", store.folder / "plan.json"
    current = json.loads(kept.read_text()) if kept.exists() else None
    fresh = json.loads(json.dumps(plan.as_json()))
    newest = max(part.stat().st_mtime for part in store.parts("measurements"))
    if current != fresh or not page.exists() or page.stat().st_mtime < newest:
        with store.lock():
            write_json(kept, fresh)
            _report(store.folder)
    say_where(store.folder, tracking_uri)


def _report(folder: Location) -> None:
    """Write the report. That it cannot be written is told, and is no reason to fail a sweep that is measured."""
    try:
        write_report(folder)
    except Exception as error:  # whatever it is, the measurements are safe, and MLflow is still to be closed
        logging.getLogger(__name__).info("the report failed", exc_info=True)
        click.echo(f"The report could not be written: {type(error).__name__}: {error}", err=True)
        click.echo(f"The measurements are complete without it. To write it again:\n  ditlaw report {folder}", err=True)


def _execute(
    plan: Plan,
    store: Store,
    address: str | None,
    data: Path,
    tracking_uri: str,
    wait: float,
    retrain: bool,
    began: float,
) -> Ending:
    """Run what remains of `plan`. Ray comes first: if it does not answer, or cannot hold a gang, nothing is written."""
    from orchestrator.planning.priorities import priorities_of
    from orchestrator.results.environment import write_environment
    from orchestrator.results.requests import drop_stops
    from orchestrator.results.store import write_json
    from orchestrator.scheduling.books import Books
    from orchestrator.scheduling.fingerprint import fingerprint
    from orchestrator.scheduling.fitting import check_fit
    from orchestrator.scheduling.loopback import keep_to_loopback

    keep_to_loopback(address)
    from orchestrator.scheduling.ray_backend import RayBackend
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    folder, planned = store.folder, plan.as_json()
    hang_seconds = 60 * plan.sweep.compute.hang_minutes
    backend = RayBackend(address, folder, data, hang_seconds=hang_seconds)
    try:
        check_fit(plan, backend.whole_nodes(), backend.could_grow_to())
        priorities_of(plan.sweep.compute, plan.trials)
        with store.lock(wait):
            drop_stops(folder)
            store.claim(plan.sweep.name, plan.digest)
            write_json(folder / "plan.json", planned)
            write_environment(folder, fingerprint())
            if retrain and (damaged := Books(plan, store).set_damaged_aside()):
                click.echo(f"Set aside: {len(damaged)} damaged checkpoints, {damaged[0]} the first of them.")
            _adopt(plan, store)
            tracker = MlflowTracker(folder, tracking_uri, plan.sweep.name)
            tracker.start(planned, files=[plan.source.path])
            try:
                ending = _drive(plan, store, backend, tracker, began)
            except OSError as error:
                _close(tracker, folder, tracking_uri, "failed")
                fail(f"{error}. Measurements so far are safe; mend it, and the same command goes on from here.")
            _report(folder)
            _close(tracker, folder, tracking_uri, "completed" if ending.state.succeeded else "stopped")
            backend.close()  # while the folder is ours: no worker outlives the lock
            say_where(
                folder, tracking_uri
            )  # likewise: who sees the lock free knows that this job has said its last word
    finally:
        backend.close()
    return ending


def _close(tracker: Tracker, folder: Location, tracking_uri: str, outcome: Outcome) -> None:
    """Let MLflow take what it has not, and say so if it does not."""
    if not tracker.close(timeout=60, outcome=outcome):
        click.echo("MLflow has not taken everything; the results are complete without it. To catch up:", err=True)
        click.echo(f"  ditlaw sync {folder} --tracking-uri {tracking_uri}", err=True)


def _adopt(plan: Plan, store: Store) -> None:
    """Take over what other sweeps of the same folder have measured and trained of this one's trials."""
    from orchestrator.results.holdings import adopt_checkpoints, adopt_measurements, holdings
    from orchestrator.results.retraction import retracted

    trial_ids, back = [trial.trial_id for trial in plan.trials], retracted(store)
    wanted = [trial for trial in plan.trials if trial.trial_id not in back]
    rows = adopt_measurements(store, [(trial.trial_id, m) for trial in wanted for m in trial.milestones])
    held = holdings(store.folder, trial_ids, beside=False)
    rest = plan.remaining(held.measured, held.checkpoints)
    stops = {trial.trial_id: sorted({*trial.milestones, *trial.branch_points}) for trial in rest.trials}
    checkpoints = adopt_checkpoints(store, stops)
    if rows or checkpoints:
        click.echo(f"Taken over from other sweeps: {rows} measurements, {checkpoints} checkpoints.")


def _drive(plan: Plan, store: Store, backend: Backend, tracker: Tracker, began: float) -> Ending:
    """Let the driver work and show how it goes."""
    from rich.console import Console

    from orchestrator.best_losses import BestLosses
    from orchestrator.console import LiveView
    from orchestrator.scheduling.driver import Driver

    best = BestLosses(store.folder)
    peaks = {trial.trial_id: plan.peak(trial) for trial in plan.trials}
    with LiveView(Console(quiet=is_quiet()), best.read, peaks) as view:

        def listen(snapshot: Snapshot) -> None:
            view.listen(snapshot)
            inbox.look(driver)

        inbox = _Inbox(store.folder, view.say)
        driver = Driver(plan, store, backend, tracker.run_id, listen, waiting_since=began)
        view.say(driver.opening())
        with _interruptible(driver, view.say):
            driver.run()
            return driver.ending()


class _Inbox:
    """Requests that reach a driver at work through the results folder, each taken up once."""

    def __init__(self, folder: Location, say: Callable[[str], None]) -> None:
        from orchestrator.results.requests import requests_of

        self._folder, self._say, self._looked = folder, say, time.monotonic()
        self._seen = {request.path for request in requests_of(folder) if request.kind == "retry"}

    def look(self, driver: Driver) -> None:
        """Pass on what has come in since the last look, at most once in a while."""
        from orchestrator.results.requests import requests_of

        if time.monotonic() - self._looked < INBOX_SECONDS:
            return
        try:
            requests = requests_of(self._folder)
        except OSError as error:  # storage that is away for a moment is no reason to end a sweep
            logging.getLogger(__name__).info("requests to the sweep cannot be read: %s", error)
            self._looked = time.monotonic() + AWAY_SECONDS
            return
        self._looked = time.monotonic()
        for request in requests:
            if request.path in self._seen:
                continue
            self._seen.add(request.path)
            if request.kind == "stop":
                self._say("Asked to stop (ditlaw cancel): every trial saves a checkpoint first.")
                driver.request_stop()
            else:
                self._say(f"Asked to retry {len(request.trials)} trials (ditlaw retry).")
                driver.request_retry(request.trials)


@contextmanager
def _on_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR1, by which SLURM warns of a limit, call `handler`."""
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before or signal.SIG_DFL)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _interruptible(driver: Driver, say: Callable[[str], None]) -> Iterator[None]:
    """The first stop signal saves and stops; the second stops at once."""
    asked = 0

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyboardInterrupt
        driver.request_stop()
        say("Stopping: every trial saves a checkpoint first. Once more to stop at once.")

    with _on_stop_signals(on_signal):
        yield


def _finish(folder: Location, ending: Ending) -> None:
    """Say what is missing, if anything, and leave with the right code."""
    from orchestrator.scheduling.snapshot import counted

    state, given_up = ending.state, ending.given_up
    if state.broken is not None:
        fail(f"Given up: {state.broken}. See {folder / 'logs'}; the same command goes on from here.")
    for trial_id, reason in given_up.items():
        click.echo(f"Trial {trial_id} was given up: {reason}; see {folder / 'logs' / trial_id}", err=True)
    if given_up:
        click.echo(f"The same command tries them once more; after ditlaw retry {folder}, as at first.", err=True)
    if ending.to_go and state.stopping:
        click.echo(f"Stopped with {counted(ending.to_go, 'trial')} to go. The same command goes on from here.")
        sys.exit(130)
    if given_up:
        sys.exit(1)
