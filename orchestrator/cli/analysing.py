"""Commands that read tables and results: `fit`, `report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.common import refusing, results_of, write_report

COLUMNS_HELP = "Names of the columns in TABLE, as params=n,samples=d,flops=c,loss=l."


@click.command()
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
    with refusing():
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


@click.command()
@click.argument("sweep")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write it; default: in the results folder.")
def report(sweep: str, out: Path | None) -> None:
    """Write the report of SWEEP (a name below results/, or a results folder) as one HTML file."""
    folder = results_of(sweep)
    with refusing():
        click.echo(f"Report:  {write_report(folder, out)}")
