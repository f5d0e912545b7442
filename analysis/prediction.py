"""What an arm's laws say of a budget that is not run yet, kept in a file; and, once it is run, how far off that was.

The interval of a law is of the law alone. One measurement scatters about it, so what is tested is the interval of one
measurement: that of the law, widened by the scatter of the fitted points about it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from analysis.allocation import CostRelation, allocate_surface
from analysis.answer import prediction
from analysis.bootstrap import Interval
from analysis.findings import ArmFindings
from analysis.fitting import Fit
from analysis.frontier import average_seeds, budget_of
from analysis.laws import Array

FORMAT = "ditlaw prediction 1"
SAME_BUDGET = 0.02
"""A measurement is of the predicted budget if it was asked for within this share of it."""
CONDITIONS = (
    "flops_definition",
    "objective",
    "parameterization",
    "fd_encoder",
    "fd_encoder_digest",
    "eval_samples",
    "sampler",
    "sampler_steps",
    "guidance",
)
"""Columns of a measurement that have to be as they were where the law was fitted."""
_VALUES = ("loss", "fid", "fd")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One quantity at the budget."""

    what: str
    """loss, FID or FD-<encoder>."""
    column: str
    """Of a measurement: loss, fid or fd."""
    by: str
    """power law, through the best run of each budget, or surface."""
    value: float
    law_ci95: Interval | None
    """Of the law."""
    ci95: Interval | None
    """Of one measurement; None where too few points were fitted to tell their scatter."""
    scatter: float | None
    """Standard deviation of log residuals of the fitted points, degrees of freedom counted."""
    law: dict[str, float]
    """Its parameters: A * flops^-beta + floor, or E + A / N^alpha + B / D^beta."""
    rule: str | None
    """How the law's interval was made."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The measurements that a prediction was made from."""

    cells: dict[str, list[int]]
    """Samples of the measurements of each trial, by trial_id."""
    digest: str
    """SHA-256 of the cells with their losses and distances."""
    newest: str
    """When the newest of them was made."""
    largest_budget_flops: float

    @property
    def count(self) -> int:
        return sum(map(len, self.cells.values()))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Everything that is said of an arm at a budget, and what it rests on."""

    sweep: str
    dataset_digest: str | None
    arm: str
    flops: float
    expected: list[Expected]
    params: float | None
    """The size that it recommends; None where there is no N*(C)."""
    params_ci95: Interval | None
    samples: float | None
    samples_ci95: Interval | None
    fitted: Fitted
    conditions: dict[str, Any]
    written_at: str
    made_with: dict[str, Any]
    """Versions and commit (see `orchestrator.results.environment`)."""
    format: str = FORMAT

    @property
    def times_largest(self) -> float:
        """How far beyond the largest fitted budget it goes."""
        return self.flops / self.fitted.largest_budget_flops

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def predict(arm: ArmFindings, flops: float, plan: Mapping[str, Any], made_with: Mapping[str, Any]) -> Prediction:
    """What the laws of `arm` say of a budget.

    Args:
        arm: its findings.
        flops: the budget, above 0.
        plan: plan.json of the sweep.
        made_with: as `orchestrator.results.environment.environment` gives it.

    Raises:
        ValueError: the arm has a law of neither loss nor distance.
    """
    laws = [("loss", "loss", arm.law, arm.frontier)]
    if arm.distance is not None:
        laws.append((arm.distance.name, arm.distance.column, arm.distance.law, arm.distance.frontier))
    expected = [_by_power(what, column, law, best, flops) for what, column, law, best in laws if law.succeeded]
    expected += _by_surface(arm, flops)
    if not expected:
        reasons = "; ".join(f"{what}: {law.reason}" for what, _, law, _ in laws)
        raise ValueError(f"arm {arm.arm} has no law to predict with ({reasons}). Measure more budgets first.")
    sizes = prediction(arm, flops)
    params, params_ci95 = sizes.get("params", (None, None))
    samples, samples_ci95 = sizes.get("samples", (None, None))
    return Prediction(
        sweep=str(plan.get("sweep") or arm.measured["sweep"].iloc[0]),
        dataset_digest=plan.get("dataset_digest"),
        arm=arm.arm,
        flops=flops,
        expected=expected,
        params=params,
        params_ci95=params_ci95,
        samples=samples,
        samples_ci95=samples_ci95,
        fitted=_fitted(arm),
        conditions=_conditions(arm.trained),
        written_at=str(made_with["written_at"]),
        made_with={name: made_with[name] for name in ("commit", "versions") if name in made_with},
    )


def _by_power(what: str, column: str, law: Fit, best: pd.DataFrame, flops: float) -> Expected:
    """By the law of the best run of each budget."""
    x, y = best["flops"].to_numpy(dtype=float), best["loss"].to_numpy(dtype=float)
    band = law.predict_interval(flops)
    law_ci95 = None if band is None else (float(band[0]), float(band[1]))
    scatter, ci95 = _of_one_measurement(law, np.log(y / law.predict(x)), float(law.predict(flops)), law_ci95)
    return Expected(
        what=what,
        column=column,
        by="power law",
        value=float(law.predict(flops)),
        law_ci95=law_ci95,
        ci95=ci95,
        scatter=scatter,
        law=dict(law.params),
        rule=law.rule,
    )


def _by_surface(arm: ArmFindings, flops: float) -> list[Expected]:
    """The loss by the surface at its own N*, where the data identify it."""
    law, rows = arm.surface, arm.fitted
    if law.outcome != "converged":
        return []
    found = allocate_surface(law, CostRelation.of(rows), flops)
    if found.loss is None:
        return []
    at = [rows[name].to_numpy(dtype=float) for name in law.law.variables]
    residuals = np.log(rows["loss"].to_numpy(dtype=float) / law.predict(*at))
    scatter, ci95 = _of_one_measurement(law, residuals, found.loss, found.ci95.get("loss"))
    return [
        Expected(
            what="loss",
            column="loss",
            by="surface",
            value=found.loss,
            law_ci95=found.ci95.get("loss"),
            ci95=ci95,
            scatter=scatter,
            law=dict(law.params),
            rule=law.rule,
        )
    ]


def _of_one_measurement(
    law: Fit, residuals: Array, value: float, band: Interval | None
) -> tuple[float | None, Interval | None]:
    """The scatter of log residuals, and the 95% interval of one measurement: each side of the law's, and as much as one
    residual may be off by Student's t, together as independent errors are."""
    dof = len(residuals) - len(law.params)
    if dof < 1 or band is None:
        return None, None
    scatter = float(np.sqrt(np.sum(residuals**2) / dof))
    off = float(special.stdtrit(dof, 0.975)) * scatter
    low, high = (np.hypot(np.log(end / value), off) for end in band)
    return scatter, (float(value * np.exp(-low)), float(value * np.exp(high)))


def _fitted(arm: ArmFindings) -> Fitted:
    rows = arm.trained
    return Fitted(
        cells=_cells(rows),
        digest=digest_of(rows),
        newest=max(rows["created_at"]).isoformat(),
        largest_budget_flops=arm.largest_run,
    )


def _cells(rows: pd.DataFrame) -> dict[str, list[int]]:
    return {str(trial): sorted(map(int, part["samples"])) for trial, part in rows.groupby("trial_id", sort=True)}


def digest_of(rows: pd.DataFrame) -> str:
    """SHA-256 of measurements: which they are, and what was measured."""
    kept = rows[["trial_id", "samples", *_VALUES]].sort_values(["trial_id", "samples"])
    lines = [
        " ".join([str(trial), str(int(samples)), *map(_exact, values)])
        for trial, samples, *values in kept.to_numpy(dtype=object).tolist()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _exact(value: Any) -> str:
    return "-" if pd.isna(value) else float(value).hex()


def _conditions(rows: pd.DataFrame) -> dict[str, Any]:
    """What all the rows have in common of CONDITIONS."""
    found = {}
    for name in CONDITIONS:
        values = rows[name].dropna().unique()
        if len(values) == 1:
            found[name] = values[0].item() if hasattr(values[0], "item") else values[0]
    return found


def read_prediction(text: str, place: object) -> Prediction:
    """A prediction as `Prediction.as_json` wrote it. Raises ValueError where it is none."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        expected = [Expected(**{**one, **_pairs(one, "ci95", "law_ci95")}) for one in data["expected"]]
        fitted = Fitted(**data["fitted"])
        bands = _pairs(data, "params_ci95", "samples_ci95")
        found = Prediction(**{**data, **bands, "expected": expected, "fitted": fitted})
        datetime.fromisoformat(found.written_at)
        if not found.fitted.largest_budget_flops > 0:
            raise ValueError("its largest budget is not positive")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place} is no prediction ({type(error).__name__}: {error}); wanted a file that `ditlaw predict` wrote, "
            f"of format {FORMAT!r}."
        ) from None
    return found


def _pairs(data: Mapping[str, Any], *names: str) -> dict[str, Interval | None]:
    return {name: None if data[name] is None else (float(data[name][0]), float(data[name][1])) for name in names}


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One quantity, predicted and measured."""

    expected: Expected
    measured: float
    size: str
    params: float
    flops: float

    @property
    def error(self) -> float:
        """Relative error of the prediction: 0.02 is 2% too high."""
        return self.expected.value / self.measured - 1

    @property
    def inside(self) -> bool | None:
        """Whether the interval of one measurement holds it; None where there was none."""
        band = self.expected.ci95
        return None if band is None else band[0] <= self.measured <= band[1]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A prediction held against what was measured. Without `tested` the notes say why."""

    prediction: Prediction
    tested: list[Tested]
    notes: list[str] = field(default_factory=list)
    """What a reader must know before believing it."""


def judge(made: Prediction, measurements: pd.DataFrame, dataset_digest: str | None) -> Verdict:
    """Hold a prediction against the best measurement at its budget, seeds averaged, as its laws are of the best.

    A measurement that the prediction was fitted to is no test and is left out; one that is older than the prediction is
    shown, and that is said.
    """
    of_arm = measurements[measurements["arm"] == made.arm]
    here = of_arm[(budget_of(of_arm) / made.flops - 1).abs() <= SAME_BUDGET] if len(of_arm) else of_arm
    known = {(trial, samples) for trial, several in made.fitted.cells.items() for samples in several}
    used = [key in known for key in zip(here["trial_id"], here["samples"], strict=True)]
    notes, fresh = [], here[~np.array(used, dtype=bool)] if len(here) else here
    if any(used):
        notes.append(f"{sum(used)} of {len(here)} measurements at this budget were part of the fit: no test, left out")
    notes += _basis(made, of_arm)
    if dataset_digest and made.dataset_digest and dataset_digest != made.dataset_digest:
        notes.append("these measurements are of other data than those of the fit")
    if (lost := int((fresh["outcome"] == "diverged").sum())) > 0:
        notes.append(f"{lost} of {len(fresh)} measurements at this budget diverged")
    trained = fresh[(fresh["outcome"] != "diverged") & fresh["loss"].notna()]
    if not len(trained):
        return Verdict(prediction=made, tested=[], notes=notes if len(here) else ["not measured yet", *notes])
    early = (trained["created_at"] < datetime.fromisoformat(made.written_at)).sum()
    if early:
        notes.append(f"{early} of {len(trained)} measurements were made before the prediction was written")
    now = _conditions(trained)
    apart = [f"{name} {now.get(name)} against {was}" for name, was in made.conditions.items() if now.get(name) != was]
    if apart:
        notes.append(f"measured otherwise than what was fitted: {', '.join(apart)}")
    tested = [found for one in made.expected if (found := _test(one, trained)) is not None]
    missing = [one.what for one in made.expected if all(one is not found.expected for found in tested)]
    if missing:
        notes.append(f"{' and '.join(dict.fromkeys(missing))} not measured at this budget")
    return Verdict(prediction=made, tested=tested, notes=notes)


def _basis(made: Prediction, rows: pd.DataFrame) -> Sequence[str]:
    """Whether what the prediction rests on is here as it was."""
    known = {(trial, samples) for trial, several in made.fitted.cells.items() for samples in several}
    keys = list(zip(rows["trial_id"], rows["samples"], strict=True))
    there = rows.loc[np.array([key in known for key in keys], dtype=bool)]
    if len(there) < made.fitted.count:
        return ["what it was fitted to is not (all) in this folder"]
    same = digest_of(there) == made.fitted.digest
    return [] if same else ["the measurements that it was fitted to are others now: their digest differs"]


def _test(one: Expected, trained: pd.DataFrame) -> Tested | None:
    rows = trained[trained[one.column].notna()]
    if not len(rows):
        return None
    rows = average_seeds(rows.assign(loss=rows[one.column].astype(float)))
    best = rows.sort_values("loss").iloc[0]
    return Tested(
        expected=one,
        measured=float(best["loss"]),
        size=str(best["size"]),
        params=float(best["params"]),
        flops=float(best["flops"]),
    )
