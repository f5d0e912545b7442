"""How long trials take that are trained as one stacked model, from the gains in the throughput table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.cost import cost
from orchestrator.planning.devices import Device
from orchestrator.planning.evaluation import evaluation_seconds
from orchestrator.planning.packing import gains_of
from orchestrator.spec.trial import Trial


@dataclass(frozen=True, kw_only=True)
class PackTime:
    """A pack and its seconds on a gang of one device."""

    trials: tuple[Trial, ...]
    seconds: tuple[float, ...]
    """Each member's share of the pack's; they add up to it."""
    alone: float
    """Of the members one after the other, each trained alone."""
    measured: bool
    """Whether the table says so, or nothing (or no more than its largest pack brings) is taken to be gained."""

    @property
    def total(self) -> float:
        """Seconds of the pack."""
        return sum(self.seconds)


class Curve(NamedTuple):
    """Gains of packs of one shape on one device, by their members, from (1, 1.0) on."""

    points: tuple[tuple[int, float], ...]

    def gain(self, members: int) -> tuple[float, bool]:
        """Samples a second of a pack over those of its members one after the other, and whether that was measured.

        Between two sizes of the table it is linear in the logarithm of the members; beyond its largest it stays.
        """
        for (low, below), (high, above) in itertools.pairwise(self.points):
            if low <= members <= high:
                return below + (above - below) * math.log(members / low) / math.log(high / low), True
        return self.points[-1][1], members == 1


def curve(device: str, trial: Trial) -> Curve:
    """That of the nearest shape of the table that is as wide and has as many tokens a batch, or more."""
    width, tokens = trial.model.width, trial.batch_size * cost(trial.model).tokens
    near = [row for row in gains_of(device) if row.width >= width and row.tokens >= tokens]
    lowest = {1: 1.0}
    if near:
        nearest = min(near, key=lambda row: (row.width * row.tokens, row.width))
        for row in near:
            if (row.width, row.tokens) == (nearest.width, nearest.tokens) and row.members > 1:
                lowest[row.members] = min(row.gain, lowest.get(row.members, math.inf))
    return Curve(tuple(sorted(lowest.items())))


def pack_times(
    packs: Iterable[tuple[Trial, ...]], device: Device, alone: Mapping[str, tuple[float, bool]]
) -> list[PackTime]:
    """The times of packs.

    Members take their steps together and are evaluated one after the other. Those that have less left to train leave
    first, and the others go on at the gain of as many as are left (`training.packing`).

    Args:
        packs: trials that are trained together.
        device: what they run on.
        alone: seconds of each trial alone, evaluations included, and whether its speed was measured, by trial_id.
    """
    curves: dict[tuple[int, int], Curve] = {}
    found = []
    for pack in packs:
        shape = pack[0].model.width, pack[0].batch_size * cost(pack[0].model).tokens
        if shape not in curves:
            curves[shape] = curve(device.name, pack[0])
        evaluations = [evaluation_seconds(trial, device) for trial in pack]
        whole = [alone[trial.trial_id][0] for trial in pack]
        training = [seconds - each for seconds, each in zip(whole, evaluations, strict=True)]
        shares = zip(_shares(training, curves[shape]), evaluations, strict=True)
        found.append(
            PackTime(
                trials=pack,
                seconds=tuple(share + each for share, each in shares),
                alone=sum(whole),
                measured=curves[shape].gain(len(pack))[1],
            )
        )
    return found


def _shares(training: Sequence[float], gains: Curve) -> list[float]:
    """Seconds of each member's training in the pack, where alone it has `training`."""
    order = sorted(range(len(training)), key=lambda member: training[member])
    shares, passed, spent = [0.0] * len(training), 0.0, 0.0
    for place, member in enumerate(order):
        spent += (training[member] - passed) / gains.gain(len(order) - place)[0]
        passed = training[member]
        shares[member] = spent
    return shares
