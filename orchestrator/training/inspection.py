"""Looking at what a trial has learned: the averaged model of a checkpoint, measured and sampled from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.families import undrawn
from models.objectives import build_objective
from models.parameterization import TaggedModule
from orchestrator.results.location import Location
from orchestrator.spec.datasets import default_folder
from orchestrator.spec.trial import Distance, Trial
from orchestrator.training.checkpoint import Checkpoint, Checkpoints
from orchestrator.training.data.pictures import grid_as
from orchestrator.training.distance import NotFinite, distances_of, generated_features
from orchestrator.training.evaluation import validation_losses
from orchestrator.training.gang import GangMember
from orchestrator.training.sampling import BLOCK, Generator


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint lies: `<results>/checkpoints/<trial>/<samples>`."""

    results: Path
    trial_id: str
    samples: int | None
    """None: the newest."""


def place_of(path: Path) -> Place:
    """The checkpoint that a path names: a folder of one, or of all of a trial, of which the newest counts.

    Raises:
        ValueError: the path is neither.
    """
    path = path.absolute()
    for folder, samples in ((path, None), (path.parent, path.name)):
        if folder.parent.name == "checkpoints" and folder.is_dir() and (samples is None or samples.isdigit()):
            return Place(
                results=folder.parent.parent, trial_id=folder.name, samples=None if samples is None else int(samples)
            )
    raise ValueError(
        f"{path} is no checkpoint; wanted RESULTS/checkpoints/TRIAL or RESULTS/checkpoints/TRIAL/SAMPLES, such as "
        "results/quickstart/checkpoints/7dcb54328c5e6f90/000000000069440"
    )


def averaged_model(
    trial: Trial, results: Location, samples: int | None = None, *, trained_as: str | None = None
) -> tuple[TaggedModule, int]:
    """The EMA model of a trial's checkpoint at `samples`, or of its newest, and its samples seen.

    `trained_as` is the id of the trial that was trained, where `trial` differs from it in how it is evaluated.

    Raises:
        ValueError: there is none.
    """
    trial_id = trained_as or trial.trial_id
    checkpoints = Checkpoints(results, trial_id)
    checkpoint: Checkpoint | None
    checkpoint = checkpoints.newest(at_most=2**62) if samples is None else checkpoints.at(samples)
    if checkpoint is None:
        raise ValueError(f"trial {trial_id} has no checkpoint in {results}; wanted one. Run the sweep first.")
    model = undrawn(trial.model, trial.parameterization)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensors[f"ema/{name}"])
    return model, checkpoint.samples


def evaluate(trial: Trial, place: Place, data: Path, distance: Distance | None, device: torch.device) -> dict[str, Any]:
    """The losses of a checkpoint, and its distances where `distance` is given, by the names of columns.

    Nothing is written but the encoder's reference, into the results folder. Images that are not finite leave a `reason`
    in place of distances.

    Raises:
        ValueError: the checkpoint or the encoder's weights are missing.
    """
    model, samples = averaged_model(trial, place.results, place.samples, trained_as=place.trial_id)
    model.equip(data)
    model = model.to(device)
    member = GangMember(rank=0, world_size=1, device=device, results=place.results, data=data)
    objective = build_objective(trial.objective)
    losses = validation_losses(model, objective, member.draws(trial.dataset, trial.evaluation))
    found: dict[str, Any] = {"trial_id": place.trial_id, "name": trial.name, "samples": samples}
    found |= {"loss": losses.mean, "loss_sd": losses.sd, "loss_by_time": list(losses.by_time)}
    if distance is None:
        return found
    encoder, real = member.encoder(distance.encoder), member.real_images(trial.dataset, distance.encoder)
    features = generated_features(Generator(model, objective, trial), encoder, distance.images)
    evaluation = trial.evaluation
    found |= {
        "sampler": evaluation.sampler, "sampler_steps": evaluation.sampler_steps, "guidance": evaluation.guidance,
    }  # fmt: skip
    try:
        return found | distances_of(features, real, encoder.name, evaluation.seed).columns()
    except NotFinite as error:
        return found | {"reason": str(error)}


def sample_picture(
    trial: Trial, place: Place, images: int, label: int | None, seed: int, device: torch.device, suffix: str
) -> tuple[bytes, int]:
    """A file of generated samples, one column a class, or all of class `label`; and the checkpoint's samples seen.

    It is a `suffix`: png of images, gif or mp4 of clips.

    Raises:
        ValueError: the checkpoint is missing, there is no such class, or no such file of these samples.
    """
    num_classes = trial.model.num_classes
    if label is not None and not 0 <= label < num_classes:
        raise ValueError(f"class {label} is not one of {trial.dataset}; wanted 0 to {num_classes - 1}")
    model, samples = averaged_model(trial, place.results, place.samples, trained_as=place.trial_id)
    model.equip(default_folder(trial.dataset))
    trial = dataclasses.replace(trial, evaluation=dataclasses.replace(trial.evaluation, seed=seed))
    generator = Generator(model.to(device), build_objective(trial.objective), trial, label)
    starts = range(0, images, BLOCK)
    made = torch.cat([generator.images(start, min(start + BLOCK, images)) for start in starts]).cpu()
    return grid_as(suffix, made, min(num_classes, images)), samples
