"""Which trials to run next: those that shrink the interval of N* or of the loss at a target most per FLOP.

A sequential c-optimal design (Elfving 1952, Ann. Math. Statist. 23), averaged over plausible laws (Chaloner and
Verdinelli 1995, Statist. Sci. 10). The variance is that of the surface fit as it is made, as in
`analysis.design.surface_covariance`: all cells weighed alike, the noise of a trajectory shared by its milestones, so
that one long trajectory does not pass for many measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.candidates import Ladder, Measured, Trajectory, options, trial_rows
from analysis.design import Z95
from analysis.laws import Array
from analysis.planted import SURFACE, Cells, Noise, PlantedLaw
from analysis.solver import HUBER_DELTA

Quantity = Literal["params", "loss", "both"]

PRIOR_SD = np.array([1.0, 1.5, 1.5, 0.3, 0.3])
"""Of (log E, log A, log B, alpha, beta), A and B in the middle of the ladder. Weak: a design may begin with nothing."""

EXPONENT_RANGE = (0.05, 1.5)
"""Exponents of plausible laws."""

MISFIT = 0.01
"""A law is not quite true: a cell whose loss is x (in logs) above the least at its budget may be off by this times x.
It keeps a design near the minima, where the law is to hold."""

EFFORT = 0.02
"""What a trial costs beyond its FLOPs, as a share of the spend: a design is not to be a hundred tiny trials."""

_PRIOR_EXPONENTS = (0.2, 0.6)
_PRIOR_FLOOR_SHARES = (0.2, 0.8)
_PRIOR_OPTIMUM_SD = 0.7


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial to run, or to extend. FLOPs are of training, counted from its beginning."""

    trajectory: Trajectory
    budgets: tuple[int, ...]
    """Where it is to be measured: indices on the ladder, ascending."""
    milestones: tuple[float, ...]
    """The FLOPs there."""
    trained: float
    """FLOPs that it was trained for already; 0 for a new trial."""
    flops: float
    """Training FLOPs that it costs."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Runs within the spend, and what they are expected to bring."""

    runs: tuple[Run, ...]
    now: Mapping[str, float]
    """Half-widths of the 95% intervals of log N* (`params`) and of the log loss (`loss`) at the target."""
    after: Mapping[str, float]
    """The same once the runs are measured."""

    @property
    def flops(self) -> float:
        return sum(run.flops for run in self.runs)


def suggest(
    ladder: Ladder,
    measured: Measured | None,
    laws: Sequence[PlantedLaw],
    noise: Noise,
    *,
    target_flops: float,
    spend: float,
    quantity: Quantity = "both",
    misfit: float = MISFIT,
) -> Suggestion:
    """The runs on `ladder` that shrink the interval of `quantity` at `target_flops` most, for at most `spend` FLOPs.

    Args:
        ladder: what may be run.
        measured: what is known already; None at the start of a study.
        laws: plausible laws, from `plausible_laws` or, with nothing measured, `prior_laws`.
        noise: of a measured loss, from `estimated_noise`.
        target_flops: where the law is to be known.
        spend: training FLOPs; extending a trial costs only the extension.
        quantity: `params` for N*, `loss`, or `both` alike.
        misfit: how far the law may be from true, see `MISFIT`.

    Raises:
        ValueError: the spend buys no run at all.
    """
    design = _Design(ladder, measured, laws, noise, misfit, target_flops, quantity)
    if not (design.flops <= spend).any():
        raise ValueError(
            f"a spend of {spend:.3g} FLOPs buys no trial: the cheapest costs {design.flops.min():.3g}. Raise the spend."
        )
    chosen = design.choose(spend)
    return Suggestion(
        runs=tuple(design.run(option) for _, option in sorted(chosen.items())),
        now=design.half_widths({}),
        after=design.half_widths(chosen),
    )


class _Design:
    """The sums that variances are made of, for every plausible law and every option.

    With J the derivatives of the log losses and V their covariance, `square` is J'J and `meat` is J'VJ. Both are sums
    over trajectories. Arrays begin with the axes (square or meat, laws).
    """

    def __init__(
        self,
        ladder: Ladder,
        measured: Measured | None,
        laws: Sequence[PlantedLaw],
        noise: Noise,
        misfit: float,
        target_flops: float,
        quantity: Quantity,
    ) -> None:
        self.ladder, self.laws, self.misfit = ladder, laws, misfit
        self.noise = noise.of_huber(HUBER_DELTA)
        self.trained = measured.trained if measured else {}
        self.options = options(ladder, measured)
        self.owner = np.array([option.trajectory for option in self.options], dtype=np.int64)
        self.flops = np.array([option.flops for option in self.options])
        self.goals = self._goals(target_flops)
        self.weights = np.array({"params": [1.0, 0.0], "loss": [0.0, 1.0], "both": [0.5, 0.5]}[quantity])
        self.fixed, standing = self._measured_sums(measured)
        self.standing = self._sums(*standing)
        self.offered = self._offered_sums(*standing)

    # The sums.

    def _rows(self, params: Array, samples: Array, flops: Array) -> tuple[Array, Array]:
        """Derivatives of the log losses (laws, ..., 5), and the variances (laws, ...) that misfit adds."""
        rows, variances = [], []
        for law in self.laws:
            least = law.loss(*law.optimum(self.ladder.cost, flops))
            rows.append(_centred(law.sensitivity(params, samples), self.ladder.middle))
            variances.append((self.misfit * np.log(law.loss(params, samples) / least)) ** 2)
        return np.stack(rows), np.stack(variances)

    def _sums(self, plain: Array, bent: Array, along: Array) -> Array:
        """(square, meat) of trajectories, from J'J, J' misfit J and the sum of their rows."""
        shared = along[..., :, None] * along[..., None, :]
        return np.stack([plain, self.noise.measurement**2 * plain + bent + self.noise.seed**2 * shared])

    def _measured_sums(self, measured: Measured | None) -> tuple[Array, tuple[Array, Array, Array]]:
        """Sums of the prior and of trials that cannot be extended; and the parts of each trajectory's own."""
        num_laws, count = len(self.laws), len(self.ladder.trajectories)
        fixed = np.repeat(_prior_sums(self.noise)[:, None], num_laws, axis=1)
        parts = np.zeros((num_laws, count, 5, 5)), np.zeros((num_laws, count, 5, 5)), np.zeros((num_laws, count, 5))
        if measured is None:
            return fixed, parts
        cells = measured.cells
        rows, variances = self._rows(cells.params, cells.samples, cells.flops)
        for on, trajectory in zip(trial_rows(cells.trial), measured.trajectories, strict=True):
            own = _parts(rows[:, on], variances[:, on])
            if trajectory is None:
                fixed += self._sums(*own)
            else:
                index = self.ladder.trajectories.index(trajectory)
                for part, value in zip(parts, own, strict=True):
                    part[:, index] = value
        return fixed, parts

    def _offered_sums(self, *standing: Array) -> Array:
        """Sums of each option's trajectory, with what is measured on it."""
        ladder = self.ladder
        params = np.broadcast_to(ladder.params[:, None], ladder.samples.shape)
        rows, variances = self._rows(params, ladder.samples, ladder.flops)
        rows, variances = np.nan_to_num(rows), np.nan_to_num(variances)  # no option goes where nothing may be run
        offered = np.empty((2, len(self.laws), len(self.options), 5, 5))
        for index, (size, _) in enumerate(ladder.trajectories):
            numbers = np.flatnonzero(self.owner == index)
            takes = np.zeros((len(numbers), ladder.samples.shape[1]))
            for place, number in enumerate(numbers):
                takes[place, list(self.options[number].budgets)] = 1.0
            squares = rows[:, size, :, :, None] * rows[:, size, :, None, :]
            new = (squares, squares * variances[:, size, :, None, None], rows[:, size])
            parts = [np.tensordot(takes, part, axes=(1, 1)).swapaxes(0, 1) for part in new]
            offered[:, :, numbers] = self._sums(
                *(part + own[:, index, None] for part, own in zip(parts, standing, strict=True))
            )
        return offered

    def _goals(self, target_flops: float) -> Array:
        """Derivatives of log N* and of the log loss at the target, shape (laws, 5, 2)."""
        goals = []
        for law in self.laws:
            n, d = law.optimum(self.ladder.cost, target_flops)
            goals.append([law.optimum_sensitivity(self.ladder.cost, target_flops), law.sensitivity(n, d)])
        return np.swapaxes(_centred(np.array(goals), self.ladder.middle), 1, 2)

    # The value of a design.

    def log_variances(self, sums: Array) -> Array:
        """Mean over laws of the log variances (..., 2) of log N* and the log loss, for sums (2, laws, ..., 5, 5)."""
        goals = self.goals.reshape(len(self.laws), *[1] * (sums.ndim - 4), 5, 2)
        x = np.linalg.solve(sums[0], np.broadcast_to(goals, (*sums.shape[1:-2], 5, 2)))
        return np.asarray(np.log(np.sum(x * (sums[1] @ x), axis=-2)).mean(axis=0))

    def sums_of(self, chosen: Mapping[int, int]) -> Array:
        """Sums of everything measured and of the chosen options (trajectory -> option)."""
        total = self.fixed + self.standing.sum(axis=2)
        for trajectory, option in chosen.items():
            total = total + self.offered[:, :, option] - self.standing[:, :, trajectory]
        return total

    def value_of(self, chosen: Mapping[int, int]) -> float:
        """What a design makes small: the mean log variance of what is asked for."""
        return float(self.log_variances(self.sums_of(chosen)) @ self.weights)

    def half_widths(self, chosen: Mapping[int, int]) -> dict[str, float]:
        widths = Z95 * np.exp(0.5 * self.log_variances(self.sums_of(chosen)))
        return {name: float(width) for name, width in zip(("params", "loss"), widths, strict=True)}

    # The search.

    def choose(self, spend: float) -> dict[int, int]:
        """A design within the spend: greedy, then each trajectory is dropped in turn and the spend filled again."""
        chosen = self._fill({}, spend)
        value = self.value_of(chosen)
        for trajectory in sorted(chosen):
            fewer = {key: option for key, option in chosen.items() if key != trajectory}
            other = self._fill(fewer, spend)
            if self.value_of(other) < value:
                chosen, value = other, self.value_of(other)
        return chosen

    def _fill(self, chosen: Mapping[int, int], spend: float) -> dict[int, int]:
        """Add or lengthen one trajectory at a time, the largest gain per FLOP (with `EFFORT`) first."""
        chosen = dict(chosen)
        while True:
            costs, held = np.zeros(len(self.ladder.trajectories)), self.standing.copy()
            for trajectory, option in chosen.items():
                costs[trajectory] = self.flops[option]
                held[:, :, trajectory] = self.offered[:, :, option]
            more = self.flops - costs[self.owner]
            free = np.flatnonzero((more > 0) & (more <= spend - costs.sum()))
            if not len(free):
                return chosen
            total = self.fixed + held.sum(axis=2)
            sums = total[:, :, None] - held[:, :, self.owner[free]] + self.offered[:, :, free]
            gains = (self.log_variances(total) - self.log_variances(sums)) @ self.weights
            rates = gains / (more[free] + EFFORT * spend)
            best = int(np.argmax(rates))
            if rates[best] <= 0:
                return chosen
            chosen[int(self.owner[free[best]])] = int(free[best])

    def run(self, option: int) -> Run:
        """An option, as it is handed out."""
        chosen = self.options[option]
        trajectory = self.ladder.trajectories[chosen.trajectory]
        milestones = tuple(float(flops) for flops in self.ladder.flops[trajectory[0], list(chosen.budgets)])
        return Run(
            trajectory=trajectory,
            budgets=chosen.budgets,
            milestones=milestones,
            trained=self.trained.get(trajectory, 0.0),
            flops=chosen.flops,
        )


def _centred(vectors: Array, middle: tuple[float, float]) -> Array:
    """Derivatives by A / e^(alpha log N) and B / e^(beta log D) at the middle, from those by A and B."""
    vectors = vectors.copy()
    vectors[..., 3] += middle[0] * vectors[..., 1]
    vectors[..., 4] += middle[1] * vectors[..., 2]
    return vectors


def _parts(rows: Array, variances: Array) -> tuple[Array, Array, Array]:
    """J'J, J' diag(variances) J and the sum of the rows, for rows (laws, n, 5)."""
    turned = np.swapaxes(rows, 1, 2)
    return turned @ rows, (turned * variances[:, None, :]) @ rows, rows.sum(axis=1)


def _prior_sums(noise: Noise) -> Array:
    """(square, meat) of the prior, as five measurements that are as noisy as the others."""
    variance = noise.seed**2 + noise.measurement**2
    square = np.diag(variance / PRIOR_SD**2)
    return np.stack([square, variance * square])


# What is plausible.


def prior_laws(ladder: Ladder, num_laws: int, rng: np.random.Generator) -> list[PlantedLaw]:
    """Laws to begin a study with: broad exponents and floors, their optimum somewhere around the ladder's middle."""
    laws = []
    for _ in range(num_laws):
        params = float(np.exp(ladder.middle[0] + rng.normal(0, _PRIOR_OPTIMUM_SD)))
        flops = float(np.exp(np.nanmean(np.log(ladder.flops))))
        samples = flops / (ladder.cost.coefficient * params**ladder.cost.exponent)
        alpha, beta = (float(value) for value in rng.uniform(*_PRIOR_EXPONENTS, size=2))
        share = float(rng.uniform(*_PRIOR_FLOOR_SHARES))
        laws.append(PlantedLaw.anchored(params, samples, ladder.cost, alpha=alpha, beta=beta, floor_share=share))
    return laws


def plausible_laws(
    estimate: PlantedLaw, cells: Cells, noise: Noise, ladder: Ladder, num_laws: int, rng: np.random.Generator
) -> list[PlantedLaw]:
    """Laws that the cells leave open: drawn from the normal approximation around a fit, under the weak prior."""
    noise = noise.of_huber(HUBER_DELTA)
    rows = _centred(estimate.sensitivity(cells.params, cells.samples), ladder.middle)
    by_trial = np.stack([rows[on].sum(axis=0) for on in trial_rows(cells.trial)])
    prior = _prior_sums(noise)
    bread = np.linalg.inv(prior[0] + rows.T @ rows)
    meat = prior[1] + noise.measurement**2 * rows.T @ rows + noise.seed**2 * by_trial.T @ by_trial
    eigenvalues, vectors = np.linalg.eigh(bread @ meat @ bread)
    spread = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    shift = np.array([0.0, *ladder.middle])
    logs = np.log([estimate.E, estimate.A, estimate.B]) - shift * np.array([0.0, estimate.alpha, estimate.beta])
    centre = np.concatenate([logs, [estimate.alpha, estimate.beta]])
    return [_drawn(centre, spread @ rng.standard_normal(5), shift) for _ in range(num_laws)]


def _drawn(centre: Array, step: Array, shift: Array) -> PlantedLaw:
    """The law at centre + step, with the step halved until the exponents are plausible."""
    centre = centre.copy()
    centre[3:] = np.clip(centre[3:], *EXPONENT_RANGE)
    while not ((EXPONENT_RANGE[0] <= (centre + step)[3:]) & ((centre + step)[3:] <= EXPONENT_RANGE[1])).all():
        step = step / 2 if np.abs(step).max() > 1e-3 else np.zeros(5)
    theta = centre + step
    E, A, B = np.exp(theta[:3] + shift * np.array([0.0, theta[3], theta[4]]))
    values = (float(E), float(A), float(B), float(theta[3]), float(theta[4]))
    return PlantedLaw(**dict(zip(SURFACE, values, strict=True)))


def estimated_noise(law: PlantedLaw, cells: Cells, losses: Array, expected: Noise | None = None) -> Noise:
    """Noise from the residuals of a fit: within trials and between them, each drawn towards `expected`.

    One-way analysis of variance of log residuals. The fit's five parameters count three against the trials and two
    against their milestones; `expected` (default `Noise()`) counts as four degrees of freedom of each.
    """
    expected, weight = expected or Noise(), 4
    residuals = np.log(losses) - np.log(law.loss(cells.params, cells.samples))
    counts = np.bincount(cells.trial)
    means = np.bincount(cells.trial, residuals) / counts
    within = float(np.sum((residuals - means[cells.trial]) ** 2))
    own = (within + weight * expected.measurement**2) / (max(len(residuals) - len(counts) - 2, 0) + weight)
    between = max(float(np.sum(means**2)) - own * float(np.sum(1 / counts)), 0.0)
    seed = (between + weight * expected.seed**2) / (max(len(counts) - 3, 0) + weight)
    return Noise(seed=float(np.sqrt(seed)), measurement=float(np.sqrt(own)))
