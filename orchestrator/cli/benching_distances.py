"""`ditlaw bench frechet` and `ditlaw bench evaluation`: what distances cost, and which protocols can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.refusals import Refused, refusing
from orchestrator.cli.sweeps import data_folder, plan_of
from orchestrator.cli.terminal import show_figures, wide_console

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--dim", default=2048, show_default=True, type=click.IntRange(min=2), help="Number of features.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Times; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def frechet(dim: int, repeats: int, as_json: bool) -> None:
    """Time of a Frechet distance, beside the published formula with scipy's sqrtm; takes minutes for the latter."""
    from orchestrator.bench.frechet import run

    show_figures(run(dim, repeats), as_json)


@click.command()
@click.argument("results", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--spec", type=click.Path(path_type=Path), help="The sweep that the results are of.")
@click.option("--encoder", help="What images are compared by; default: the sweep's, or fmnist-cnn.")
@click.option("--images", default=10_000, show_default=True, type=click.IntRange(min=100), help="Of each protocol.")
@click.option("--checkpoints", default=28, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@click.option("--raw", type=click.Path(path_type=Path), help="Write all figures to this JSON file, as they come.")
@click.option(
    "--again", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Sample nothing, judge what an earlier --raw holds; may be given again, for one figure of several.",
)  # fmt: skip
@click.option("--figure", type=click.Path(path_type=Path), help="Draw rank correlation and noise to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON list.")
def evaluation(
    results: Path | None, spec: Path | None, encoder: str | None, images: int, checkpoints: int, raw: Path | None,
    again: tuple[Path, ...], figure: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """What sampler, steps and images do to the Frechet distance of the checkpoints in RESULTS.

    Made for a GPU: 10,000 images of 28 checkpoints by nine protocols.

    \b
    ditlaw bench evaluation results/evaluation_study --spec sweeps/evaluation_study.yaml --raw study.json
    ditlaw bench evaluation --again study.json --figure study.png
    """
    from orchestrator.bench.evaluation_judged import draw, judged

    if bool(again) == (results is not None and spec is not None):
        raise Refused("got neither or both; wanted RESULTS and --spec, to sample checkpoints, or --again FILE")
    with refusing():
        studies = [_read(path) for path in again] or [_sampled(results, spec, encoder, images, checkpoints, raw)]  # type: ignore[arg-type]
    tables = {study["dataset"]: judged(study["rows"]) for study in studies}
    if figure is not None:
        draw(tables).savefig(figure, dpi=110)
    if as_json:
        click.echo(json.dumps([{"study": name, **row} for name, table in tables.items() for row in table]))
        return
    for name, table in tables.items():
        click.echo(f"{name}, {table[0]['checkpoints']} checkpoints")
        wide_console(120).print(_study_table(table))
        click.echo(_verdict(table))


def _sampled(
    results: Path, spec: Path, encoder: str | None, images: int, checkpoints: int, raw: Path | None
) -> dict[str, Any]:
    """The study of a results folder, written to `raw` as it grows."""
    import torch

    from orchestrator.bench import evaluation as study

    plan = plan_of(spec)
    own = plan.sweep.evaluation.distance
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    found = {**study.environment(device), "dataset": plan.sweep.dataset, "rows": rows}
    figures = study.run(
        plan,
        results,
        data_folder(plan, None),
        images=images,
        checkpoints=checkpoints,
        encoder=encoder or (own.encoder if own else "fmnist-cnn"),
        device=device,
    )
    for row in figures:
        rows.append(row)
        told = f"{row['arm']} {row['size']} at {row['samples']:,}, {row['sampler']} {row['steps']}"
        click.echo(f"{len(rows)}: {told}, {row['seconds']:.1f} s", err=True)
        if raw is not None:
            raw.write_text(json.dumps(found) + "\n")
    return found


def _read(path: Path) -> dict[str, Any]:
    """What `--raw` wrote."""
    try:
        study = json.loads(path.read_text())
        if study["rows"] and study["dataset"] and study["device"]:
            return dict(study)
    except (ValueError, KeyError, TypeError):
        pass
    raise Refused(f"{path} holds no study; wanted a file that bench evaluation --raw wrote")


def _verdict(table: list[dict[str, Any]]) -> str:
    from orchestrator.bench.evaluation_judged import CHEAP, FAITHFUL, cheapest_faithful

    best = cheapest_faithful(table)
    if best is None:
        return f"No protocol has a rank correlation of {FAITHFUL} at {CHEAP:.0%} of the training FLOPs."
    return f"The cheapest faithful one: {best['sampler']} with {best['steps']} steps, {best['images']:,} images."


def _study_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (
        "sampler",
        "steps",
        "images",
        "rank",
        "worst",
        "by loss",
        "FD ratio",
        "noise",
        "told",
        "cost",
        "largest cost",
    ):
        table.add_column(title, justify="left" if title == "sampler" else "right", no_wrap=True)
    for row in rows:
        ranks = [row[f"{name}_correlation"] for name in ("rank", "lowest", "loss")]
        told = ["" if rank is None else f"{rank:.3f}" for rank in ranks]
        noise = row["noise_between_sets"]
        table.add_row(
            row["sampler"], str(row["steps"]), f"{row['images']:,}", *told,
            f"{row['median_ratio']:.3f}",
            "" if noise is None else f"{noise:.1%}", f"{row['noise_estimated']:.1%}", f"{row['median_cost']:.1%}",
            f"{row['largest_cost']:.1%}",
        )  # fmt: skip
    return table
