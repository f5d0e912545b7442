"""The update of `flat_adamw.KernelUpdate` on a GPU. Imports triton, so it is imported where a GPU is used."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from orchestrator.training.flat import ALIGNMENT
from orchestrator.training.flat_adamw import CLIP_EPS, PIECE, Pieces, Work

NORM_EPS = tl.constexpr(CLIP_EPS)
WARPS = 8
"""Four elements of a piece for each thread, in bf16 as in fp32: else they would change threads on their way."""


def update(
    work: Work,
    pieces: Pieces,
    numbers: Tensor,
    squares: Tensor | None = None,
    limits: Tensor | None = None,
) -> None:
    """One step of every member, in place: each buffer is read and written once.

    Args:
        work: the work.
        pieces: of them.
        numbers: of each member [M, 4]: learning rate over its base, the same over Adam's first bias correction, one
            over the root of the second, and the share by which the average moves.
        squares: of each member's gradient [M], summed; None where nothing is clipped.
        limits: of its norm [M].
    """
    assert (squares is None) == (limits is None), "clipping wants both"
    beta1, beta2 = work.betas
    num_members, num = pieces.begins.shape
    _update[(num, num_members)](
        work.masters,
        work.weights,
        work.gradient,
        *work.moments,
        work.averages,
        pieces.begins,
        pieces.lengths,
        pieces.settings,
        numbers,
        squares,
        limits,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        APART=work.weights is not work.masters,
        ALIGNED=ALIGNMENT,
        BLOCK=PIECE,
        num_warps=WARPS,
    )


def squares(gradient: Tensor, pieces: Pieces) -> Tensor:
    """The sum of the squares of each member's gradient [M], in an order that does not change."""
    num_members, num = pieces.begins.shape
    partial = gradient.new_empty((num_members, num), dtype=pieces.settings.dtype)
    _squares[(num, num_members)](gradient, pieces.begins, pieces.lengths, partial, ALIGNED=ALIGNMENT, BLOCK=PIECE)
    return partial.sum(1)


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    masters, weights, gradient, first, second, averages, begins, lengths, settings, numbers, squares, limits,
    keep1, take1, keep2, take2, APART: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    member = tl.program_id(1)
    piece = member * tl.num_programs(0) + tl.program_id(0)
    begin, length = tl.load(begins + piece), tl.load(lengths + piece)
    own, numbers = settings + 3 * piece, numbers + 4 * member
    base, decay, eps = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    shrink = 1.0 - base * tl.load(numbers) * decay
    size, scale, share = base * tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    used = 1.0  # of the gradient
    if squares is not None:
        limit = tl.load(limits + member) / (tl.sqrt(tl.load(squares + member)) + NORM_EPS)
        used = tl.minimum(limit, 1.0, propagate_nan=tl.PropagateNan.ALL)
    # The compiler moves 16 bytes at once only where it is told that pieces begin and end at multiples.
    if begin % ALIGNED == 0 and length % ALIGNED == 0:
        _advance(
            masters, weights, gradient, first, second, averages, begin, length, used, size, scale, shrink, eps, share,
            keep1, take1, keep2, take2, APART, ALIGNED, BLOCK,
        )  # fmt: skip
    else:
        _advance(
            masters, weights, gradient, first, second, averages, begin, length, used, size, scale, shrink, eps, share,
            keep1, take1, keep2, take2, APART, 1, BLOCK,
        )  # fmt: skip


@triton.jit
def _advance(  # type: ignore[no-untyped-def]
    masters, weights, gradient, first, second, averages, begin, length, used, size, scale, shrink, eps, share,
    keep1, take1, keep2, take2, APART: tl.constexpr, MULTIPLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) and the average, of one piece."""
    place = tl.arange(0, BLOCK)
    inside = place < length // MULTIPLE * MULTIPLE
    at = begin // MULTIPLE * MULTIPLE + place
    g = used * tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    m = keep1 * tl.load(first + at, mask=inside, other=0.0) + take1 * g
    v = keep2 * tl.load(second + at, mask=inside, other=0.0) + take2 * g * g
    p = tl.load(masters + at, mask=inside, other=0.0) * shrink - size * m / (tl.sqrt(v) * scale + eps)
    a = tl.load(averages + at, mask=inside, other=0.0)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    tl.store(masters + at, p, mask=inside)
    # From the nearer end, as torch.lerp does: a share of one gives the weights to the last bit.
    tl.store(averages + at, tl.where(share < 0.5, a + share * (p - a), p - (1.0 - share) * (p - a)), mask=inside)
    if APART:
        tl.store(weights + at, p.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _squares(gradient, begins, lengths, partial, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    piece = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    begin, length = tl.load(begins + piece), tl.load(lengths + piece)
    if begin % ALIGNED == 0 and length % ALIGNED == 0:
        total = _sum_of_squares(gradient, begin, length, ALIGNED, BLOCK)
    else:
        total = _sum_of_squares(gradient, begin, length, 1, BLOCK)
    tl.store(partial + piece, total)


@triton.jit
def _sum_of_squares(gradient, begin, length, MULTIPLE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, BLOCK)
    inside = place < length // MULTIPLE * MULTIPLE
    g = tl.load(gradient + begin // MULTIPLE * MULTIPLE + place, mask=inside, other=0.0).to(tl.float32)
    return tl.sum(g * g, axis=0)
