"""What `ditlaw bench coverage` plants: laws, designs and noises, and what the public fits say of one study of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.allocation import CostRelation, allocate_surface
from analysis.bootstrap import Interval
from analysis.fitting import Fit, fit_law, fit_power
from analysis.isoflop import fit_isoflop
from analysis.laws import Array, PowerLaw, SurfaceLaw
from analysis.planted import CostLine, PlantedLaw
from analysis.recipes import IntervalMethod
from analysis.uncertainty import choose_method

SIZES = (12, 24, 50, 100, 250)
"""Points of a study."""
NOISES = ("normal", "heavy", "trials")
RESAMPLES = 300
SIGMA = 0.005
MILESTONES = 5
BEYOND = 10.0
"""Predictions are at this many times the largest budget."""

POWER = {"A": 40.0, "beta": 0.06}
FLOORED = {"A": 1e3, "beta": 0.15, "floor": 1.5}
FAINT = {"A": 100.0, "beta": 0.1, "floor": 0.5}
PLANTED_FLOORS = {"none": POWER, "faint": FAINT, "clear": FLOORED}
SURFACE = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
COST = CostRelation(coefficient=6.0, params_exponent=1.0, spread=0.0)
PLANTED, LINE = PlantedLaw(**SURFACE), CostLine(coefficient=6.0, exponent=1.0)

Bands = dict[str, Interval | None]


@dataclass(frozen=True)
class Case(ABC):
    """A planted law, measured at a number of points with one kind of noise."""

    num_points: int
    noise: str
    law: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.law}, {self.noise}, {self.num_points}"

    @property
    @abstractmethod
    def truth(self) -> dict[str, float]:
        """What a study's intervals should hold."""

    @abstractmethod
    def trials(self) -> NDArray[np.intp]:
        """Each point's trial."""

    @abstractmethod
    def bands(self, rng: np.random.Generator, interval: IntervalMethod = "auto", seed: int = 0) -> Bands:
        """The 95% intervals of one study, by the names of `truth`."""

    @property
    def default(self) -> str:
        """How its intervals are made where nobody asks for a method."""
        return "bootstrap"

    def errors(self, rng: np.random.Generator) -> Array:
        """Relative errors of one study's points, with a standard deviation of SIGMA."""
        trials = self.trials()
        n = len(trials)
        if self.noise == "heavy":  # Student's t with 3 degrees of freedom
            return np.asarray(SIGMA * rng.standard_t(3, n) / np.sqrt(3))
        if self.noise == "trials":  # 80% of the variance is common to a trial's points
            own, shared = rng.standard_normal(n), rng.standard_normal(n)[trials]
            return np.asarray(SIGMA * (np.sqrt(0.8) * shared + np.sqrt(0.2) * own))
        return np.asarray(SIGMA * rng.standard_normal(n))


@dataclass(frozen=True)
class PowerCase(Case):
    """y = A C^-beta (+ floor) at budgets over four decades, the floor known to be there or not."""

    has_floor: bool = False

    @property
    def law(self) -> str:  # type: ignore[override]
        return "power with floor" if self.has_floor else "power"

    @property
    def params(self) -> dict[str, float]:
        return FLOORED if self.has_floor else POWER

    @property
    def truth(self) -> dict[str, float]:
        ahead = PowerLaw(has_floor="floor" in self.params).predict(self.params, (BEYOND * self.flops().max(),))
        return {**self.params, "y ahead": float(ahead)}

    @property
    def default(self) -> str:
        return choose_method(self.num_points, len(self.params), self.num_points)

    def flops(self) -> Array:
        return np.geomspace(1e17, 1e21, self.num_points)

    def trials(self) -> NDArray[np.intp]:
        return np.arange(self.num_points)

    def measured(self, rng: np.random.Generator) -> Array:
        law = PowerLaw(has_floor="floor" in self.params)
        return np.asarray(law.predict(self.params, (self.flops(),)) * np.exp(self.errors(rng)))

    def fit(self, y: Array, interval: IntervalMethod, seed: int) -> Fit:
        law, x = PowerLaw(has_floor=self.has_floor), self.flops()[:, None]
        return fit_law(law, x, y, num_resamples=RESAMPLES, interval=interval, seed=seed)

    def bands(self, rng: np.random.Generator, interval: IntervalMethod = "auto", seed: int = 0) -> Bands:
        fit = self.fit(self.measured(rng), interval, seed)
        return {**fit.ci95, "y ahead": _ends(fit.predict_interval(BEYOND * self.flops().max()))}


@dataclass(frozen=True)
class UnknownFloorCase(PowerCase):
    """The same where the fit has to find out whether there is a floor, as `ditlaw fit --law power` does."""

    planted: str = "none"

    @property
    def law(self) -> str:  # type: ignore[override]
        return f"power, floor unknown ({self.planted} planted)"

    @property
    def params(self) -> dict[str, float]:
        return PLANTED_FLOORS[self.planted]

    @property
    def truth(self) -> dict[str, float]:
        return {"floor": 0.0} | super().truth

    def fit(self, y: Array, interval: IntervalMethod, seed: int) -> Fit:
        return fit_power(self.flops(), y, num_resamples=RESAMPLES, interval=interval, seed=seed)


@dataclass(frozen=True)
class SurfaceCase(Case):
    """L = E + A / N^alpha + B / D^beta on a grid of sizes and samples, each over three decades."""

    law = "surface"

    @property
    def truth(self) -> dict[str, float]:
        target = self.target()
        params, samples = PLANTED.optimum(LINE, target)
        best = {"N* exponent": PLANTED.exponents(LINE)[0], "N* ahead": float(params)}
        return {**SURFACE, **best, "y ahead": float(PLANTED.loss(params, samples))}

    @property
    def default(self) -> str:
        trials = self.trials()
        return choose_method(int(trials.max()) + 1, len(SURFACE), len(trials))

    def points(self) -> Array:
        each = self._each()
        N, D = np.meshgrid(
            np.geomspace(1e7, 1e10, -(-self.num_points // each)), np.geomspace(1e9, 1e12, each), indexing="ij"
        )
        return np.stack([N.ravel(), D.ravel()], axis=1)[: self.num_points]

    def _each(self) -> int:
        return MILESTONES if self.noise == "trials" else max(3, round(np.sqrt(self.num_points / 2)))

    def trials(self) -> NDArray[np.intp]:
        index = np.arange(self.num_points)
        return index // MILESTONES if self.noise == "trials" else index

    def target(self) -> float:
        return BEYOND * float(6 * self.points().prod(axis=1).max())

    def bands(self, rng: np.random.Generator, interval: IntervalMethod = "auto", seed: int = 0) -> Bands:
        x, law = self.points(), SurfaceLaw()
        y = np.asarray(law.predict(SURFACE, tuple(x.T)) * np.exp(self.errors(rng)))
        fit = fit_law(
            law,
            x,
            y,
            trials=self.trials(),
            num_resamples=RESAMPLES,
            interval=interval,
            seed=seed,
            identify=False,
        )
        found = allocate_surface(fit, COST, self.target()).ci95
        ahead = {"N* exponent": found.get("N_exponent"), "N* ahead": found.get("params"), "y ahead": found.get("loss")}
        return {**fit.ci95, **ahead}


@dataclass(frozen=True)
class IsoflopCase(Case):
    """Parabolas at budgets over two decades of compute, sizes from a fifth to five times the best."""

    law = "isoflop"

    @property
    def budgets(self) -> Array:
        count = {12: 4, 24: 4, 50: 5, 100: 10, 250: 10}[self.num_points]
        return np.geomspace(1e19, 1e21, MILESTONES if self.noise == "trials" else count)

    @property
    def truth(self) -> dict[str, float]:
        n, d = PLANTED.exponents(LINE)
        params, samples = PLANTED.optimum(LINE, BEYOND * self.budgets[-1])
        return {"N* exponent": n, "D* exponent": d, "N* ahead": float(params), "D* ahead": float(samples)}

    def sizes(self) -> Array:
        """N of each point, (budgets, sizes): around each budget's best, or of runs that pass every budget."""
        each = self.num_points // len(self.budgets)
        best = np.asarray(PLANTED.optimum(LINE, self.budgets)[0])
        if self.noise == "trials":
            return np.repeat(np.geomspace(best[0] / 5, 5 * best[-1], each)[None], len(best), axis=0)
        return np.asarray(best[:, None] * np.geomspace(0.2, 5.0, each))

    def trials(self) -> NDArray[np.intp]:
        count, each = self.sizes().shape
        return np.tile(np.arange(each), count) if self.noise == "trials" else np.arange(count * each)

    def bands(self, rng: np.random.Generator, interval: IntervalMethod = "auto", seed: int = 0) -> Bands:
        del interval
        N = self.sizes()
        flops = np.broadcast_to(self.budgets[:, None], N.shape)
        frame = pd.DataFrame({"params": N.ravel(), "flops": flops.ravel(), "trial_id": self.trials()})
        frame["samples"] = frame["flops"] / (6 * frame["params"])
        exact = PLANTED.loss(frame["params"].to_numpy(), frame["samples"].to_numpy())
        fit = fit_isoflop(frame.assign(loss=exact * np.exp(self.errors(rng))), num_resamples=RESAMPLES, seed=seed)
        ahead = {letter: fit.optimum_interval(letter, BEYOND * self.budgets[-1]) for letter in "ND"}
        exponents = {f"{letter}* exponent": fit.ci95.get(f"{letter}_exponent") for letter in "ND"}
        return {**exponents, **{f"{letter}* ahead": _ends(band) for letter, band in ahead.items()}}


def _ends(band: tuple[Array, Array] | None) -> Interval | None:
    return None if band is None else (float(band[0]), float(band[1]))


def cases() -> list[Case]:
    """Every law at every size with normal noise, and the surface and isoFLOP minima with other noises, too."""
    found: list[Case] = []
    for n in SIZES:
        found += [PowerCase(n, "normal", has_floor) for has_floor in (False, True)]
        found += [UnknownFloorCase(n, "normal", planted=planted) for planted in PLANTED_FLOORS if n in (12, 50)]
        found += [SurfaceCase(n, noise) for noise in NOISES if n > 12 or noise != "trials"]  # 3 runs say nothing
        found += [IsoflopCase(n, noise) for noise in NOISES if noise == "normal" or n in (50, 100)]
    return sorted(found, key=lambda case: (case.law, case.noise, case.num_points))
