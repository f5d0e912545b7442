"""Averages of any length after training, from stored ones (Karras et al. 2024, arXiv 2312.02696, section 3.2).

A power-function average at time T is an integral of the weights' trajectory with the profile
p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1) on [0, T]. Snapshots of two such averages at several times span a space
of profiles; the wanted profile is projected onto it, and the same combination of the snapshots is the wanted average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.ema import gamma_of


@dataclass(frozen=True)
class Snapshot:
    """A stored power-function average: `models.ema.Ema.tensors` after `samples` samples seen."""

    samples: int
    relative_std: float
    tensors: Sequence[Tensor]


@dataclass(frozen=True)
class Combination:
    """Weights of the snapshots (float64, [n]), and how far their profile is from the wanted one, relative in L2."""

    weights: Float[Tensor, " n"]
    residual: float


def inner_products(
    gamma_a: Float[Tensor, " a"], end_a: Float[Tensor, " a"], gamma_b: Float[Tensor, " b"], end_b: Float[Tensor, " b"]
) -> Float[Tensor, "a b"]:
    """Integrals of the products of two profiles, in float64 (appendix C).

    With the shorter one (gamma, T) and the longer one (gamma', T'):
    (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) (T / T')^gamma' / T'.
    """
    gamma_a, end_a, gamma_b, end_b = (v.double() for v in (gamma_a[:, None], end_a[:, None], gamma_b, end_b))
    longer = torch.maximum(end_a, end_b)
    gamma_of_longer = torch.where(end_a < end_b, gamma_b, gamma_a)
    ratio = torch.minimum(end_a, end_b) / longer
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**gamma_of_longer / longer


def combination(stored: Sequence[tuple[int, float]], samples: int, relative_std: float) -> Combination:
    """The combination of stored averages, given as (samples, relative_std), that is nearest to the wanted average.

    Only averages up to `samples` are used (the others have weight 0), and one must be at `samples`, as a profile that
    ends between two snapshots is not near any combination of them.

    Raises:
        ValueError: none is at `samples`, two are the same, or a relative_std is outside (0, 1 / sqrt(12)).
    """
    ends = sorted({end for end, _ in stored})
    if samples not in ends:
        raise ValueError(f"no average is stored at {samples} samples; wanted one of {ends}")
    if len(set(stored)) < len(stored):
        raise ValueError(f"stored averages are {list(stored)}; wanted each (samples, relative_std) once")
    used = [index for index, (end, _) in enumerate(stored) if end <= samples]
    gamma = torch.tensor([gamma_of(stored[index][1]) for index in used], dtype=torch.float64)
    # In units of the wanted time, and profiles of norm 1, so that the system is as well conditioned as it can be.
    end = torch.tensor([stored[index][0] / samples for index in used], dtype=torch.float64)
    wanted = torch.tensor([gamma_of(relative_std)], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    norm = inner_products(gamma, end, gamma, end).diagonal().sqrt()
    system = inner_products(gamma, end, gamma, end) / (norm[:, None] * norm)
    right = inner_products(gamma, end, *wanted) / norm[:, None]
    solution = torch.linalg.lstsq(system, right, rcond=1e-12, driver="gelsd").solution[:, 0]
    square = inner_products(*wanted, *wanted).item()
    left = square - 2 * (solution @ right[:, 0]).item() + (solution @ system @ solution).item()
    weights = torch.zeros(len(stored), dtype=torch.float64)
    weights[used] = solution / norm
    return Combination(weights, (max(0.0, left) / square) ** 0.5)


@torch.no_grad()
def reconstruct(snapshots: Sequence[Snapshot], samples: int, relative_std: float) -> list[Tensor]:
    """The parameters that an average of this length would hold after `samples` samples, in float32.

    Raises:
        ValueError: as of `combination`, or the snapshots' tensors differ in number or shape.
    """
    shapes = [[list(tensor.shape) for tensor in snapshot.tensors] for snapshot in snapshots]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(f"snapshots hold tensors of shapes {shapes}; wanted the same parameters in each")
    weights = combination([(s.samples, s.relative_std) for s in snapshots], samples, relative_std).weights.tolist()
    sums = [torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device) for tensor in snapshots[0].tensors]
    for snapshot, weight in zip(snapshots, weights, strict=True):
        if weight:
            torch._foreach_add_(sums, [tensor.double() for tensor in snapshot.tensors], alpha=weight)
    return [total.float() for total in sums]
