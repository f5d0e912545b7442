"""What lies between the matrix products of a DiT, on a GPU, each in one pass over memory where torch takes several.

Imports triton, so it is imported where a GPU is used. `models.fused` gives these functions their gradients. Of models
that are packed (`models.packed`) images lie one model's after the other's: image i has the bias and the gains of model
i // `images`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.blocks import NORM_EPS

CHUNK = 64
"""Tokens of one image whose gradients of vectors one program adds up: all of a small one."""
TILE = 2048
"""Numbers of a tensor that a program has at hand at once."""
BACKWARD_TILE = 1024
"""The same where it also keeps four sums."""
ROWS = 256
"""Rows of the MLP's hidden activations that one program of its derivative goes through, at most."""
WIDE = 1024
"""Columns from which on more threads share a row."""
MANY = 512
"""Programs that fill a GPU."""


# Boundaries: x + gate (y + bias), and its modulated norm; or, without a branch y, that of x itself.


@triton.jit
def _boundary(  # type: ignore[no-untyped-def]
    x, y, bias, gate, shift, scale, x2, h, mean, rstd, gate_stride, shift_stride, scale_stride, images, n, d, eps,
    BRANCH: tl.constexpr, BIAS: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, D)[None, :]
    tokens = tl.program_id(1) * R + tl.arange(0, R)[:, None]
    inside = columns < d
    here = inside & (tokens < n)
    rows = image * n + tokens
    at = rows * d + columns
    out = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if BRANCH:
        branch = tl.load(y + at, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            branch += tl.load(bias + (image // images) * d + columns, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate + image * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = (out + g * branch).to(x2.dtype.element_ty)
        tl.store(x2 + at, rounded, mask=here)
        out = rounded.to(tl.float32)
    m = tl.sum(out, 1, keep_dims=True) / d
    centred = tl.where(here, out - m, 0.0)
    r = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / d + eps)
    s = 1.0 + tl.load(scale + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    moved = tl.load(shift + image * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + at, (moved + centred * r * s).to(h.dtype.element_ty), mask=here)
    tl.store(mean + rows, m, mask=tokens < n)
    tl.store(rstd + rows, r, mask=tokens < n)


@triton.jit
def _boundary_backward(  # type: ignore[no-untyped-def]
    dh, dx2, x2, y, bias, mean, rstd, gate, scale, dx, dy, vectors, biases, gate_stride, scale_stride, images, n, d,
    chunks, BRANCH: tl.constexpr, BIAS: tl.constexpr, CHUNK: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns = tl.arange(0, D)[None, :]
    inside = columns < d
    s = 1.0 + tl.load(scale + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    dshift = tl.zeros([R, D], dtype=tl.float32)
    dscale = tl.zeros([R, D], dtype=tl.float32)
    if BRANCH:
        g = tl.load(gate + image * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        dgate = tl.zeros([R, D], dtype=tl.float32)
        dbranch = tl.zeros([R, D], dtype=tl.float32)
    if BIAS:
        extra = tl.load(bias + (image // images) * d + columns, mask=inside, other=0.0).to(tl.float32)
    for i in range(0, CHUNK, R):
        tokens = chunk * CHUNK + i + tl.arange(0, R)[:, None]
        here = inside & (tokens < n)
        rows = image * n + tokens
        at = rows * d + columns
        # All reads before the first sum over a row, which would wait between them.
        m = tl.load(mean + rows, mask=tokens < n, other=0.0)
        r = tl.load(rstd + rows, mask=tokens < n, other=0.0)
        a = tl.load(dh + at, mask=here, other=0.0).to(tl.float32)
        stream = tl.load(x2 + at, mask=here, other=0.0).to(tl.float32)
        if BRANCH:
            branch = tl.load(y + at, mask=here, other=0.0).to(tl.float32)
            through = tl.load(dx2 + at, mask=here, other=0.0).to(tl.float32)
        hat = tl.where(here, (stream - m) * r, 0.0)
        dshift += a
        dscale += a * hat
        a = a * s
        first = tl.sum(a, 1, keep_dims=True) / d
        second = tl.sum(a * hat, 1, keep_dims=True) / d
        out = r * (a - first - hat * second)
        if BRANCH:
            if BIAS:
                branch += extra
            out = tl.where(here, out + through, 0.0)
            dgate += out * branch
            dbranch += out
            tl.store(dy + at, (out * g).to(dy.dtype.element_ty), mask=here)
        tl.store(dx + at, out.to(dx.dtype.element_ty), mask=here)
    to = vectors + (image * chunks + chunk) * (3 if BRANCH else 2) * d + columns
    kind = vectors.dtype.element_ty
    tl.store(to, tl.sum(dshift, 0, keep_dims=True).to(kind), mask=inside)
    tl.store(to + d, tl.sum(dscale, 0, keep_dims=True).to(kind), mask=inside)
    if BRANCH:
        tl.store(to + 2 * d, tl.sum(dgate, 0, keep_dims=True).to(kind), mask=inside)
    if BIAS:
        tl.store(biases + (image * chunks + chunk) * d + columns, tl.sum(dbranch, 0, keep_dims=True) * g, mask=inside)


def boundary(
    x: Tensor, y: Tensor | None, bias: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + gate (y + bias), its modulated norm [b, n, d] both, and the norm's mean and 1 / deviation [b, n].

    Without y and gate the first is x itself. x and y are contiguous, `bias` [M, d]; gate, shift and scale [b, 1, d] are
    contiguous in d.
    """
    b, n, d = x.shape
    block = triton.next_power_of_2(d)
    rows = _tile_rows(TILE, block, n)
    x2, h = x if y is None else torch.empty_like(x), torch.empty_like(x)
    mean, rstd = (torch.empty(b, n, dtype=torch.float32, device=x.device) for _ in range(2))
    _boundary[(b, triton.cdiv(n, rows))](
        x, y, bias, gate, shift, scale, x2, h, mean, rstd, _stride(gate), _stride(shift), _stride(scale),
        _images(b, bias), n, d, NORM_EPS,
        BRANCH=y is not None, BIAS=bias is not None, R=rows, D=block, num_warps=_warps(rows * block),
    )  # fmt: skip
    return x2, h, mean, rstd


def boundary_backward(
    dh: Tensor, dx2: Tensor | None, x2: Tensor, y: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor,
    gate: Tensor | None, scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `boundary`'s x, y, of shift, scale and gate [b, 3, d], and of the bias.

    What is not there has no gradient: an empty one of y and of the bias, [b, 2, d] without gate. Then x's gradient is
    that through the norm alone. All tensors of tokens are contiguous.
    """
    b, n, d = x2.shape
    block, branch = triton.next_power_of_2(d), y is not None
    chunk = min(CHUNK, max(16, triton.next_power_of_2(n)))
    rows, chunks, kinds = _tile_rows(BACKWARD_TILE, block, chunk), triton.cdiv(n, chunk), 3 if branch else 2
    dx, dy = torch.empty_like(x2), torch.empty_like(x2) if branch else x2.new_empty(0)
    kind = scale.dtype if chunks == 1 else torch.float32
    vectors = torch.empty(b, chunks, kinds, d, dtype=kind, device=x2.device)
    biases = torch.empty(b * chunks if bias is not None else 0, d, dtype=torch.float32, device=x2.device)
    _boundary_backward[(b, chunks)](
        dh, dx2, x2, y, bias, mean, rstd, gate, scale, dx, dy, vectors, biases, _stride(gate), _stride(scale),
        _images(b, bias), n, d, chunks,
        BRANCH=branch, BIAS=bias is not None, CHUNK=chunk, R=rows, D=block, num_warps=8 if block >= WIDE else 4,
    )  # fmt: skip
    if chunks > 1:
        vectors = added(vectors.view(b, chunks, kinds * d), scale.dtype)
    return dx, dy, vectors.view(b, kinds, d), _of_bias(biases, bias, x2)


# Sums of what programs have summed.


@triton.jit
def _added(x, out, d, terms: tl.constexpr, T: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * C + tl.arange(0, C)[None, :]
    inside = columns < d
    total = tl.zeros([T, C], dtype=tl.float32)
    for start in range(0, terms, T):
        term = start + tl.arange(0, T)[:, None]
        total += tl.load(x + (row * terms + term) * d + columns, mask=inside & (term < terms), other=0.0)
    tl.store(out + row * d + columns, tl.sum(total, 0, keep_dims=True).to(out.dtype.element_ty), mask=inside)


def added(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums over the second of three axes, of float32; always in the same order."""
    rows, terms, d = x.shape
    out = torch.empty(rows, d, dtype=dtype, device=x.device)
    at_once = min(256, triton.next_power_of_2(terms))
    columns = max(32, min(256, 4096 // at_once))
    _added[(rows, triton.cdiv(d, columns))](x, out, d, terms=terms, T=at_once, C=columns, num_warps=8)
    return out


# GELU of x + bias.


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 / (1.0 + tl.exp2(-2.0 * 1.4426950408889634 * x)) - 1.0


@triton.jit
def _gelu(x, bias, out, rows, d, BIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    model = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * C + tl.arange(0, C)[None, :]
    row = tl.program_id(0) * R + tl.arange(0, R)[:, None]
    here = (columns < d) & (row < rows)
    at = (model * rows + row) * d + columns
    value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + model * d + columns, mask=columns < d, other=0.0).to(tl.float32)
    u = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    tl.store(out + at, (0.5 * value * (1.0 + _tanh(u))).to(out.dtype.element_ty), mask=here)


@triton.jit
def _gelu_backward(  # type: ignore[no-untyped-def]
    dout, x, bias, dx, sums, rows, d, chunks,
    BIAS: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    model = tl.program_id(2).to(tl.int64)
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * C + tl.arange(0, C)[None, :]
    inside = columns < d
    if BIAS:
        extra = tl.load(bias + model * d + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([R, C], dtype=tl.float32)
    for i in range(0, ROWS, R):
        row = chunk * ROWS + i + tl.arange(0, R)[:, None]
        here = inside & (row < rows)
        at = (model * rows + row) * d + columns
        value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            value += extra
        square = value * value
        t = _tanh(0.7978845608028654 * (value + 0.044715 * square * value))
        slope = 0.7978845608028654 * (1.0 + 3 * 0.044715 * square)
        derivative = 0.5 * (1.0 + t) + 0.5 * value * (1.0 - t * t) * slope
        grad = tl.load(dout + at, mask=here, other=0.0).to(tl.float32) * derivative
        if SUM:
            total += grad
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=here)
    if SUM:
        to = sums + (model * chunks + chunk) * d + columns
        tl.store(to, tl.sum(total, 0, keep_dims=True), mask=inside)


def gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """tanh-GELU of x + bias; x [b, n, d] contiguous, `bias` [M, d]."""
    models, rows, d = _models(x, bias)
    columns = min(1024, triton.next_power_of_2(d))
    tile = max(1, 4096 // columns)
    out = torch.empty_like(x)
    grid = (triton.cdiv(rows, tile), triton.cdiv(d, columns), models)
    _gelu[grid](x, bias, out, rows, d, BIAS=bias is not None, R=tile, C=columns, num_warps=8)
    return out


def gelu_backward(dout: Tensor, x: Tensor, bias: Tensor | None, summed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of `gelu`'s x, and of the bias `summed`, added here or before; empty where it is None."""
    models, rows, d = _models(x, summed)
    columns = min(256, triton.next_power_of_2(d))
    tile, across = TILE // columns, triton.cdiv(d, columns) * models
    turns = max(1, min(ROWS, rows * across // (2 * MANY)) // tile)
    own = tile * triton.next_power_of_2(turns)
    chunks = triton.cdiv(rows, own)
    dx = torch.empty_like(x)
    sums = torch.empty(models, chunks if summed is not None else 0, d, dtype=torch.float32, device=x.device)
    _gelu_backward[(chunks, triton.cdiv(d, columns), models)](
        dout, x, bias, dx, sums, rows, d, chunks,
        BIAS=bias is not None, SUM=summed is not None, ROWS=own, R=tile, C=columns, num_warps=4,
    )  # fmt: skip
    return dx, _of_bias(sums, summed, x)


def _of_bias(sums: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """A bias's gradient from partial sums, empty where there is no bias."""
    return x.new_empty(0) if bias is None else added(sums.view(len(bias), -1, sums.shape[-1]), bias.dtype)


def _models(x: Tensor, bias: Tensor | None) -> tuple[int, int, int]:
    """Models, rows of each, and columns."""
    models, d = 1 if bias is None else len(bias), x.shape[-1]
    return models, x.numel() // d // models, d


def _images(b: int, bias: Tensor | None) -> int:
    """Images of a model."""
    return b if bias is None else b // len(bias)


def _stride(vectors: Tensor | None) -> int:
    """From image to image."""
    return 0 if vectors is None else vectors.stride(0)


def _tile_rows(tile: int, block: int, most: int) -> int:
    return min(max(1, tile // block), triton.next_power_of_2(most))


def _warps(numbers: int) -> int:
    return 4 if numbers <= TILE else 8
