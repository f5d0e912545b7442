"""`ditlaw bench memory`: peak memory and speed of training steps, measured beside what planning's model says.

Every case is a real Attempt on synthetic images: engine, EMA and the model that evaluation runs are what a trial has.
"""

from __future__ import annotations

import gc
import logging
import platform
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.config import SP, RectifiedFlow, preset
from models.configs.base import ModelConfig
from models.configs.dit import DiTConfig
from models.cost import cost
from orchestrator.planning.memory import memory
from orchestrator.results.location import Location
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.trial import ConstantSchedule, Evaluation, Optimizer, PowerEma, Precision, Trial
from orchestrator.training import engine
from orchestrator.training.data.source import HeldImages
from orchestrator.training.evaluation import BATCH, fixed_draws, validation_losses
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import Attempt

log = logging.getLogger(__name__)

GIB = 2**30
WARM_STEPS = 3
"""Steps before the clock starts: the first makes the optimizer's state, kernels are chosen in the next."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration, as each worker has it."""

    size: str
    model: ModelConfig
    micro_batch: int
    precision: Precision = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    activation_checkpointing: bool = False
    offload: bool = False
    micro_steps: int = 1
    compiled: bool = False
    num_workers: int = 1

    @property
    def name(self) -> str:
        """A short name for people."""
        times = f"x{self.micro_steps}" if self.micro_steps > 1 else ""
        options = " ckpt" * self.activation_checkpointing + " offload" * self.offload
        return f"{self.size} {self.micro_batch}{times} {self.precision} ZeRO-{self.zero_stage}{options}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one case needed. Bytes are of tensors, without what was there before the case; None where not measured."""

    case: Case
    modelled_training_bytes: int
    modelled_held_bytes: int
    modelled_evaluation_bytes: int
    error: str | None = None
    """Why nothing was measured: it ran out of memory, or failed."""
    training_bytes: int | None = None
    evaluation_bytes: int | None = None
    held_bytes: int | None = None
    """What is held between two steps."""
    reserved_bytes: int | None = None
    """The most that torch's allocator held during training; of the whole process."""
    baseline_bytes: int | None = None
    """What was there before the case."""
    images_per_second: float | None = None

    @property
    def ratio(self) -> float | None:
        """Modelled over measured peak of training."""
        return self.modelled_training_bytes / self.training_bytes if self.training_bytes else None

    @property
    def flops_per_second(self) -> float | None:
        """Training FLOP/s; what checkpointing computes twice is counted once."""
        return self.images_per_second * cost(self.case.model).training_flops if self.images_per_second else None

    def as_json(self) -> dict[str, Any]:
        """Raw figures, flat."""
        case = {key: value for key, value in asdict(self.case).items() if key != "model"}
        figures = {key: value for key, value in asdict(self).items() if key != "case"}
        more = {"params": cost(self.case.model).params_total, "flops_per_second": self.flops_per_second}
        return {**case, **figures, **more, "ratio": self.ratio}


def cases(cuda: bool) -> list[Case]:
    """The cases of a device: the DiT sizes with patch 2 on 32 x 32 x 4 latents on CUDA, a tiny model elsewhere."""
    if not cuda:
        model = DiTConfig(image_size=8, channels=1, num_classes=3, patch=4, width=16, depth=2, heads=2)
        tiny = Case(size="tiny", model=model, micro_batch=4, precision="fp32", zero_stage=0)
        return [tiny, replace(tiny, micro_steps=2, zero_stage=2, activation_checkpointing=True, offload=True)]
    of_size = {name: Case(size=name, model=preset(name), micro_batch=1) for name in ("S/2", "B/2", "L/2", "XL/2")}
    batches = {"S/2": (32, 128, 512), "B/2": (32, 128, 256), "L/2": (16, 64, 128), "XL/2": (8, 32, 128)}
    found = []
    for size, sizes in batches.items():
        small, middle, large = (replace(of_size[size], micro_batch=batch) for batch in sizes)
        found += [small, middle, large]
        found += [replace(middle, zero_stage=2), replace(middle, zero_stage=3)]
        found += [replace(large, activation_checkpointing=True)]
    small, xl = replace(of_size["S/2"], micro_batch=128), replace(of_size["XL/2"], micro_batch=8)
    fp32 = replace(small, precision="fp32", zero_stage=0)
    found += [replace(fp32, micro_batch=32), fp32, replace(fp32, activation_checkpointing=True)]
    found += [replace(small, micro_steps=4), replace(xl, micro_steps=4), replace(xl, micro_steps=4, zero_stage=2)]
    found += [replace(xl, activation_checkpointing=True)]
    found += [replace(of_size["L/2"], micro_batch=16, zero_stage=stage, offload=True) for stage in (2, 3)]
    return found


def measure(chosen: Sequence[Case], steps: int, device: torch.device) -> Iterator[Outcome]:
    """Run the cases one after the other, each `steps` timed steps, in this process.

    One that runs out of memory, or fails, is an outcome with an error, and the next one runs.
    """
    with alone_in_a_gang(device), tempfile.TemporaryDirectory() as folder:
        _warm_up(device)
        for case in chosen:
            yield _outcome(case, steps, device, Path(folder))


@contextmanager
def alone_in_a_gang(device: torch.device) -> Iterator[None]:
    """This process as the only worker of a gang."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine.join(0, 1, "127.0.0.1", port, use_gpu=device.type == "cuda")
    try:
        yield
    finally:
        engine.leave()


def environment(device: torch.device) -> dict[str, Any]:
    """The device and the versions that the figures belong to."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "python": platform.python_version(),
    }


def _warm_up(device: torch.device) -> None:
    """Let the libraries take what they keep, so that it is not counted as the first case's."""
    if device.type == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(512, 512, device=device, dtype=dtype, requires_grad=True)
            (x @ x).sum().backward()
        torch.distributed.all_reduce(torch.ones(1, device=device))
        torch.cuda.synchronize(device)


class Synthetic(GangMember):
    """A worker whose dataset is random bytes of the model's shape."""

    images: Tensor
    labels: Tensor

    def training_data(self, name: str) -> HeldImages:
        return HeldImages(self.images.to(self.device), self.labels.to(self.device))


def _outcome(case: Case, steps: int, device: torch.device, folder: Path) -> Outcome:
    modelled = memory(
        case.model,
        micro_batch=case.micro_batch,
        micro_steps=case.micro_steps,
        precision=case.precision,
        zero_stage=case.zero_stage,
        num_workers=1,
        activation_checkpointing=case.activation_checkpointing,
        offload=case.offload,
    )
    expected = Outcome(
        case=case,
        modelled_training_bytes=modelled.training,
        modelled_held_bytes=modelled.held,
        modelled_evaluation_bytes=modelled.held + modelled.evaluation,
    )
    baseline = _settle(device)
    try:
        figures: dict[str, Any] = _run(case, steps, device, folder, baseline)
    except torch.OutOfMemoryError as error:
        figures = {"error": f"out of memory: {str(error).splitlines()[0]}"}
    except Exception as error:  # one case must not end the others
        log.exception("%s failed", case.name)
        figures = {"error": f"{type(error).__name__}: {error}"}
    return replace(expected, baseline_bytes=baseline, **figures)


def _settle(device: torch.device) -> int | None:
    """Free what the last case left; returns the bytes of tensors that are still there."""
    gc.collect()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def _run(case: Case, steps: int, device: torch.device, folder: Path, baseline: int | None) -> dict[str, Any]:
    """Train and evaluate; figures of `Outcome`."""
    attempt = attempt_of(case, WARM_STEPS + steps, device, folder)
    try:
        _train(attempt, WARM_STEPS, device)
        seconds = _train(attempt, steps, device)
        figures: dict[str, Any] = {"images_per_second": steps * attempt.trial.batch_size / seconds}
        if baseline is not None:
            figures["held_bytes"] = torch.cuda.memory_allocated(device) - baseline
            figures["training_bytes"] = torch.cuda.max_memory_allocated(device) - baseline
            figures["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
            torch.cuda.reset_peak_memory_stats(device)
        assert isinstance(attempt.data, HeldImages), "synthetic"
        draws = fixed_draws(attempt.data.images, attempt.data.labels, attempt.trial.evaluation)
        validation_losses(attempt.measured_model, attempt.objective, draws)
        if baseline is not None:
            figures["evaluation_bytes"] = torch.cuda.max_memory_allocated(device) - baseline
        return figures
    finally:
        attempt.engine.close()


def attempt_of(case: Case, steps: int, device: torch.device, folder: Path, rank: int = 0) -> Attempt:
    """An attempt of a trial of `steps` steps on synthetic images, on one worker; it writes to `folder`."""
    return Attempt(assignment_of(trial_of(case, steps)), member_of(case, device, folder, rank))


def train(attempt: Attempt, steps: int) -> list[Tensor]:
    """The mean losses of some steps, not waited for."""
    losses = []
    for _ in range(steps):
        losses.append(attempt.step())
        attempt.samples += attempt.trial.batch_size
    return losses


def _train(attempt: Attempt, steps: int, device: torch.device) -> float:
    """Seconds of some steps, whose peak of memory is then known to torch."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    train(attempt, steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def member_of(case: Case, device: torch.device, folder: Location, rank: int = 0) -> Synthetic:
    """A worker of a gang, with synthetic images of the case's shape."""
    model = case.model
    generator = torch.Generator().manual_seed(0)
    num = max(BATCH, case.micro_batch * case.micro_steps * case.num_workers)
    member = Synthetic(rank=rank, world_size=case.num_workers, device=device, results=folder, data=Path())
    shape = (num, *model.shape)
    member.images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    member.labels = torch.randint(0, model.num_classes, (num,), generator=generator)
    return member


def trial_of(case: Case, steps: int) -> Trial:
    """A trial of `steps` steps."""
    size, batch = cost(case.model), case.micro_batch * case.micro_steps * case.num_workers
    return Trial(
        dataset="synthetic",
        model=case.model,
        parameterization=SP(),
        objective=RectifiedFlow(),
        optimizer=Optimizer(learning_rate=1e-4),
        schedule=ConstantSchedule(warmup_samples=0),
        ema=PowerEma(relative_std=0.1),
        batch_size=batch,
        seed=0,
        precision=case.precision,
        zero_stage=case.zero_stage,
        evaluation=Evaluation(
            loss_images=BATCH, loss_draws=1, sample_images=0, sampler="euler", sampler_steps=1, guidance=1.0
        ),
        sweep="bench",
        arm="memory",
        size=case.size,
        milestones=(batch * steps,),
        budgets=(None,),
        num_workers=case.num_workers,
        micro_batch=case.micro_batch,
        activation_checkpointing=case.activation_checkpointing,
        offload=case.offload,
        compiled=case.compiled,
        flops_per_sample=size.training_flops,
        params_total=size.params_total,
        params_backbone=size.params_backbone,
        params_matmul=size.params_matmul,
    )


def assignment_of(trial: Trial) -> Assignment:
    """The first attempt of a trial."""
    return Assignment(
        trial=trial,
        attempt=0,
        gang="bench",
        milestones=trial.milestones,
        samples_spent=0,
        checkpoint_seconds=float("inf"),
        mlflow_run_id=None,
    )
