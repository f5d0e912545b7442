"""`ditlaw bench coverage`: how often the 95% intervals of planted laws hold what was planted, by method and size."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.bootstrap import intervals
from analysis.fitting import fit_law
from analysis.laws import Array, Law, PowerLaw, SurfaceLaw
from analysis.likelihood import profile_intervals
from analysis.points import Points
from analysis.recipes import delta_of
from analysis.uncertainty import Method, choose_method, resample

METHODS: tuple[Method, ...] = get_args(Method)
SIZES = (12, 24, 50, 100, 250)
NOISES = ("normal", "heavy", "trials")
REPETITIONS = 500
RESAMPLES = 400
BATCH = 20
"""Repetitions of one case before the next has its turn: a run that is cut short has done all cases alike."""

SIGMA = 0.005
MILESTONES = 5


@dataclass(frozen=True)
class Case:
    """A planted law, measured at a number of points with one kind of noise."""

    law: Law
    params: dict[str, float]
    num_points: int
    noise: str

    @property
    def name(self) -> str:
        words = self.law.name + (" with floor" if self.law.name == "power" and self.law.floor else "")
        return f"{words}, {self.noise}, {self.num_points}"

    def points(self) -> tuple[Array, NDArray[np.intp]]:
        """x of shape (n, variables), and each point's trial: with noise by trial, 5 points are milestones of one."""
        n = self.num_points
        if len(self.law.variables) == 1:
            return np.geomspace(1e17, 1e21, n)[:, None], np.arange(n)
        each = MILESTONES if self.noise == "trials" else max(3, round(np.sqrt(n / 2)))
        sizes = -(-n // each)
        N, D = np.meshgrid(np.geomspace(1e7, 1e10, sizes), np.geomspace(1e9, 1e12, each), indexing="ij")
        x = np.stack([N.ravel(), D.ravel()], axis=1)[:n]
        return x, np.repeat(np.arange(sizes), each)[:n] if self.noise == "trials" else np.arange(n)

    def draw(self, x: Array, trials: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """y of one study."""
        n = len(x)
        if self.noise == "heavy":  # Student's t with 3 degrees of freedom, of the same standard deviation
            error = SIGMA * rng.standard_t(3, n) / np.sqrt(3)
        elif self.noise == "trials":  # 80% of the variance is common to a trial's milestones
            error = SIGMA * (np.sqrt(0.8) * rng.standard_normal(n)[trials] + np.sqrt(0.2) * rng.standard_normal(n))
        else:
            error = SIGMA * rng.standard_normal(n)
        return np.asarray(self.law.predict(self.params, tuple(x.T)) * np.exp(error))


def cases() -> list[Case]:
    """Every law at every size with normal noise; the surface with the other noises, too."""
    power, floored, surface = PowerLaw(has_floor=False), PowerLaw(), SurfaceLaw()
    planted: list[tuple[Law, dict[str, float], str]] = [
        (power, {"A": 40.0, "beta": 0.06}, "normal"),
        (floored, {"A": 1e3, "beta": 0.15, "floor": 1.5}, "normal"),
    ]
    shape = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
    planted += [(surface, shape, noise) for noise in NOISES]
    found = [Case(law, params, n, noise) for law, params, noise in planted for n in SIZES]
    return [case for case in found if case.num_points > 12 or case.noise != "trials"]  # 3 runs say nothing of a surface


@dataclass
class Tally:
    """What one method's intervals have done in one case so far."""

    held: dict[str, int]
    repetitions: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        coverage = {name: count / self.repetitions for name, count in self.held.items()}
        mean = float(np.mean(list(coverage.values())))
        return {"mean": mean, **coverage, "repetitions": self.repetitions, "cpu_seconds": self.seconds}


def run(
    repetitions: int = REPETITIONS, all_methods: int = 100, raw: Path | None = None, only: str = ""
) -> dict[str, Any]:
    """Coverage of the default method in every case whose name holds `only`, and of every method in the first
    `all_methods` repetitions; written to `raw` after each batch."""
    chosen = [case for case in cases() if only in case.name]
    tallies = {c.name: {m: Tally(dict.fromkeys(c.params, 0)) for m in METHODS} for c in chosen}
    began, result = time.process_time(), {}
    for start in range(0, repetitions, BATCH):
        for case in chosen:
            for number in range(start, min(start + BATCH, repetitions)):
                _repeat(case, number, number < all_methods, tallies[case.name])
            result = _result(chosen, tallies, time.process_time() - began)
            if raw is not None:
                raw.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _repeat(case: Case, number: int, all_methods: bool, tallies: dict[Method, Tally]) -> None:
    rng = np.random.default_rng([number, case.num_points, NOISES.index(case.noise)])
    x, trials = case.points()
    y = case.draw(x, trials, rng)
    fit = fit_law(case.law, x, y, trials=trials, num_resamples=0, identify=False)
    points = Points.of(case.law, x, y, trials)
    default = choose_method(points.num_trials, points.num_free, len(points))
    methods = METHODS if all_methods else (default,)
    for method, bands, seconds in _bands(points, points.theta(fit.params), methods, number):
        tally = tallies[method]
        tally.repetitions += 1
        tally.seconds += seconds
        for name, value in case.params.items():
            band = bands[name]
            tally.held[name] += band is not None and band[0] <= value <= band[1]


def _bands(
    points: Points, theta: Array, methods: tuple[Method, ...], seed: int
) -> Iterator[tuple[Method, dict[str, Any], float]]:
    """Intervals of every parameter by each method, and the seconds that they took."""
    for method in methods:
        began = time.process_time()
        bands: dict[str, Any]
        if method == "profile":
            bands = dict(profile_intervals(points, theta))
        else:
            draws = resample(points, theta, method, RESAMPLES, delta_of("varpro"), seed)
            bands = dict(intervals(points.params(draws.theta)))
        yield method, bands, time.process_time() - began


def _result(chosen: list[Case], tallies: dict[str, dict[Method, Tally]], seconds: float) -> dict[str, Any]:
    table = []
    for case in chosen:
        x, trials = case.points()
        num_trials = int(trials.max()) + 1
        row: dict[str, Any] = {"case": case.name, "points": len(x), "trials": num_trials}
        row["default"] = choose_method(num_trials, case.law.num_params, len(x))
        row |= {m: t.as_json() for m, t in tallies[case.name].items() if t.repetitions}
        table.append(row)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    return {"resamples": RESAMPLES, "sigma": SIGMA, "cpu_seconds": seconds, **versions, "table": table}


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Mean coverage over a law's parameters, `<case>: <method>`, and which method the default is."""
    figures: dict[str, Any] = {"cpu_seconds": result["cpu_seconds"]}
    for row in result["table"]:
        figures[f"{row['case']}: default"] = row["default"]
        figures |= {f"{row['case']}: {method}": row[method]["mean"] for method in METHODS if method in row}
    return figures
