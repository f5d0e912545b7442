"""Which trials are trained together as one stacked model, and where that pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.cost import cost
from orchestrator.planning.own_speeds import own_figures
from orchestrator.spec.compute import Compute
from orchestrator.spec.trial import ConstantSchedule, Trial

WORTH_IT = 1.15
"""Least gain, in samples a second over the same trials one after the other, for which trials are packed unasked."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Samples a second of a pack over those of its members one after the other, as measured; on a GPU both as CUDA
    graphs."""

    width: int
    tokens: int
    """Of a batch of one member: images times tokens an image."""
    members: int
    gain: float


GAINS: dict[str, tuple[Gain, ...]] = {
    "cpu": (),
    "h100-80gb": (
        Gain(width=128, tokens=4096, members=8, gain=2.56),
        Gain(width=128, tokens=4096, members=16, gain=2.88),
    ),
    "h200-141gb": (
        Gain(width=64, tokens=4096, members=8, gain=2.03),
        Gain(width=128, tokens=4096, members=8, gain=1.83),
        Gain(width=192, tokens=16384, members=8, gain=1.53),
        Gain(width=192, tokens=16384, members=16, gain=1.68),
    ),
}
"""By device, from `ditlaw bench train --no-steps` (docs/training.md); of a CPU, on one thread. Of the H100 with the
kernels of `models.fused`, not compiled, the pack and the trial alone in one call (docs/data/training_h100_kernels.json,
call 4; another card's pack of 8 gained 3.1); of the H200 older, compiled and without them. A table of one's own
(`planning.own_speeds`) takes their place."""


def gains_of(device: str) -> tuple[Gain, ...]:
    """What was measured of packs on a device: one's own table, else the built-in one."""
    own = tuple(Gain(**row) for row in own_figures(device)["gains"])
    return own or GAINS.get(device, ())


def members_worth(device: str, trial: Trial) -> int:
    """The most members of a pack of this shape for which the table says that it pays; 1 where it does not.

    A shape counts as measured between the widths and tokens of the table; nothing is assumed beyond them.
    """
    width, tokens = trial.model.width, trial.batch_size * cost(trial.model).tokens
    near = [gain for gain in gains_of(device) if gain.width >= width and gain.tokens >= tokens]
    return max((gain.members for gain in near if gain.gain >= WORTH_IT), default=1)


def packs_of(compute: Compute, trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """The trials in packs, a pack of one where a trial is trained alone; in the order of their first members.

    A gang is not left without work for the sake of a larger pack.
    """
    alike: dict[Any, list[Trial]] = {}
    for place, trial in enumerate(trials):
        key = _shape(trial) if compute.packing != "off" and packable(trial) else place
        alike.setdefault(key, []).append(trial)
    packs = [pack for group in alike.values() for pack in _cut(group, _most(compute, group))]
    first = {trial.trial_id: place for place, trial in enumerate(trials)}
    return sorted(packs, key=lambda pack: first[pack[0].trial_id])


def packable(trial: Trial) -> bool:
    """Whether a trial can be a member: a whole step of a packable family on one worker, and nothing branches off it."""
    plain = isinstance(trial.schedule, ConstantSchedule) and not trial.branch_points and trial.precision != "fp8"
    whole = (
        trial.num_workers == 1 and trial.micro_steps == 1 and not trial.offload and not trial.activation_checkpointing
    )
    usual = trial.zero_stage == (0 if trial.precision == "fp32" else 1)
    return trial.model.packable and plain and whole and usual


def _shape(trial: Trial) -> tuple[Any, ...]:
    """What members have in common."""
    depth_scale = getattr(trial.parameterization, "base_depth", trial.model.depth) / trial.model.depth
    return (
        trial.model, trial.dataset, trial.objective, trial.batch_size, trial.precision, trial.optimizer.betas,
        trial.compiled, trial.last, depth_scale,
    )  # fmt: skip


def _most(compute: Compute, group: Sequence[Trial]) -> int:
    if isinstance(compute.packing, int):
        return compute.packing
    most = members_worth(compute.device or ("cpu" if compute.gpus_per_worker == 0 else ""), group[0])
    return min(most, max(1, -(-len(group) // _side_by_side(compute))))


def _side_by_side(compute: Compute) -> int:
    """Gangs of one worker that run at once."""
    if compute.max_gpus is None or not compute.gpus_per_worker:
        return compute.gangs
    return max(1, min(compute.gangs, int(compute.max_gpus / compute.gpus_per_worker + 1e-9)))


def _cut(group: Sequence[Trial], most: int) -> Iterable[tuple[Trial, ...]]:
    """Packs of nearly the same size."""
    count = -(-len(group) // most)
    for index in range(count):
        yield tuple(group[index::count])
