"""Distances and losses of two workers, joined through gloo, are those of one, in batches of any size."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import pytest
import torch

from models.families import build
from models.objectives import build_objective
from orchestrator.planning.plan import make
from orchestrator.spec.trial import Distance, Trial
from orchestrator.training import reference
from orchestrator.training.data.procedural import FIRST_VALIDATION, render
from orchestrator.training.distance import Distances, distances_of, generated_features
from orchestrator.training.evaluation import Losses, fixed_draws, validation_losses
from orchestrator.training.gang import GangMember
from orchestrator.training.sampling import BLOCK, Generator

IMAGES = 300
DATASET = "procedural-16"


def small_trial() -> Trial:
    """A DiT of width 8 on 16 x 16 pixels."""
    trial = next(t for t in make(Path("sweeps/smoke.yaml")).trials if (t.arm, t.size) == ("mup", "w8"))
    evaluation = dataclasses.replace(
        trial.evaluation,
        distance=Distance(encoder="fmnist-cnn", images=IMAGES),
        sampler="ddpm", sampler_steps=3, guidance=1.0, loss_images=700,
    )  # fmt: skip
    model = dataclasses.replace(trial.model, image_size=16, patch=4, channels=3)
    return dataclasses.replace(trial, dataset=DATASET, model=model, evaluation=evaluation)


def measured(rank: int, world_size: int, folder: Path, batch: int) -> tuple[torch.Tensor, Distances, Losses]:
    """Features of generated images, their distances and the losses, as a worker of a gang of `world_size` gets them."""
    torch.set_num_threads(1)
    reference.IMAGES = 600  # what is compared does not depend on their number
    trial = small_trial()
    model = build(trial.model, trial.parameterization, 0).eval()
    generator_of_weights = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as initialised it gives zero whatever it is given
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator_of_weights))
    results = folder / f"{world_size}-{batch}"
    member = GangMember(rank=rank, world_size=world_size, device=torch.device("cpu"), results=results, data=folder)
    objective = build_objective(trial.objective)
    generator = Generator(model, objective, trial)
    generator.batch = batch
    encoder, real = member.encoder("fmnist-cnn"), member.real_images(DATASET, "fmnist-cnn")
    features = generated_features(generator, encoder, IMAGES, rank=rank, world_size=world_size)
    draws = fixed_draws(*render(torch.arange(700) + FIRST_VALIDATION, 16, 3), trial.evaluation)
    losses = validation_losses(model, objective, draws, rank, world_size)
    return features, distances_of(features, real, encoder.name, 0), losses


def second_worker(store: Path, folder: Path, batches: tuple[int, ...]) -> None:
    """Rank 1, in a process of its own."""
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=1, world_size=2)
    for batch in batches:
        measured(1, 2, folder, batch)
    torch.distributed.destroy_process_group()


def test_two_workers_measure_what_one_does(tmp_path):
    alone = measured(0, 1, tmp_path, 4 * BLOCK)
    batches, store = (BLOCK, 2 * BLOCK), tmp_path / "store"
    worker = multiprocessing.get_context("spawn").Process(target=second_worker, args=(store, tmp_path, batches))
    worker.start()
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=2)
    try:
        together = [measured(0, 2, tmp_path, batch) for batch in batches]
        worker.join(60)
    finally:
        torch.distributed.destroy_process_group()
        worker.kill()
    assert worker.exitcode == 0
    for features, distances, losses in together:
        assert torch.allclose(features, alone[0], rtol=1e-3, atol=1e-4)
        for column, value in alone[1].columns().items():
            wanted = value if not isinstance(value, float) else pytest.approx(value, rel=1e-3)
            assert distances.columns()[column] == wanted, column
        assert losses.mean == pytest.approx(alone[2].mean, rel=1e-12)
        assert losses.sd == pytest.approx(alone[2].sd, rel=1e-12)
