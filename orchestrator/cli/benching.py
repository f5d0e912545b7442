"""Commands that measure this machine, or a method: `bench plan`, `bench fit`, and so on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.benching_distances import evaluation, frechet
from orchestrator.cli.refusals import refusing
from orchestrator.cli.terminal import show_figures, wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.bench.memory import Outcome


@click.group()
def bench() -> None:
    """Measure this machine.

    \b
    ditlaw bench plan
    ditlaw bench fit --json
    ditlaw bench store --folder /shared/results
    """


@click.command()
@click.option("--size", "sizes", multiple=True, help="Only cases of this size, as XL/2; may be given again.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(min=1), help="Timed steps of a case.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the raw figures to this file.")
def memory(sizes: tuple[str, ...], steps: int, json_path: Path | None) -> None:
    """Peak memory and speed of training steps on the first GPU, beside what planning's model says."""
    import torch

    from orchestrator.bench.memory import cases, environment, measure

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    chosen = [case for case in cases(device.type == "cuda") if not sizes or case.size in sizes]
    if not chosen:
        raise click.BadParameter(f"no case is of {', '.join(sizes)}", param_hint="--size")
    outcomes = []
    for outcome in measure(chosen, steps, device):
        outcomes.append(outcome)
        click.echo(f"{len(outcomes)}/{len(chosen)} {outcome.case.name}: {outcome.error or 'done'}", err=True)
        if json_path is not None:  # after every case: a run that is cut short keeps what it has
            figures = {**environment(device), "cases": [outcome.as_json() for outcome in outcomes]}
            json_path.write_text(json.dumps(figures, indent=1) + "\n")
    wide_console(100).print(_memory_table(outcomes))


def _memory_table(outcomes: list[Outcome]) -> Table:
    from rich.table import Table

    gib = 2**30
    table = Table(box=None, pad_edge=False)
    for title in ("case", "measured GiB", "modelled", "ratio", "images/s", "TFLOP/s"):
        table.add_column(title, justify="left" if title == "case" else "right", no_wrap=True)
    for outcome in outcomes:
        modelled = f"{outcome.modelled_training_bytes / gib:.2f}"
        if outcome.error is not None:
            table.add_row(outcome.case.name, outcome.error.split(":")[0], modelled, "", "", "")
            continue
        table.add_row(
            outcome.case.name,
            f"{outcome.training_bytes / gib:.2f}" if outcome.training_bytes else "",
            modelled,
            f"{outcome.ratio:.3f}" if outcome.ratio else "",
            f"{outcome.images_per_second:.4g}" if outcome.images_per_second else "",
            f"{outcome.flops_per_second / 1e12:.4g}" if outcome.flops_per_second else "",
        )
    return table


@click.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Times; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(repeats: int, as_json: bool) -> None:
    """Time and memory of planning 10,000 cells."""
    from orchestrator.bench.plan import run

    show_figures(run(repeats), as_json)


@click.command()
@click.option("--laws", default=50, show_default=True, type=click.IntRange(min=1), help="Planted laws.")
@click.option(
    "--repeats", default=8, show_default=True, type=click.IntRange(min=1), help="Draws of noise for each law."
)
@click.option("--raw", type=click.Path(path_type=Path), help="Write all figures, law by law, to this JSON file.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the errors to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def suggest(laws: int, repeats: int, raw: Path | None, figure: Path | None, as_json: bool) -> None:
    """Extrapolation error of follow-ups by `ditlaw suggest` against other designs of the same compute.

    On planted laws, 8 times beyond the largest budget. The defaults take about 12 minutes of one core.
    """
    from orchestrator.bench.suggest import draw, run

    figures = run(laws, repeats)
    if raw is not None:
        raw.write_text(json.dumps(figures, indent=1) + "\n")
    if figure is not None:
        draw(figures).savefig(figure, dpi=110)
    show_figures({name: value for name, value in figures.items() if name != "table"}, as_json)


@click.command()
@click.option("--parts", default=40, show_default=True, type=click.IntRange(min=1), help="Parts of 40,000 points.")
@click.option("--mlflow-points", default=10_000, show_default=True, type=click.IntRange(min=1), help="For MLflow.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Times; the median counts.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="On whose disk to write; default: the current folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def store(parts: int, mlflow_points: int, repeats: int, folder: Path, as_json: bool) -> None:
    """Durable metric points a second into Parquet, beside MLflow in SQLite."""
    from orchestrator.bench.store import run

    show_figures(run(parts, mlflow_points, repeats, folder), as_json)


@click.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Times; the median counts.")
@click.option("--baseline-refits", default=40, show_default=True, type=click.IntRange(min=1), help="Of scipy, of 4000.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(repeats: int, baseline_refits: int, as_json: bool) -> None:
    """Time of a surface fit and of 4000 refits, beside scipy with the same recipe, and of a table of 10,000 rows."""
    from orchestrator.bench.fit import run

    show_figures(run(repeats, baseline_refits), as_json)


@click.command()
@click.option("--repetitions", default=500, show_default=True, type=click.IntRange(min=1), help="Studies of each case.")
@click.option("--all-methods", default=100, show_default=True, help="Of them, those in which every method is measured.")
@click.option("--only", default="", help="Cases whose name holds this, as 'surface, normal'.")
@click.option("--raw", type=click.Path(path_type=Path), help="All figures, as they come; such a file is continued.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), help="Write the tables between the page's marks.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1), help="Side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def coverage(
    repetitions: int,
    all_methods: int,
    only: str,
    raw: Path | None,
    page: Path | None,
    processes: int,
    as_json: bool,
) -> None:
    """How often 95% intervals hold what was planted, by law, noise, number of points and method.

    The defaults take more than an hour of one core; any number of processes makes the same figures.
    """
    from orchestrator.bench.coverage import flat, run, write_tables

    figures = run(repetitions, all_methods, raw, only, processes)
    if page is not None:
        write_tables(figures, page)
    show_figures(flat(figures), as_json)


@click.command()
@click.option("--trials", default=200, show_default=True, type=click.IntRange(min=20), help="No-op trials on one gang.")
@click.option("--busy-trials", default=2000, show_default=True, type=click.IntRange(min=0), help="Of 0.2 s; 0: none.")
@click.option("--gangs", default=8, show_default=True, type=click.IntRange(min=1), help="For those, of one CPU each.")
@click.option("--peers/--no-peers", default=True, help="Also time Ray Tune and Ray Train.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def overhead(trials: int, busy_trials: int, gangs: int, peers: bool, as_json: bool) -> None:
    """What a trial costs that does nothing, beside Ray Tune and Ray Train; takes some minutes."""
    from orchestrator.bench.overhead import run

    show_figures(run(trials, busy_trials, gangs, peers), as_json)


@click.command()
@click.option("--checkpoints", default=12, show_default=True, type=click.IntRange(min=2), help="To be uploaded.")
@click.option("--width", default=256, show_default=True, type=click.IntRange(min=32), help="Of the DiT, 6 blocks deep.")
@click.option("--bandwidth", default=20.0, show_default=True, type=click.FloatRange(min=0.1), help="MB/s of storage.")
@click.option("--latency", default=100.0, show_default=True, type=click.FloatRange(min=0), help="ms of a request.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Of a CPU that trains.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def upload(checkpoints: int, width: int, bandwidth: float, latency: float, threads: int, as_json: bool) -> None:
    """What checkpoints that go to slow object storage cost the training that goes on; takes some minutes."""
    import torch

    from orchestrator.bench.upload import run

    torch.set_num_threads(threads)
    show_figures(run(checkpoints, width, bandwidth, latency), as_json)


@click.command()
@click.option("--size", "sizes", multiple=True, help="Only these, as XL/2, w32, w128-d6-n64; may be given again.")
@click.option("--steps/--no-steps", default=True, help="Steps beside a plain loop and the paper's recipe.")
@click.option("--variant", "variants", multiple=True, help="Of steps, as plain or graph; may be given again.")
@click.option("--packed/--no-packed", default=True, help="Packs of small models beside the same trained one by one.")
@click.option("--members", multiple=True, default=(2, 4, 8), show_default=True, type=click.IntRange(min=2))
@click.option("--seconds", default=150.0, show_default=True, help="What timing may take; compiling comes on top.")
@click.option("--threads", type=click.IntRange(min=1), help="Of a CPU; default: as torch has them.")
@click.option(
    "--gpus",
    type=click.IntRange(min=2),
    help="Steps of gangs of so many GPUs beside those of one, and nothing else; of B/2, or the sizes given.",
)
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    help="Write a table for planning to this folder: set DITLAW_SPEEDS to it.",
)
@click.option("--raw", type=click.Path(path_type=Path), help="Write the figures to this JSON file too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(
    sizes: tuple[str, ...],
    steps: bool,
    variants: tuple[str, ...],
    packed: bool,
    members: tuple[int, ...],
    seconds: float,
    threads: int | None,
    gpus: int | None,
    table: Path | None,
    raw: Path | None,
    as_json: bool,
) -> None:
    """Images a second of training steps on the first GPU, or on this CPU, with MFU and memory.

    With --gpus N through DeepSpeed at ZeRO 1, 2 and 3 and over flat buffers, on one GPU and on N, with how they scale.
    """
    import torch

    from orchestrator.bench.train import Run, planned_name, run
    from orchestrator.planning.own_speeds import write_figures

    if gpus is not None:
        _train_gangs(sizes, variants, gpus, seconds, raw, as_json)
        return
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = Run(sizes=sizes, steps=steps, variants=variants, packed=packed, members=members, seconds=seconds)
    figures = run(wanted, device)
    if table is not None:
        write_figures(table, planned_name(device), figures["rows"])
    if raw is not None:
        raw.write_text(json.dumps(figures, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        wide_console(110).print(_train_table(figures["rows"]))


def _train_gangs(
    sizes: tuple[str, ...], variants: tuple[str, ...], gpus: int, seconds: float, raw: Path | None, as_json: bool
) -> None:
    from orchestrator.bench.gangs import run
    from orchestrator.bench.train_cases import gpu_cases

    with refusing():
        figures = run(gpu_cases(sizes or ("B/2",)), variants, gpus, seconds)
    if raw is not None:
        raw.write_text(json.dumps(figures, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        wide_console(110).print(_gangs_table(figures["rows"]))


def _gangs_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model, batch", "step", "GPUs", "ms", "images/s", "MFU", "GiB", "scaling", "of the best"):
        table.add_column(title, justify="left" if title in ("model, batch", "step") else "right", no_wrap=True)
    for row in rows:
        where = row["case"], row["variant"], str(row["num_gpus"])
        if "error" in row:
            table.add_row(*where, row["error"])
            continue
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        shares = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("scaling", "scaling_of_best")]
        table.add_row(
            *where, f"{row['step_ms']:.1f}", f"{row['images_per_s']:,.0f}", f"{row['mfu']:.1%}", memory, *shares
        )
    return table


def _train_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model, batch", "variant", "images/s", "MFU", "GiB", "first step", "again"):
        table.add_column(title, justify="left" if title in ("model, batch", "variant") else "right", no_wrap=True)
    for row in rows:
        where = f", {row['processes']} x {row['threads']} threads" if "threads" in row else ""
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        shown = f"{row['images_per_s']:,.0f}", f"{row['mfu']:.1%}", memory, f"{row['first_step_s']:.2f} s"
        again = f"{row['again_s']:.2f} s"
        table.add_row(row["case"], row["variant"] + where, *shown, again)
    return table


for command in (train, memory, plan, overhead, upload, store, suggest, fit, coverage, frechet, evaluation):
    bench.add_command(command)
