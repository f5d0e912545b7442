"""How long a plan takes on other devices, and on other numbers of gangs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.planning.devices import Device, named
from orchestrator.planning.pack_times import PackTime
from orchestrator.planning.placement import available_bytes, trial_memory, trial_seconds
from orchestrator.planning.plan import Plan
from orchestrator.spec.evaluation_cost import evaluation_flops
from orchestrator.spec.trial import Trial

SHOWN = ("h100-80gb", "h200-141gb", "a100-80gb", "l40s-48gb")
"""Devices beside the plan's own."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A plan on one kind of device."""

    device: str
    measured: bool
    """Whether every speed in it was measured on this device, or some were assumed."""
    flops_per_second: float
    """Of one device, over the whole plan."""
    device_hours: float
    fits: bool
    """Whether every trial fits its memory as it is planned."""
    hours_by_gangs: dict[int, float]
    """Hours from start to end, by the number of gangs."""


def speeds(plan: Plan) -> list[Speed]:
    """The plan on its own device first, and then, for plans on GPUs, on others: there each trial is taken to be longer
    or shorter by one factor, that of the plan's hours."""
    names = dict.fromkeys((plan.device.name, *(SHOWN if plan.sweep.compute.gpus_per_worker else ())))
    gangs = gang_counts(plan)
    own = _speed(plan, plan.device, plan.device_seconds, plan.packs)
    own = replace(own, hours_by_gangs=dict(zip(gangs, plan.makespans_on(gangs), strict=True)))
    return [own, *(_other(plan, named(name), own) for name in names if name != plan.device.name)]


def speeds_json(plan: Plan) -> list[dict[str, Any]]:
    """The same as plain mappings: device, measured, flops_per_second, device_hours, fits and makespan_hours, a list of
    `gangs` and `hours`."""
    return [
        {
            "device": speed.device,
            "measured": speed.measured,
            "flops_per_second": speed.flops_per_second,
            "device_hours": speed.device_hours,
            "fits": speed.fits,
            "makespan_hours": [{"gangs": gangs, "hours": hours} for gangs, hours in speed.hours_by_gangs.items()],
        }
        for speed in (speeds(plan) if plan.trials else [])
    ]


def _other(plan: Plan, device: Device, own: Speed) -> Speed:
    seconds = {trial.trial_id: trial_seconds(trial, plan.flops(trial), device) for trial in plan.trials}
    compute = plan.sweep.compute.model_copy(update={"device": device.name})
    speed = _speed(plan, device, seconds, plan.packs_under(compute, device, seconds))
    factor = speed.device_hours / own.device_hours if own.device_hours else 1.0
    return replace(speed, hours_by_gangs={gangs: factor * hours for gangs, hours in own.hours_by_gangs.items()})


def _speed(plan: Plan, device: Device, alone: Mapping[str, tuple[float, bool]], packs: Sequence[PackTime]) -> Speed:
    """But for the hours by gangs."""
    seconds, work, measured = 0.0, 0.0, all(pack.measured for pack in packs)
    packed = {t.trial_id: each for pack in packs for t, each in zip(pack.trials, pack.seconds, strict=True)}
    for trial in plan.trials:
        each, known = alone[trial.trial_id]
        each = packed.get(trial.trial_id, each)
        seconds, measured = seconds + each * trial.num_workers, measured and known
        work += plan.flops(trial) + evaluation_flops(trial)
    fits = all(
        trial_memory(trial, on_gpu=device.kind == "gpu").total <= available_bytes(device)
        for trial in _distinct(plan.trials)
    )
    return Speed(
        device=device.name,
        measured=measured,
        flops_per_second=work / seconds if seconds else 0.0,
        device_hours=seconds / 3600,
        fits=fits,
        hours_by_gangs={},
    )


def _distinct(trials: Sequence[Trial]) -> Iterator[Trial]:
    """One trial of each kind that memory tells apart."""
    seen = set()
    for trial in trials:
        key = (id(trial.model), trial.micro_batch, trial.batch_size, trial.num_workers)
        if key not in seen:
            seen.add(key)
            yield trial


def gang_counts(plan: Plan) -> list[int]:
    """Numbers of gangs worth showing: the plan's own, and powers of two up to where more do not help."""
    most = min(len(plan.trials), 4096)
    powers = [2**power for power in range(13) if 2**power < most]
    return sorted({*powers[:1], *powers[2::2], plan.sweep.compute.gangs})
