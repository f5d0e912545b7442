"""Commands that look at what was learned and how well it is known: `eval`, `sample`, `encoders`, `noise`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.refusals import Refused, refusing
from orchestrator.cli.sweeps import data_folder, plan_of, results_of

if TYPE_CHECKING:
    import torch

    from orchestrator.planning.plan import Plan
    from orchestrator.spec.trial import Trial
    from orchestrator.training.inspection import Place

CHECKPOINT = click.argument("checkpoint", type=click.Path(path_type=Path))
SPEC = click.option("--spec", type=click.Path(path_type=Path), help="The sweep's spec; default: as plan.json names it.")
SAMPLER = click.option("--sampler", help="Another sampler than the sweep's.")
STEPS = click.option("--steps", type=click.IntRange(min=1), help="Another number of its steps.")
GUIDANCE = click.option("--guidance", type=click.FloatRange(min=1), help="Another guidance scale; 1 is none.")


@click.command("eval")
@CHECKPOINT
@click.option("--encoder", help="Measure distances under this encoder; default: the sweep's, if it has one.")
@click.option("--images", type=click.IntRange(min=24), help="Images of the distance; default: the sweep's, or 2000.")
@SAMPLER
@STEPS
@GUIDANCE
@SPEC
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; default: data/<dataset>.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    checkpoint: Path, encoder: str | None, images: int | None, sampler: str | None, steps: int | None,
    guidance: float | None, spec: Path | None, data: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure CHECKPOINT: losses, and distances of the images it generates. Results are not changed.

    \b
    ditlaw eval results/quickstart/checkpoints/TRIAL --encoder fmnist-cnn --images 2000
    """
    from models.fid.catalog import ENCODERS
    from orchestrator.spec.trial import Distance

    if encoder is not None and encoder not in ENCODERS:
        raise Refused(f"no encoder {encoder!r}; known are {', '.join(ENCODERS)}. Correct --encoder.")
    planned, trial, place = _found(checkpoint, spec, sampler, steps, guidance)
    own = trial.evaluation.distance
    name = encoder or (own.encoder if own else None)
    distance = Distance(encoder=name, images=images or (own.images if own else 2000)) if name else None  # type: ignore[arg-type]
    with refusing():
        from orchestrator.training.inspection import evaluate

        found = evaluate(trial, place, data_folder(planned, data), distance, _device())
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for column, value in found.items():
        if value is not None:
            click.echo(f"{column:{width}}  {_shown(value)}")


@click.command()
@CHECKPOINT
@click.option("--class", "label", type=int, help="Only of this class; default: one column a class.")
@click.option("--images", default=40, show_default=True, type=click.IntRange(1, 10_000), help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of their noise.")
@SAMPLER
@STEPS
@GUIDANCE
@SPEC
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Where to write: .png; of clips .gif or .mp4."
)
def sample(
    checkpoint: Path, label: int | None, images: int, seed: int, sampler: str | None, steps: int | None,
    guidance: float | None, spec: Path | None, out: Path,
) -> None:  # fmt: skip
    """Generate images from CHECKPOINT.

    \b
    ditlaw sample results/quickstart/checkpoints/TRIAL --class 3 --guidance 2 -o grid.png
    """
    _, trial, place = _found(checkpoint, spec, sampler, steps, guidance)
    with refusing():
        from orchestrator.results.atomic import write_bytes
        from orchestrator.training.inspection import sample_picture

        suffix = out.suffix.removeprefix(".").lower()
        picture, samples = sample_picture(trial, place, images, label, seed, _device(), suffix)
        write_bytes(out, picture)
    click.echo(f"{images} images of {trial.name} at {samples:,} samples: {out}")


@click.group()
def encoders() -> None:
    """What generated and real images are compared by.

    \b
    ditlaw encoders list
    ditlaw encoders train fmnist-cnn -o fmnist_cnn.safetensors
    """


@encoders.command("list")
def encoders_list() -> None:
    """List the encoders, and whether their weights are here."""
    from models.fid.catalog import ENCODERS
    from orchestrator.spec.datasets import default_folder
    from orchestrator.training.gang import encoders_folder

    folder = encoders_folder(default_folder("any").parent)
    for facts in ENCODERS.values():
        path = folder / facts.file
        here = "shipped" if facts.input else "here" if path.exists() else f"wanted as {path}"
        click.echo(f"{facts.name:11} {facts.dim:5} features, {facts.flops:.2g} FLOPs an image; {here}")
        click.echo(f"            {facts.published}" + (f", SHA-256 {facts.sha256}" if facts.sha256 else ""))


@encoders.command("train")
@click.argument("name", type=click.Choice(["fmnist-cnn", "shapes-cnn", "moving-cnn"]))
@click.option("--epochs", default=30, show_default=True, type=click.IntRange(min=1), help="Of 60,000 images each.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of its images; default: data/<dataset>.")
@click.option("--from", "start", type=click.Path(path_type=Path, exists=True), help="Go on from these weights.")
@click.option("--seed", default=0, show_default=True, help="Of the first weights and the order of images.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where to write the weights.")
def encoders_train(name: str, epochs: int, data: Path | None, start: Path | None, seed: int, out: Path) -> None:
    """Train the encoder NAME as the weights that come with ditlaw were (docs/evaluation.md): fmnist-cnn on
    Fashion-MNIST, shapes-cnn on procedural images, moving-cnn on procedural clips.

    A minute or two of one core an epoch, or a few seconds on a GPU.

    \b
    ditlaw encoders train fmnist-cnn -o fmnist_cnn.safetensors
    """
    from orchestrator.spec.datasets import default_folder

    with refusing():
        from models.fid.encoders import file_digest
        from orchestrator.training.encoder_training import RECIPES, train

        folder = data or default_folder(RECIPES[name].dataset)
        for epoch in train(name, folder, out, epochs, start=start, device=_device(), seed=seed):
            click.echo(f"epoch {epoch.number}: loss {epoch.loss:.3f}, test accuracy {epoch.accuracy:.2%}")
        click.echo(f"{out}: SHA-256 {file_digest(out)}")


@click.command()
@click.argument("sweep")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def noise(sweep: str, as_json: bool) -> None:
    """How much the measurements of SWEEP scatter between seeds, milestones and images; kept as noise.json beside them.

    The first two are `expect.seed_noise` and `expect.measurement_noise` of the next sweep's spec.

    \b
    ditlaw noise quickstart
    """
    folder = results_of(sweep)
    with refusing():
        from analysis.noise import estimate_noise
        from orchestrator.results.store import read_measurements, write_json

        found = [dataclasses.asdict(estimate) for estimate in estimate_noise(read_measurements(folder))]
        write_json(folder / "noise.json", {"relative_sd": found})
    if as_json:
        click.echo(json.dumps(found))
        return
    for estimate in found:
        known = {name: value for name, value in estimate.items() if isinstance(value, float)}
        told = ", ".join(f"{name} {value:.2%}" for name, value in known.items()) or "not told by this table"
        click.echo(f"{estimate['quantity']}: {told} ({estimate['degrees_of_freedom']} degrees of freedom)")


def _found(
    checkpoint: Path, spec: Path | None, sampler: str | None, steps: int | None, guidance: float | None
) -> tuple[Plan, Trial, Place]:
    """The plan, trial and place of a checkpoint, its sampling changed as asked."""
    with refusing():
        from orchestrator.training.inspection import place_of

        place = place_of(checkpoint)
    planned = plan_of(spec or _spec_of(place.results))
    trials = [trial for trial in planned.trials if trial.trial_id == place.trial_id]
    if not trials:
        raise Refused(
            f"trial {place.trial_id} is not in the plan of {planned.source.path}: the spec has changed since, or is "
            "another one. Give the spec that it was run with as --spec."
        )
    from models.samplers import SAMPLERS

    usable = [name for name in SAMPLERS if name != "dpm-v3"]
    if sampler is not None and sampler not in usable:
        raise Refused(f"no sampler {sampler!r}; wanted one of {', '.join(usable)}")
    given: dict[str, Any] = {"sampler": sampler, "sampler_steps": steps, "guidance": guidance}
    changes = {name: value for name, value in given.items() if value is not None}
    evaluation = dataclasses.replace(trials[0].evaluation, **changes)
    return planned, dataclasses.replace(trials[0], evaluation=evaluation), place


def _spec_of(results: Path) -> Path:
    path = results / "plan.json"
    try:
        spec = Path(json.loads(path.read_text())["spec_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} cannot be read ({error}); give the sweep's spec as --spec") from None
    if not spec.is_file():
        raise Refused(f"the spec of these results, {spec}, is gone; give it as --spec")
    return spec


def _device() -> torch.device:
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join("-" if item is None else f"{item:.4g}" for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
