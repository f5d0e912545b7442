"""What a plan will tell: the expected 95% intervals of the laws fitted to its cells, before anything is run.

The isoFLOP route is simulated: many tables of losses at once, each fitted as `analysis.isoflop` fits one. The surface
route is by the delta method, with the noise of a trajectory shared by its milestones. No pandas, no scipy: plans ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.planted import Cells, CostLine, Noise, PlantedLaw
from analysis.solver import HUBER_DELTA

Z95 = 1.959964
"""Half a 95% interval of a normal distribution, in standard deviations."""

MIN_SIZES = 3
"""Sizes that a parabola needs; this and the two below are as in `analysis.valleys` (a test compares the fits)."""
NEAR = 1.35
MIN_NEAR = 4

_SIMULATED_CELLS = 1_500_000
"""Cells simulated in all: what fits into a fifth of a second."""


@dataclass(frozen=True, kw_only=True)
class ExpectedInterval:
    """Between which values 95% of such studies would put a quantity. Where they cannot tell, `reason` says why."""

    name: str
    """N_exponent, D_exponent, alpha, beta; params, samples or loss at the target."""
    method: str
    """isoflop or surface."""
    truth: float | None
    """The value under the planted law."""
    low: float | None
    high: float | None
    outcome: str
    """expected or not_identified."""
    reason: str | None = None

    @property
    def half_width(self) -> float | None:
        """Half of the interval; None where there is none."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def expected_intervals(
    cells: Cells, law: PlantedLaw, noise: Noise, target_flops: float | None = None, *, seed: int = 0
) -> list[ExpectedInterval]:
    """The 95% intervals that fits to `cells` would have if `law` were true and measured with `noise`.

    Args:
        cells: the cells of one arm, at one learning rate a size. Several would count as repeats of one setting.
        law: what is taken as true: a fitted surface, or `PlantedLaw.around(cells)`.
        noise: how far a measurement is off.
        target_flops: also give params, samples and loss there.
        seed: of the simulation.

    Returns:
        N_exponent and D_exponent by isoflop, alpha, beta and both exponents by surface, and the target's by each.
    """
    return [*_isoflop(cells, law, noise, target_flops, seed), *_surface(cells, law, noise, target_flops)]


def _truths(law: PlantedLaw, cost: CostLine, target_flops: float | None) -> dict[str, float]:
    truths = dict(zip(("N_exponent", "D_exponent"), law.exponents(cost), strict=True))
    if target_flops is not None:
        n, d = law.optimum(cost, target_flops)
        truths |= {"params": float(n), "samples": float(d), "loss": float(law.loss(n, d))}
    return truths


def _refused(method: str, truths: dict[str, float], names: tuple[str, ...], reason: str) -> list[ExpectedInterval]:
    return [
        ExpectedInterval(
            name=name, method=method, truth=truths[name], low=None, high=None, outcome="not_identified", reason=reason
        )
        for name in names
        if name in truths
    ]


# The isoFLOP route.


def _isoflop(
    cells: Cells, law: PlantedLaw, noise: Noise, target_flops: float | None, seed: int
) -> list[ExpectedInterval]:
    names = ("N_exponent", "D_exponent", "params", "samples")
    truths = _truths(law, cells.cost, target_flops)
    groups = _budget_groups(cells)
    if len(groups) < 2:
        found = f"{len(groups)} of them"
        reason = f"isoFLOP minima need 2 budgets with at least {MIN_SIZES} sizes each; the plan has {found}"
        return _refused("isoflop", truths, names, reason)
    num_tables = int(np.clip(_SIMULATED_CELLS // len(cells), 100, 2000))
    losses = law.simulate(cells, noise, num_tables, np.random.default_rng(seed))
    mean = law.loss(cells.params, cells.samples)
    flops = np.array([cells.budget_flops[rows[0]] for rows in groups])
    log_n = np.stack([_vertices(cells, _near_minimum(cells, mean, rows), losses) for rows in groups], axis=1)
    known = np.isfinite(log_n).sum(axis=1) >= 2
    if known.mean() < 0.5:
        bracketed = np.isfinite(log_n).mean(axis=0) > 0.5
        reason = (
            f"the sizes bracket the expected minimum at {int(bracketed.sum())} of {len(groups)} budgets; a law needs 2"
        )
        return _refused("isoflop", truths, names, reason)
    return _isoflop_intervals(cells, flops, log_n[known], truths, target_flops)


def _budget_groups(cells: Cells) -> list[NDArray[np.intp]]:
    """Rows of each budget with enough sizes, smallest budget first."""
    budgets = cells.budget_flops
    groups = [np.flatnonzero(budgets == budget) for budget in np.unique(budgets[np.isfinite(budgets)])]
    return [rows for rows in groups if len(np.unique(cells.params[rows])) >= MIN_SIZES]


def _near_minimum(cells: Cells, mean: Array, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The rows that the parabola goes through: the sizes beside the best, and further ones within NEAR of its loss."""
    sizes, first = np.unique(cells.params[rows], return_index=True)
    loss = mean[rows[first]]
    best = int(loss.argmin())
    low, high = max(0, best - 1), min(len(sizes) - 1, best + 1)
    while low > 0 or high < len(sizes) - 1:
        below = loss[low - 1] if low > 0 else np.inf
        above = loss[high + 1] if high < len(sizes) - 1 else np.inf
        if min(below, above) > NEAR * loss.min() and high - low + 1 >= MIN_NEAR:
            break
        low, high = (low - 1, high) if below <= above else (low, high + 1)
    kept = (cells.params[rows] >= sizes[low]) & (cells.params[rows] <= sizes[high])
    return rows[kept]


def _vertices(cells: Cells, rows: NDArray[np.intp], losses: Array) -> Array:
    """log N* of each simulated table by a parabola, shape (tables,); NaN where the sizes do not bracket it."""
    log_n = np.log(cells.params[rows])
    u = log_n - log_n.mean()
    _, c1, c2 = np.linalg.pinv(np.vander(u, 3, increasing=True)) @ losses[:, rows].T
    with np.errstate(invalid="ignore", divide="ignore"):
        vertex = -c1 / (2 * c2)
        inside = (c2 > 0) & (vertex > u.min()) & (vertex < u.max())
    return np.where(inside, vertex + log_n.mean(), np.nan)


def _isoflop_intervals(
    cells: Cells, flops: Array, log_n: Array, truths: dict[str, float], target_flops: float | None
) -> list[ExpectedInterval]:
    sizes, first = np.unique(cells.params, return_index=True)
    degree = min(2, len(sizes) - 1)
    cost = np.polynomial.Polynomial.fit(np.log(sizes), np.log(cells.flops[first] / cells.samples[first]), degree)
    log_d = np.log(flops) - cost(log_n)
    result = []
    for letter, at_target, logs in (("N", "params", log_n), ("D", "samples", log_d)):
        slope, level, middle = _lines(np.log(flops), logs)
        values = {f"{letter}_exponent": slope}
        if target_flops is not None:
            values[at_target] = np.exp(level + slope * (np.log(target_flops) - middle))
        result += [_interval("isoflop", name, truths[name], drawn) for name, drawn in values.items()]
    return sorted(result, key=lambda expected: list(truths).index(expected.name))


def _lines(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Least-squares slope, mean of y and mean of x of each row of y (tables, budgets); NaN entries do not count."""
    known = np.isfinite(y)
    count = known.sum(axis=1)
    middle = np.where(known, x, 0.0).sum(axis=1) / count
    dx = np.where(known, x - middle[:, None], 0.0)
    y = np.where(known, y, 0.0)
    return (dx * y).sum(axis=1) / (dx**2).sum(axis=1), y.sum(axis=1) / count, middle


def _interval(method: str, name: str, truth: float, drawn: Array) -> ExpectedInterval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ExpectedInterval(name=name, method=method, truth=truth, low=float(low), high=float(high), outcome="expected")


# The surface route.


def surface_covariance(cells: Cells, law: PlantedLaw, noise: Noise) -> Array:
    """Covariance (5, 5) of the fitted (log E, log A, log B, alpha, beta), to first order.

    The fit weighs all cells alike, whatever they share: (J'J)^-1 J'VJ (J'J)^-1, V the covariance of log losses
    (White 1980, Econometrica 48; by clusters Liang & Zeger 1986, Biometrika 73), with the Huber loss in V.
    Raises LinAlgError where the cells do not identify the law.
    """
    noise = noise.of_huber(HUBER_DELTA)
    J = law.sensitivity(cells.params, cells.samples)
    scale = np.linalg.norm(J, axis=0)
    J = J / scale
    by_trial = np.zeros((int(cells.trial.max()) + 1, J.shape[1]))
    np.add.at(by_trial, cells.trial, J)
    square = J.T @ J
    if np.linalg.cond(square) > 1e14:
        raise np.linalg.LinAlgError("the cells do not tell the terms of the surface apart")
    bread = np.linalg.inv(square)
    meat = noise.measurement**2 * square + noise.seed**2 * by_trial.T @ by_trial
    return np.asarray(bread @ meat @ bread / np.outer(scale, scale))


def _surface(cells: Cells, law: PlantedLaw, noise: Noise, target_flops: float | None) -> list[ExpectedInterval]:
    cost = cells.cost
    truths = {"alpha": law.alpha, "beta": law.beta} | _truths(law, cost, target_flops)
    try:
        covariance = None if (reason := _too_few(cells)) else surface_covariance(cells, law, noise)
    except np.linalg.LinAlgError as error:
        covariance, reason = None, str(error)
    if covariance is None or (reason := _unclear(law, covariance)):
        return _refused("surface", truths, tuple(truths), str(reason))
    directions = {
        "alpha": np.array([0.0, 0.0, 0.0, 1.0, 0.0]),
        "beta": np.array([0.0, 0.0, 0.0, 0.0, 1.0]),
        "N_exponent": law.exponent_sensitivity(cost),
        "D_exponent": -cost.exponent * law.exponent_sensitivity(cost),
    }
    if target_flops is not None:
        directions["params"] = law.optimum_sensitivity(cost, target_flops)
        directions["samples"] = -cost.exponent * directions["params"]
        directions["loss"] = law.sensitivity(truths["params"], truths["samples"])
    result = []
    for name, direction in directions.items():
        half = Z95 * float(np.sqrt(direction @ covariance @ direction))
        truth = truths[name]
        logged = name in ("params", "samples", "loss")
        low, high = (truth * np.exp(-half), truth * np.exp(half)) if logged else (truth - half, truth + half)
        result.append(
            ExpectedInterval(
                name=name, method="surface", truth=truth, low=float(low), high=float(high), outcome="expected"
            )
        )
    return result


def _too_few(cells: Cells) -> str | None:
    """Why no surface is fitted to so few cells, as `analysis.fitting` puts it."""
    points = len(np.unique(np.stack([cells.params, cells.samples]), axis=1).T)
    if points < 6:
        return f"a surface needs 6 different (params, samples); the plan has {points}"
    for name in ("params", "samples"):
        values = len(np.unique(getattr(cells, name)))
        if values < 3:
            return f"a surface needs 3 different {name}; the plan has {values}"
    return None


def _unclear(law: PlantedLaw, covariance: Array) -> str | None:
    """Why the fit would be refused: its floor or an exponent could as well be 0."""
    sd = np.sqrt(np.diag(covariance))
    if Z95 * sd[0] >= 1:
        return f"the floor E would be known to {sd[0]:.0%} of itself only: it could as well be 0"
    for name, truth, error in (("alpha", law.alpha, sd[3]), ("beta", law.beta, sd[4])):
        if Z95 * error >= truth:
            return f"{name} would be {truth:.3g} ± {Z95 * error:.2g}: it could as well be 0"
    return None
