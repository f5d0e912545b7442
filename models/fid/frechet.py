"""The Frechet distance between the Gaussians of two sets of features, its noise, and its limit for many images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.fid.moments import Moments

FOLDS = (1, 2, 3, 4)
"""Numbers of disjoint parts into which images are divided to see how the distance grows as they get fewer."""
BLOCKS = math.lcm(*FOLDS)
Z95 = 1.959964


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with; the square root of its covariance is worked out once and kept."""

    moments: Moments
    sqrt_covariance: Float64[Tensor, "d d"]
    """The symmetric square root."""

    @staticmethod
    def of(moments: Moments) -> Reference:
        """Of the moments of real images."""
        values, vectors = torch.linalg.eigh(moments.covariance)
        return Reference(moments, (vectors * values.clamp(min=0).sqrt()) @ vectors.T)


def frechet_distance(moments: Moments, reference: Reference) -> float:
    """|m - m_r|^2 + tr(S + S_r - 2 (S_r^(1/2) S S_r^(1/2))^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017).

    The trace of the root is the sum of the square roots of the eigenvalues of the symmetric matrix in the brackets:
    one eigvalsh, against a Schur decomposition of the product S S_r. Singular covariances are no special case;
    eigenvalues that rounding makes negative are zero.

    Raises:
        ValueError: the numbers of features differ, or one side has fewer than two images.
    """
    of, to = moments, reference.moments
    if of.dim != to.dim:
        raise ValueError(f"moments of {of.dim} features against a reference of {to.dim}; wanted those of one encoder")
    root = reference.sqrt_covariance
    inner = root @ of.covariance @ root
    values = torch.linalg.eigvalsh((inner + inner.T) / 2)
    difference = of.mean - to.mean
    spread = of.covariance.trace() + to.covariance.trace() - 2 * _roots(values).sum()
    return max(0.0, float(difference @ difference + spread))


def _roots(values: Tensor) -> Tensor:
    """Square roots of eigenvalues, those below rounding error left out: the root of what is only noise of size
    eps would be of size 1e-8, and there can be thousands of them."""
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values.clamp(min=0), torch.zeros_like(values)).sqrt()


def sampling_sd(features: Float[Tensor, "n d"], reference: Reference) -> float:
    """Standard deviation of the distance over fresh images of the same generator, to first order in 1/sqrt(n).

    By the delta method: an image x moves the distance by (its influence) / n with

        influence(x) = 2 (m - m_r).(x - m) + (x - m)^T (I - T) (x - m) - const,
        T = S_r^(1/2) (S_r^(1/2) S S_r^(1/2))^(-1/2) S_r^(1/2),

    T being the optimal transport map from the images to the reference (the derivative of the Bures distance; Takatsu
    2011). Directions in which the images do not vary add nothing. Close to distance 0 the first order vanishes and the
    true spread is the second order's, which this does not see.

    Raises:
        ValueError: as `frechet_distance`.
    """
    x = features.double()
    moments = Moments.of(x)
    root = reference.sqrt_covariance
    inner = root @ moments.covariance @ root
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    roots = _roots(values)
    inverse = torch.where(roots > 0, 1 / roots.clamp(min=torch.finfo(roots.dtype).tiny), torch.zeros_like(roots))
    half = (root @ vectors) * inverse.sqrt()
    centred = x - moments.mean
    quadratic = centred.square().sum(dim=1) - (centred @ half).square().sum(dim=1)
    influence = 2 * centred @ (moments.mean - reference.moments.mean) + quadratic
    return float(influence.std() / math.sqrt(len(x)))


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The distance that infinitely many images would have, with a 95% interval."""

    value: float
    low: float
    high: float

    @property
    def sd(self) -> float:
        """Half the width of the interval in standard deviations of a normal one."""
        return (self.high - self.low) / (2 * Z95)


def extrapolated_distance(features: Float[Tensor, "n d"], reference: Reference) -> Extrapolation:
    """FD_inf: a line in 1/n through distances of parts, at 1/n = 0 (Chong & Forsyth 2020, arXiv 1911.07023).

    The images are divided into 1, 2, 3 and 4 disjoint parts by their index modulo 12; the mean distance of the parts
    of each division is one point. All points rest on the same images, so what is linear in them is common to all: the
    interval is the sampling error of the whole (`sampling_sd`) and the scatter about the line, in quadrature.

    Raises:
        ValueError: parts of fewer than two images, and as `frechet_distance`.
    """
    if len(features) < 2 * BLOCKS:
        raise ValueError(f"an extrapolation from {len(features)} images; wanted at least {2 * BLOCKS}")
    blocks = [Moments.of(features[start::BLOCKS]) for start in range(BLOCKS)]
    rows = []
    for folds in FOLDS:
        for fold in range(folds):
            part = _merged(blocks[fold::folds])
            rows.append((1 / part.count, frechet_distance(part, reference), 1 / folds))
    inverse, distance, weight = torch.tensor(rows, dtype=torch.float64).T
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    gram = torch.linalg.inv(design.T @ (weight[:, None] * design))
    intercept, slope = gram @ (design.T @ (weight * distance))
    residual = distance - intercept - slope * inverse
    freedom = len(rows) - 2
    variance = float((weight * residual.square()).sum() / freedom * gram[0, 0])
    half = Z95 * math.sqrt(variance + sampling_sd(features, reference) ** 2)
    value = float(intercept)
    return Extrapolation(value=value, low=value - half, high=value + half)


def _merged(blocks: Sequence[Moments]) -> Moments:
    whole = blocks[0]
    for block in blocks[1:]:
        whole = whole.merge(block)
    return whole


def expected_bias(features: Float[Tensor, "n d"], count: int) -> float:
    """The distance that `count` fresh images of the features' own distribution have from it on average, to order 1/n.

    The means add tr S / n. A covariance that is off by A adds, in the eigenbasis of S with eigenvalues l,
    1/2 sum_ij A_ij^2 / (l_i + l_j), and E A_ij^2 is the variance of z_i z_j over n. Two halves of n images each are
    expected at twice that.
    """
    moments = Moments.of(features)
    values, vectors = torch.linalg.eigh(moments.covariance)
    kept = _roots(values) > 0
    values, squares = values[kept], ((features.double() - moments.mean) @ vectors[:, kept]).square()
    products = squares.T @ squares / len(squares) - torch.diag(values.square())
    spread = 0.5 * (products / (values[:, None] + values[None, :])).sum()
    return float((values.sum() + spread) / count)
