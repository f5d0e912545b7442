"""Training on a GPU: the step as a graph against DeepSpeed's, fp8 units against their rounding, batches that wait for
nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.configs.dit import DiTConfig
from models.float8 import product, rowwise
from orchestrator.bench.memory import Case, assignment_of, attempt_of, member_of, train, trial_of
from orchestrator.spec.datasets import DATASETS
from orchestrator.spec.trial import Stepping, Trial
from orchestrator.training import engine, sampling
from orchestrator.training.data.source import EndlessImages, HeldImages
from orchestrator.training.division import Alone
from orchestrator.training.flat import Layout
from orchestrator.training.flat_adamw import EagerUpdate, KernelUpdate, Move, Settings, Work
from orchestrator.training.packing import seated, step
from orchestrator.training.sampling import Generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODEL = DiTConfig(image_size=8, channels=4, num_classes=10, patch=2, width=64, depth=2, heads=2)
CASE = Case(size="small", model=MODEL, micro_batch=32)
FP32 = dataclasses.replace(CASE, precision="fp32", zero_stage=0)
STEPS = 12


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    engine.join(0, 1, "127.0.0.1", 0, use_gpu=True)
    yield torch.device("cuda", 0)
    engine.leave()


def trial(case: Case, seed: int = 0) -> Trial:
    found = trial_of(case, STEPS)
    return dataclasses.replace(found, seed=seed, optimizer=dataclasses.replace(found.optimizer, learning_rate=1e-3))


def packed(case: Case, device: torch.device, folder: Path, seeds: tuple[int, ...] = (0,), graph: bool = True):
    """The losses [steps, members] of members that differ in their seed, and their attempts."""
    stepping: Stepping = "graph" if graph else "flat"
    trials = [dataclasses.replace(trial(case, seed), stepping=stepping) for seed in seeds]
    pack, attempts = seated([assignment_of(one) for one in trials], member_of(case, device, folder))
    losses = []
    for _ in range(STEPS):
        losses.append(step(pack, attempts))
        for attempt in attempts:
            attempt.samples += case.micro_batch
    return torch.stack(losses), attempts


@pytest.mark.parametrize(("case", "tolerance"), [(FP32, 1e-4), (CASE, 5e-3)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_takes_the_steps_of_deepspeed(case, tolerance, compiled, device, tmp_path):
    case = dataclasses.replace(case, compiled=compiled)
    alone = attempt_of(case, STEPS, device, tmp_path)
    alone.trial = trial(case)
    alone.engine.close()
    alone.engine = alone._own_engine()
    expected = torch.stack(train(alone, STEPS))
    alone.engine.close()
    found, _ = packed(case, device, tmp_path)
    torch.testing.assert_close(found[:, 0], expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_members_of_a_pack_are_what_they_are_alone(compiled, device, tmp_path):
    case = dataclasses.replace(FP32, compiled=compiled)
    together, attempts = packed(case, device, tmp_path, seeds=(0, 1, 2))
    for place, seed in enumerate((0, 1, 2)):
        alone, (one,) = packed(case, device, tmp_path, seeds=(seed,), graph=False)
        torch.testing.assert_close(together[:, place], alone[:, 0], rtol=1e-4, atol=0)
        torch.testing.assert_close(attempts[place].ema.tensors, one.ema.tensors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("limits", [(None, None, None), (0.5, None, 1e4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_update_is_that_of_torch(dtype, limits, device):
    """Of three members that begin anywhere, and of one; several settings of a member, and one."""
    shapes = {"a": torch.Size([64, 48]), "b": torch.Size([7]), "c": torch.Size([33, 50])}
    settings = [
        [Settings(1e-2, 0.1, 1e-8), Settings(3e-3, 0.0, 1e-4), Settings(1e-2, 0.1, 1e-8)],
        [Settings(1e-1, 0.0, 1e-8)] * 3,
        [Settings(2e-2, 0.01, 1e-6), Settings(1e-2, 0.1, 1e-8), Settings(1e-2, 0.1, 1e-8)],
    ]
    for num in (3, 1):
        layout = Layout(shapes, num)
        wide, narrow = (
            work_of(layout, settings[:num], limits[:num], device, dtype, gradients)
            for gradients in (torch.float32, dtype)
        )
        eager, kernel = EagerUpdate(wide), KernelUpdate(narrow)
        for taken in range(1, 5):
            narrow.gradient.copy_(torch.randn(layout.size, device=device))
            wide.gradient.copy_(narrow.gradient)
            moves = [Move(rate, taken + row, 1.0 / taken) for row, rate in enumerate((1.0, 0.5, 0.7)[:num])]
            eager(moves)
            kernel(kernel.numbers(moves))
        for kind in ("masters", "averages"):
            for one, other in zip(layout.views(getattr(narrow, kind)), layout.views(getattr(wide, kind)), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for one, other in zip(layout.views(narrow.weights), layout.views(narrow.masters), strict=True):
            assert torch.equal(one, other.to(dtype))


def work_of(layout, settings, limits, device, dtype, gradients) -> Work:
    """Random weights in flat buffers, those of the forward pass in a `dtype`, gradients in another."""
    masters = torch.randn(layout.size, generator=torch.Generator(device).manual_seed(0), device=device)
    return Work(
        settings=settings, limits=limits, betas=(0.9, 0.99), division=Alone(layout), masters=masters,
        weights=masters if dtype == torch.float32 else masters.to(dtype),
        gradient=torch.zeros_like(masters, dtype=gradients),
        moments=(layout.zeros(device), layout.zeros(device)), averages=masters.clone(),
    )  # fmt: skip


def test_a_step_waits_for_nothing(device, tmp_path):
    attempt = attempt_of(CASE, STEPS, device, tmp_path)
    train(attempt, 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(attempt, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        attempt.engine.close()


def test_batches_of_images_on_the_host_are_those_of_images_on_the_gpu(device):
    images, labels = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8), torch.arange(50)
    here = HeldImages(images, labels, target=device)
    there = HeldImages(images.to(device), labels.to(device))
    on_cpu = HeldImages(images, labels)
    for samples in (0, 40, 96):  # the second and third end an epoch and begin the next
        batches = [data.batch(3, samples, 16, slice(4, 12)) for data in (here, there, on_cpu)]
        assert [x.device.type for x, _ in batches] == ["cuda", "cuda", "cpu"]
        (x, y), (x_there, y_there), (x_cpu, y_cpu) = batches
        assert torch.equal(x, x_there)
        assert torch.equal(y, y_there)
        torch.testing.assert_close(x.cpu(), x_cpu)  # a GPU divides otherwise
        assert torch.equal(y.cpu(), y_cpu)


def test_images_without_end_are_drawn_on_the_gpu_as_on_the_cpu_also_by_a_graph(device):
    here, there = (EndlessImages(DATASETS["procedural-16"], where) for where in (device, torch.device("cpu")))
    for samples in range(0, 320, 64):  # the fourth call is recorded
        walks = [(3, samples), (4, samples + 64)]
        drawn = (data.batches(walks, 64, slice(0, 64)) for data in (here, there))
        (x, y), (x_cpu, y_cpu) = drawn
        assert torch.equal(y.cpu(), y_cpu)
        assert ((x.cpu() - x_cpu).abs() > 1.5 / 127).float().mean() < 1e-3  # cosines differ by rounding


def test_what_generates_is_compiled_once_and_makes_the_images_of_what_is_not(device, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "COMPILING_PAYS_FROM", 0.0)
    case = dataclasses.replace(FP32, compiled=True)
    attempt = attempt_of(case, STEPS, device, tmp_path)
    with torch.no_grad():
        for parameter in attempt.measured_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images, compiled_before = [], torch._dynamo.utils.counters["stats"]["unique_graphs"]
    evaluation = dataclasses.replace(attempt.trial.evaluation, sampler="euler", sampler_steps=2, guidance=1.0)
    for compiled in (True, False):
        one = dataclasses.replace(attempt.trial, compiled=compiled, evaluation=evaluation)
        generator = Generator(attempt.measured_model, attempt.objective, one, beat=attempt.member.beat)
        images.append(generator.images(0, 64))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_before + 1
    assert attempt.member.beats == 2 * 2, "one a forward pass: what counts them is not compiled anew for each"
    assert (images[0] - images[1]).abs().mean() < 0.02
    attempt.engine.close()


def test_fp8_units_multiply_what_rounding_on_the_cpu_gives(device):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 96, generator=generator), torch.randn(48, 96, generator=generator)
    x, weight, bias = (one.bfloat16() for one in (x * torch.logspace(-3, 3, 64)[:, None], weight, torch.randn(48)))
    for one, other in zip(rowwise(x), rowwise(x.to(device)), strict=True):
        assert torch.equal(other.cpu().float(), one.float())
    found = product(x.to(device), weight.to(device), bias.to(device)).cpu().float()
    expected = product(x, weight, bias).float()
    assert (found - expected).norm() / expected.norm() < 0.01


def test_losses_in_fp8_follow_those_in_bf16(device, tmp_path):
    half, _ = packed(CASE, device, tmp_path)
    eighth, _ = packed(dataclasses.replace(CASE, precision="fp8"), device, tmp_path)
    torch.testing.assert_close(eighth, half, rtol=0.02, atol=0)
    assert not torch.equal(eighth, half)
