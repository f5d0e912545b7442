"""The follow-up of a sweep: from its results to the spec of what to run next. Wires results, laws and planning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.candidates import Ladder, Measured, Trajectory
from analysis.fitting import fit_law
from analysis.frontier import best_learning_rates
from analysis.laws import SurfaceLaw
from analysis.loading import load_table
from analysis.planted import Cells, Noise, PlantedLaw
from analysis.suggest import Quantity, Run, Suggestion, estimated_noise, plausible_laws, prior_laws, suggest
from orchestrator.follow_up_spec import spec_text
from orchestrator.planning import followup
from orchestrator.planning.followup import Ground
from orchestrator.planning.plan import expand
from orchestrator.results.location import Location
from orchestrator.results.store import read_planned
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.sweep import Sweep, load
from orchestrator.spec.trial import Trial

NUM_LAWS = 12
"""Plausible laws that a design is averaged over."""

Wish = Literal["params", "loss", "fid", "both"]


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """What to run next, with its reasons. `text` is the spec."""

    sweep: str
    arm: str
    name: str
    quantity: Wish
    target_flops: float
    spend: float
    text: str
    suggestion: Suggestion
    runs: tuple[Mapping[str, Any], ...]
    """For people and programs: size, params, seed, milestones (FLOPs), trained_flops, flops of each."""
    law: PlantedLaw | None
    """The fit to what is measured; None where nothing is yet."""
    noise: Noise
    at_target: Mapping[str, float]
    """params and loss that the fit gives at the target; empty where there is none."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values: what `suggest --json` prints."""
        law = None if self.law is None else vars(self.law)
        shown = ("sweep", "arm", "name", "quantity", "target_flops", "spend")
        return {name: getattr(self, name) for name in shown} | {
            "flops": self.suggestion.flops,
            "runs": [dict(run) for run in self.runs],
            "now": self._intervals(self.suggestion.now),
            "after": self._intervals(self.suggestion.after),
            "law": law,
            "noise": vars(self.noise),
            "notes": list(self.notes),
        }

    def expected(self, name: str) -> str:
        """How well `params` or `loss` is known at the target, now and after, in words."""
        now, after = self.suggestion.now[name], self.suggestion.after[name]
        known = "not known yet" if self.law is None else f"{_shown(name, now)} now"
        return f"{known}, {_shown(name, after)} after"

    def _intervals(self, half_widths: Mapping[str, float]) -> dict[str, Any]:
        """Of each quantity the factor by which its 95% interval goes up and down, and the interval itself."""
        result: dict[str, Any] = {}
        for name, half in half_widths.items():
            factor, value = float(np.exp(min(half, 700.0))), self.at_target.get(name)
            band = None if value is None else [value / factor, value * factor]
            result[name] = {"factor": factor, "value": value, "ci95": band}
        return result


def follow_up(
    sweep: Location,
    results: Location | None,
    *,
    target_flops: float,
    spend: float,
    quantity: Wish = "both",
    arm: str | None = None,
    num_seeds: int = 1,
    name: str | None = None,
    new_only: bool = False,
    seed: int = 0,
) -> FollowUp:
    """Suggest what to run after `sweep`, for at most `spend` training FLOPs.

    Args:
        sweep: its spec, or its results folder, whose plan.json holds the spec that was run.
        results: its results folder; None where nothing is measured yet.
        target_flops: where the law is to be known.
        spend: training FLOPs; what is trained already costs nothing.
        quantity: whose interval is to shrink: params (N*), loss, fid, or both params and loss.
        arm: which arm; may be left out where there is one.
        num_seeds: of the sweep's seeds, how many may be used; further ones are made where it has fewer.
        name: of the follow-up; default: <sweep>-next.
        new_only: leave the cells that are measured already out of the spec.
        seed: of the draws of plausible laws.

    Raises:
        ValueError: the sweep, arm or table cannot be used, or the spend buys nothing; the message says what to do.
    """
    for option, value in (("--target-flops", target_flops), ("--spend", spend)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{option} got {value}; wanted a positive number of FLOPs")
    study = _Study(sweep, results, arm, quantity, num_seeds, target_flops, spend)
    rng = np.random.default_rng(seed)
    law, noise, laws = study.plausible(rng)
    wanted: Quantity = "loss" if quantity == "fid" else quantity
    found = suggest(study.ladder, study.measured, laws, noise, target_flops=target_flops, spend=spend, quantity=wanted)
    name = name or f"{study.sweep.name}-next"
    at_target = {}
    if law is not None:
        n, d = law.optimum(study.ladder.cost, target_flops)
        at_target = {"params": float(n), "loss": float(law.loss(n, d))}
    result = FollowUp(
        sweep=study.sweep.name,
        arm=study.ground.variant.label,
        name=name,
        quantity=quantity,
        target_flops=target_flops,
        spend=spend,
        text="",
        suggestion=found,
        runs=tuple(study.shown(run) for run in found.runs),
        law=law,
        noise=noise,
        at_target=at_target,
        notes=tuple(study.notes),
    )
    return FollowUp(**{**vars(result), "text": _text(study, result, new_only)})


class _Study:
    """A sweep's arm as a design sees it: what may be run, and what is measured."""

    def __init__(
        self, sweep: Location, results: Location | None, arm: str | None, quantity: Wish, num_seeds: int,
        target_flops: float, spend: float,
    ) -> None:  # fmt: skip
        self.notes: list[str] = []
        self.sweep, source = spec_of(sweep)
        variants = followup.variants_of(self.sweep, arm)
        self.frame = arm_measurements(results, variants[0].label, quantity, self.notes)
        rate = best_rate(self.frame, [rate for variant in variants for rate in variant.training.learning_rate])
        variant = next(v for v in variants if rate in v.training.learning_rate)
        self.ground = Ground(sweep=self.sweep, source=source, variant=variant, learning_rate=rate)
        self.own = self.ground.trials()
        self.seeds = followup.seeds_of(self.sweep, num_seeds)
        self.sizes = followup.rungs({trial.size: trial.model for trial in self.own})
        self.budgets = self._budgets(target_flops, spend)
        self.candidates = self._candidates()
        if not self.candidates:
            raise ValueError(
                f"nothing can be run at {self.budgets[0]:.3g} to {self.budgets[-1]:.3g} FLOPs under the constraints of "
                f"sweep {self.sweep.name}; loosen them, or raise --spend"
            )

    # What may be run.

    def _budgets(self, target_flops: float, spend: float) -> list[float]:
        """Budgets to consider, up to what the spend buys on top of the longest trial and to the target."""
        asked = sorted({b or s * trial.flops_per_sample for trial in self.own for s, b in _cells(trial)})
        longest = 0.0 if self.frame is None else float(self.frame["flops"].max())
        grid = followup.budget_grid(asked, min(target_flops, longest + spend))
        return [budget for budget in grid if budget <= max(longest + spend, asked[0])]

    def _candidates(self) -> list[Trial]:
        """Every size at every budget in every seed, where the sweep's constraints allow it."""
        data = dataset_named(self.sweep.dataset)
        epochs = self.sweep.budgets.max_epochs or data.max_epochs
        conditions = followup.candidate_constraints(self.ground, self.own, epochs)
        budgets = {size["name"]: self.budgets for size in self.sizes}
        spec = self.ground.spec("candidates", "", self.sizes, budgets, self.seeds, conditions)
        trials = expand(*followup.sweep_of(spec, self.ground.source.path))
        return [trial for trial in trials if trial.milestones]

    @cached_property
    def models(self) -> list[Trial]:
        """One trial of each size that may be run, smallest first."""
        first = {trial.size: trial for trial in reversed(self.candidates)}
        return sorted(first.values(), key=lambda trial: trial.params_backbone)

    @cached_property
    def ladder(self) -> Ladder:
        index = {trial.size: number for number, trial in enumerate(self.models)}
        place = {budget: number for number, budget in enumerate(self.budgets)}
        samples = np.full((len(self.models), len(self.budgets)), np.nan)
        for trial in self.candidates:
            for milestone, budget in _cells(trial):
                assert budget is not None, "candidates are asked for in FLOPs"
                samples[index[trial.size], place[budget]] = milestone
        return Ladder(
            params=np.array([trial.params_backbone for trial in self.models], dtype=float),
            flops_per_sample=np.array([trial.flops_per_sample for trial in self.models]),
            samples=samples,
            num_seeds=len(self.seeds),
            cooldown=self.ground.cooldown,
        )

    # What is measured.

    @cached_property
    def measured(self) -> Measured | None:
        """The cells that laws are fitted to; None without any."""
        if self.frame is None:
            return None
        trunk = {trial.trial_id: trial.trunk or trial.trial_id for trial in self.own}
        names = [trunk.get(trial_id, trial_id) for trial_id in self.frame["trial_id"].astype(str)]
        trials = list(dict.fromkeys(names))
        cells = Cells(
            **{name: self.frame[name].to_numpy(dtype=float) for name in ("params", "samples", "flops")},
            trial=np.array([trials.index(name) for name in names], dtype=np.int64),
            budget_flops=np.full(len(names), np.nan),
        )
        return Measured(cells=cells, trajectories=tuple(self.trajectories.get(trial) for trial in trials))

    @cached_property
    def trajectories(self) -> dict[str, Trajectory]:
        """The place on the ladder of each trajectory that may be run, by the trial_id that it has or would have."""
        size = {trial.size: number for number, trial in enumerate(self.models)}
        return {t.trunk or t.trial_id: (size[t.size], self.seeds.index(t.seed)) for t in self.candidates}

    def plausible(self, rng: np.random.Generator) -> tuple[PlantedLaw | None, Noise, list[PlantedLaw]]:
        """The fit to what is measured (or None), the noise around it, and laws that are plausible beside it."""
        if self.measured is None or self.frame is None:
            self.notes.append("nothing is measured yet: the runs suit a broad range of laws")
            return None, Noise(), prior_laws(self.ladder, NUM_LAWS, rng)
        cells, losses = self.measured.cells, self.frame["loss"].to_numpy(dtype=float)
        x = np.stack([cells.params, cells.samples], axis=1)
        fit = fit_law(SurfaceLaw(), x, losses, trials=cells.trial, num_resamples=0)
        if not fit.succeeded:
            self.notes.append(f"no law can be fitted yet ({fit.reason}): the runs suit a broad range of laws")
            return None, Noise(), prior_laws(self.ladder, NUM_LAWS, rng)
        if fit.outcome != "converged":
            self.notes.append(f"the fit so far is {fit.outcome.replace('_', ' ')}: {fit.reason}")
        law = PlantedLaw(**fit.params)
        noise = estimated_noise(law, cells, losses)
        return law, noise, plausible_laws(law, cells, noise, self.ladder, NUM_LAWS, rng)

    # What comes out.

    def shown(self, run: Run) -> dict[str, Any]:
        size, seed = run.trajectory
        return {
            "size": self.models[size].size,
            "params": self.models[size].params_backbone,
            "seed": self.seeds[seed],
            "milestones": list(run.milestones),
            "trained_flops": run.trained,
            "flops": run.flops,
        }

    def asked(self, runs: Sequence[Run], new_only: bool) -> dict[tuple[str, int], dict[float, float]]:
        """For each (size, seed) its budgets, and the FLOPs that they come to."""
        found: dict[tuple[str, int], dict[float, float]] = {}
        if self.frame is not None and not new_only:
            found = measured_cells(self.own, self.frame)
        for run in runs:
            key = (self.models[run.trajectory[0]].size, self.seeds[run.trajectory[1]])
            new = zip((self.budgets[index] for index in run.budgets), run.milestones, strict=True)
            found.setdefault(key, {}).update(new)
        return found


def measured_cells(own: Sequence[Trial], frame: pd.DataFrame) -> dict[tuple[str, int], dict[float, float]]:
    """Of each (size, seed) the budgets that are measured, and the FLOPs that they come to."""
    there = set(zip(frame["trial_id"].astype(str), frame["samples"].astype(int), strict=True))
    found: dict[tuple[str, int], dict[float, float]] = {}
    for trial in own:
        for samples, budget in _cells(trial):
            if (trial.trial_id, samples) in there:
                flops = samples * trial.flops_per_sample
                found.setdefault((trial.size, trial.seed), {})[budget or flops] = flops
    return found


def _cells(trial: Trial) -> list[tuple[int, float | None]]:
    return list(zip(trial.milestones, trial.budgets, strict=True))


def spec_of(sweep: Location) -> tuple[Sweep, Any]:
    """The sweep of a spec, or that a results folder's plan.json holds."""
    if isinstance(sweep, Path) and not sweep.is_dir():
        return load(sweep)
    path = sweep / "plan.json"
    try:
        plan = json.loads(path.read_text())
        text, name = str(plan["spec"]), Path(str(plan["spec_path"])).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be used ({type(error).__name__}: {error}); wanted the plan that `ditlaw run` writes. "
            "Give the spec's path instead of the results folder."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / (name or "spec.yaml")
        copy.write_text(text)
        return load(copy)


def arm_measurements(results: Location | None, arm: str, quantity: Wish, notes: list[str]) -> pd.DataFrame | None:
    """The rows that a surface is fitted to, N in backbone parameters; None without any."""
    if results is None:
        return None
    if arm not in set(read_planned(results)[0]["arm"]):
        return None
    table = load_table(results, {"params": "params_backbone"}, arm, quantity="fid" if quantity == "fid" else "loss")
    notes += table.warnings
    frame = best_learning_rates(table.frame)
    return frame.reset_index(drop=True) if len(frame) else None


def best_rate(frame: pd.DataFrame | None, rates: Sequence[float]) -> float:
    """The learning rate that is best at most sizes and budgets; the middle one where nothing is measured."""
    rates = sorted(set(rates))
    if frame is None or "learning_rate" not in frame:
        return rates[len(rates) // 2]
    counts = frame["learning_rate"].value_counts()
    known = [rate for rate in counts.index if rate in rates]
    return float(known[0]) if known else rates[len(rates) // 2]


# What is said of it.


def _text(study: _Study, found: FollowUp, new_only: bool) -> str:
    header = [
        f"Follows up sweep {found.sweep}, arm {found.arm}: {len(found.runs)} trials to run or to extend, for "
        f"{found.suggestion.flops:.4g} training FLOPs of the {found.spend:.4g} allowed.",
        f"Expected at {found.target_flops:.4g} FLOPs, 95%: N* {found.expected('params')}; loss "
        f"{found.expected('loss')}.",
    ]
    if study.frame is not None and not new_only:
        header.append(
            f"What {found.sweep} has measured is listed too, so that one fit covers both: with results beside those of "
            f"{found.sweep} it is taken over, and nothing is trained twice."
        )
    return spec_text(
        study.ground,
        study.sizes,
        study.asked(found.suggestion.runs, new_only),
        name=found.name,
        purpose=f"What would sharpen the answer at {found.target_flops:.3g} FLOPs.",
        expect=_expectation(found),
        header=header,
    )


def _expectation(found: FollowUp) -> dict[str, Any]:
    """What the plan of the follow-up is to expect: the law and noise as they are known now."""
    noise = {"seed_noise": _digits(found.noise.seed, 3), "measurement_noise": _digits(found.noise.measurement, 3)}
    law = {} if found.law is None else {"law": {name: _digits(value, 6) for name, value in vars(found.law).items()}}
    return {**law, **noise, "target_flops": found.target_flops}


def _digits(value: float, count: int) -> float:
    return float(f"{value:.{count}g}")


def _shown(name: str, half_width: float) -> str:
    """A half-width in logs: of N* as a factor, of the loss as a share."""
    if name == "params":
        return f"within a factor of {np.exp(half_width):.3g}"
    return f"within {100 * np.expm1(half_width):.2g}%"
