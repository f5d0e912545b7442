"""Which part of the flat buffers of `training.flat` a worker keeps: all of it, or one share of a gang's.

`Shares` is ZeRO-1 (Rajbhandari et al. 2019, arXiv 1910.02054) over flat buffers: every worker has all weights and all
gradients, and masters, moments and averages of one contiguous share, whose update alone it works out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.training.flat import Layout

_gang: Any = torch.distributed
_all_gather = getattr(_gang, "all_gather_single", None) or _gang.all_gather_into_tensor
_reduce_scatter = getattr(_gang, "reduce_scatter_single", None) or _gang.reduce_scatter_tensor
"""By the names of torch 2.13, which warns of the older ones, or by those."""


class Alone:
    """A worker without others: every buffer is its own, for any number of members."""

    num_workers = 1

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def zeros(self, device: torch.device) -> Tensor:
        """A buffer of what the worker keeps, in float32."""
        return self._layout.zeros(device)

    def views(self, kept: Tensor) -> list[Tensor]:
        """Of each parameter of all members what is kept [M, ...], as a part of such a buffer."""
        return self._layout.views(kept)

    def rows(self, kept: Tensor, row: int) -> list[Tensor]:
        """Of each parameter of one member what is kept."""
        return self._layout.rows(kept, row)

    def ranges(self, row: int) -> list[tuple[int, int]]:
        """Where `rows` begin and end in what is kept."""
        return self._layout.row_ranges(row)

    def parts(self, kept: Tensor, row: int) -> list[Tensor]:
        """What is kept of one member, in as few tensors as it has."""
        return self.rows(kept, row)

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Full tensors in the model's order, from parts laid out as `parts`. Collective."""
        yield from parts

    @torch.no_grad()
    def write(self, parts: Sequence[Tensor], full: Sequence[Tensor]) -> None:
        """What is kept of full tensors, in the model's order, into `parts`; the reverse of `whole`."""
        for part, tensor in zip(parts, full, strict=True):
            part.copy_(tensor)

    def spread(self, masters: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All weights in `dtype`, and the masters that are kept, which are a part of them in float32. Collective."""
        return masters.to(dtype), masters

    def own(self, buffer: Tensor) -> Tensor:
        """The worker's part of a buffer of everything."""
        return buffer

    def gather(self, buffer: Tensor) -> None:
        """Fill a buffer of everything with what each worker has in its own part. Collective."""

    def reduce(self, buffer: Tensor) -> None:
        """Make the worker's own part of a buffer the sum over all workers; the rest is void. Collective."""

    def norm(self, parts: Sequence[Tensor]) -> Tensor:
        """The norm of all parts of all workers together, on the device. Collective."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(parts))))

    def total(self, own: Tensor) -> Tensor:
        """The sum of a tensor over all workers, in its place, on the device. Collective."""
        return own


class Shares:
    """One worker's share of one model's buffers; methods as of `Alone`.

    Collectives are of the default process group. On GPUs each can be captured in a CUDA graph: they work in place on
    buffers that stay (NCCL's in-place form: a rank's part lies where it belongs in the whole), and the host waits for
    none.

    Args:
        layout: of one member, cut into `num_workers` shares.
        rank: the worker's.
        num_workers: of the gang.
    """

    def __init__(self, layout: Layout, rank: int, num_workers: int) -> None:
        assert layout.num_members == 1, "only one model is divided"
        assert layout.size == num_workers * layout.share, "the layout is cut for another gang"
        self._layout, self.num_workers = layout, num_workers
        self._start = rank * layout.share

    def zeros(self, device: torch.device) -> Tensor:
        return torch.zeros(self._layout.share, device=device)

    def views(self, kept: Tensor) -> list[Tensor]:
        return [kept[here].view(1, -1) for here, _ in self._slices()]

    def rows(self, kept: Tensor, row: int) -> list[Tensor]:
        return [view[row] for view in self.views(kept)]

    def ranges(self, row: int) -> list[tuple[int, int]]:
        assert row == 0, "only one model is divided"
        return [(here.start, here.stop) for here, _ in self._slices()]

    def parts(self, kept: Tensor, row: int) -> list[Tensor]:
        assert row == 0, "only one model is divided"
        return [kept]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        (kept,) = parts
        buffer = torch.empty(self._layout.size, dtype=kept.dtype, device=kept.device)
        self.own(buffer).copy_(kept)
        self.gather(buffer)
        yield from self._layout.rows(buffer, 0)

    @torch.no_grad()
    def write(self, parts: Sequence[Tensor], full: Sequence[Tensor]) -> None:
        (kept,) = parts
        for (here, there), tensor in zip(self._slices(), full, strict=True):
            kept[here].copy_(tensor.reshape(-1)[there])

    def spread(self, masters: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weights = torch.zeros(self._layout.size, dtype=dtype, device=masters.device)
        self.own(weights).copy_(masters)
        self.gather(weights)
        return weights, self.own(weights) if dtype == masters.dtype else masters

    def own(self, buffer: Tensor) -> Tensor:
        return buffer[self._start : self._start + self._layout.share]

    def gather(self, buffer: Tensor) -> None:
        _all_gather(buffer, self.own(buffer))

    def reduce(self, buffer: Tensor) -> None:
        if buffer.is_cuda:
            _reduce_scatter(self.own(buffer), buffer)
        else:
            torch.distributed.all_reduce(buffer)  # not every gloo can scatter

    def norm(self, parts: Sequence[Tensor]) -> Tensor:
        return self.total(torch.stack(torch._foreach_norm(list(parts))).square().sum()).sqrt()

    def total(self, own: Tensor) -> Tensor:
        torch.distributed.all_reduce(own)
        return own

    def _slices(self) -> list[tuple[slice, slice]]:
        """Of each parameter what of the share it takes, and what of the parameter that is; both may be empty."""
        found = []
        for start, end in self._layout.ranges():
            low, high = (min(max(at - self._start, 0), self._layout.share) for at in (start, end))
            shift = self._start - start
            found.append((slice(low, high), slice(low + shift, high + shift) if high > low else slice(0, 0)))
        return found


Division = Alone | Shares


def division(layout: Layout, rank: int, num_workers: int) -> Division:
    """How a gang of so many workers divides the buffers."""
    return Alone(layout) if num_workers == 1 else Shares(layout, rank, num_workers)
