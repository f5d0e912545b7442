"""The `ditlaw` command: the only place that wires rooms together, and the only one that prints.

Exit codes: 0 done; 1 some trials could not be run; 2 bad input, nothing was written; 130 interrupted, to be continued.

Heavy libraries are imported where a command needs them, so that help and planning answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.results.store import Store
    from orchestrator.scheduling.backend import Backend
    from orchestrator.scheduling.books import Books
    from orchestrator.scheduling.driver import Driver
    from orchestrator.scheduling.scheduler import State
    from orchestrator.tracking.tracker import Tracker

SPEC = click.argument("spec", type=click.Path(path_type=Path))
COLUMNS_HELP = "Names of the columns in TABLE, as params=n,samples=d,flops=c,loss=l."


class _Refused(click.ClickException):
    """Bad input: exit code 2 and the message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


@contextmanager
def _refusing() -> Iterator[None]:
    """ValueError and OSError (a folder, a disk) are the user's: show them without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise _Refused(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditlaw")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries have to say.")
def main(verbose: bool) -> None:
    """Scaling laws for diffusion transformers: plan a sweep, run it, fit the law.

    \b
    ditlaw plan sweeps/quickstart.yaml      what it will cost
    ditlaw run sweeps/quickstart.yaml       train, measure, fit, report
    ditlaw fit results/quickstart --law isoflop
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO if verbose else logging.WARNING)


@main.command()
@SPEC
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(spec: Path, as_json: bool) -> None:
    """Show the cells, trials, FLOPs, memory, hours and disk of SPEC. Touches nothing."""
    planned = _plan(spec)
    if as_json:
        click.echo(json.dumps(planned.as_json(), indent=2))
        return
    from rich.console import Console

    from orchestrator.console import plan_view

    Console().print(plan_view(planned))


@main.command()
@SPEC
@click.option("--address", help="Ray cluster to join (host:port, ray://... or auto); default: one on this machine.")
@click.option("--results", help="Results folder; default: results/<sweep>.")
@click.option("--tracking-uri", help="MLflow; default: a SQLite file in the results folder.")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option("--retrain", is_flag=True, help="Train again from the start what has lost its checkpoints.")
def run(
    spec: Path,
    address: str | None,
    results: str | None,
    tracking_uri: str | None,
    data: Path | None,
    retrain: bool,
) -> None:
    """Train and measure what SPEC asks for and is not measured yet, then fit and report.

    Run it again to go on after an interruption; with everything measured it does nothing.
    """
    from orchestrator.results.store import Store
    from orchestrator.scheduling.books import Books

    planned = _plan(spec)
    if results and "://" in results:
        raise _Refused(f"--results got {results!r}; wanted a folder that the driver and every worker see.")
    folder = Path(results) if results else Path("results") / planned.sweep.name
    tracking_uri = _tracking_uri(tracking_uri, folder)
    store = Store(folder)
    with _refusing():
        data = _data_folder(planned, data)
        store.check(planned.sweep.name)
        books = Books(planned, store)
        if not books.waiting:
            click.echo(f"Nothing to do: all {planned.num_cells} measurements of {planned.sweep.name} are in {folder}.")
            _refresh(planned, store)
            _where(folder, tracking_uri)
            return
        if not retrain:
            _refuse_retraining(planned, folder, books)
        state = _execute(planned, store, address, data, tracking_uri)
    _where(folder, tracking_uri)
    _finish(folder, state)


def _refuse_retraining(plan: Plan, folder: Path, books: Books) -> None:
    """Never start at 0 unasked what has been trained before."""
    lost = books.to_retrain()
    if lost:
        flops = sum(books.lacking(trial)[-1] * trial.flops_per_sample for trial in lost)
        names = ", ".join(f"{trial.name} ({trial.trial_id})" for trial in lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise ValueError(
            f"{len(lost)} trials of {plan.sweep.name} were trained before and have no checkpoint in "
            f"{folder / 'checkpoints'} to go on from: {names}. Put the checkpoints back, or give --retrain to train "
            f"them again from the start ({flops:.3g} FLOPs)."
        )


def _refresh(plan: Plan, store: Store) -> None:
    """Bring plan.json and the report up to date where the spec's names, or measurements, are newer."""
    from orchestrator.results.store import write_json

    page, kept = store.folder / "report.html", store.folder / "plan.json"
    current = json.loads(kept.read_text()) if kept.exists() else None
    fresh = json.loads(json.dumps(plan.as_json()))
    newest = max(part.stat().st_mtime for part in store.parts("measurements"))
    if current != fresh or not page.exists() or page.stat().st_mtime < newest:
        with store.lock():
            write_json(kept, fresh)
            _report(store.folder)


def _execute(plan: Plan, store: Store, address: str | None, data: Path, tracking_uri: str) -> State:
    """Run what remains of `plan`. Ray comes first: if it does not answer, or cannot hold a gang, nothing is written."""
    from orchestrator.results.store import write_json
    from orchestrator.scheduling.backend import GangShape
    from orchestrator.scheduling.ray_backend import RayBackend
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    folder, planned = store.folder, plan.as_json()
    backend = RayBackend(address, folder, data)
    try:
        backend.check(GangShape.of(plan.sweep.compute))
        with store.lock():
            store.claim(plan.sweep.name, plan.digest)
            write_json(folder / "plan.json", planned)
            tracker = MlflowTracker(folder, tracking_uri, plan.sweep.name)
            tracker.start(planned, files=[plan.source.path])
            try:
                state = _drive(plan, store, backend, tracker)
            except OSError as error:
                _fail(f"{error}. Measurements so far are safe; mend it, and the same command goes on from here.")
            _report(folder)
            if not tracker.close(timeout=60, outcome="completed" if state.succeeded else "stopped"):
                click.echo(
                    "MLflow has not taken everything; the results are complete without it. To catch up:", err=True
                )
                click.echo(f"  ditlaw sync {folder} --tracking-uri {tracking_uri}", err=True)
    finally:
        backend.close()
    return state


def _drive(plan: Plan, store: Store, backend: Backend, tracker: Tracker) -> State:
    """Let the driver work and show how it goes."""
    from rich.console import Console

    from orchestrator.console import LiveView
    from orchestrator.scheduling.driver import Driver

    with LiveView(Console()) as view:
        driver = Driver(plan, store, backend, tracker.run_id, view.listen)
        view.say(driver.opening())
        with _interruptible(driver, view.say):
            return driver.run()


@contextmanager
def _interruptible(driver: Driver, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) saves and stops; the second stops at once."""
    asked = 0

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyboardInterrupt
        driver.request_stop()
        say("Stopping: every trial saves a checkpoint first. Once more to stop at once.")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _finish(folder: Path, state: State) -> None:
    """Say what is missing, if anything, and leave with the right code."""
    if state.broken is not None:
        _fail(f"Given up: {state.broken}. See {folder / 'logs'}; the same command goes on from here.")
    for trial_id, reason in state.given_up.items():
        click.echo(f"Trial {trial_id} was given up: {reason}; see {folder / 'logs' / trial_id}", err=True)
    if state.waiting and state.stopping:
        click.echo(f"Stopped with {len(state.waiting)} trials to go. The same command goes on from here.")
        sys.exit(130)
    if state.given_up:
        sys.exit(1)


def _where(folder: Path, tracking_uri: str) -> None:
    from orchestrator.tracking.address import ui_command

    click.echo(f"Report:  {folder / 'report.html'}")
    click.echo(f"MLflow:  {ui_command(tracking_uri, _mlflow())}")


def _mlflow() -> str:
    """How to call this environment's mlflow from the current folder, whatever is on the PATH."""
    program = Path(sys.executable).with_name("mlflow")
    found = shutil.which("mlflow")
    if not program.exists():  # installed elsewhere, as in a --target folder
        return found or "mlflow"
    if found and Path(found).samefile(program):
        return "mlflow"
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _report(folder: Path, out: Path | None = None) -> Path:
    from analysis.report import write_report

    return write_report(folder, out)


@main.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--law", type=click.Choice(["power", "surface", "isoflop"]), required=True, help="What to fit.")
@click.option("--columns", help=COLUMNS_HELP)
@click.option("--arm", help="Fit the rows of this arm only.")
@click.option("--target-flops", type=float, help="Also give the best size, samples and loss at this many FLOPs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(table: Path, law: str, columns: str | None, arm: str | None, target_flops: float | None, as_json: bool) -> None:
    """Fit a scaling law to TABLE: a CSV or Parquet file or folder, of ditlaw's or not.

    \b
    ditlaw fit results/quickstart --law isoflop --arm mup --target-flops 1e13
    ditlaw fit runs.csv --law surface --columns params=n,samples=tokens,loss=val_loss
    """
    with _refusing():
        names = _columns(columns)
        from analysis.fit_table import fit_table, format_fit

        result = fit_table(table, law, names, target_flops, arm=arm)
    click.echo(json.dumps(result, indent=2) if as_json else format_fit(result))


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [part.split("=", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"--columns got {text!r}; wanted name=column pairs, as params=n,samples=d,flops=c,loss=l")
    return {name.strip(): column.strip() for name, column in pairs}


def _results_of(sweep: str) -> Path:
    """The results folder of a sweep, given as a folder or as a name below results/."""
    folder = Path(sweep) if Path(sweep).is_dir() else Path("results") / sweep
    if not (folder / "measurements").is_dir():
        raise _Refused(f"{folder} holds no measurements; wanted a results folder, or the name of a sweep in results/")
    return folder


def _tracking_uri(given: str | None, folder: Path) -> str:
    """Where MLflow is: as given, else as its own environment variable says, else in the results folder."""
    from orchestrator.tracking.address import default_tracking_uri

    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(folder)


@main.command()
@click.argument("sweep")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write it; default: in the results folder.")
def report(sweep: str, out: Path | None) -> None:
    """Write the report of SWEEP (a name below results/, or a results folder) as one HTML file."""
    folder = _results_of(sweep)
    with _refusing():
        click.echo(f"Report:  {_report(folder, out)}")


@main.command()
@click.argument("sweep")
@click.option("--tracking-uri", help="MLflow; default: a SQLite file in the results folder.")
def sync(sweep: str, tracking_uri: str | None) -> None:
    """Bring MLflow up to date with the results of SWEEP, after an outage or into another server."""
    folder = _results_of(sweep)
    with _refusing():
        from orchestrator.results.store import Store
        from orchestrator.tracking.mlflow_tracker import sync as show_all

        store = Store(folder)
        uri = _tracking_uri(tracking_uri, folder)
        with store.lock():
            whole = show_all(folder, uri, store.owner() or folder.name)
    if not whole:
        _fail("MLflow has not taken everything. The results are complete; run this again when it answers.")
    _where(folder, uri)


@main.group()
def data() -> None:
    """Datasets on this machine."""


@data.command("fetch")
@click.argument("dataset")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder that holds the files already.")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put them; default: data/<dataset>.")
def data_fetch(dataset: str, source: Path | None, folder: Path | None) -> None:
    """Put DATASET's files in place, checksums verified. The only command that downloads."""
    from orchestrator.training.data.fetch import dataset_named, default_folder, fetch_fashion_mnist

    with _refusing():
        dataset_named(dataset)
        click.echo(f"{dataset} is in {fetch_fashion_mnist(folder or default_folder(dataset), source)}")


@data.command("list")
def data_list() -> None:
    """List the datasets ditlaw knows and which of them are here."""
    from orchestrator.spec.datasets import DATASETS
    from orchestrator.training.data.fetch import default_folder, find

    for name, dataset in DATASETS.items():
        shape = f"{dataset.image_size} x {dataset.image_size} x {dataset.channels}, {dataset.num_classes} classes"
        where = default_folder(name)
        here = f"in {where}" if not find(name, where) else f"not here; ditlaw data fetch {name}"
        click.echo(f"{name}  {dataset.train_images:,} images of {shape}  {here}")


@main.command("coord-check")
@click.option("--parameterization", "names", default="sp,mup,completep", show_default=True, help="Which to check.")
@click.option("--widths", default="64,128,256,512,1024", show_default=True, help="Widths at depth 4; '' for none.")
@click.option("--depths", default="2,4,8,16,32", show_default=True, help="Depths at width 64; '' for none.")
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Adam steps.")
@click.option("--plain-init", is_flag=True, help="Start adaLN like a linear map, not at zero.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write a figure here (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def coord_check(
    names: str, widths: str, depths: str, steps: int, plain_init: bool, out: Path | None, as_json: bool
) -> None:
    """Check that activations do not follow the width or depth, after a few steps on the CPU.

    On two cores a parameterization takes about a minute and a half; SP and µP are not flat over depths.

    \b
    ditlaw coord-check --parameterization mup --depths '' -o coord.png
    """
    from models.coordinate_check import Protocol
    from orchestrator import coordinates

    with _refusing():
        protocol = Protocol(steps=steps, zero_init=not plain_init)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        sizes = _whole_numbers("--widths", widths), _whole_numbers("--depths", depths)
        findings = coordinates.find(wanted, *sizes, protocol, width=64, depth=4)
        if out is not None:
            coordinates.save_figure(findings, steps, out)
    if as_json:
        click.echo(json.dumps([coordinates.as_json(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        click.echo("\n".join([coordinates.verdict(finding), *coordinates.slope_lines(finding), ""]))


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} got {text!r}; wanted whole numbers above 0, as 64,128,256")
    return [int(part) for part in parts]


@main.command("solver-statistics")
@SPEC
@click.option("--trial", "trial_id", required=True, help="A trial's id or its beginning, as `ditlaw plan` shows it.")
@click.option("--results", type=click.Path(path_type=Path), help="Results folder; default: results/<sweep>.")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option("--images", default=1024, show_default=True, type=click.IntRange(min=1), help="Images to average over.")
@click.option("--grid", type=click.Path(path_type=Path), help="Also sample images with them, into this PNG.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where to write them (safetensors).")
def solver_statistics(
    spec: Path, trial_id: str, results: Path | None, data: Path | None, images: int, grid: Path | None, out: Path
) -> None:
    """Estimate DPM-Solver-v3's statistics of a trial's newest checkpoint."""
    planned = _plan(spec)
    found = [trial for trial in planned.trials if trial.trial_id.startswith(trial_id)]
    if len(found) != 1:
        raise _Refused(f"--trial {trial_id!r} is of {len(found)} trials of {planned.sweep.name}; wanted one")
    with _refusing():
        folder = _data_folder(planned, data)
        from orchestrator.training.solver_statistics import estimate

        samples = estimate(found[0], results or Path("results") / planned.sweep.name, folder, out, images, grid)
    click.echo(f"Statistics of {found[0].name} at {samples:,} samples, over {images} images: {out}")


@main.command()
def schema() -> None:
    """Print the JSON schema of a sweep, for completion in editors."""
    from orchestrator.spec.sweep import Sweep

    click.echo(json.dumps(Sweep.model_json_schema(), indent=2))


def _plan(spec: Path) -> Plan:
    from orchestrator.planning.plan import make

    with _refusing():
        return make(spec)


def _data_folder(plan: Plan, data: Path | None) -> Path:
    """The dataset's folder, with all its files; ValueError says which are missing."""
    from orchestrator.training.data.fetch import default_folder, find

    name = plan.sweep.dataset
    folder = data or default_folder(name)
    if missing := find(name, folder):
        files = ", ".join(file.name for file in missing)
        raise ValueError(
            f"dataset {name} is not in {folder}: {files} missing or of a wrong size. Run: ditlaw data fetch {name}"
            + (f" --to {folder}" if data else "")
        )
    return folder


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
