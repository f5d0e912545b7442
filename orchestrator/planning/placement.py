"""What a trial needs of the machines: the gang, the ZeRO stage and the micro-batch that fit, and how long it takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.configs.base import ModelConfig
from models.cost import Precision
from orchestrator.planning.devices import (
    GPUS,
    LEAST_STEP_SECONDS,
    OFFLOAD_WORK,
    ZERO_WORK,
    Device,
    training_flops_per_second,
)
from orchestrator.planning.evaluation import evaluation_seconds, generation_bytes_of
from orchestrator.planning.memory import EVALUATION_BATCH, Memory, flat_memory, memory
from orchestrator.spec.trial import Trial

ZeroStage = Literal[0, 1, 2, 3]

GIB = 2**30
MARGIN = 0.1
"""Share of a device's memory that is left free: for fragments of the allocator, and for what the model has wrong."""
CHECKPOINT_BYTES_PER_PARAM = 16
"""fp32 weights, two Adam moments and the EMA."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A training that wants a place."""

    name: str
    """For messages."""
    model: ModelConfig
    batch_size: int
    evaluation_batch: int = EVALUATION_BATCH
    """Images of one forward pass of the validation loss."""
    generation_bytes: int = 0
    """Of generating images and encoding them in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a place may be. None leaves the choice to `place`."""

    max_workers: int = 1
    num_workers: int | None = None
    """Workers of the gang, whatever `max_workers` says."""
    zero_stage: ZeroStage | None = None
    micro_batch: int | None = None
    activation_checkpointing: bool | None = None
    offload: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a training runs."""

    num_workers: int
    zero_stage: ZeroStage
    micro_batch: int
    activation_checkpointing: bool
    offload: bool
    memory: Memory
    """Of each worker."""


def place(wish: Wish, *, precision: Precision, device: Device, limits: Limits) -> Placement:
    """The first place that fits, tried in this order: without offload before with it (the optimizer's step on the host
    is slow), then small gangs before large ones, low ZeRO stages before high ones, without activation checkpointing
    before with it, and large micro-batches before small ones.

    A place fits if the workers divide the batch, fill whole nodes where one does not hold them, the micro-batch divides
    a worker's share, and the modelled peak leaves MARGIN of the memory free. The workers of a CPU share the host.

    Raises:
        ValueError: none fits; the message says what the smallest needs, and what would help.
    """
    found = _place(wish, precision, device, limits)
    if found is None:
        raise ValueError(_refusal(wish, precision, device, limits))
    return found


def place_all(
    wishes: Sequence[Wish], *, precision: Precision, device: Device, limits: Limits
) -> tuple[ZeroStage, tuple[Placement, ...]]:
    """One ZeRO stage for all of a law, and the places in the order of `wishes`: the stage at which their gangs have the
    fewest workers in all, and of several such the lowest.

    Stages differ numerically, so a law that mixed them would be bent where one gives way to the other.

    Raises:
        ValueError: no stage has a place for each; the message is of one that is left out at the highest stage.
    """
    stages = _stages(precision, limits)
    whole: list[tuple[ZeroStage, tuple[Placement, ...]]] = []
    for stage in stages:
        at_stage = replace(limits, zero_stage=stage)
        found = [_place(wish, precision, device, at_stage) for wish in wishes]
        places = tuple(place for place in found if place is not None)
        if len(places) == len(wishes):
            whole.append((stage, places))
            if all(place.num_workers == 1 for place in places):
                break  # no stage needs fewer
    if whole:
        return min(whole, key=lambda one: sum(place.num_workers for place in one[1]))
    highest = replace(limits, zero_stage=stages[-1])
    left_out = next(wish for wish in wishes if _place(wish, precision, device, highest) is None)
    raise ValueError(
        f"no ZeRO stage of {', '.join(map(str, stages))} has a place for every size and batch, and mixing stages would "
        f"bend the law. {_refusal(left_out, precision, device, highest)}"
    )


@functools.lru_cache(maxsize=65536)
def _fitting(wish: Wish, precision: Precision, device: Device, limits: Limits) -> Placement | None:
    available = available_bytes(device)
    tried = _candidates(wish, precision, device, limits)
    return next((place for place in tried if _needed(place, device) <= available), None)


def _place(wish: Wish, precision: Precision, device: Device, limits: Limits) -> Placement | None:
    return _fitting(replace(wish, name=""), precision, device, limits)


def available_bytes(device: Device) -> int:
    """What may be planned with: of one GPU, or of the whole host."""
    return int(device.usable_bytes * (1 - MARGIN))


def _needed(place: Placement, device: Device) -> int:
    """Bytes of a GPU, or of the host with all of the gang's workers (of which one's libraries are in its reserve)."""
    if device.kind == "gpu":
        return place.memory.total
    each = place.memory.total + place.memory.host
    return place.num_workers * each + (place.num_workers - 1) * device.reserve_bytes


def _candidates(wish: Wish, precision: Precision, device: Device, limits: Limits) -> Iterator[Placement]:
    """Every place within the limits, in the order of preference."""
    batch_size = wish.batch_size
    for offload in _either(limits.offload) if device.kind == "gpu" else (limits.offload or False,):
        for workers in _gangs(batch_size, device, limits):
            for stage in _stages(precision, limits):
                if offload and stage == 0:
                    continue
                for checkpointing in _either(limits.activation_checkpointing):
                    for micro_batch in _micro_batches(batch_size // workers, limits):
                        yield Placement(
                            num_workers=workers,
                            zero_stage=stage,
                            micro_batch=micro_batch,
                            activation_checkpointing=checkpointing,
                            offload=offload,
                            memory=memory(
                                wish.model,
                                micro_batch=micro_batch,
                                micro_steps=batch_size // (workers * micro_batch),
                                precision=precision,
                                zero_stage=stage,
                                num_workers=workers,
                                activation_checkpointing=checkpointing,
                                offload=offload,
                                evaluation_batch=wish.evaluation_batch,
                                generation_bytes=wish.generation_bytes,
                            ),
                        )


def _either(fixed: bool | None) -> tuple[bool, ...]:
    return (False, True) if fixed is None else (fixed,)


def _stages(precision: Precision, limits: Limits) -> tuple[ZeroStage, ...]:
    if limits.zero_stage is not None:
        return (limits.zero_stage,)
    return (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)


def _gangs(batch_size: int, device: Device, limits: Limits) -> list[int]:
    """Numbers of workers that divide the batch; more than a node's GPUs only in whole nodes."""
    allowed = range(1, limits.max_workers + 1) if limits.num_workers is None else (limits.num_workers,)
    node = device.gpus_per_node if device.kind == "gpu" else limits.max_workers
    return [n for n in allowed if batch_size % n == 0 and (n <= node or n % node == 0 or limits.num_workers)]


def _micro_batches(share: int, limits: Limits) -> list[int]:
    """Divisors of a worker's share of the batch, the largest first."""
    if limits.micro_batch is not None:
        return [limits.micro_batch] if share % limits.micro_batch == 0 else []
    small = [n for n in range(1, math.isqrt(share) + 1) if share % n == 0]
    return sorted({*small, *(share // n for n in small)}, reverse=True)


def _refusal(wish: Wish, precision: Precision, device: Device, limits: Limits) -> str:
    """Why nothing fits: the place that needs least, what there is, and the nearest change that would do."""
    tried = _candidates(wish, precision, device, limits)
    least = min(tried, key=lambda place: _needed(place, device), default=None)
    if least is None:
        return (
            f"{wish.name}: {_words(limits)} cannot divide batch_size {wish.batch_size}; wanted workers that divide the "
            "batch and a micro-batch that divides a worker's share"
        )
    options = ", activation checkpointing" * least.activation_checkpointing + ", offload" * least.offload
    return (
        f"{wish.name} needs {_needed(least, device) / GIB:.1f} GiB at least (workers {least.num_workers}, ZeRO-"
        f"{least.zero_stage}, micro-batch {least.micro_batch}{options}); {device.name} has "
        f"{available_bytes(device) / GIB:.1f} GiB with {MARGIN:.0%} left free. "
        f"{_remedy(wish, precision, device, limits)}"
    )


def _words(limits: Limits) -> str:
    workers = f"up to {limits.max_workers} workers" if limits.num_workers is None else f"{limits.num_workers} workers"
    return workers + (f" with micro-batch {limits.micro_batch}" if limits.micro_batch is not None else "")


def _remedy(wish: Wish, precision: Precision, device: Device, limits: Limits) -> str:
    """The first change of one limit, or else of the device, with which there is a place."""
    changes: list[tuple[str, Limits]] = [
        ("leave micro_batch open", replace(limits, micro_batch=None)),
        ("allow activation checkpointing", replace(limits, activation_checkpointing=None)),
        ("leave zero_stage open", replace(limits, zero_stage=None)),
        ("allow {0.num_workers} workers", replace(limits, num_workers=None, max_workers=wish.batch_size)),
        ("allow offload", replace(limits, offload=None)),
    ]
    for words, changed in changes:
        if (found := _place(wish, precision, device, changed)) is not None:
            return f"Remedy: {words.format(found)}."
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory_bytes):
        if device.kind == "gpu" and _place(wish, precision, gpu, limits) is not None:
            return f"Remedy: a GPU of {gpu.memory_bytes / GIB:.0f} GiB, as {gpu.name}."
    return "Remedy: a smaller model, or several of these: more workers, offload, a larger device."


def trial_seconds(trial: Trial, flops: float, device: Device) -> tuple[float, bool]:
    """Estimated seconds of `flops` training FLOPs of `trial` on its workers, of one GPU or core each, and of its
    evaluations; and whether the speeds were measured on this very device, one worker at a time (that workers add up is
    assumed).
    """
    micro_batch = trial.micro_batch or trial.batch_size // trial.num_workers
    rate, known = training_flops_per_second(
        device,
        trial.model,
        trial.precision,
        micro_batch,
        trial.activation_checkpointing,
        fast=trial.fast and device.kind == "gpu",
    )
    work = ZERO_WORK[trial.zero_stage] * (OFFLOAD_WORK if trial.offload else 1.0) if device.kind == "gpu" else 1.0
    training = flops * work / (rate * trial.num_workers)
    least = flops / (trial.flops_per_sample * trial.batch_size) * _least_step_seconds(trial, device)
    seconds = max(training, least) + evaluation_seconds(trial, device)
    return seconds, known and training >= least and trial.num_workers == 1


def _least_step_seconds(trial: Trial, device: Device) -> float:
    """Of one optimizer step: a GPU waits for the host, or goes from kernel to kernel, whatever their size."""
    if device.kind != "gpu":
        return 0.0
    itself, block = LEAST_STEP_SECONDS[trial.stepping, trial.fast]
    return trial.micro_steps * (itself + block * trial.model.depth)


def trial_memory(trial: Trial, *, on_gpu: bool) -> Memory:
    """Memory of one worker of `trial`, at its fullest."""
    if on_gpu and trial.stepping != "deepspeed":
        return flat_memory(
            trial.model,
            micro_batch=trial.batch_size // trial.num_workers,
            precision=trial.precision,
            num_workers=trial.num_workers,
            captured=trial.stepping == "graph",
            generation_bytes=generation_bytes_of(trial, on_gpu=True),
        )
    return memory(
        trial.model,
        micro_batch=trial.micro_batch or trial.batch_size // trial.num_workers,
        micro_steps=trial.micro_steps,
        precision=trial.precision,
        zero_stage=trial.zero_stage,
        num_workers=trial.num_workers,
        activation_checkpointing=trial.activation_checkpointing,
        offload=trial.offload,
        generation_bytes=generation_bytes_of(trial, on_gpu=on_gpu),
    )


def state_bytes(trial: Trial) -> int:
    """Bytes of weights, gradients, optimizer, EMA and the model measured with it, on one worker; no activations."""
    needed = trial_memory(trial, on_gpu=False)  # the device changes what evaluations hold, which is left out
    return needed.state + needed.gradients


def checkpoint_bytes(trial: Trial) -> int:
    """Bytes of the trial's checkpoints: the newest two are kept."""
    return 2 * CHECKPOINT_BYTES_PER_PARAM * trial.params_total
