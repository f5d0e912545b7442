"""Intervals where few trials have several points each: what a trial's points share counts once, not once a point.

Residuals of log y are u_i + e_ij, u_i of trial i and e_ij of its point j. The two variances come from an analysis of
variance of the residuals of generalised least squares, each with the degrees of freedom that the parameters left to it:
an exponent that only the differences between five trials tell is known from two or three, however many milestones they
have. For few clusters that is what keeps a level (Bell and McCaffrey 2002, Survey Methodology 28).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.planted import Noise
from analysis.points import LEAST_SCALE, Points, scale_of

FAR = 3.0
"""Residuals count as no more than this many of their standard deviations: the estimates here are not robust."""

_ROUNDS = 4
_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class TrialEffects:
    """How well an estimate is known: its covariance (p, p) in two parts, each with its degrees of freedom.

    Rows and columns of entries at their bounds are 0.
    """

    within: Array
    """Of noise that differs within a trial."""
    between: Array
    """Of noise that differs between trials."""
    dof_within: float
    dof_between: float

    @property
    def covariance(self) -> Array:
        return self.within + self.between

    @property
    def dof(self) -> Array:
        """Degrees of freedom of each entry of theta, (p,), as its variance is made up; infinite where it is at a bound.

        Satterthwaite 1946, Biometrics Bulletin 2.
        """
        own, shared = np.diag(self.within), np.diag(self.between)
        spread = own**2 / self.dof_within + shared**2 / self.dof_between
        return np.divide((own + shared) ** 2, spread, out=np.full(len(own), np.inf), where=spread > 0)

    def steps(self, num: int, rng: np.random.Generator) -> Array:
        """Draws of what the estimate errs by, (num, p): each part Student t with its own degrees of freedom.

        What follows from several parameters so has the tails of the parts that it hangs on (as Behrens and Fisher have
        it for a difference of two means).
        """
        steps = np.zeros((num, len(self.within)))
        for part, dof in ((self.within, self.dof_within), (self.between, self.dof_between)):
            values, vectors = np.linalg.eigh(part)
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            scale = np.sqrt(dof / rng.chisquare(dof, size=(num, 1)))
            steps += scale * rng.standard_normal((num, len(root))) @ root.T
        return steps


@dataclass(frozen=True, kw_only=True)
class _Variances:
    own: float
    shared: float

    def of_mean(self, sizes: Array) -> Array:
        """Variance of `sizes` times a trial's mean residual, by trial."""
        return np.asarray(self.own + sizes * self.shared)


def trial_effects(points: Points, theta: Array, delta: float) -> TrialEffects:
    """Of the estimate `theta` (p,) that minimises the summed Huber(delta).

    With such noise it errs as least squares does with the noise that `Noise.of_huber` gives (Huber 1981, section 7.6):
    the covariance is (J'J)^-1 J'VJ (J'J)^-1, V of that noise's two variances.
    """
    low, high = points.problem().low, points.problem().high
    free = (theta > low + 1e-9) & (theta < high - 1e-9)
    variances, dof_own, dof_shared = _variances(points, theta, free)
    noise = Noise(seed=np.sqrt(variances.shared), measurement=np.sqrt(variances.own)).of_huber(delta)
    J, J_mean, sizes = _slopes(points, theta, free)
    J_own = J - J_mean[points.trials]
    felt = _Variances(own=noise.measurement**2, shared=noise.seed**2)
    bread = _inverse(J.T @ J)
    parts = [felt.own * J_own.T @ J_own, (J_mean.T * sizes * felt.of_mean(sizes)) @ J_mean]
    whole = np.zeros((2, len(theta), len(theta)))
    for found, part in zip(whole, parts, strict=True):
        found[np.ix_(free, free)] = bread @ part @ bread
    return TrialEffects(within=whole[0], between=whole[1], dof_within=dof_own, dof_between=dof_shared)


def _variances(points: Points, theta: Array, free: NDArray[np.bool_]) -> tuple[_Variances, float, float]:
    """The two variances with the degrees of freedom of each, by generalised least squares from near `theta`."""
    points, theta = _tamed(points, theta), theta.copy()
    low, high = points.problem().low, points.problem().high
    variances, dof_own, dof_shared = _Variances(own=1.0, shared=0.0), 1.0, 1.0
    for _ in range(_ROUNDS):
        for _ in range(_STEPS):
            within, between, pull = _information(points, theta, free, variances)
            theta[free] += np.clip(_inverse(within + between) @ pull, -0.5, 0.5)
            theta = np.clip(theta, low, high)
        within, between, _ = _information(points, theta, free, variances)
        variances, dof_own, dof_shared = _components(points, theta, within, between)
    return variances, dof_own, dof_shared


def _tamed(points: Points, theta: Array) -> Points:
    """The points with residuals beyond FAR standard deviations drawn in to there."""
    residuals = points.residuals(theta)
    far = FAR * scale_of(residuals, points.num_free)
    tamed = points.fitted(theta) + np.clip(residuals, -far, far) * points.noise
    return replace(points, log_y=tamed)


def _means(values: Array, trials: NDArray[np.int64]) -> tuple[Array, Array]:
    """The mean of each trial's rows of values (n, ...), and how many rows it has."""
    sizes = np.bincount(trials).astype(float)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, trials, values)
    return sums / sizes.reshape(-1, *[1] * (values.ndim - 1)), sizes


def _slopes(points: Points, theta: Array, free: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """d log y / d theta over the noise (n, f), its mean by trial, and the sizes of the trials."""
    J = points.law.gradient(theta[None], points.log_x)[0][:, free] / points.noise[:, None]
    return J, *_means(J, points.trials)


def _information(
    points: Points, theta: Array, free: NDArray[np.bool_], variances: _Variances
) -> tuple[Array, Array, Array]:
    """The information that differences within trials give, and that between them, each (f, f); and the score (f,)."""
    J, J_mean, sizes = _slopes(points, theta, free)
    r = points.residuals(theta)
    r_mean, _ = _means(r, points.trials)
    J_own, r_own = J - J_mean[points.trials], r - r_mean[points.trials]
    weighed = J_mean.T * (sizes / variances.of_mean(sizes))
    pull = J_own.T @ r_own / variances.own + weighed @ r_mean
    return J_own.T @ J_own / variances.own, weighed @ J_mean, pull


def _inverse(information: Array) -> Array:
    unit = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = np.linalg.pinv(information / np.outer(unit, unit), hermitian=True, rcond=1e-12)
    return np.asarray(scaled / np.outer(unit, unit))


def _components(points: Points, theta: Array, within: Array, between: Array) -> tuple[_Variances, float, float]:
    """The variances, and the degrees of freedom left to either; `within` and `between` are at the last variances.

    By an analysis of variance for trials of unlike sizes (Searle, Casella and McCulloch 1992, Variance Components,
    section 3.6), with the degrees of freedom that the parameters took.
    """
    r = points.residuals(theta)
    r_mean, sizes = _means(r, points.trials)
    n, count = len(r), len(sizes)
    used = float(np.trace(_inverse(within + between) @ between))
    dof_shared, dof_own = max(count - used, 1.0), max(n - count - (len(within) - used), 1.0)
    own = max(float(np.sum((r - r_mean[points.trials]) ** 2)) / dof_own, LEAST_SCALE**2)
    each = (n - float(np.sum(sizes**2)) / n) / max(1, count - 1)
    between_runs = float(np.sum(sizes * r_mean**2)) / dof_shared - own
    shared = max(0.0, between_runs) / each if count > 1 else 0.0  # one run does not say what another would do
    return _Variances(own=own, shared=shared), dof_own, dof_shared
