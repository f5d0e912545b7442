"""Distances at milestones: the same whoever makes which image, resumed where they were killed, and divergence told."""

from __future__ import annotations

import copy
import dataclasses
import errno
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from models.families import build
from models.objectives import build_objective
from orchestrator.bench import evaluation as study
from orchestrator.planning.plan import make
from orchestrator.results.outbox import AT_ONCE
from orchestrator.results.partials import partials_folder, read_partials, write_partial
from orchestrator.results.store import read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.datasets import DATASETS
from orchestrator.spec.trial import Distance, Trial
from orchestrator.training import distance as distance_file
from orchestrator.training import gang, reference
from orchestrator.training.distance import NotFinite, distances_of, generated_features
from orchestrator.training.gang import GangMember
from orchestrator.training.inspection import evaluate, place_of, sample_picture
from orchestrator.training.loop import run_attempt
from orchestrator.training.measuring import Meter
from orchestrator.training.reference import real_images
from orchestrator.training.sampling import BLOCK, Generator

IMAGES = 300


@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    """References of 500 images: what is tested here does not depend on their number."""
    monkeypatch.setattr(reference, "IMAGES", 500)


@pytest.fixture(scope="module")
def trial() -> Trial:
    """The smallest trial of the smoke sweep, with a distance of 300 images in two steps at its one milestone."""
    smoke = next(t for t in make(Path("sweeps/smoke.yaml")).trials if (t.arm, t.size) == ("mup", "w8"))
    distance = Distance(encoder="fmnist-cnn", images=IMAGES, most_of_training=1e9)
    evaluation = dataclasses.replace(
        smoke.evaluation, distance=distance, sampler="ddpm", sampler_steps=2, guidance=1.0, loss_images=64
    )
    return dataclasses.replace(smoke, evaluation=evaluation, milestones=smoke.milestones[:1], budgets=(None,))


@pytest.fixture(scope="module")
def model(trial) -> nn.Module:
    """Not as initialised: there it gives zero whatever it is given."""
    model = build(trial.model, trial.parameterization, 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def member(group, tmp_path) -> GangMember:
    return GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path / "results", data=group)


def generator_of(trial: Trial, model: nn.Module) -> Generator:
    return Generator(model, build_objective(trial.objective), trial)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m"])
def test_an_image_does_not_depend_on_its_batch(trial, model, sampler):
    evaluation = dataclasses.replace(trial.evaluation, sampler=sampler)
    generator = generator_of(dataclasses.replace(trial, evaluation=evaluation), model)
    together = generator.images(0, 3 * BLOCK)
    apart = torch.cat([generator.images(start, start + BLOCK) for start in (0, BLOCK, 2 * BLOCK)])
    assert torch.allclose(together, apart, atol=1e-4)
    assert torch.allclose(generator.images(BLOCK, BLOCK + 7), together[BLOCK : BLOCK + 7], atol=1e-4)
    assert together.flatten(1).std(dim=0).min() > 0.01


def test_features_do_not_depend_on_the_size_of_batches(trial, model, member):
    generator, encoder = generator_of(trial, model), member.encoder("fmnist-cnn")
    whole = generated_features(generator, encoder, 100)
    generator.batch = BLOCK
    assert torch.allclose(generated_features(generator, encoder, 100), whole, rtol=1e-3, atol=1e-4)


def test_a_killed_evaluation_goes_on_where_it_was(trial, model, member, monkeypatch, tmp_path):
    monkeypatch.setattr(distance_file, "PARTIAL_SECONDS", 0.0)
    generator, encoder = generator_of(trial, model), member.encoder("fmnist-cnn")
    generator.batch = BLOCK
    undisturbed = generated_features(generator, encoder, IMAGES)
    folder = partials_folder(tmp_path, trial.trial_id, 64)

    def put_two(data: bytes) -> None:
        if len(list(read_partials(folder))) == 2:
            raise KeyboardInterrupt
        write_partial(folder, data)

    with pytest.raises(KeyboardInterrupt):
        generated_features(generator, encoder, IMAGES, folder=folder, put=put_two, fingerprint="a")
    write_partial(folder, b"cut off")
    made = []
    images = generator.images
    generator.images = lambda start, stop: made.append(start) or images(start, stop)
    resumed = generated_features(generator, encoder, IMAGES, folder=folder, fingerprint="a")
    assert made == [2 * BLOCK, 3 * BLOCK, 4 * BLOCK]
    assert torch.equal(resumed, undisturbed)
    made.clear()
    generated_features(generator, encoder, IMAGES, folder=folder, fingerprint="other weights")
    assert len(made) == 5


def test_a_measurement_has_its_distances_and_eval_finds_them_again(trial, member):
    assignment = Assignment(
        trial=trial,
        attempt=0,
        gang="gang-0",
        milestones=trial.milestones,
        samples_spent=0,
        checkpoint_seconds=1e9,
        mlflow_run_id=None,
    )
    assert run_attempt(assignment, member) == ("completed", None)
    (row,) = read_measurements(member.results).to_dict("records")
    assert row["fd"] > 0
    assert math.isnan(row["fid"])  # of Inception only
    assert (row["fd_encoder"], row["eval_samples"], row["sampler"], row["sampler_steps"]) == (
        "fmnist-cnn", IMAGES, "ddpm", 2,
    )  # fmt: skip
    assert row["fd_encoder_digest"] == member.encoder("fmnist-cnn").digest
    assert row["fd_inf_low"] < row["fd_inf"] < row["fd_inf_high"]
    assert row["fd_inf"] < row["fd"]
    assert 0 < row["fd_sd"] < row["fd"]
    assert row["kid"] > 0
    assert row["loss_draws"] == 64 * trial.evaluation.loss_draws
    assert 0 < row["loss_sd"] < row["loss"]
    assert np.mean([loss for loss in row["loss_by_time"] if loss is not None]) == pytest.approx(row["loss"], rel=0.1)
    assert not partials_folder(member.results, trial.trial_id, trial.milestones[0]).exists()

    place = place_of(member.results / "checkpoints" / trial.trial_id)
    found = evaluate(trial, place, member.data, trial.evaluation.distance, member.device)
    for column in ("loss", "fd", "kid", "fd_inf", "samples"):
        assert found[column] == row[column], column
    sampled = study.run(
        SimpleNamespace(trials=[trial], sweep=SimpleNamespace(name="smoke")), member.results, member.data,
        images=250, checkpoints=5, encoder="fmnist-cnn", device=member.device,
        right=study.Protocol("ddpm", 3, other_noise=True), protocols=[study.Protocol("euler", 1)],
    )  # fmt: skip
    right, cheap = sampled
    assert (right["other_noise"], right["sampler"], cheap["sampler"], cheap["steps"]) == (True, "ddpm", "euler", 1)
    assert right["loss"] == row["loss"]
    assert right["training_flops"] == trial.flops_per_sample * trial.milestones[-1]
    assert [(figures["images"], len(figures["fd"])) for figures in cheap["by_images"]] == [(100, 2), (250, 1)]

    png, samples = sample_picture(trial, place, images=12, label=3, seed=1, device=member.device, suffix="png")
    assert png.startswith(b"\x89PNG")
    assert samples == trial.milestones[0]
    with pytest.raises(ValueError, match="class 10 is not one of fashion-mnist; wanted 0 to 9"):
        sample_picture(trial, place, images=1, label=10, seed=1, device=member.device, suffix="png")
    with pytest.raises(ValueError, match="is no checkpoint; wanted RESULTS/checkpoints/TRIAL"):
        place_of(member.results)


def test_images_that_are_not_finite_are_the_trials_outcome(trial, member, model):
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x, t, y):
            out = self.model(x, t, y)
            return torch.where((y == 3)[:, None, None, None] & (t > 0.99)[:, None, None, None], torch.nan, out)

    meter = Meter(trial, member, build_objective(trial.objective), Broken(), AT_ONCE)
    found = meter.measure(trial.milestones[0], lambda write: write())
    assert found.distances is None
    assert found.failure is not None
    assert found.failure.endswith(f"of {IMAGES} generated images are not finite at {trial.milestones[0]} samples")


def test_other_weights_than_the_results_are_refused(trial, member, tmp_path):
    encoder = member.encoder("fmnist-cnn")
    data, dataset = member.training_data("fashion-mnist"), DATASETS["fashion-mnist"]
    first = real_images(data, dataset, encoder, tmp_path)
    again = real_images(data, dataset, encoder, tmp_path)
    assert torch.equal(first.reference.factor, again.reference.factor)
    assert first.reference.moments.count == 500
    other = dataclasses.replace(encoder, digest="0" * 64)
    with pytest.raises(ValueError, match="were measured with other weights of encoder fmnist-cnn"):
        real_images(data, dataset, other, tmp_path)


def test_a_reference_waits_for_room_on_the_disk(trial, member, tmp_path, monkeypatch):
    refusals, write = [OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full")], reference.write_bytes

    def sometimes(path: Path, data: bytes) -> None:
        if refusals:
            raise refusals.pop()
        write(path, data)

    monkeypatch.setattr(reference, "write_bytes", sometimes)
    monkeypatch.setattr(gang, "AGAIN_SECONDS", 0.01)
    before = member.beats
    member.real_images("fashion-mnist", "fmnist-cnn")
    assert refusals == []
    assert member.beats > before + 2
    assert len(list((member.results / "references").glob("*.safetensors"))) == 1


def test_a_damaged_reference_is_made_again(trial, member, tmp_path):
    data, dataset = member.training_data("procedural-16"), DATASETS["procedural-16"]
    first = real_images(data, dataset, member.encoder("fmnist-cnn"), tmp_path)
    (path,) = (tmp_path / "references").iterdir()
    path.write_bytes(b"cut off")
    again = real_images(data, dataset, member.encoder("fmnist-cnn"), tmp_path)
    assert torch.equal(first.reference.moments.scatter, again.reference.moments.scatter)


def test_fewer_images_than_features_are_warned_about(caplog, trial, member, tmp_path):
    data, dataset = member.training_data("fashion-mnist"), DATASETS["fashion-mnist"]
    real = real_images(data, dataset, member.encoder("fmnist-cnn"), tmp_path)
    found = distances_of(real.pool[:40], real, "fmnist-cnn", 0)
    assert "40 images for a Frechet distance of 64 features" in caplog.text
    assert found.fd_inf < found.frechet
    with pytest.raises(NotFinite, match="1 of 40 generated images are not finite"):
        distances_of(torch.cat([real.pool[:39], torch.full((1, 64), math.nan)]), real, "fmnist-cnn", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_images_of_a_gpu_are_those_of_a_cpu_to_the_digits_of_bf16(trial, model, compiled):
    """In bf16, in batches of 1,024, of which the second has places left over."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    evaluation = dataclasses.replace(trial.evaluation, sampler="dpmpp-2m", sampler_steps=10)
    trial = dataclasses.replace(trial, evaluation=evaluation, compiled=compiled)
    wanted = torch.cat([generator_of(trial, model).images(s, s + 64) for s in (0, 1024)])
    on_gpu = generator_of(trial, copy.deepcopy(model).cuda())
    assert on_gpu.batch == 1024
    first, second = on_gpu.images(0, 1024), on_gpu.images(1024, 1100)
    assert second.shape[0] == 76
    found = torch.cat([first[:64], second[:64]]).cpu()
    assert found.dtype == torch.float32
    assert (found - wanted).abs().mean() < 0.01 * wanted.abs().mean()
