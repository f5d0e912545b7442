"""What people mean by the name of a sweep: its spec, its results folder, its trials, data and MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.refusals import Refused, refusing

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.results.location import Location

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""As `orchestrator.spec.section.Name`, which is not imported here: it would bring pydantic to every command."""
SPEC = click.argument("spec", type=click.Path(path_type=Path))


def plan_of(spec: Path) -> Plan:
    from orchestrator.planning.plan import make

    with refusing():
        return make(spec)


def sweep_folder(sweep: str) -> Location:
    """The folder or URI of a sweep that was begun, or a name below results/. A name leads nowhere else."""
    folder = _place_of(sweep)
    with refusing():
        begun = (folder / "plan.json").is_file()
    if not begun:
        raise Refused(f"{folder} holds no plan.json; wanted a results folder, or the name of a sweep in results/")
    return folder


def known_trials(folder: Location) -> dict[str, str]:
    """The trials of the plan in a results folder: their names, by trial_id."""
    try:
        trials = json.loads((folder / "plan.json").read_text())["trials"]
        return {str(trial["trial_id"]): str(trial["name"]) for trial in trials}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'plan.json'} cannot be read ({error}); wanted the plan of a sweep") from None


def trials_named(known: Mapping[str, str], wanted: Sequence[str]) -> list[str]:
    """The trials that are meant by (the beginnings of) their ids or by their names; ValueError if not one each."""
    found = []
    for text in wanted:
        fits = [trial_id for trial_id, name in known.items() if trial_id.startswith(text) or name == text]
        if len(fits) != 1:
            some = ", ".join(f"{trial_id} ({known[trial_id]})" for trial_id in (fits or list(known))[:4])
            raise ValueError(f"trial {text!r} is of {len(fits)} trials; wanted the beginning of one id, such as {some}")
        found += fits
    return list(dict.fromkeys(found))


def results_of(sweep: str) -> Location:
    """The results of a sweep, given as a folder, as a URI, or as a name below results/. A name leads nowhere else."""
    folder = _place_of(sweep)
    with refusing():
        found = (folder / "measurements").is_dir()
    if not found:
        raise Refused(f"{folder} holds no measurements; wanted a results folder, or the name of a sweep in results/")
    return folder


def _place_of(sweep: str) -> Location:
    from orchestrator.results.location import location

    with refusing():
        folder = location(sweep)
    if not isinstance(folder, Path) or folder.is_dir():
        return folder
    if not NAME.fullmatch(sweep):
        raise Refused(f"got {sweep!r}; wanted a results folder that is there, or the name of a sweep in results/")
    return Path("results") / sweep


def tracking_uri_of(given: str | None, folder: Location) -> str:
    """Where MLflow is: as given, else as its own environment variable says, else in the results folder."""
    from orchestrator.tracking.address import default_tracking_uri

    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(folder)


def data_folder(plan: Plan, data: Path | None) -> Path:
    """The dataset's folder, with all its files; ValueError says which are missing."""
    from orchestrator.spec.datasets import default_folder
    from orchestrator.training.data.fetch import find

    name = plan.sweep.dataset
    folder = data or default_folder(name)
    if missing := find(name, folder):
        files = ", ".join(file.name for file in missing)
        raise ValueError(
            f"dataset {name} is not in {folder}: {files} missing or of a wrong size. Run: ditlaw data fetch {name}"
            + (f" --to {folder}" if data else "")
        )
    return folder


def write_report(folder: Location, out: Path | None = None) -> Location:
    from analysis.report import write_report

    return write_report(folder, out)


def say_where(folder: Location, tracking_uri: str) -> None:
    """The last thing that a run prints; the MLflow line ends it (`scheduling.submission.CLOSING`)."""
    from orchestrator.tracking.address import ui_command

    if (folder / "report.html").exists():
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
