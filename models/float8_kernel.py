"""Rounding rows to fp8 on a GPU, in one pass. Imports triton, so it is imported where a GPU is used."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rowwise(x, rounded, scale, columns, stride, largest, smallest_scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < columns
    values = tl.load(x + row * stride + place, mask=inside, other=0.0).to(tl.float32)
    # Divisions that round as a CPU's do: a quotient half-way between two e4m3 numbers is nothing rare.
    own = tl.maximum(tl.div_rn(tl.max(tl.abs(values), axis=0), largest), smallest_scale)
    tl.store(scale + row, own)
    tl.store(rounded + row * columns + place, tl.div_rn(values, own).to(tl.float8e4nv), mask=inside)


def rowwise(x: Tensor, largest: float, smallest_scale: float) -> tuple[Tensor, Tensor]:
    """As `models.float8.rowwise`, of rows that lie contiguous in themselves."""
    rows, columns = x.shape
    rounded = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(columns)
    _rowwise[(rows,)](
        x,
        rounded,
        scale,
        columns,
        x.stride(0),
        largest,
        smallest_scale,
        BLOCK=block,
        num_warps=min(16, max(4, block // 512)),
    )
    return rounded, scale
