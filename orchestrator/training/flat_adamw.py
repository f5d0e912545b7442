"""AdamW and the averages of a pack, or of a worker's share of one model: each member and parameter with its own rate,
decay and epsilon.

`EagerUpdate` calls torch's fused kernel for what shares its settings. `CompiledUpdate` makes the step, the weights of
the next forward pass and the averages one kernel over flat buffers, which reads and writes every buffer once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.training.compilation import compiled
from orchestrator.training.division import Division


class Settings(NamedTuple):
    """Of one parameter of one member."""

    learning_rate: float
    weight_decay: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """What an update works on, flat, as the worker keeps it; steps [M]."""

    masters: Tensor
    weights: Tensor
    """Of the forward pass: the masters themselves, or bf16."""
    gradient: Tensor
    moments: tuple[Tensor, Tensor]
    averages: Tensor
    steps: Tensor
    """Taken by each member, the one under way counted."""


Numbers = Sequence[float] | Tensor
"""One for each member; tensors where a graph replays the step."""


class EagerUpdate:
    """The update by torch's own kernels.

    Args:
        settings: of each member, of each parameter in the model's order.
        division: how they lie in the buffers.
        buffers: fixed for good.
        betas: Adam's.
    """

    def __init__(
        self, settings: Sequence[Sequence[Settings]], division: Division, buffers: Buffers, betas: tuple[float, float]
    ) -> None:
        self._buffers, self._betas, self._calls = buffers, betas, []
        followed = (buffers.averages, buffers.masters)
        self._rows = [[division.rows(buffer, row) for buffer in followed] for row in range(len(settings))]
        self._views = list(zip(*map(division.views, followed), strict=True))
        rows = [
            [division.rows(kind, row) for kind in (buffers.masters, buffers.gradient, *buffers.moments)]
            for row in range(len(settings))
        ]
        for (row, one), places in _slots(settings).items():
            kept = [place for place in places if rows[row][0][place].numel()]
            lists = [[kind[place] for place in kept] for kind in rows[row]]
            if kept:
                self._calls.append((row, one, lists, [buffers.steps[row]] * len(kept)))

    def __call__(self, rates: Numbers, weights: Numbers) -> None:
        """A step; `rates` over the base rates, and `weights` by which the averages move."""
        beta1, beta2 = self._betas
        for row, (rate, decay, eps), (masters, gradients, first, second), steps in self._calls:
            torch._fused_adamw_(
                masters, gradients, first, second, [], steps, lr=rate * rates[row], beta1=beta1, beta2=beta2,
                weight_decay=decay, eps=eps, amsgrad=False, maximize=False,
            )  # fmt: skip
        if self._buffers.weights is not self._buffers.masters:
            self._buffers.weights.copy_(self._buffers.masters)
        self._follow(weights)

    def _follow(self, weights: Numbers) -> None:
        """Move the averages. By a number that lies on a GPU one by one: of lists torch would wait for it."""
        if isinstance(weights, Tensor):
            for average, master in self._views:
                average.lerp_(master, weights.view(-1, *[1] * (average.dim() - 1)))
            return
        for (averages, masters), weight in zip(self._rows, weights, strict=True):
            torch._foreach_lerp_(averages, masters, weight)


class CompiledUpdate:
    """The update as one kernel; arguments as of `EagerUpdate`."""

    def __init__(
        self, settings: Sequence[Sequence[Settings]], division: Division, buffers: Buffers, betas: tuple[float, float]
    ) -> None:
        self._buffers, self._betas = buffers, betas
        self._rows, self._settings, self._slot_of_element = slots_of(settings, division, buffers.masters.device)
        self._values, self._update = compiled(slot_values), compiled(flat_update)

    def __call__(self, rates: Numbers, weights: Numbers) -> None:
        """As `EagerUpdate`'s, of tensors."""
        assert isinstance(rates, Tensor), "only a GPU compiles"
        assert isinstance(weights, Tensor), "only a GPU compiles"
        held = self._buffers
        values = self._values(self._settings, self._rows, held.steps, rates, weights, self._betas)
        apart = None if held.weights is held.masters else held.weights
        self._update(
            held.masters, apart, held.gradient, *held.moments, held.averages, values, self._slot_of_element, self._betas
        )


def _slots(settings: Sequence[Sequence[Settings]]) -> dict[tuple[int, Settings], list[int]]:
    """The places of the parameters that share a member and settings."""
    slots: dict[tuple[int, Settings], list[int]] = {}
    for row, own in enumerate(settings):
        for place, one in enumerate(own):
            slots.setdefault((row, one), []).append(place)
    return slots


def slots_of(
    settings: Sequence[Sequence[Settings]], division: Division, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The member of each slot [S], its settings [S, 3], and the slot of every element; None where there is one slot."""
    slots = _slots(settings)
    rows = torch.tensor([row for row, _ in slots], device=device)
    values = torch.tensor([one for _, one in slots], device=device)
    if len(slots) == 1:
        return rows, values, None
    slot_of_element = division.zeros(device).int()
    for number, ((row, _), places) in enumerate(slots.items()):
        views = division.rows(slot_of_element, row)
        for place in places:
            views[place].fill_(number)
    return rows, values, slot_of_element


def slot_values(
    settings: Tensor, rows: Tensor, steps: Tensor, rates: Tensor, weights: Tensor, betas: tuple[float, float]
) -> Tensor:
    """What `flat_update` takes of a slot [5, S]: step size, second moment's scale, decay, epsilon, average's share."""
    rate, decay, eps = settings.unbind(1)
    rate, step = rate * rates[rows], steps[rows]
    scale = (1 - betas[1] ** step).rsqrt()
    return torch.stack([rate / (1 - betas[0] ** step), scale, 1 - rate * decay, eps, weights[rows]])


def flat_update(
    masters: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    averages: Tensor,
    values: Tensor,
    slot_of_element: Tensor | None,
    betas: tuple[float, float],
) -> None:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) and the averages, in place."""
    beta1, beta2 = betas
    size, scale, shrink, eps, share = values if slot_of_element is None else values[:, slot_of_element]
    g = gradient.float()
    m = beta1 * first + (1 - beta1) * g
    v = beta2 * second + (1 - beta2) * g * g
    p = masters * shrink - size * m / (v.sqrt() * scale + eps)
    first.copy_(m)
    second.copy_(v)
    masters.copy_(p)
    averages.copy_(averages + share * (p - averages))
    if weights is not None:
        weights.copy_(p)
