"""Commands that plan: `plan`, `schema`."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import SPEC, plan_of
from orchestrator.cli.terminal import wide_console

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan


@click.command()
@SPEC
@click.option("--results", help="Results folder or URI; default: results/<sweep>.")
@click.option("--from-scratch", is_flag=True, help="Plan as if nothing were measured yet.")
@click.option("--map", "picture", type=click.Path(path_type=Path), help="Draw the isoFLOP map into this PNG or PDF.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(spec: Path, results: str | None, from_scratch: bool, picture: Path | None, as_json: bool) -> None:
    """Show the cells, trials, FLOPs, memory, hours and disk of SPEC. Touches nothing.

    What is measured already, by this or any other sweep beside its results folder, is not planned again.

    \b
    ditlaw plan sweeps/quickstart.yaml
    ditlaw plan sweeps/quickstart.yaml --json
    ditlaw plan sweeps/quickstart.yaml --map map.png
    """
    with _uncollected():
        whole = plan_of(spec)
        planned = whole if from_scratch else _remaining(whole, results or f"results/{whole.sweep.name}")
    if picture is not None:
        _draw(whole, picture)
    from orchestrator.expectations import expected_json
    from orchestrator.planning.cautions import cautions
    from orchestrator.planning.speeds import speeds_json

    with refusing():
        expected = expected_json(whole)
    if as_json:
        with _uncollected():
            more = {"devices": speeds_json(planned), "cautions": cautions(planned), "expected": expected}
            click.echo(_lines({**planned.as_json(), **more}))
        return
    from orchestrator.plan_view import plan_view

    wide_console(140).print(plan_view(planned, whole, expected))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a plan is held to the end, and looking through ten thousand trials for what could go
    takes a quarter of the time of making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _lines(plan: dict[str, Any]) -> str:
    """The plan as JSON, a line a key and a line a trial: quick to write, and to search."""
    text = {key: json.dumps(value) for key, value in plan.items() if key != "trials"}
    trials = json.dumps(plan["trials"])[1:-1].replace('}, {"trial_id": ', '},\n    {"trial_id": ')
    text["trials"] = f"[\n    {trials}\n  ]" if trials else "[]"
    return "{\n" + ",\n".join(f'  "{key}": {value}' for key, value in text.items()) + "\n}"


def _remaining(plan: Plan, results: str) -> Plan:
    """What is left of `plan`; the results are opened only where there are some."""
    folder = Path(results)
    here = "://" not in results  # elsewhere one has to ask
    if here and not folder.parent.is_dir():
        return plan
    if here and not any((place / "measurements").is_dir() for place in folder.parent.iterdir()):
        return plan
    from orchestrator.results.holdings import holdings
    from orchestrator.results.location import location

    with refusing():
        held = holdings(location(results), [trial.trial_id for trial in plan.trials])
    return plan.remaining(held.measured, held.checkpoints)


def _draw(plan: Plan, path: Path) -> None:
    from analysis.plan_map import plan_map
    from orchestrator.plan_view import map_cells

    with refusing():
        plan_map(map_cells(plan), plan.sweep.name).savefig(path, dpi=160)


@click.command()
def schema() -> None:
    """Print the JSON schema of a sweep, for completion in editors.

    \b
    ditlaw schema > sweep.schema.json
    """
    from orchestrator.spec.sweep import Sweep

    click.echo(json.dumps(Sweep.model_json_schema(), indent=2))
