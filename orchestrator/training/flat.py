"""Tensors of several models of one shape in one flat buffer: how a pack's weights, moments and averages lie."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 16
"""Elements: every parameter begins at a multiple, as matrix units want their operands in any precision."""


class Layout:
    """Parameter after parameter, and of each parameter its members one after the other.

    Args:
        shapes: of each parameter of one member, by name, in the model's order.
        num_members: M.
        num_shares: equal parts into which a buffer can be cut; it ends in zeros that no parameter has.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], num_members: int, num_shares: int = 1) -> None:
        self.shapes, self.num_members = dict(shapes), num_members
        self.names = list(shapes)
        self._starts, end = [], 0
        for shape in self.shapes.values():
            self._starts.append(end)
            end += -(-num_members * prod(shape) // ALIGNMENT) * ALIGNMENT
        self.share = -(-end // (ALIGNMENT * num_shares)) * ALIGNMENT
        self.size = self.share * num_shares

    def ranges(self) -> list[tuple[int, int]]:
        """Where each parameter begins and ends in a buffer."""
        num = self.num_members
        return [(at, at + num * prod(shape)) for at, shape in zip(self._starts, self.shapes.values(), strict=True)]

    def row_ranges(self, row: int) -> list[tuple[int, int]]:
        """Where each parameter of one member begins and ends in a buffer."""
        sizes = [prod(shape) for shape in self.shapes.values()]
        return [(at + row * size, at + (row + 1) * size) for at, size in zip(self._starts, sizes, strict=True)]

    def zeros(self, device: torch.device) -> Tensor:
        """A buffer in float32."""
        return torch.zeros(self.size, device=device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Each parameter of all members [M, ...], as a part of a buffer."""
        return [
            buffer[start:end].view(self.num_members, *shape)
            for (start, end), shape in zip(self.ranges(), self.shapes.values(), strict=True)
        ]

    def rows(self, buffer: Tensor, row: int) -> list[Tensor]:
        """Each parameter of one member, as a part of a buffer."""
        return [view[row] for view in self.views(buffer)]
