"""How much compute one arm saves over another, and whether their laws are one.

The laws of both arms through the best run of each budget are fitted together, y = A_arm C^-beta_arm + floor with one
floor (both arms model the same data), by least squares of log residuals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.bootstrap import residual_draws
from analysis.frontier import budget_of
from analysis.laws import EXPONENT_BOUNDS, Array, Law, PowerSum
from analysis.solver import LEAST_SQUARES, Problem, polish


@dataclass(frozen=True, kw_only=True)
class EqualityTest:
    """Whether two arms share exponents, or a whole law: an F test of the laws fitted together and apart.

    F = ((RSS_together - RSS_apart) / q) / (RSS_apart / dof) on log residuals (Seber and Wild 1989, section 5.3). Where
    the arms' noise goes together at equal budgets, its p-value is too large, never too small.
    """

    what: str
    """`exponents` or `laws`."""
    F: float
    dof: tuple[int, int]
    p_value: float

    def sentence(self) -> str:
        verdict = "refused at 5%" if self.p_value < 0.05 else "not refused"
        return f"equal {self.what}: {verdict} (F({self.dof[0]}, {self.dof[1]}) = {self.F:.3g}, p = {self.p_value:.2g})"


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """Compute multiplier: at C FLOPs of the first arm, `value(C)` C are what the second needs to the same loss.

    With one floor it is coefficient * C^exponent, exponent = beta_first / beta_second - 1: above 1 the first arm saves.
    """

    coefficient: float
    exponent: float
    draws: dict[str, Array]
    """Resamples of log coefficient (at `centre` FLOPs) and exponent, paired by budget where both arms share it."""
    centre: float
    measured: tuple[float, float] | None
    """Budgets C of the first arm at which both C and value(C) C were run; None where there are none."""
    paired: bool
    floor: float | None
    """The common floor; None where the data identify none."""

    def value(self, flops: float | Array) -> Array:
        return np.asarray(self.coefficient * (np.asarray(flops) / self.centre) ** self.exponent)

    def interval(self, flops: float | Array) -> tuple[Array, Array]:
        """95% interval at C FLOPs of the first arm."""
        distance = np.log(np.asarray(flops, dtype=float) / self.centre)[..., None]
        values = np.exp(self.draws["log_coefficient"] + self.draws["exponent"] * distance)
        low, high = np.percentile(values, [2.5, 97.5], axis=-1)
        return low, high

    def is_measured(self, flops: float | Array) -> NDArray[np.bool_]:
        """Whether both arms were run there; elsewhere the value is an extrapolation."""
        if self.measured is None:
            return np.zeros(np.shape(flops), dtype=bool)
        low, high = self.measured
        return np.asarray((np.asarray(flops) >= low * 0.999) & (np.asarray(flops) <= high * 1.001))


@dataclass(frozen=True)
class _Joint(PowerSum):
    """The laws of two arms at once; log_x has columns log C and arm (0 or 1).

    `shared` is what the arms have in common besides the floor: nothing, exponents, or laws.
    """

    shared: str = "nothing"
    has_floor: bool = True
    name = "joint"
    equation = "y = A_arm * C^-beta_arm + floor"
    variables = ("flops", "arm")

    @property
    def coefficients(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("A",) if self.shared == "laws" else ("A", "A2")

    @property
    def exponents(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("beta", "beta2") if self.shared == "nothing" else ("beta",)

    @property
    def floor(self) -> str | None:  # type: ignore[override]
        return "floor" if self.has_floor else None

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.theta_names

    @property
    def min_points(self) -> int:
        return self.num_params + 1

    def design(self, log_x: Array) -> Array:
        """T of shape (terms, n, p): the floor's term, and one term that reads its arm's coefficient and exponent."""
        log_c, arm = log_x[:, 0], log_x[:, 1]
        own = [np.ones(len(arm))] if self.shared == "laws" else [1 - arm, arm]
        slopes = [-log_c * (1 - arm), -log_c * arm] if self.shared == "nothing" else [-log_c]
        term = np.stack([*([np.zeros(len(arm))] if self.has_floor else []), *own, *slopes], axis=1)
        if not self.has_floor:
            return term[None]
        floor = np.zeros_like(term)
        floor[:, 0] = 1.0
        return np.stack([floor, term])

    def bounds(self, log_y: Array) -> tuple[Array, Array]:
        """The floor below the smallest y; exponents as for any law."""
        low = np.full(self.num_params, float(log_y.min()) - 14.0)
        high = np.full(self.num_params, float(log_y.max()) + 14.0)
        if self.has_floor:
            high[0] = float(log_y.min()) - 1e-4
        low[-len(self.exponents) :], high[-len(self.exponents) :] = EXPONENT_BOUNDS
        return low, high


@dataclass(frozen=True, kw_only=True)
class _Points:
    """The best runs of both arms: centred log C and arm (n, 2), centred log y, and which points share a budget."""

    log_x: Array
    log_y: Array
    centre: float
    y_mean: float
    units: NDArray[np.int64]
    paired: bool

    @classmethod
    def of(cls, one: pd.DataFrame, two: pd.DataFrame) -> _Points:
        rows = pd.concat([one, two])
        log_c, log_y = np.log(rows["flops"].to_numpy(dtype=float)), np.log(rows["loss"].to_numpy(dtype=float))
        arm = np.repeat([0.0, 1.0], [len(one), len(two)])
        budgets = np.round(np.log(budget_of(rows).fillna(rows["flops"]).to_numpy(dtype=float)), 2)
        paired = len(one) == len(two) and set(budgets[arm == 0]) == set(budgets[arm == 1])
        units = np.unique(budgets, return_inverse=True)[1] if paired else np.arange(len(rows))
        return cls(
            log_x=np.stack([log_c - log_c.mean(), arm], axis=1),
            log_y=log_y - log_y.mean(),
            centre=float(log_c.mean()),
            y_mean=float(log_y.mean()),
            units=units.astype(np.int64),
            paired=paired,
        )

    def fit(self, law: Law, log_y: Array | None = None, start: Array | None = None) -> tuple[Array, Array]:
        """Least squares from several starts, or for a batch of losses from one; theta and residual sum of squares."""
        low, high = law.bounds(self.log_y)
        problem = Problem(
            law=law,
            log_x=self.log_x,
            log_y=self.log_y[None] if log_y is None else log_y,
            weights=np.ones((1, len(self.log_y))),
            low=low,
            high=high,
        )
        starts = self._starts(law) if start is None else np.repeat(start[None], len(problem.log_y), axis=0)
        theta, half = polish(problem, starts, delta=LEAST_SQUARES)
        if start is None:
            best = int(np.argmin(half))
            return theta[best], np.asarray(2 * half[best])
        return theta, 2 * half

    def _starts(self, law: Law) -> Array:
        """Floors from far below the smallest y to just below it, exponents from the slope that is left."""
        starts = []
        for share in (0.0, 0.3, 0.6, 0.85) if law.floor else (0.0,):
            floor = np.log(max(share, 1e-5)) + float(self.log_y.min())
            above = np.log(np.exp(self.log_y) - share * np.exp(self.log_y.min()))
            slope, level = np.polyfit(self.log_x[:, 0], above, 1)
            exponent = float(np.clip(-slope, *EXPONENT_BOUNDS))
            head = [floor] if law.floor else []
            starts.append([*head, *[level] * len(law.coefficients), *[exponent] * len(law.exponents)])
        return np.array(starts)


def multiplier_of(
    one: pd.DataFrame, two: pd.DataFrame, num_resamples: int
) -> tuple[Multiplier | None, list[EqualityTest], str | None]:
    """The multiplier of the best runs of two arms, one row a budget, and tests of equal laws; or why there are none."""
    for rows in (one, two):
        if rows["flops"].nunique() < 3:
            name = rows["arm"].iloc[0] if len(rows) else "an arm"
            return None, [], f"{name} has {rows['flops'].nunique()} budgets; the law of an arm needs 3"
    points = _Points.of(one, two)
    law, theta, rss = _apart(points)
    tests = _tests(points, law, float(rss))
    names = law.theta_names
    draws = _draws(points, law, theta, num_resamples)
    log_coefficient, exponent = _log_multiplier(theta[None], names)
    drawn = _log_multiplier(draws, names)
    multiplier = Multiplier(
        coefficient=float(np.exp(log_coefficient[0])),
        exponent=float(exponent[0]),
        draws={"log_coefficient": drawn[0], "exponent": drawn[1]},
        centre=float(np.exp(points.centre)),
        measured=None,
        paired=points.paired,
        floor=float(np.exp(theta[0] + points.y_mean)) if law.floor else None,
    )
    return _with_range(multiplier, one["flops"], two["flops"]), tests, None


def _apart(points: _Points) -> tuple[Law, Array, Array]:
    """Each arm its own law: with a common floor where an F test at 5% asks for one, else without."""
    plain = _Joint(has_floor=False)
    theta, rss = points.fit(plain)
    floored = _Joint(has_floor=True)
    dof = len(points.log_y) - floored.num_params
    if dof < 1:
        return plain, theta, rss
    with_floor, smaller = points.fit(floored)
    needed = float(rss - smaller) > float(special.fdtri(1, dof, 0.95)) * float(smaller) / dof
    return (floored, with_floor, smaller) if needed else (plain, theta, rss)


def _tests(points: _Points, law: Law, rss: float) -> list[EqualityTest]:
    dof = len(points.log_y) - law.num_params
    if dof < 1:
        return []
    tests = []
    for what in ("exponents", "laws"):
        restricted = _Joint(shared=what, has_floor=law.floor is not None)
        fewer = law.num_params - restricted.num_params
        _, together = points.fit(restricted)
        F = max(float(together) - rss, 0.0) / fewer / max(rss / dof, 1e-300)
        tests.append(EqualityTest(what=what, F=F, dof=(fewer, dof), p_value=float(special.fdtrc(fewer, dof, F))))
    return tests


def _draws(points: _Points, law: Law, theta: Array, num_resamples: int) -> Array:
    """Resampled theta (resamples, p): residuals of a budget are exchanged for both arms at once where they share it."""
    fitted = law.log_y(theta[None], points.log_x)[0]
    rng = np.random.default_rng(0)
    noise = residual_draws(points.log_y - fitted, points.units, law.num_params, num_resamples, rng)
    return points.fit(law, fitted + noise, theta)[0]


def _log_multiplier(theta: Array, names: tuple[str, ...]) -> tuple[Array, Array]:
    """Of thetas (batch, p): log of the multiplier at the centre of log C, and its exponent.

    A_1 C^-b1 = A_2 C_2^-b2 gives C_2 / C = (A_2 / A_1)^(1/b2) C^(b1/b2 - 1).
    """
    A, A2, b, b2 = (theta[:, names.index(name)] for name in ("A", "A2", "beta", "beta2"))
    return (A2 - A) / b2, b / b2 - 1


def _with_range(multiplier: Multiplier, flops: pd.Series, other: pd.Series) -> Multiplier:
    """With the budgets of the first arm that the second matches within its own."""
    grid = np.geomspace(float(flops.min()), float(flops.max()), 400)
    needed = grid * multiplier.value(grid)
    inside = grid[(needed >= float(other.min()) * 0.999) & (needed <= float(other.max()) * 1.001)]
    if not len(inside):
        return multiplier
    return replace(multiplier, measured=(float(inside[0]), float(inside[-1])))
