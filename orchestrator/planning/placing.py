"""Where the trials of a sweep run: one ZeRO stage for all of them, and for each the smallest gang that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from orchestrator.planning.cell import Cell
from orchestrator.planning.devices import Device, named
from orchestrator.planning.evaluation import generation_bytes
from orchestrator.planning.memory import flat_memory
from orchestrator.planning.placement import Limits, Placement, Wish, available_bytes, place_all
from orchestrator.spec.compute import Compute
from orchestrator.spec.source import Problem
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trial import Evaluation, Stepping, ZeroStage

FLOAT8_MULTIPLE = 16
"""What fp8 units want the sizes of a weight to be a multiple of."""
UNKNOWN_DEVICE_BYTES = 8 * 2**30
"""What a trial with CUDA graphs may need on a GPU of which nothing is known."""
Key = tuple[str, int, int]
"""Size, identity of its models section and batch size: what a place depends on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """How a trial runs on its workers."""

    num_workers: int
    zero_stage: ZeroStage
    micro_batch: int | None
    activation_checkpointing: bool
    offload: bool
    stepping: Stepping
    """By what steps are taken."""


def key_of(cell: Cell) -> Key:
    """What the place of a cell depends on."""
    return cell.model.name, id(cell.variant.models), cell.target.batch_size


def seats(sweep: Sweep, cells: Iterable[Cell], evaluation: Evaluation, problems: list[Problem]) -> dict[Key, Seat]:
    """The seat of every cell's trial, by `key_of`; what does not fit is a problem, with what would help.

    Without `compute.device` nothing is known of memory, and trials run as the spec says.
    """
    compute = sweep.compute
    first = {key_of(cell): cell for cell in cells}
    if compute.precision == "fp8" and (refused := _without_float8(first.values())):
        problems.append(Problem(("compute", "precision"), refused))
        return {}
    if compute.device is None:
        given = _as_given(compute)
        return {key: _with_step(given, cell, compute, None, evaluation) for key, cell in first.items()}
    try:
        device = device_of(compute)
    except ValueError as error:
        problems.append(Problem(("compute", "device"), str(error)))
        return {}
    wishes = [
        Wish(
            name=f"size {cell.model.name}",
            model=cell.model.config,
            batch_size=cell.target.batch_size,
            generation_bytes=generation_bytes(
                evaluation, cell.model.config, on_gpu=device.kind == "gpu", whole=compute.compile
            ),
        )
        for cell in first.values()
    ]
    try:
        stage, places = place_all(wishes, precision=compute.precision, device=device, limits=_limits(compute))
    except ValueError as error:
        problems.append(Problem(("compute",), str(error)))
        return {}
    return {
        key: _with_step(_seat(place, stage), cell, compute, device, evaluation)
        for (key, cell), place in zip(first.items(), places, strict=True)
    }


def device_of(compute: Compute) -> Device:
    """The device of a sweep, or its part of one where several gangs share it.

    Raises:
        ValueError: there is no such device, or it is not of the kind that the workers ask for.
    """
    assert compute.device is not None, "only where it is named"
    device = named(compute.device)
    if (device.kind == "gpu") != (compute.gpus_per_worker > 0):
        wanted = "gpus_per_worker of 1, or a fraction" if device.kind == "gpu" else "gpus_per_worker of 0"
        raise ValueError(f"got {device.name} and gpus_per_worker {compute.gpus_per_worker:g}; wanted {wanted}")
    if 0 < compute.gpus_per_worker < 1:
        return dataclasses.replace(device, memory_bytes=int(device.memory_bytes * compute.gpus_per_worker))
    return device


def _limits(compute: Compute) -> Limits:
    return Limits(
        max_workers=compute.max_workers,
        num_workers=None if compute.workers == "auto" else compute.workers,
        zero_stage=compute.zero_stage,
        micro_batch=None if compute.micro_batch == "auto" else compute.micro_batch,
        activation_checkpointing=(
            None if compute.activation_checkpointing == "auto" else compute.activation_checkpointing
        ),
        offload=compute.offload,
    )


def _as_given(compute: Compute) -> Seat:
    return Seat(
        num_workers=1 if compute.workers == "auto" else compute.workers,
        zero_stage=compute.stage,
        micro_batch=None if compute.micro_batch == "auto" else compute.micro_batch,
        activation_checkpointing=compute.activation_checkpointing is True,
        offload=compute.offload,
        stepping="deepspeed",
    )


def _seat(place: Placement, stage: ZeroStage) -> Seat:
    return Seat(
        num_workers=place.num_workers,
        zero_stage=stage,
        micro_batch=place.micro_batch,
        activation_checkpointing=place.activation_checkpointing,
        offload=place.offload,
        stepping="deepspeed",
    )


def _with_step(seat: Seat, cell: Cell, compute: Compute, device: Device | None, evaluation: Evaluation) -> Seat:
    """The seat, with the step over flat buffers if that is wanted, serves the trial and has room: whole batches, the
    ZeRO stage whose arithmetic it is, and a model that says so. A graph holds what a step needs even in evaluations."""
    model, share = cell.model.config, cell.target.batch_size // seat.num_workers
    stepping = _wanted(compute, seat.num_workers)
    whole = seat.micro_batch in (None, share) and not seat.activation_checkpointing and not seat.offload
    usual = seat.zero_stage == (0 if compute.precision == "fp32" else 1)
    if stepping == "deepspeed" or not (compute.gpus_per_worker > 0 and whole and usual and model.packable):
        return seat
    needed = flat_memory(
        model,
        micro_batch=share,
        precision=compute.precision,
        num_workers=seat.num_workers,
        captured=stepping == "graph",
        generation_bytes=generation_bytes(evaluation, model, on_gpu=True, whole=compute.compile),
    )
    room = UNKNOWN_DEVICE_BYTES if device is None else available_bytes(device)
    return dataclasses.replace(seat, stepping=stepping) if needed.total <= room else seat


def _wanted(compute: Compute, num_workers: int) -> Stepping:
    """The step that a sweep asks for; on several GPUs, where it has not been measured, only by name."""
    if compute.graphs == "auto":
        return "graph" if num_workers == 1 else "deepspeed"
    if compute.graphs == "uncaptured":
        return "flat"
    return "graph" if compute.graphs else "deepspeed"


def _without_float8(cells: Iterable[Cell]) -> str | None:
    """Why models cannot train in fp8; None if all can."""
    models = {cell.model.name: cell.model.config for cell in cells}
    refused = [name for name, model in models.items() if not model.can_use_float8 or model.width % FLOAT8_MULTIPLE]
    if not refused:
        return None
    return (
        f"fp8 with {', '.join(refused)}; wanted DiTs of a width that {FLOAT8_MULTIPLE} divides. Choose other models, "
        "or bf16"
    )
