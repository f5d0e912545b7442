"""What the commands share: refusals, and where things lie."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan

SPEC = click.argument("spec", type=click.Path(path_type=Path))


class Refused(click.ClickException):
    """Bad input: exit code 2 and the message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


@contextmanager
def refusing() -> Iterator[None]:
    """ValueError and OSError (a folder, a disk) are the user's: show them without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


def plan_of(spec: Path) -> Plan:
    from orchestrator.planning.plan import make

    with refusing():
        return make(spec)


def results_of(sweep: str) -> Path:
    """The results folder of a sweep, given as a folder or as a name below results/."""
    folder = Path(sweep) if Path(sweep).is_dir() else Path("results") / sweep
    if not (folder / "measurements").is_dir():
        raise Refused(f"{folder} holds no measurements; wanted a results folder, or the name of a sweep in results/")
    return folder


def tracking_uri_of(given: str | None, folder: Path) -> str:
    """Where MLflow is: as given, else as its own environment variable says, else in the results folder."""
    from orchestrator.tracking.address import default_tracking_uri

    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(folder)


def data_folder(plan: Plan, data: Path | None) -> Path:
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


def write_report(folder: Path, out: Path | None = None) -> Path:
    from analysis.report import write_report

    return write_report(folder, out)


def say_where(folder: Path, tracking_uri: str) -> None:
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


def whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} got {text!r}; wanted whole numbers above 0, as 64,128,256")
    return [int(part) for part in parts]


def fail(message: str, code: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
