"""Commands that plan: `plan`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.common import SPEC, plan_of


@click.command()
@SPEC
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(spec: Path, as_json: bool) -> None:
    """Show the cells, trials, FLOPs, memory, hours and disk of SPEC. Touches nothing."""
    planned = plan_of(spec)
    if as_json:
        click.echo(json.dumps(planned.as_json(), indent=2))
        return
    from rich.console import Console

    from orchestrator.console import plan_view

    Console().print(plan_view(planned))


@click.command()
def schema() -> None:
    """Print the JSON schema of a sweep, for completion in editors."""
    from orchestrator.spec.sweep import Sweep

    click.echo(json.dumps(Sweep.model_json_schema(), indent=2))
