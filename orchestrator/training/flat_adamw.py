"""AdamW and the averages of a pack, or of a worker's share of one model: each member and parameter with its own rate,
decay and epsilon, and each member's gradient scaled down to its own largest norm.

`EagerUpdate` calls torch's own kernels, on CPUs. `KernelUpdate` makes the step, the weights of the next forward pass
and the averages one kernel over flat buffers, on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from orchestrator.training.division import Division

CLIP_EPS = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""
PIECE = 1024
"""Elements that one program of the kernel takes at most."""


class Settings(NamedTuple):
    """Of one parameter of one member."""

    learning_rate: float
    weight_decay: float
    eps: float


class Move(NamedTuple):
    """What one step is for one member."""

    rate: float
    """Learning rates over their bases."""
    step: int
    """Steps taken, this one counted."""
    weight: float
    """The share by which the average moves to the new weights."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an update works on: flat buffers as the worker keeps them, fixed for good, and how they are stepped."""

    settings: Sequence[Sequence[Settings]]
    """Of each member, of each parameter in the model's order."""
    limits: Sequence[float | None]
    """The largest norm of each member's gradient."""
    betas: tuple[float, float]
    """Adam's."""
    division: Division
    """How members and parameters lie in the buffers."""
    masters: Tensor
    weights: Tensor
    """Of the forward pass: the masters themselves, or bf16."""
    gradient: Tensor
    moments: tuple[Tensor, Tensor]
    averages: Tensor


class EagerUpdate:
    """The update by torch's own kernels, of a gradient as wide as the masters."""

    def __init__(self, work: Work) -> None:
        self._work, self._calls = work, []
        rows, division = range(len(work.settings)), work.division
        self._followed = [[division.rows(kind, row) for kind in (work.averages, work.masters)] for row in rows]
        stepped = (work.masters, work.gradient, *work.moments)
        parts = [[division.rows(kind, row) for kind in stepped] for row in rows]
        for (row, one), places in _slots(work.settings).items():
            kept = [place for place in places if parts[row][0][place].numel()]
            if kept:
                self._calls.append((row, one, [[kind[place] for place in kept] for kind in parts[row]]))

    def __call__(self, moves: Sequence[Move]) -> None:
        """A step. Collective."""
        self._clip()
        beta1, beta2 = self._work.betas
        steps = [torch.tensor(float(move.step), device=self._work.masters.device) for move in moves]
        for row, (rate, decay, eps), (masters, gradients, first, second) in self._calls:
            torch._fused_adamw_(
                masters, gradients, first, second, [], [steps[row]] * len(masters), lr=rate * moves[row].rate,
                beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False,
            )  # fmt: skip
        if self._work.weights is not self._work.masters:
            self._work.weights.copy_(self._work.masters)
        for (averages, masters), move in zip(self._followed, moves, strict=True):
            torch._foreach_lerp_(averages, masters, move.weight)

    def _clip(self) -> None:
        """Scale each member's gradient down to its own largest norm."""
        division = self._work.division
        for row, limit in enumerate(self._work.limits):
            if limit is not None:
                own = division.parts(self._work.gradient, row)
                norm = division.norm(own)
                torch._foreach_mul_(own, (limit / (norm + CLIP_EPS)).clamp(max=1.0))


def _slots(settings: Sequence[Sequence[Settings]]) -> dict[tuple[int, Settings], list[int]]:
    """The places of the parameters that share a member and settings."""
    slots: dict[tuple[int, Settings], list[int]] = {}
    for row, own in enumerate(settings):
        for place, one in enumerate(own):
            slots.setdefault((row, one), []).append(place)
    return slots


class KernelUpdate:
    """The update by `flat_adamw_kernel`, of a gradient in bf16 or fp32: it is clipped where it is read.

    What changes from step to step are tensors, so that a graph can replay it.
    """

    def __init__(self, work: Work) -> None:
        self._work, self._device = work, work.masters.device
        self._pieces = pieces_of(work.settings, work.division).to(self._device)
        self._limits: Tensor | None = None
        if any(limit is not None for limit in work.limits):
            largest = [torch.inf if limit is None else limit for limit in work.limits]
            self._limits = torch.tensor(largest, device=self._device)

    def numbers(self, moves: Sequence[Move]) -> Tensor:
        """What the kernel takes of a step [M, 4], worked out in double precision; a copy to the GPU, not waited for."""
        beta1, beta2 = self._work.betas
        rows = [(rate, rate / (1 - beta1**step), (1 - beta2**step) ** -0.5, weight) for rate, step, weight in moves]
        return torch.tensor(rows, pin_memory=True).to(self._device, non_blocking=True)

    def __call__(self, numbers: Tensor) -> None:
        """A step by `numbers`. Collective."""
        kernel = _kernel()
        squares = None
        if self._limits is not None:
            squares = self._work.division.total(kernel.squares(self._work.gradient, self._pieces))
        kernel.update(self._work, self._pieces, numbers, squares, self._limits)


def _kernel() -> ModuleType:
    from orchestrator.training import flat_adamw_kernel  # it imports triton, which CPUs do without

    return flat_adamw_kernel


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The buffers cut so that each piece is of one member and one kind of settings.

    What the kernel reads of a piece is 24 bytes, where a number for each element, by which to find its settings, took
    4 bytes of every 40 that were moved. Members with fewer pieces than others end in empty ones.
    """

    begins: Tensor
    """[M, n]"""
    lengths: Tensor
    """[M, n], at most PIECE."""
    settings: Tensor
    """[M, n, 3]"""

    def to(self, device: torch.device) -> Pieces:
        """The same on a device."""
        return Pieces(begins=self.begins.to(device), lengths=self.lengths.to(device), settings=self.settings.to(device))


def pieces_of(settings: Sequence[Sequence[Settings]], division: Division) -> Pieces:
    """The pieces of what a worker keeps, by the settings of each member and parameter."""
    begins, lengths, values = [], [], []
    for row, own in enumerate(settings):
        runs = _runs(own, division.ranges(row))
        firsts = [torch.arange(begin, end, PIECE) for begin, end, _ in runs]
        sizes = [(end - first).clamp(max=PIECE).int() for first, (_, end, _) in zip(firsts, runs, strict=True)]
        counts = torch.tensor([len(first) for first in firsts], dtype=torch.int64)
        table = torch.tensor([one for _, _, one in runs], dtype=torch.float32).view(-1, 3)
        begins.append(torch.cat([torch.empty(0, dtype=torch.int64), *firsts]))
        lengths.append(torch.cat([torch.empty(0, dtype=torch.int32), *sizes]))
        values.append(table.repeat_interleave(counts, 0))
    return Pieces(
        begins=pad_sequence(begins, batch_first=True),
        lengths=pad_sequence(lengths, batch_first=True),
        settings=pad_sequence(values, batch_first=True),
    )


def _runs(settings: Sequence[Settings], ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, Settings]]:
    """Where runs of elements with the same settings begin and end, of the parameters of one member."""
    runs: list[tuple[int, int, Settings]] = []
    for (begin, end), one in zip(ranges, settings, strict=True):
        if begin == end:
            continue
        if runs and runs[-1][1:] == (begin, one):
            runs[-1] = (runs[-1][0], end, one)
        else:
            runs.append((begin, end, one))
    return runs
