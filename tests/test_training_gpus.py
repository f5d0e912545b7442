"""Two GPUs of one host, joined through NCCL: the step over flat buffers, captured and not, is that of one GPU.

Both processes tell the same scenes in the same order; a scene that fails is found as its traceback. `cuda=False` tells
them through gloo, without graphs, so that the scenes themselves can be tried anywhere.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import queue
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from models.configs.dit import DiTConfig
from orchestrator.bench.gangs import seeing_one_gpu
from orchestrator.bench.memory import Case, assignment_of, member_of, train, trial_of
from orchestrator.spec.trial import Stepping
from orchestrator.training import engine
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import Attempt
from orchestrator.training.packing import seated, step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
MODEL = DiTConfig(image_size=16, channels=4, num_classes=10, patch=2, width=128, depth=4, heads=2)
BATCH, STEPS = 64, 12
PATIENCE = 120.0
"""Seconds for a scene."""


class Scene(NamedTuple):
    """A training of STEPS steps on two workers."""

    stepping: Stepping
    precision: str = "bf16"
    compiled: bool = True
    clip: float | None = None

    @property
    def tolerance(self) -> float:
        """Of a loss, relative."""
        return 1e-4 if self.precision == "fp32" else 5e-3


SCENES = {
    "deepspeed": Scene("deepspeed"),
    "flat": Scene("flat"),
    "flat, clipped": Scene("flat", clip=0.05),
    "flat, fp32": Scene("flat", "fp32"),
    "flat, fp32, not compiled": Scene("flat", "fp32", False, clip=0.05),
    "graph": Scene("graph"),
    "graph, clipped": Scene("graph", clip=0.05),
    "graph, fp32": Scene("graph", "fp32"),
    "graph, not compiled": Scene("graph", compiled=False),
}


class Found(NamedTuple):
    losses: list[float]
    peak_bytes: int
    state: dict[str, torch.Tensor]


def member_and_trial(scene: Scene, rank: int, world: int, device: torch.device, folder: Path):
    case = Case(
        size="small",
        model=MODEL,
        micro_batch=BATCH // world,
        num_workers=world,
        precision=scene.precision,
        zero_stage=0 if scene.precision == "fp32" else 1,
        compiled=scene.compiled,
    )
    trial = trial_of(case, STEPS)
    optimizer = dataclasses.replace(trial.optimizer, learning_rate=1e-3, gradient_clip=scene.clip)
    return member_of(case, device, folder, rank), dataclasses.replace(
        trial, optimizer=optimizer, stepping=scene.stepping
    )


def trained(member: GangMember, trial: Any, steps: int = STEPS, state: dict[str, torch.Tensor] | None = None) -> Found:
    """Some steps; with a state the last ones, that go on from it."""
    cuda = member.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if trial.stepping == "deepspeed":
        attempt = Attempt(assignment_of(trial), member)
        losses = train(attempt, steps)
        found = attempt.engine.state()
        attempt.engine.close()
    else:
        pack, (attempt,) = seated([assignment_of(trial)], member)
        if state is not None:
            attempt.samples = (STEPS - steps) * trial.batch_size
            attempt.engine.load_state(state)
        losses = []
        for _ in range(steps):
            losses.append(step(pack, [attempt]))
            attempt.samples += trial.batch_size
        found = attempt.engine.state()
        pack.close()
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return Found(member.mean(torch.stack(losses).flatten()).tolist(), peak, found)


def scenes(rank: int, cuda: bool, folder: Path) -> Iterator[tuple[str, Found | str]]:
    """What the first worker finds alone, and each on two workers."""
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if rank == 0:
        for name, scene in SCENES.items():
            if scene.stepping == "flat":
                yield f"{name}, alone", trained(*member_and_trial(scene, 0, 1, device, folder))
    for name, scene in SCENES.items():
        try:
            yield name, trained(*member_and_trial(scene, rank, 2, device, folder))
        except RuntimeError:  # of CUDA, NCCL and the allocator
            yield name, traceback.format_exc()
    half = trained(*member_and_trial(SCENES["flat"], rank, 2, device, folder), steps=STEPS // 2)
    yield "half of it", half
    if rank == 0:
        rest = member_and_trial(SCENES["flat"], 0, 1, device, folder)
        yield "the rest alone", trained(*rest, steps=STEPS - STEPS // 2, state=half.state)


def work(rank: int, port: int, cuda: bool, folder: Path, answer: Callable[[Any], None]) -> None:
    engine.join(rank, 2, "127.0.0.1", port, use_gpu=cuda)
    for name, found in scenes(rank, cuda, folder):
        if rank == 0:
            answer((name, found if isinstance(found, str) else (found.losses, found.peak_bytes)))
    engine.leave()
    if rank == 0:
        answer(None)


def tell(cuda: bool, folder: Path) -> dict[str, Any]:
    """Losses and peak of every scene, or its traceback; of a gang that stands still what came before."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [context.Process(target=work, args=(rank, port, cuda, folder, answers.put)) for rank in (0, 1)]
    for rank, worker in enumerate(workers):
        with seeing_one_gpu(rank):
            worker.start()
    found: dict[str, Any] = {}
    try:
        while (answer := answers.get(timeout=PATIENCE)) is not None:
            found[answer[0]] = answer[1]
        found["left"] = True
    except queue.Empty:
        found["left"] = False
    finally:
        for worker in workers:
            worker.kill()
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    return tell(True, tmp_path_factory.mktemp("gang"))


def losses(told: dict[str, Any], name: str) -> torch.Tensor:
    assert name in told, "the gang stood still before"
    assert not isinstance(told[name], str), told[name]
    return torch.tensor(told[name][0])


ALONE = {(scene.precision, scene.clip): f"{name}, alone" for name, scene in SCENES.items() if scene.stepping == "flat"}


@pytest.mark.parametrize("name", SCENES)
def test_two_gpus_have_the_losses_of_one(told, name):
    scene = SCENES[name]
    alone = losses(told, ALONE[scene.precision, scene.clip])
    torch.testing.assert_close(losses(told, name), alone, rtol=scene.tolerance, atol=0)


@pytest.mark.parametrize("name", ["graph", "graph, clipped", "graph, fp32"])
def test_a_captured_step_is_the_step(told, name):
    torch.testing.assert_close(losses(told, name), losses(told, name.replace("graph", "flat")), rtol=1e-4, atol=0)


def test_what_two_gpus_began_one_ends(told):
    half = STEPS // 2
    joined = torch.cat([losses(told, "half of it"), losses(told, "the rest alone")])
    torch.testing.assert_close(joined, losses(told, "flat, alone"), rtol=SCENES["flat"].tolerance, atol=0)
    assert len(joined) == 2 * half


def test_a_gang_is_left_after_its_graphs(told):
    assert told["left"]


def test_two_gpus_need_less_memory_each_than_one(told):
    assert told["flat"][1] < told["flat, alone"][1]
    assert told["graph"][1] < 1.5 * told["flat"][1]
