"""Kernel Inception Distance: unbiased where images are few (Binkowski et al. 2018, arXiv 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SUBSETS = 100
SUBSET_SIZE = 1000
CHUNK = 4096
"""Rows of a kernel matrix worked out at a time."""


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The mean over subsets and its standard deviation between subsets, as published figures give it."""

    value: float
    subset_sd: float


def kernel_distance(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    generator: torch.Generator,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> KernelDistance:
    """Unbiased MMD^2 under the cubic kernel, over random subsets of both sides.

    Subsets are of `subset_size` images, or of as many as the smaller side has.

    Raises:
        ValueError: fewer than two images on a side, different numbers of features, or features that are not finite.
    """
    for name, side in (("features", features), ("reference", reference)):
        if side.ndim != 2 or len(side) < 2:
            raise ValueError(f"{name} have shape {list(side.shape)}; wanted at least 2 rows of features")
        if not torch.isfinite(side).all():
            raise ValueError(f"{name} hold values that are not finite; wanted finite ones")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"{features.shape[1]} features against {reference.shape[1]}; wanted those of one encoder")
    size = min(subset_size, len(features), len(reference))
    values = []
    for _ in range(subsets):
        ours = torch.randperm(len(features), generator=generator)[:size].to(features.device)
        theirs = torch.randperm(len(reference), generator=generator)[:size].to(reference.device)
        values.append(squared_mmd(features[ours], reference[theirs]))
    found = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(value=float(found.mean()), subset_sd=float(found.std(correction=0)))


def squared_mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The unbiased estimate of MMD^2 (Gretton et al. 2012, equation 3) under k(a, b) = (a.b / d + 1)^3, in float64.

    It can be negative: its mean over draws is the distance.
    """
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _kernel(x, x).sum()) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel(y, y).sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """k of pairs of rows."""
    return ((a * b).sum(dim=1) / a.shape[1] + 1) ** 3


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([((part @ b.T / a.shape[1] + 1) ** 3).sum() for part in a.split(CHUNK)]).sum()
