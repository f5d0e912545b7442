"""The command `submit`: a sweep as a job of a Ray cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import SPEC, plan_of

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.scheduling.submission import Job, Jobs

BEGIN_SECONDS = 120.0
"""How long the beginning of a job is waited for, and so whether it finds something wrong."""
POLL_SECONDS = 0.5


@click.command()
@SPEC
@click.option("--address", required=True, help="The cluster's dashboard, as http://HEAD:8265.")
@click.option(
    "--results",
    help="Folder that every node sees, or a URI as s3://bucket/prefix; default: results/<sweep>.",
)
@click.option(
    "--tracking-uri", help="MLflow, as the head node reaches it; default: a SQLite file in the results folder."
)
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder on every node; default: data/<dataset>.")
@click.option(
    "--retrain", is_flag=True, help="Train again from the start what has lost its checkpoints, or has damaged ones."
)
@click.option("-f", "--follow", is_flag=True, help="Show what it prints until it ends, and leave with its exit code.")
def submit(
    spec: Path,
    address: str,
    results: str | None,
    tracking_uri: str | None,
    data: Path | None,
    retrain: bool,
    follow: bool,
) -> None:
    """Run SPEC as a job of a Ray cluster, through Ray Jobs. The code of this checkout goes with it.

    Submitting a sweep that runs already changes nothing; one that has ended goes on from what is measured. Returns once
    the job has begun, or has found something wrong: then with its message and exit code.

    \b
    ditlaw submit sweep.yaml --address http://127.0.0.1:8265 --results /shared/results/sweep --data /shared/data/set
    """
    planned = plan_of(spec)
    with refusing():
        arguments = _arguments(planned, results, tracking_uri, data, retrain)
        from orchestrator.scheduling.submission import Jobs

        jobs = Jobs(address)
        job, new = jobs.submit(planned, arguments)
        if not new:
            click.echo(f"{planned.sweep.name} runs already, as {job.submission_id}; nothing was submitted.")
        else:
            click.echo(f"Submitted {planned.sweep.name} as {job.submission_id}.")
        name = arguments[arguments.index("--results") + 1]
        code = _show(jobs, job, planned.sweep.name, follow)
    if code is None:
        click.echo(f"Status:  ditlaw status {name}")
        click.echo(f"Cancel:  ditlaw cancel {planned.sweep.name} --address {address}")
        return
    sys.exit(code)


def _arguments(
    plan: Plan, results: str | None, tracking_uri: str | None, data: Path | None, retrain: bool
) -> list[str]:
    """Those of `run`, with absolute paths: a job does not run in this folder. Raises ValueError for bad ones."""
    from orchestrator.results.location import location
    from orchestrator.results.store import Store
    from orchestrator.spec.datasets import default_folder
    from orchestrator.tracking.address import without_password

    store = Store(location(results) if results else Path("results") / plan.sweep.name)
    if isinstance(store.folder, Path):  # for storage the cluster has the credentials, which this machine may lack
        with contextlib.suppress(PermissionError):  # nor need the folder be seen here: the job says what is wrong there
            store.check_owner(plan.sweep.name)
    arguments = ["--results", str(store.folder), "--data", str((data or default_folder(plan.sweep.dataset)).absolute())]
    if tracking_uri:
        if without_password(tracking_uri) != tracking_uri:
            raise ValueError(
                "--tracking-uri holds a password, which anybody could read in the job's command; wanted none. Give "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to the nodes' environment."
            )
        arguments += ["--tracking-uri", tracking_uri]
    return arguments + (["--retrain"] if retrain else [])


def _show(jobs: Jobs, job: Job, sweep: str, follow: bool) -> int | None:
    """Print what the job prints until it has begun, or with `follow` until it has ended; its exit code if it has."""
    shown, deadline = 0, time.monotonic() + BEGIN_SECONDS
    while True:
        job = jobs.job(job.submission_id)
        output = _own(jobs.output(job.submission_id))
        click.echo(output[shown:], nl=False)
        shown = len(output)
        if job.ended:
            if job.status == "STOPPED":
                return 130
            if job.exit_code is None and job.status != "SUCCEEDED":
                click.echo(job.message, err=True)
                return 1
            return job.exit_code or 0
        if not follow and f"{sweep}: " in output:
            return None
        if not follow and time.monotonic() > deadline:
            click.echo(f"It has not begun after {BEGIN_SECONDS:g} s: the cluster may be busy, or still growing.")
            return None
        time.sleep(POLL_SECONDS)


def _own(output: str) -> str:
    """Whole lines of the command's own, without those of Ray."""
    lines = output[: output.rfind("\n") + 1].splitlines(keepends=True)
    return "".join(line for line in lines if "\tINFO " not in line and not line.startswith("Running entrypoint"))
