"""The Frechet distance between the Gaussians of two sets of features, its noise, and its limit for many images."""

from __future__ import annotations

import itertools
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
SLICE = 128
"""Columns of a slice of a product, at least: below it launching more products costs more than it saves."""
Z95 = 1.959964


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with; a factor of its covariance is worked out once and kept."""

    moments: Moments
    factor: Float64[Tensor, "d d"]
    """Lower triangular; the covariance is L L^T."""

    @staticmethod
    def of(moments: Moments) -> Reference:
        """Of the moments of real images."""
        return Reference.from_root(moments, symmetric_root(moments.covariance))

    @staticmethod
    def from_root(moments: Moments, root: Float64[Tensor, "d d"]) -> Reference:
        """The same where the symmetric root of the covariance is known: R^T R of its QR decomposition is the covariance
        too, be it singular or not."""
        return Reference(moments, torch.linalg.qr(root, mode="r").R.T.contiguous())


def symmetric_root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """The symmetric square root; eigenvalues that rounding makes negative are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(moments: Moments, reference: Reference) -> float:
    """|m - m_r|^2 + tr(S + S_r - 2 (L^T S L)^(1/2)) with L L^T = S_r (Dowson & Landau 1982; Heusel et al. 2017).

    The trace of the root is the sum of the square roots of the eigenvalues of a symmetric matrix: one eigvalsh, against
    a Schur decomposition of the product S S_r, which has the same eigenvalues. Singular covariances are no special
    case; eigenvalues that rounding makes negative are zero.

    Raises:
        ValueError: the numbers of features differ, or one side has fewer than two images.
    """
    of, to = moments, reference.moments
    if of.dim != to.dim:
        raise ValueError(f"moments of {of.dim} features against a reference of {to.dim}; wanted those of one encoder")
    values = torch.linalg.eigvalsh(_seen_from(reference.factor, of.covariance))
    difference = of.mean - to.mean
    spread = of.covariance.trace() + to.covariance.trace() - 2 * _roots(values).sum()
    return max(0.0, float(difference @ difference + spread))


def _seen_from(factor: Tensor, covariance: Tensor) -> Tensor:
    """The lower triangle of L^T S L, which is all that eigh reads, in slices that leave out the zeros of L: two fifths
    of the work of two products of whole matrices."""
    dim = len(covariance)
    size = max(SLICE, -(-dim // 8))
    half, inner = torch.empty_like(covariance), torch.zeros_like(covariance)
    parts = [slice(start, min(start + size, dim)) for start in range(0, dim, size)]
    for part in parts:
        half[:, part] = covariance[:, part.start :] @ factor[part.start :, part]
    for part in parts:
        inner[part, : part.stop] = factor[part.start :, part].T @ half[part.start :, : part.stop]
    return inner


def _roots(values: Tensor) -> Tensor:
    """Square roots of eigenvalues, those below rounding error left out: the root of what is only noise of size
    eps would be of size 1e-8, and there can be thousands of them."""
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values.clamp(min=0), torch.zeros_like(values)).sqrt()


def influences(features: Float[Tensor, "n d"], reference: Reference) -> Float64[Tensor, " n"]:
    """By how much, times n, each image moves the distance, to first order; their mean is 0.

        influence(x) = 2 (m - m_r).(x - m) + (x - m)^T (I - T) (x - m) - const,
        T = L (L^T S L)^(-1/2) L^T with L L^T = S_r,

    T being the optimal transport map from the images to the reference (the derivative of the Bures distance; Takatsu
    2011). Directions in which the images do not vary add nothing.

    Raises:
        ValueError: as `frechet_distance`.
    """
    x = features.double()
    moments = Moments.of(x)
    factor = reference.factor
    values, vectors = torch.linalg.eigh(_seen_from(factor, moments.covariance))
    roots = _roots(values)
    inverse = torch.where(roots > 0, 1 / roots.clamp(min=torch.finfo(roots.dtype).tiny), torch.zeros_like(roots))
    half = (factor @ vectors) * inverse.sqrt()
    centred = x - moments.mean
    quadratic = centred.square().sum(dim=1) - (centred @ half).square().sum(dim=1)
    influence = 2 * centred @ (moments.mean - reference.moments.mean) + quadratic
    return influence - influence.mean()


def sampling_sd(influence: Float64[Tensor, " n"]) -> float:
    """Standard deviation of the distance over fresh images of the same generator, to first order in 1/sqrt(n), from the
    `influences` of those that there are (the delta method).

    Close to distance 0 the first order vanishes and the true spread is the second order's, which this does not see.
    """
    return float(influence.std() / math.sqrt(len(influence)))


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


def extrapolated_distance(
    features: Float[Tensor, "n d"], reference: Reference, influence: Float64[Tensor, " n"]
) -> Extrapolation:
    """FD_inf: a line in 1/n through distances of parts, at 1/n = 0 (Chong & Forsyth 2020, arXiv 1911.07023).

    The images are divided into 1, 2, 3 and 4 disjoint parts, each of them consecutive images, in which labels that take
    turns are as frequent as in the whole. The first order of a part's distance, the mean of its images' `influences`,
    is taken from it: over the parts of a division it adds up to nothing, and what is left scatters less about the line.
    All points rest on the same images, so the interval is the sampling error of the whole and that scatter, in
    quadrature.

    Raises:
        ValueError: parts of fewer than two images, and as `frechet_distance`.
    """
    if len(features) < 2 * BLOCKS:
        raise ValueError(f"an extrapolation from {len(features)} images; wanted at least {2 * BLOCKS}")
    ends = [len(features) * block // BLOCKS for block in range(BLOCKS + 1)]
    blocks = [Moments.of(features[start:stop]) for start, stop in itertools.pairwise(ends)]
    rows = []
    for folds in FOLDS:
        for fold in range(folds):
            first, last = fold * BLOCKS // folds, (fold + 1) * BLOCKS // folds
            part = _merged(blocks[first:last])
            linear = float(influence[ends[first] : ends[last]].mean())
            rows.append((1 / part.count, frechet_distance(part, reference) - linear, 1 / folds))
    inverse, distance, weight = torch.tensor(rows, dtype=torch.float64).T
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    gram = torch.linalg.inv(design.T @ (weight[:, None] * design))
    intercept, slope = gram @ (design.T @ (weight * distance))
    residual = distance - intercept - slope * inverse
    freedom = len(rows) - 2
    variance = float((weight * residual.square()).sum() / freedom * gram[0, 0])
    half = Z95 * math.sqrt(variance + sampling_sd(influence) ** 2)
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
