"""Attention over short sequences on a GPU, from queries, keys and values as their map gives them to their gradient.

A program has all keys and values of a head at hand, so the gradient of queries, keys and values is written where the
map's backward product reads it, biases and head norms are part of it, and nothing of [n, n] ever leaves the chip. As
`models.fused_kernels` it is imported where a GPU is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.blocks import NORM_EPS
from models.fused_kernels import added

QUERIES = 128
"""Queries of a program of the forward pass, of sequences that have as many."""
SHORT = 64
"""Tokens up to which a program of the backward pass takes all queries at once."""
TURN, STAGES = 32, 3
"""Queries that it takes at a time of longer sequences, and turns of which it has read the data: of sequences of 256 in
heads of 64 0.69 ms where 64 queries without reading ahead took 0.83 (docs/training.md)."""
LOG2_E = tl.constexpr(1.4426950408889634)


class Extras(NamedTuple):
    """What is done to queries, keys and values before they attend; of M packed models."""

    bias: Tensor | None
    """[M, 3 w], added."""
    q_gain: Tensor | None
    """[M, head_dim] of the RMS norm of queries."""
    k_gain: Tensor | None


@triton.jit
def _loaded(base, at, mask, bias, cols, d, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of one head, their bias added, rounded as a map with a bias rounds them."""
    rows = tl.load(base + at, mask=mask, other=0.0)
    if BIAS:
        extra = tl.load(bias + cols, mask=cols < d, other=0.0).to(tl.float32)
        rows = tl.where(mask, rows.to(tl.float32) + extra[None, :], 0.0).to(rows.dtype)
    return rows


@triton.jit
def _normed(rows, gain, cols, d, eps):  # type: ignore[no-untyped-def]
    """RMS norm of rows with a gain, and 1 / RMS [rows, 1]."""
    wide = rows.to(tl.float32)
    r = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / d + eps)
    g = tl.load(gain + cols, mask=cols < d, other=0.0).to(tl.float32)
    return (wide * r * g[None, :]).to(rows.dtype), r


@triton.jit
def _norm_backward(grad, rows, r, gain, cols, d):  # type: ignore[no-untyped-def]
    """Gradients of the rows that `_normed` took [rows, D], and of its gain [D]."""
    wide = rows.to(tl.float32) * r
    g = tl.load(gain + cols, mask=cols < d, other=0.0).to(tl.float32)
    dgain = tl.sum(grad * wide, 0)
    grad = grad * g[None, :]
    return r * (grad - wide * (tl.sum(grad * wide, 1, keep_dims=True) / d)), dgain


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    qkv, bias, q_gain, k_gain, o, lse, scale, images, H, n, d, eps,
    BIAS: tl.constexpr, NORM: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b = pid // H
    h = pid % H
    row = 3 * H * d  # numbers from token to token
    base = qkv + b * n * row + h * d
    extra = bias + (b // images) * row + h * d if BIAS else qkv
    cols = tl.arange(0, D)
    keys = tl.arange(0, N)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (keys[:, None] < n) & (cols[None, :] < d)
    mine = (rows[:, None] < n) & (cols[None, :] < d)
    k = _loaded(base + H * d, keys[:, None] * row + cols[None, :], inside, extra + H * d, cols, d, BIAS)
    v = _loaded(base + 2 * H * d, keys[:, None] * row + cols[None, :], inside, extra + 2 * H * d, cols, d, BIAS)
    q = _loaded(base, rows[:, None] * row + cols[None, :], mine, extra, cols, d, BIAS)
    if NORM:
        q, _ = _normed(q, q_gain + (b // images) * d, cols, d, eps)
        k, _ = _normed(k, k_gain + (b // images) * d, cols, d, eps)
    s = tl.dot(q, tl.trans(k)) * (scale * LOG2_E)
    s = tl.where(keys[None, :] < n, s, -float("inf"))
    top = tl.max(s, 1)
    p = tl.exp2(s - top[:, None])
    total = tl.sum(p, 1)
    out = tl.dot(p.to(v.dtype), v) / total[:, None]
    at = (b * n + rows[:, None]) * (H * d) + h * d + cols[None, :]
    tl.store(o + at, out.to(o.dtype.element_ty), mask=mine)
    tl.store(lse + pid * n + rows, (top + tl.log2(total)) / LOG2_E, mask=rows < n)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    qkv, bias, q_gain, k_gain, o, lse, do, dqkv, dbias, dgain, scale, images, H, n, d, eps,
    BIAS: tl.constexpr, SUM: tl.constexpr, NORM: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b = pid // H
    h = pid % H
    row = 3 * H * d
    base = b * n * row + h * d
    extra = bias + (b // images) * row + h * d if BIAS else qkv
    gain = (b // images) * d
    cols = tl.arange(0, D)
    keys = tl.arange(0, N)
    kv = keys[:, None] * row + cols[None, :]
    inside = (keys[:, None] < n) & (cols[None, :] < d)
    raw_k = _loaded(qkv + base + H * d, kv, inside, extra + H * d, cols, d, BIAS)
    v = _loaded(qkv + base + 2 * H * d, kv, inside, extra + 2 * H * d, cols, d, BIAS)
    k = raw_k
    if NORM:
        k, k_rms = _normed(raw_k, k_gain + gain, cols, d, eps)
        q_sum = tl.zeros([D], dtype=tl.float32)
    dk = tl.zeros([N, D], dtype=tl.float32)
    dv = tl.zeros([N, D], dtype=tl.float32)
    dq_sum = tl.zeros([D], dtype=tl.float32)
    for start in range(0, N, BM):
        rows = start + tl.arange(0, BM)
        mine = (rows[:, None] < n) & (cols[None, :] < d)
        q_at = rows[:, None] * row + cols[None, :]
        raw_q = _loaded(qkv + base, q_at, mine, extra, cols, d, BIAS)
        q = raw_q
        if NORM:
            q, q_rms = _normed(raw_q, q_gain + gain, cols, d, eps)
        at = (b * n + rows[:, None]) * (H * d) + h * d + cols[None, :]
        g = tl.load(do + at, mask=mine, other=0.0)
        out = tl.load(o + at, mask=mine, other=0.0)
        delta = tl.sum(g.to(tl.float32) * out.to(tl.float32), 1)
        top = tl.load(lse + pid * n + rows, mask=rows < n, other=float("inf")) * LOG2_E
        pt = tl.exp2(tl.dot(k, tl.trans(q)) * (scale * LOG2_E) - top[None, :])  # [N, BM]
        pt = tl.where((keys[:, None] < n) & (rows[None, :] < n), pt, 0.0)
        dv += tl.dot(pt.to(g.dtype), g)
        dst = (pt * (tl.dot(v, tl.trans(g)) - delta[None, :])).to(q.dtype)
        dk += tl.dot(dst, q)
        dq = tl.dot(tl.trans(dst), k) * scale
        if NORM:
            dq, one = _norm_backward(dq, raw_q, q_rms, q_gain + gain, cols, d)
            q_sum += one
        if SUM:
            dq_sum += tl.sum(tl.where(mine, dq, 0.0), 0)
        tl.store(dqkv + base + q_at, dq.to(dqkv.dtype.element_ty), mask=mine)
    dk = dk * scale
    if NORM:
        dk, one = _norm_backward(dk, raw_k, k_rms, k_gain + gain, cols, d)
        tl.store(dgain + pid * 2 * d + cols, q_sum, mask=cols < d)
        tl.store(dgain + pid * 2 * d + d + cols, one, mask=cols < d)
    if SUM:
        to = dbias + b * row + h * d + cols
        tl.store(to, dq_sum, mask=cols < d)
        tl.store(to + H * d, tl.sum(dk, 0), mask=cols < d)
        tl.store(to + 2 * H * d, tl.sum(dv, 0), mask=cols < d)
    tl.store(dqkv + base + H * d + kv, dk.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(dqkv + base + 2 * H * d + kv, dv.to(dqkv.dtype.element_ty), mask=inside)


def attention(qkv: Tensor, extras: Extras) -> tuple[Tensor, Tensor]:
    """Heads joined [b, n, w] and the logarithm of the softmax's sum [b, heads, n]; qkv [b, n, 3, heads, head_dim]."""
    b, n, h, d, most = _sizes(qkv)
    o = torch.empty(b, n, h * d, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=qkv.device)
    queries = min(QUERIES if n > QUERIES else 64, most[0])
    _forward[(b * h, triton.cdiv(n, queries))](
        qkv, *extras, o, lse, d**-0.5, _images(b, extras), h, n, d, NORM_EPS, **_kinds(extras),
        N=most[0], D=most[1], BM=queries, num_warps=_warps(n), num_stages=1,
    )  # fmt: skip
    return o, lse


def attention_backward(
    qkv: Tensor, extras: Extras, o: Tensor, lse: Tensor, do: Tensor, summed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention`'s qkv, of the bias, and of the gains of queries and keys [M, 2, head_dim].

    `summed` is the bias whose gradient is asked for, in `extras` or added before. What is not there has an empty
    gradient. All tensors are contiguous.
    """
    b, n, h, d, most = _sizes(qkv)
    dqkv, gain = torch.empty_like(qkv), extras.q_gain
    dbias = torch.empty(b if summed is not None else 0, 3 * h * d, dtype=torch.float32, device=qkv.device)
    dgain = torch.empty(b if gain is not None else 0, h, 2, d, dtype=torch.float32, device=qkv.device)
    queries, stages = (most[0], 1) if n <= SHORT else (TURN, STAGES)
    _backward[(b * h,)](
        qkv, *extras, o, lse, do, dqkv, dbias, dgain, d**-0.5, _images(b, extras), h, n, d, NORM_EPS,
        **_kinds(extras), SUM=summed is not None, N=most[0], D=most[1], BM=queries,
        num_warps=_warps(n), num_stages=stages,
    )  # fmt: skip
    empty = qkv.new_empty(0)
    return (
        dqkv,
        empty if summed is None else added(dbias.view(len(summed), -1, 3 * h * d), summed.dtype),
        empty if gain is None else added(dgain.view(len(gain), -1, 2 * d), gain.dtype).view(-1, 2, d),
    )


def _sizes(qkv: Tensor) -> tuple[int, int, int, int, tuple[int, int]]:
    b, n, _, h, d = qkv.shape
    return b, n, h, d, (max(16, triton.next_power_of_2(n)), max(16, triton.next_power_of_2(d)))


def _warps(tokens: int) -> int:
    """Of a program."""
    return 8 if tokens > 128 else 4


def _images(b: int, extras: Extras) -> int:
    """Images of a model."""
    given = [one for one in extras if one is not None]
    return b // len(given[0]) if given else b


def _kinds(extras: Extras) -> dict[str, bool]:
    return {"BIAS": extras.bias is not None, "NORM": extras.q_gain is not None}
