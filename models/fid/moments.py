"""Mean and covariance of features, streamed in float64: batch by batch, worker by worker, in any grouping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and scatter [d, d] (the sum of outer products of deviations from the mean), in float64.

    Merging is that of Chan, Golub & LeVeque (1983): no sum of raw squares is ever held, so features whose mean is
    large beside their spread lose no digits.
    """

    count: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]

    @staticmethod
    def empty(dim: int) -> Moments:
        """Of no features at all: what merging starts from."""
        return Moments(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @staticmethod
    def of(features: Float[Tensor, "n d"]) -> Moments:
        """Of some features.

        Raises:
            ValueError: they are not a matrix, or not all finite.
        """
        if features.ndim != 2:
            raise ValueError(f"features have shape {list(features.shape)}; wanted [images, features]")
        if not torch.isfinite(features).all():
            bad = int((~torch.isfinite(features).all(dim=1)).sum())
            raise ValueError(f"{bad} of {len(features)} rows of features are not finite; wanted finite ones")
        if len(features) == 0:
            return Moments.empty(features.shape[1])
        x = features.double()
        mean = x.mean(dim=0)
        centred = x - mean
        return Moments(len(x), mean, centred.T @ centred)

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance, as in every published implementation.

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} images; wanted at least 2")
        return self.scatter / (self.count - 1)

    def merge(self, other: Moments) -> Moments:
        """Of both together.

        Raises:
            ValueError: they have different numbers of features.
        """
        if self.dim != other.dim:
            raise ValueError(f"moments of {self.dim} and of {other.dim} features; wanted those of one encoder")
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = torch.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def over_workers(self) -> Moments:
        """Of the features of all workers of the process group, on each of them. Collective.

        Two sums: of counts and means, then of scatters about the mean of all.
        """
        sums = torch.cat([self.mean * self.count, self.mean.new_tensor([float(self.count)])])
        torch.distributed.all_reduce(sums)
        count = round(float(sums[-1]))
        mean = sums[:-1] / max(count, 1)
        delta = self.mean - mean
        scatter = self.scatter + self.count * torch.outer(delta, delta)
        torch.distributed.all_reduce(scatter)
        return Moments(count, mean, scatter)

    def of_features(self, part: slice) -> Moments:
        """Of some of the features alone."""
        return Moments(self.count, self.mean[part], self.scatter[part, part])

    def to(self, device: torch.device | str) -> Moments:
        """The same on a device."""
        return Moments(self.count, self.mean.to(device), self.scatter.to(device))
