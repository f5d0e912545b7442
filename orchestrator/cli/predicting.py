"""The command `predict`: what the laws say of a budget before it is run, in a file to keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import results_of

if TYPE_CHECKING:
    import pandas as pd

    from analysis.bootstrap import Interval
    from analysis.prediction import Prediction
    from orchestrator.out_of_sample import OutOfSample
    from orchestrator.results.location import Location


@click.command()
@click.argument("sweep")
@click.option("--target-flops", type=float, required=True, help="The budget, in training FLOPs of one model.")
@click.option("--arm", help="The arm; may be left out where there is one.")
@click.option(
    "--spec", type=click.Path(path_type=Path, dir_okay=False), help="Also write the sweep that tests it here."
)
@click.option("--sizes", default=1, show_default=True, type=click.IntRange(1, 9), help="Sizes that it trains.")
@click.option("--name", help="Name of that sweep; default: <sweep>-test.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Where to write it.")
@click.option("--json", "as_json", is_flag=True, help="Print what is written.")
def predict(
    sweep: str,
    target_flops: float,
    arm: str | None,
    spec: Path | None,
    sizes: int,
    name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Predict loss, distance and best size at a budget from what SWEEP has measured, before that budget is run.

    SWEEP is a name below results/, a results folder, or its URI. The file says when it was written, with which
    versions, and from which measurements; it is never written over. Commit it, run the sweep that --spec writes, and
    put both side by side with `ditlaw report --prediction`.

    \b
    ditlaw predict ladder --arm mup --target-flops 1e13 -o prediction.json --spec test.yaml
    ditlaw run test.yaml
    ditlaw report ladder-test --prediction prediction.json
    """
    folder = results_of(sweep)
    with refusing():
        made, test = _made(folder, target_flops, arm, sizes, name, want_test=spec is not None, out=out)
        with out.open("x") as file:
            file.write(made.as_json())
        if spec is not None and test is not None:
            spec.write_text(test.text)
    if as_json:
        click.echo(made.as_json(), nl=False)
        return
    _show(made, out)
    if spec is not None and test is not None:
        trained = ", ".join(f"{size} ({params:,} parameters)" for size, params in test.sizes)
        click.echo(f"The test trains {trained}.\n\nNext:  ditlaw plan {spec}")


def _made(
    folder: Location, flops: float, arm: str | None, sizes: int, name: str | None, *, want_test: bool, out: Path
) -> tuple[Prediction, OutOfSample | None]:
    from analysis.findings import find
    from analysis.prediction import predict as predicted
    from orchestrator.results.environment import environment
    from orchestrator.results.store import read_planned
    from orchestrator.scheduling.fingerprint import fingerprint

    if out.exists():
        raise ValueError(f"{out} is there already, and a prediction is never written over; wanted another -o.")
    if not 0 < flops < float("inf"):
        raise ValueError(f"--target-flops got {flops:g}; wanted a positive number of FLOPs")
    arm = _arm(read_planned(folder)[0], arm)  # before anything is fitted
    findings = find(folder, flops)
    made = predicted(
        next(one for one in findings.arms if one.arm == arm), flops, findings.plan, environment(fingerprint())
    )
    if not want_test:
        return made, None
    if made.params is None:
        raise ValueError(f"arm {made.arm} has no N*(C), so that no size follows for --spec; leave it out.")
    from orchestrator.out_of_sample import spec_of_test

    name = name or f"{made.sweep}-test"
    return made, spec_of_test(folder, made.arm, made.params, flops, num_sizes=sizes, name=name)


def _arm(rows: pd.DataFrame, name: str | None) -> str:
    """The arm that is meant, of those with a loss."""
    trained = sorted(set(rows.loc[rows["loss"].notna(), "arm"].astype(str)))
    if not trained:
        raise ValueError("no trial has a loss yet; run the sweep first.")
    if name is None and len(trained) > 1:
        raise ValueError(f"there are several arms: {', '.join(trained)}. Say which with --arm.")
    if name is not None and name not in trained:
        raise ValueError(f"there is no measured arm {name!r}; wanted one of {', '.join(trained)}")
    return name or trained[0]


def _show(made: Prediction, out: Path) -> None:
    from orchestrator.magnitudes import count

    click.echo(
        f"{made.arm} at {made.flops:.4g} FLOPs, {made.times_largest:.3g} times the largest of "
        f"{made.fitted.count} measurements:"
    )
    for what, value, band in (("N*", made.params, made.params_ci95), ("D*", made.samples, made.samples_ci95)):
        if value is not None:
            click.echo(f"  {what:14} {count(value)}" + (f"  95% {count(band[0])} to {count(band[1])}" if band else ""))
    for one in made.expected:
        bands = _band(one.ci95, "of one measurement") + _band(one.law_ci95, "of the law")
        click.echo(f"  {one.what:14} {one.value:.4g} by the {one.by}{bands}")
    if made.times_largest <= 1:
        click.echo("! It is within what is measured: no prediction out of sample.")
    click.echo(f"Written to {out}. Commit it before the budget is run.")


def _band(band: Interval | None, what: str) -> str:
    return f"  95% {band[0]:.4g} to {band[1]:.4g} {what}" if band else ""
