"""Commands that look at models: `coord-check`, `solver-statistics`, `concepts`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.refusals import Refused, refusing
from orchestrator.cli.sweeps import SPEC, data_folder, plan_of


@click.command("coord-check")
@click.option("--parameterization", "names", default="sp,mup,completep", show_default=True, help="Which to check.")
@click.option("--widths", default="64,128,256,512,1024", show_default=True, help="Widths at depth 4; '' for none.")
@click.option("--depths", default="2,4,8,16,32", show_default=True, help="Depths at width 64; '' for none.")
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Adam steps.")
@click.option("--family", default="dit", show_default=True, help="Family of models, as in a sweep.")
@click.option("--plain-init", is_flag=True, help="Start adaLN like a linear map, not at zero.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write a figure here (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def coord_check(
    names: str, widths: str, depths: str, steps: int, family: str, plain_init: bool, out: Path | None, as_json: bool
) -> None:
    """Check that activations do not follow the width or depth, after a few steps on the CPU.

    On two cores a parameterization takes about a minute and a half; SP and µP are not flat over depths.

    \b
    ditlaw coord-check --parameterization mup --depths '' -o coord.png
    """
    from models.coordinate_check import Protocol
    from orchestrator import coordinates

    with refusing():
        protocol = Protocol(steps=steps, zero_init=not plain_init, family=family)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        sizes = _whole_numbers("--widths", widths), _whole_numbers("--depths", depths)
        findings = coordinates.find(wanted, *sizes, protocol, width=64, depth=4)
        if out is not None:
            coordinates.save_figure(findings, steps, out)
    if as_json:
        click.echo(json.dumps([coordinates.as_json(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        click.echo("\n".join([coordinates.verdict(finding), *coordinates.slope_lines(finding), ""]))


@click.command("solver-statistics")
@SPEC
@click.option("--trial", "trial_id", required=True, help="A trial's id or its beginning, as `ditlaw plan` shows it.")
@click.option("--results", type=click.Path(path_type=Path), help="Results folder; default: results/<sweep>.")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option("--images", default=1024, show_default=True, type=click.IntRange(min=1), help="Images to average over.")
@click.option(
    "--grid", type=click.Path(path_type=Path), help="Also sample with them, into this PNG (of clips GIF, MP4)."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where to write them (safetensors).")
def solver_statistics(
    spec: Path, trial_id: str, results: Path | None, data: Path | None, images: int, grid: Path | None, out: Path
) -> None:
    """Estimate DPM-Solver-v3's statistics of a trial's newest checkpoint.

    \b
    ditlaw solver-statistics sweeps/quickstart.yaml --trial 3fa85f64 -o statistics.safetensors
    """
    planned = plan_of(spec)
    found = [trial for trial in planned.trials if trial.trial_id.startswith(trial_id)]
    if len(found) != 1:
        raise Refused(f"--trial {trial_id!r} is of {len(found)} trials of {planned.sweep.name}; wanted one")
    with refusing():
        folder = data_folder(planned, data)
        from orchestrator.training.solver_statistics import estimate

        samples = estimate(found[0], results or Path("results") / planned.sweep.name, folder, out, images, grid)
    click.echo(f"Statistics of {found[0].name} at {samples:,} samples, over {images} images: {out}")


@click.command("concepts")
@SPEC
@click.option("--results", type=click.Path(path_type=Path), help="Results folder; default: results/<sweep>.")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option("--images", default=2000, show_default=True, type=click.IntRange(min=100), help="Validation images.")
@click.option("--time", "t", default=0.3, show_default=True, type=click.FloatRange(0, 1), help="How noised they are.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Draw separability against FLOPs here.")
@click.option("--directions", type=click.Path(path_type=Path), help="Write every trial's directions (safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def concepts(
    spec: Path,
    results: Path | None,
    data: Path | None,
    images: int,
    t: float,
    out: Path | None,
    directions: Path | None,
    as_json: bool,
) -> None:
    """Tell how well a line tells the classes in the middle features of a sweep's checkpoints, against compute.

    The direction of a class is the difference of mean features with and without it. 0.5 is chance. Of a trial its last
    checkpoint counts: a sweep with cooldowns, such as sweeps/concepts.yaml, has one for every budget.

    \b
    ditlaw concepts sweeps/concepts.yaml -o concepts.png
    """
    planned = plan_of(spec)
    with refusing():
        import pandas as pd

        from analysis.concept_plot import concept_plot
        from analysis.drawing import save
        from orchestrator.training import concept_study

        folder = results or Path("results") / planned.sweep.name
        found = list(concept_study.study(planned.trials, folder, data_folder(planned, data), images=images, t=t))
        places = {arm: place for place, arm in enumerate(planned.sweep.arms)}
        params = {trial.trial_id: trial.params_backbone for trial in planned.trials}
        found.sort(key=lambda row: (places.get(row.arm, len(places)), row.flops, row.size))
        if out is not None:
            drawn = sorted(found, key=lambda row: (places.get(row.arm, len(places)), params[row.trial_id]))
            save(concept_plot(pd.DataFrame([row.measured() for row in drawn])), out)
        if directions is not None:
            concept_study.save_directions(found, directions)
    if as_json:
        click.echo(json.dumps([row.measured() for row in found], indent=2))
        return
    click.echo("arm         size           FLOPs  separability  worst class")
    for row in found:
        click.echo(f"{row.arm:<11} {row.size:<10} {row.flops:>9.3g}  {row.mean:>12.3f}  {row.least:>11.3f}")


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} got {text!r}; wanted whole numbers above 0, as 64,128,256")
    return [int(part) for part in parts]
