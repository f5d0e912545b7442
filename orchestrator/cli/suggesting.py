"""The command `suggest`: what to run next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import results_of

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.follow_up import FollowUp
    from orchestrator.results.location import Location


@click.command()
@click.argument("sweep")
@click.option("--target-flops", type=float, required=True, help="The budget at which the law is to be known.")
@click.option("--spend", type=float, required=True, help="Training FLOPs to spend at most.")
@click.option(
    "--quantity",
    type=click.Choice(["params", "loss", "fid", "both"]),
    default="both",
    show_default=True,
    help="Whose interval to shrink: N*, the loss, the FID, or N* and loss alike.",
)
@click.option("--arm", help="The arm; may be left out where there is one.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 100), help="Seeds that may be used.")
@click.option("--name", help="Name of the follow-up; default: <sweep>-next.")
@click.option("--new-only", is_flag=True, help="List only what is new, not what is measured already.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Where to write it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def suggest(
    sweep: str,
    target_flops: float,
    spend: float,
    quantity: Literal["params", "loss", "fid", "both"],
    arm: str | None,
    seeds: int,
    name: str | None,
    new_only: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Write the sweep that sharpens the law of SWEEP at a target budget most, for a given spend.

    SWEEP is a name below results/, a results folder or its URI, or a spec, of which nothing need be measured yet.

    \b
    ditlaw suggest quickstart --arm mup --target-flops 1e13 --spend 4e11 -o next.yaml
    """
    from orchestrator.follow_up import follow_up

    place, results = _places(sweep)
    with refusing():
        found = follow_up(
            place,
            results,
            target_flops=target_flops,
            spend=spend,
            quantity=quantity,
            arm=arm,
            num_seeds=seeds,
            name=name,
            new_only=new_only,
        )
        out.write_text(found.text)
    if as_json:
        click.echo(json.dumps({**found.as_json(), "spec": str(out)}, indent=2))
        return
    _show(found, out)


def _places(sweep: str) -> tuple[Location, Location | None]:
    """Where the spec is, and where the results are, if there are any."""
    path = Path(sweep)
    if not path.is_file():
        folder = results_of(sweep)
        return folder, folder
    from orchestrator.spec.sweep import load

    with refusing():
        folder = Path("results") / load(path)[0].name
    return path, folder if (folder / "measurements").is_dir() else None


def _show(found: FollowUp, out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    console.print(
        f"\n{found.suggestion.flops:.3g} of {found.spend:.3g} FLOPs. At {found.target_flops:.3g} FLOPs, 95%:\n"
        f"  N*    {found.expected('params')}\n  loss  {found.expected('loss')}",
        highlight=False,
    )
    for note in found.notes:
        console.print(f"! {note}", highlight=False)
    console.print(f"\nNext:  ditlaw plan {out}", highlight=False)


def _table(found: FollowUp) -> Table:
    from rich.table import Table

    from orchestrator.magnitudes import count

    table = Table(box=None, pad_edge=False)
    for title in ("what", "size", "params", "seed", "measured at FLOPs", "costs"):
        table.add_column(title, justify="left" if title in ("what", "size") else "right")
    for run in found.runs:
        what = f"extend from {run['trained_flops']:.3g}" if run["trained_flops"] else "new"
        marks = " ".join(f"{flops:.3g}" for flops in run["milestones"])
        table.add_row(what, run["size"], count(run["params"]), str(run["seed"]), marks, f"{run['flops']:.3g}")
    return table
