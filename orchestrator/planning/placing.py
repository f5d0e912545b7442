"""Where the trials of a sweep run: one ZeRO stage for all of them, and for each the smallest gang that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from orchestrator.planning.devices import Device, named
from orchestrator.planning.evaluation import generation_bytes
from orchestrator.planning.grid import Cell
from orchestrator.planning.placement import Limits, Placement, Wish, place_all
from orchestrator.spec.source import Problem
from orchestrator.spec.sweep import Compute, Sweep
from orchestrator.spec.trial import Evaluation, ZeroStage

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


def key_of(cell: Cell) -> Key:
    """What the place of a cell depends on."""
    return cell.model.name, id(cell.variant.models), cell.target.batch_size


def seats(sweep: Sweep, cells: Iterable[Cell], evaluation: Evaluation, problems: list[Problem]) -> dict[Key, Seat]:
    """The seat of every cell's trial, by `key_of`; what does not fit is a problem, with what would help.

    Without `compute.device` nothing is known of memory, and trials run as the spec says.
    """
    compute = sweep.compute
    first = {key_of(cell): cell for cell in cells}
    if compute.device is None:
        return dict.fromkeys(first, _as_given(compute))
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
    return {key: _seat(place, stage) for key, place in zip(first, places, strict=True)}


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
    )


def _seat(place: Placement, stage: ZeroStage) -> Seat:
    return Seat(
        num_workers=place.num_workers,
        zero_stage=stage,
        micro_batch=place.micro_batch,
        activation_checkpointing=place.activation_checkpointing,
        offload=place.offload,
    )
