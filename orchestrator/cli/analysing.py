"""Commands that read tables and results: `fit`, `report`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import results_of

COLUMNS_HELP = "Names of the columns in TABLE, as params=n,samples=d,flops=c,loss=l; sd=s weighs rows by their noise."
RULE_HELP = "How a missing one of params, samples, flops follows from the other two; none: not at all."
LAWS = ["power", "surface", "tied", "kaplan", "repeated", "isoflop", "learning-rate"]
RECIPE_HELP = "varpro: Huber(1e-3) of log residuals; hoffmann: the same from their grid of starts, with pairs."
FORCE_HELP = "Fit rows together that no one law describes, and leave out rows without positive numbers; both are said."


@click.command()
@click.argument("table")
@click.option("--law", type=click.Choice(LAWS), required=True, help="What to fit; see below.")
@click.option("--columns", help=COLUMNS_HELP)
@click.option("--arm", help="Fit the rows of this arm only.")
@click.option("--loss", type=click.Choice(["loss", "fid", "fd"]), help="What is fitted; default: the first there is.")
@click.option("--target-flops", type=float, help="Also give the best size, samples and loss at this many FLOPs.")
@click.option(
    "--recipe",
    type=click.Choice(["varpro", "least-squares", "hoffmann"]),
    default="varpro",
    show_default=True,
    help=RECIPE_HELP,
)
@click.option(
    "--interval",
    type=click.Choice(["auto", "pairs", "residual", "wild", "profile", "delta"]),
    default="auto",
    show_default=True,
    help="How the 95% intervals are made.",
)
@click.option("--floor", default="free", show_default=True, help="free, zero, or the value the floor is held at.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="Of the bootstrap; 0 for no intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--flops-rule", type=click.Choice(["6ND", "none"]), help=RULE_HELP)
@click.option("--force", is_flag=True, help=FORCE_HELP)
@click.option("--plots", type=click.Path(path_type=Path), help="Write the figures into this folder.")
@click.option("--format", "suffix", type=click.Choice(["svg", "pdf", "png"]), default="svg", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(
    table: str,
    law: str,
    columns: str | None,
    arm: str | None,
    loss: str | None,
    target_flops: float | None,
    recipe: str,
    interval: str,
    floor: str,
    resamples: int,
    seed: int,
    flops_rule: str | None,
    force: bool,
    plots: Path | None,
    suffix: str,
    as_json: bool,
) -> None:
    """Fit a scaling law to TABLE: a CSV or Parquet file or folder, of ditlaw's or not, or a URI of one.

    \b
    power          y = A C^-beta + floor, through the best run of each budget
    surface        L = E + A/N^alpha + B/D^beta
    tied           the same with one exponent
    kaplan         L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D
    repeated       a surface whose repeated samples are worth less; reads unique_samples
    isoflop        parabolas in log N at each budget; N* and D* as powers of C
    learning-rate  quadratics in log learning rate at each width; the optima as a power of width

    \b
    ditlaw fit results/quickstart --law isoflop --arm mup --target-flops 1e13
    ditlaw fit runs.csv --law surface --columns params=n,samples=tokens,loss=val_loss --plots figures
    """
    with refusing():
        names = _columns(columns)
        from analysis.estimating import Options
        from analysis.fit_table import check_request, fit_loaded
        from analysis.loading import load_table
        from orchestrator.results.location import location

        options = Options(
            recipe=recipe,  # type: ignore[arg-type]
            interval=interval,  # type: ignore[arg-type]
            floor=_floor(floor),  # type: ignore[arg-type]
            num_resamples=resamples,
            seed=seed,
        )
        check_request(law, target_flops)
        loaded = load_table(location(table), names, arm, quantity=loss, flops_rule=flops_rule, force=force)
        result = fit_loaded(loaded, law, target_flops, options)
        files = result.save_plots(plots, suffix) if plots else []
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
    if files and not as_json:
        click.echo(f"\nFigures: {', '.join(str(file) for file in files)}")


def _floor(text: str) -> str | float:
    if text in ("free", "zero"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--floor got {text!r}; wanted free, zero, or the value that it is held at.")
    return value


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
@click.option(
    "--figures", type=click.Path(path_type=Path, file_okay=False), help="Folder for PDFs and what a paper needs."
)
@click.option("--target-flops", type=float, help="The budget of the first sentence; default: the largest run.")
@click.option("--tracking-ui", help="Address of the MLflow pages that points open, as http://127.0.0.1:5000.")
@click.option(
    "--prediction",
    "predictions",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of `ditlaw predict`, to hold against what is measured; may be given again.",
)
def report(
    sweep: str,
    out: Path | None,
    figures: Path | None,
    target_flops: float | None,
    tracking_ui: str | None,
    predictions: tuple[Path, ...],
) -> None:
    """Write the report of SWEEP (a name below results/, a results folder, or its URI) as one HTML file.

    Beside it, in figures/, go its figures as SVG, the methods as LaTeX and their BibTeX; with --figures DIR they go
    there, and as PDF too. Points and rows open their MLflow runs. A page that is written elsewhere, to be read by
    others, has no links to a tracking server on this machine, unless --tracking-ui gives one.

    \b
    ditlaw report quickstart
    ditlaw report quickstart --target-flops 1e15
    ditlaw report results/quickstart -o page.html --figures paper/figures
    ditlaw report quickstart-test --prediction prediction.json
    """
    folder = results_of(sweep)
    with refusing():
        from analysis.report import write_report

        page = write_report(
            folder, out, tracking_ui=tracking_ui, target_flops=target_flops, figures=figures, tested=predictions
        )
        click.echo(f"Report:  {page}")
