"""`ditlaw bench suggest`: what 5% of a full grid's compute tells of a planted law, by design.

Planted laws are measured with noise, a surface is fitted by the estimator of `analysis.fitting`, and N* and the loss
are extrapolated to 8 times the full grid's largest budget. Designs with 5% of its compute compete: `suggest` from
nothing in three rounds, random cells, and the cheapest cells first, the latter two on the grid's own cells and on the
ladder that `suggest` chooses from. All pay by one rule: budgets of one trajectory cost only the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.candidates import Ladder, Measured, Trajectory
from analysis.laws import Array, SurfaceLaw
from analysis.planted import SURFACE, Cells, CostLine, Noise, PlantedLaw
from analysis.projection import projected_starts
from analysis.solver import Problem, polish
from analysis.suggest import estimated_noise, plausible_laws, prior_laws, suggest

TOKENS = 49
COST = CostLine(coefficient=6.0 * TOKENS, exponent=1.0)
PARAMS = (5e4, 2e7)
FLOPS = (1e12, 1e15)
TARGET_FLOPS = 8 * FLOPS[1]
GRID = (9, 9)
"""Sizes and budgets of the full grid; every size is trained to the largest budget."""
LADDER = (33, 19)
"""Sizes and budgets that `suggest` chooses from, over the same ranges."""
SPEND_SHARE = 0.05
ROUNDS = (0.1, 0.3, 0.6)
"""Shares of the spend; the first has nothing measured to go by."""
NUM_PLAUSIBLE = 6
NUM_STARTS = 6
ALPHA = BETA = (0.25, 0.5)
FLOOR_SHARES = (0.3, 0.7)
SEED_NOISE = (0.002, 0.01)
MEASUREMENT_NOISE = (0.0005, 0.003)
DESIGNS = ("full grid", "suggest", "random, grid", "random, ladder", "cheapest, grid", "cheapest, ladder")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A planted law, its noise, and the generator of everything random about them."""

    law: PlantedLaw
    noise: Noise

    @classmethod
    def drawn(cls, number: int) -> Task:
        """Exponents, floor and optimum uniform in their ranges (the optimum in logs), noise log-uniform."""
        rng = np.random.default_rng([number, 0])
        params = 1e6 * float(np.exp(rng.uniform(-np.log(2), np.log(2))))
        middle = float(np.sqrt(FLOPS[0] * FLOPS[1]))
        alpha, beta, share = (float(rng.uniform(*bounds)) for bounds in (ALPHA, BETA, FLOOR_SHARES))
        samples = middle / (COST.coefficient * params)
        seed, own = (float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (SEED_NOISE, MEASUREMENT_NOISE))
        law = PlantedLaw.anchored(params, samples, COST, alpha=alpha, beta=beta, floor_share=share)
        return cls(law=law, noise=Noise(seed=seed, measurement=own))

    def error(self, fitted: PlantedLaw) -> tuple[float, float]:
        """Errors of log N* and of the log loss at the target, each at the optimum that its own law names."""
        n, d = self.law.optimum(COST, TARGET_FLOPS)
        n_fitted, d_fitted = fitted.optimum(COST, TARGET_FLOPS)
        loss = fitted.loss(n_fitted, d_fitted) / self.law.loss(n, d)
        return float(np.log(n_fitted / n)), float(np.log(loss))


@dataclass
class Study:
    """Cells as they are measured: noise is drawn once for a trajectory and once for a cell."""

    task: Task
    ladder: Ladder
    rng: np.random.Generator
    trajectories: list[Trajectory] = field(default_factory=list)
    seed_noise: list[float] = field(default_factory=list)
    rows: list[tuple[int, float, float]] = field(default_factory=list)
    """Trial, FLOPs and loss of each cell."""

    def measure(self, size: int, budgets: Sequence[int]) -> None:
        """Measure a size at some budgets of the ladder."""
        trajectory = (size, 0)
        if trajectory not in self.trajectories:
            self.trajectories.append(trajectory)
            self.seed_noise.append(float(self.rng.standard_normal()))
        trial = self.trajectories.index(trajectory)
        for budget in budgets:
            exact = float(self.task.law.loss(self.ladder.params[size], self.ladder.samples[size, budget]))
            error = self.task.noise.seed * self.seed_noise[trial]
            error += self.task.noise.measurement * float(self.rng.standard_normal())
            self.rows.append((trial, float(self.ladder.flops[size, budget]), exact * float(np.exp(error))))

    @property
    def cells(self) -> Cells:
        trial = np.array([row[0] for row in self.rows])
        flops = np.array([row[1] for row in self.rows])
        params = self.ladder.params[[size for size, _ in self.trajectories]][trial]
        samples = flops / (COST.coefficient * params)
        return Cells(params=params, samples=samples, flops=flops, trial=trial, budget_flops=flops)

    @property
    def losses(self) -> Array:
        return np.array([row[2] for row in self.rows])

    @property
    def flops(self) -> float:
        """Training FLOPs spent: of each trajectory its largest."""
        spent = np.zeros(len(self.trajectories))
        np.maximum.at(spent, self.cells.trial, self.cells.flops)
        return float(spent.sum())

    def fit(self) -> PlantedLaw:
        return fit_surface(self.cells, self.losses)


def fit_surface(cells: Cells, losses: Array) -> PlantedLaw:
    """The estimate of `analysis.fitting.fit_law`, without the checks that say how far to trust it."""
    law = SurfaceLaw()
    log_x, log_y = np.log(np.stack([cells.params, cells.samples], axis=1)), np.log(losses)
    x_mean, y_mean = log_x.mean(axis=0), float(log_y.mean())
    low, high = law.bounds(log_y - y_mean)
    weights = np.ones((1, len(log_y)))
    problem = Problem(law=law, log_x=log_x - x_mean, log_y=(log_y - y_mean)[None], weights=weights, low=low, high=high)
    thetas, objectives = polish(problem, projected_starts(problem, NUM_STARTS))
    params = law.to_params(law.shift(thetas[int(np.argmin(objectives))], x_mean, y_mean))
    return PlantedLaw(**{name: float(params[name]) for name in SURFACE})


# The designs: each measures within a spend.


def ladder_of(num_sizes: int, num_budgets: int) -> Ladder:
    """Sizes and budgets evenly spaced in logs over the benchmark's ranges."""
    params = np.geomspace(*PARAMS, num_sizes)
    return Ladder.of_budgets(params, COST.coefficient * params, np.geomspace(*FLOPS, num_budgets))


def measure_everything(study: Study, spend: float) -> None:
    """The full grid."""
    for size in range(len(study.ladder.params)):
        study.measure(size, range(study.ladder.samples.shape[1]))


def measure_suggested(study: Study, spend: float) -> None:
    """A pilot from the prior, then rounds in which the law and the noise are estimated and the design goes on."""
    laws, noise, left = prior_laws(study.ladder, NUM_PLAUSIBLE, study.rng), Noise(), spend
    measured = None
    for number, share in enumerate(ROUNDS):
        last = number == len(ROUNDS) - 1
        now = left if last else min(left, share * spend)
        found = suggest(study.ladder, measured, laws, noise, target_flops=TARGET_FLOPS, spend=now)
        for run in found.runs:
            study.measure(run.trajectory[0], run.budgets)
        left -= found.flops
        if not last:
            cells, fitted = study.cells, study.fit()
            noise = estimated_noise(fitted, cells, study.losses)
            laws = plausible_laws(fitted, cells, noise, study.ladder, NUM_PLAUSIBLE, study.rng)
            measured = Measured(cells=cells, trajectories=tuple(study.trajectories))


def measure_in_order(study: Study, spend: float, order: Callable[[Study], Sequence[tuple[int, int]]]) -> None:
    """Cells in an order, each that the spend still allows; what a trajectory was trained for costs nothing."""
    trained = np.zeros(len(study.ladder.params))
    for size, budget in order(study):
        more = max(0.0, float(study.ladder.flops[size, budget]) - trained[size])
        if more <= spend:
            spend -= more
            trained[size] += more
            study.measure(size, [budget])


def at_random(study: Study) -> list[tuple[int, int]]:
    """All cells of the ladder in random order."""
    shape = study.ladder.samples.shape
    return [divmod(int(cell), shape[1]) for cell in study.rng.permutation(shape[0] * shape[1])]


def cheapest_first(study: Study) -> list[tuple[int, int]]:
    """All cells of the ladder, smallest budget first."""
    sizes, budgets = study.ladder.samples.shape
    return [(size, budget) for budget in range(budgets) for size in range(sizes)]


def designs() -> dict[str, tuple[Ladder, Callable[[Study, float], None]]]:
    """Each design with the ladder that it chooses from."""
    grid, fine = ladder_of(*GRID), ladder_of(*LADDER)
    randomly = partial(measure_in_order, order=at_random)
    cheaply = partial(measure_in_order, order=cheapest_first)
    ladders = (grid, fine, grid, fine, grid, fine)
    rules = (measure_everything, measure_suggested, randomly, randomly, cheaply, cheaply)
    return dict(zip(DESIGNS, zip(ladders, rules, strict=True), strict=True))


# The figures.


def run(num_laws: int = 50, repeats: int = 8) -> dict[str, Any]:
    """Play every design on every planted law, `repeats` times with other noise.

    An error is the root of the mean square over repeats, for each law; medians are over laws.

    Returns:
        laws, repeats, spend_share, target_over_largest, cpu_seconds; for each design `<design>: params_error` and
        `loss_error` (medians of the errors of log N* and of the log loss), `_ratio` to the full grid's, `_median_ratio`
        (the median of the laws' own ratios), `trials` and `compute` (medians; compute over the full grid's); and
        `table`, a row a law.
    """
    began, full = time.process_time(), GRID[0] * FLOPS[1]
    table = [_row(number, repeats, SPEND_SHARE * full, full) for number in range(num_laws)]
    result: dict[str, Any] = {"laws": num_laws, "repeats": repeats, "spend_share": SPEND_SHARE}
    result |= {"target_over_largest": TARGET_FLOPS / FLOPS[1], "cpu_seconds": time.process_time() - began}
    for design in DESIGNS:
        for key in ("params_error", "loss_error", "trials", "compute"):
            result[f"{design}: {key}"] = float(np.median([row[design][key] for row in table]))
        for key in ("params", "loss"):
            ratio = result[f"{design}: {key}_error"] / result[f"full grid: {key}_error"]
            result[f"{design}: {key}_ratio"] = ratio
            ratios = [row[design][f"{key}_error"] / row["full grid"][f"{key}_error"] for row in table]
            result[f"{design}: {key}_median_ratio"] = float(np.median(ratios))
    return result | {"table": table}


def _row(number: int, repeats: int, spend: float, full: float) -> dict[str, Any]:
    """One law: what it is, and the errors of every design."""
    task = Task.drawn(number)
    row: dict[str, Any] = {"law": {name: getattr(task.law, name) for name in SURFACE}}
    row["noise"] = {"seed": task.noise.seed, "measurement": task.noise.measurement}
    for index, (design, (ladder, rule)) in enumerate(designs().items()):
        errors, studies = [], []
        for repeat in range(repeats):
            study = Study(task, ladder, np.random.default_rng([number, 1 + repeat, index]))
            rule(study, spend)
            errors.append(task.error(study.fit()))
            studies.append(study)
        params, loss = np.sqrt(np.mean(np.square(errors), axis=0))
        row[design] = {
            "params_error": float(params),
            "loss_error": float(loss),
            "trials": float(np.median([len(study.trajectories) for study in studies])),
            "compute": float(np.max([study.flops for study in studies]) / full),
        }
    return row


def draw(result: dict[str, Any]) -> Figure:
    """Errors of every law by design, with their medians, and 1.25 times the full grid's."""
    drawn = Figure(figsize=(9.6, 3.8), layout="constrained")
    for axes, key, title in zip(
        drawn.subplots(1, 2), ("params_error", "loss_error"), ("N* at the target", "loss at the target"), strict=True
    ):
        bound = 1.25 * result[f"full grid: {key}"]
        axes.axhspan(bound / 1e6, bound, color="0.93", lw=0)
        for place, design in enumerate(DESIGNS):
            errors = np.array([row[design][key] for row in result["table"]])
            spread = np.linspace(-0.28, 0.28, len(errors))
            colour = "#D55E00" if design == "suggest" else "#0072B2" if place == 0 else "0.45"
            axes.plot(place + spread, np.sort(errors), ".", ms=4, color=colour, alpha=0.75)
            axes.plot([place - 0.36, place + 0.36], [result[f"{design}: {key}"]] * 2, color=colour, lw=2)
        axes.set_yscale("log")
        axes.set_ylim(*_limits(result["table"], key))
        names = [design.replace(", ", "\n").replace(" ", "\n") for design in DESIGNS]
        axes.set_xticks(range(len(DESIGNS)), names, size=9)
        axes.set_ylabel("relative error (root mean square over draws of noise)", size=8)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _limits(table: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    errors = [row[design][key] for row in table for design in DESIGNS]
    return 0.8 * float(np.min(errors)), 1.25 * float(np.max(errors))
