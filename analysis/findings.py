"""Everything a report says, worked out: each arm's fits or why there are none, comparisons, and warnings in words."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.allocation import Allocation, CostRelation, allocate_surface
from analysis.approaches import Approaches, approaches
from analysis.backtest import Backtest, backtest_isoflop, backtest_power
from analysis.bootstrap import Interval
from analysis.bracketing import with_brackets
from analysis.comparison import Comparison, compare_arms
from analysis.fitting import Fit, fit_law, fit_power
from analysis.frontier import best_learning_rates, budget_of, frontier, sound_rates
from analysis.isoflop import IsoflopFit, fit_isoflop
from analysis.laws import SurfaceLaw
from analysis.magnitudes import scientific
from analysis.transfer import RateTransfer, learning_rate_transfer
from orchestrator.results.environment import FILE_NAME as ENVIRONMENT_FILE
from orchestrator.results.ledger import ledger
from orchestrator.results.location import Location
from orchestrator.results.store import read_attempts, read_curves, read_planned

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Frechet distance against compute in one arm: all rows, the best of each budget, and their law."""

    name: str
    """FID, or FD-<encoder>: the two are never compared."""
    column: str
    rows: pd.DataFrame
    frontier: pd.DataFrame
    law: Fit
    backtest: Backtest | None


@dataclass(frozen=True, kw_only=True)
class ArmFindings:
    """One arm. `trained` are its measured rows, `fitted` those at the best learning rate."""

    arm: str
    measured: pd.DataFrame
    trained: pd.DataFrame
    fitted: pd.DataFrame
    isoflop: IsoflopFit | None
    isoflop_reason: str | None
    law: Fit
    frontier: pd.DataFrame
    surface: Fit
    surface_exponent: tuple[float, Interval | None] | None
    """N* exponent of the surface, with its interval."""
    approaches: Approaches
    """N* exponents by every approach."""
    backtests: list[Backtest]
    distance: Distance | None
    """Its Frechet distance against compute; None where none was measured."""
    notes: list[str]
    """Minima that diverged runs alone bracket."""

    @property
    def num_diverged(self) -> int:
        return int((self.measured["outcome"] == "diverged").sum())

    @property
    def largest_run(self) -> float:
        """Budget of the largest trained run, FLOPs: beyond it a law of loss or distance is an extrapolation."""
        return float(budget_of(self.trained).fillna(self.trained["flops"]).max())

    @property
    def largest_minimum(self) -> float | None:
        """FLOPs of the largest budget with a bracketed minimum: beyond it N*(C) and D*(C) are extrapolations."""
        fit = self.isoflop
        return max(m.flops for m in fit.bracketed) if fit is not None and fit.params else None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A results folder, read and fitted."""

    folder: Location
    measurements: pd.DataFrame
    curves: pd.DataFrame
    attempts: pd.DataFrame
    plan: dict[str, Any]
    tracking: dict[str, Any]
    environment: dict[str, Any]
    """Versions and commit of the newest run, as `orchestrator.results.environment` keeps them."""
    accounts: pd.DataFrame
    """Where each trial's compute went (see `orchestrator.results.ledger`)."""
    target_flops: float | None
    """The budget that the answer is about: what was asked for, else the largest run."""
    arms: list[ArmFindings]
    comparisons: list[Comparison]
    """The first arm of the spec against each other arm, by loss where they train one objective, and by Frechet distance
    where both have one."""
    transfers: list[RateTransfer]
    """The best learning rate of each arm against its size, where several were tried."""
    warnings: list[str] = field(default_factory=list)

    @property
    def best(self) -> ArmFindings | None:
        """The first arm of the spec that has a loss: the one the answer is about."""
        return next((arm for arm in self.arms if len(arm.trained)), None)


def find(folder: Location, target_flops: float | None = None) -> Findings:
    """Read and fit a results folder; `target_flops` is the budget that the answer is about.

    Missing files and failed fits are values, never errors.
    """
    measurements, num_other = read_planned(folder)
    frame = measurements.assign(params=measurements["params_backbone"].astype(float))
    frame["flops"] = frame["flops"].astype(float)
    plan = _read_json(folder / "plan.json")
    named = [str(arm) for arm in plan.get("arms") or []]
    arms = [_arm(str(arm), rows) for arm, rows in frame.groupby("arm", sort=True)]
    arms.sort(key=lambda a: named.index(a.arm) if a.arm in named else len(named))
    trained = [a for a in arms if len(a.trained)]
    comparisons, not_compared = _comparisons(trained)
    attempts = read_attempts(folder)
    largest = float(frame["flops"].max()) if len(frame) else None
    return Findings(
        folder=folder,
        measurements=frame,
        curves=read_curves(folder),
        attempts=attempts,
        plan=plan,
        tracking=_read_json(folder / "mlflow.json"),
        environment=_read_json(folder / ENVIRONMENT_FILE),
        accounts=ledger(attempts, measurements),
        target_flops=target_flops or _largest_budget(trained) or largest,
        arms=arms,
        comparisons=comparisons,
        transfers=[t for t in map(_transfer, trained) if t is not None],
        warnings=_others(num_other) + _warnings(frame, arms, plan) + not_compared,
    )


def _largest_budget(trained: list[ArmFindings]) -> float | None:
    """The largest budget at which the first arm's minimum is known, else the largest of its measurements."""
    if not trained:
        return None
    fit = trained[0].isoflop
    bracketed = [m.flops for m in fit.bracketed] if fit is not None else []
    return max(bracketed) if bracketed else float(trained[0].trained["flops"].max())


def _comparisons(trained: list[ArmFindings]) -> tuple[list[Comparison], list[str]]:
    """The first arm against each other, by what their trials have in common; and which are not compared, in words."""
    found, left = [], []
    for other in trained[1:]:
        first = trained[0]
        rows = pd.concat([first.trained, other.trained])
        alike = set(first.trained["objective"]) == set(other.trained["objective"])
        if alike:
            found.append(compare_arms(rows, first.arm, other.arm))
        one, two = first.distance, other.distance
        if one is not None and two is not None and one.name == two.name:
            shared = pd.concat([one.rows, two.rows])
            measured = shared.assign(loss=shared[one.column].astype(float))
            found.append(compare_arms(measured, first.arm, other.arm, quantity=one.name))
        elif not alike:
            left.append(
                f"{first.arm} and {other.arm} train different objectives, whose losses cannot be compared, and have no "
                "Frechet distance in common: they are not compared."
            )
    return found, left


def _read_json(path: Location) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s could not be read, so the report goes without it: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def _arm(arm: str, rows: pd.DataFrame) -> ArmFindings:
    usable = (rows["outcome"] != "diverged") & np.isfinite(rows["loss"].astype(float)) & (rows["loss"] > 0)
    trained = rows[usable]
    fitted = best_learning_rates(rows[sound_rates(rows, ~usable)])
    best = frontier(fitted) if len(fitted) else fitted
    isoflop: IsoflopFit | None = None
    reason: str | None = "no trial of this arm has a loss"
    notes: list[str] = []
    if len(fitted):
        try:
            bracketed, notes = with_brackets(fitted, rows[~usable])
            isoflop, reason = fit_isoflop(bracketed, min_budgets=1), None
        except ValueError as error:
            reason = str(error).rstrip(".")
    flops, loss = best["flops"].to_numpy(dtype=float), best["loss"].to_numpy(dtype=float)
    law = fit_power(flops, loss)  # one run a budget: the budgets are the units
    surface = fit_law(
        SurfaceLaw(),
        fitted[["params", "samples"]].to_numpy(dtype=float),
        fitted["loss"].to_numpy(dtype=float),
        trials=fitted["trial_id"],
    )
    exponent = _surface_exponent(surface, fitted)
    tests = [backtest_power(flops, loss) if len(best) else None]
    tests.append(backtest_isoflop(fitted) if isoflop is not None else None)
    return ArmFindings(
        arm=arm,
        measured=rows,
        trained=trained,
        fitted=fitted,
        isoflop=isoflop,
        isoflop_reason=reason if isoflop is None else isoflop.reason,
        law=law,
        frontier=best,
        surface=surface,
        surface_exponent=exponent,
        approaches=_approaches(fitted, isoflop, surface),
        backtests=[test for test in tests if test is not None],
        distance=_distance(trained),
        notes=notes,
    )


def _approaches(fitted: pd.DataFrame, isoflop: IsoflopFit | None, surface: Fit) -> Approaches:
    if not len(fitted) or not surface.succeeded:
        return approaches(fitted, isoflop=isoflop, surface=(surface, Allocation(approach="surface")))
    return approaches(
        fitted, isoflop=isoflop, surface=(surface, allocate_surface(surface, CostRelation.of(fitted), None))
    )


def _transfer(arm: ArmFindings) -> RateTransfer | None:
    """The drift of the best learning rate; None unless two sizes have three learning rates each."""
    diverged = arm.measured[arm.measured["outcome"] == "diverged"]
    transfer = learning_rate_transfer(arm.trained, arm.arm, diverged)
    return transfer if transfer is not None and len(transfer.optima) > 1 else None


def _distance(trained: pd.DataFrame) -> Distance | None:
    """The arm's FID where it was measured, else its FD by another encoder."""
    for column in ("fid", "fd"):
        rows = trained[trained[column].notna() & (trained[column].astype(float) > 0)]
        if len(rows):
            name = "FID" if column == "fid" else f"FD-{'/'.join(sorted(rows['fd_encoder'].dropna().unique()))}"
            best = frontier(rows.assign(loss=rows[column].astype(float)))
            flops, values = best["flops"].to_numpy(dtype=float), best["loss"].to_numpy(dtype=float)
            test = backtest_power(flops, values, quantity=name)
            law = fit_power(flops, values)
            return Distance(name=name, column=column, rows=rows, frontier=best, law=law, backtest=test)
    return None


def _surface_exponent(fit: Fit, frame: pd.DataFrame) -> tuple[float, Interval | None] | None:
    if not fit.succeeded:
        return None
    allocation = allocate_surface(fit, CostRelation.of(frame), None)
    exponent = allocation.N_exponent
    return None if exponent is None else (exponent, allocation.ci95.get("N_exponent"))


def _others(number: int) -> list[str]:
    if not number:
        return []
    return [f"{number} measurements in the folder are not of the spec as it stands, and are set aside."]


def _warnings(frame: pd.DataFrame, arms: list[ArmFindings], plan: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the fits, in plain words."""
    warnings = []
    expected = plan.get("num_cells")
    if isinstance(expected, int) and len(frame) < expected:
        warnings.append(f"{len(frame)} of {expected} planned measurements are in: the fits are of a part of the sweep.")
    if frame["flops_definition"].nunique() > 1:
        warnings.append(
            "Rows count FLOPs by different definitions: " + ", ".join(sorted(frame["flops_definition"].unique()))
        )
    mixed = frame[["zero_stage", "precision"]].drop_duplicates()
    if len(mixed) > 1:
        kinds = ", ".join(f"ZeRO-{row.zero_stage} {row.precision}" for row in mixed.itertuples())
        warnings.append(
            f"Trials ran with different ZeRO stages or precisions ({kinds}): a law through both is of neither."
        )
    for arm in arms:
        warnings += [f"{arm.arm}: {text}" for text in _arm_warnings(arm)]
    return warnings


def _arm_warnings(arm: ArmFindings) -> list[str]:
    warnings = []
    if arm.num_diverged:
        trials = arm.measured.loc[arm.measured["outcome"] == "diverged", "trial_id"].nunique()
        warnings.append(
            f"{arm.num_diverged} measurements ({trials} trial{'' if trials == 1 else 's'}) diverged. They are shown, "
            "but no law is fitted to them: it describes the runs that trained."
        )
    warnings += [f"{note}." for note in arm.notes]
    if arm.isoflop is None or arm.isoflop.reason:
        warnings.append(f"N*(C) and D*(C): {arm.isoflop_reason}.")
    if arm.isoflop is not None:
        for minimum in arm.isoflop.minima:
            if not minimum.bracketed:
                warnings.append(
                    f"the minimum at {scientific(minimum.flops)} FLOPs is not bracketed and is left out of N*(C): "
                    f"{minimum.reason}."
                )
        warnings += _disagreement(arm)
    if not arm.law.succeeded or arm.law.outcome != "converged":
        warnings.append(f"loss law: {arm.law.outcome.replace('_', ' ')}: {arm.law.reason}.")
    elif not arm.law.floor_identified:
        warnings.append(f"no floor is reported for the loss law: {arm.law.floor_reason}.")
    if arm.surface.outcome != "converged":
        warnings.append(f"surface L(N, D): {arm.surface.outcome.replace('_', ' ')}: {arm.surface.reason}.")
    for test in arm.backtests:
        if test.covered is False and abs(test.ratio - 1) > 1e-3:
            warnings.append(f"{test.sentence()}, outside its interval.")
    return warnings


def _disagreement(arm: ArmFindings) -> list[str]:
    """Where the cubic or the surface gives an N* exponent outside the parabola's interval."""
    fit = arm.isoflop
    band = fit.ci95.get("N_exponent") if fit is not None else None
    if fit is None or band is None:
        return []
    others = {"cubics": fit.cubic_exponent}
    if arm.surface_exponent is not None and arm.surface.outcome == "converged":
        others["the surface"] = arm.surface_exponent[0]
    return [
        f"approaches disagree on the N* exponent: {fit.params['N_exponent']:.3f} by parabolas "
        f"(95% {band[0]:.3f} to {band[1]:.3f}), {value:.3f} by {name}."
        for name, value in others.items()
        if value is not None and not band[0] - 1e-9 <= value <= band[1] + 1e-9
    ]
