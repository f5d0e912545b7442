"""What fitting a law to a table gives: the fit with everything that says how far to believe it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.allocation import Allocation
from analysis.approaches import Approaches
from analysis.backtest import Backtest
from analysis.bootstrap import Interval
from analysis.estimating import Options
from analysis.fitting import Fit
from analysis.influence import Influence
from analysis.isoflop import IsoflopFit
from analysis.learning_rate import RateFit
from analysis.loading import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTRAPOLATION = 10.0
"""Times the largest budget beyond which a prediction is marked as a guess."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A law fitted to a table. `fit` is the estimate; the rest says how it was made and how far it can be believed.

    In a notebook it shows itself; `print(result)` is the page of `ditlaw fit`, `result.to_dict()` its JSON object.
    """

    law: str
    equation: str
    table: Table
    rows: pd.DataFrame
    """The rows that were fitted: params, samples, flops as far as known, and loss (the fitted quantity)."""
    fit: Fit | IsoflopFit | RateFit
    params: dict[str, float | None]
    ci95: dict[str, Interval | None]
    allocation: Allocation
    approaches: Approaches | None
    backtests: list[Backtest]
    influence: list[Influence]
    options: Options
    warnings: list[str]
    more: dict[str, Any] = field(default_factory=dict)
    """What only some laws have: floor_identified, minima."""

    @property
    def outcome(self) -> str:
        return self.fit.outcome

    @property
    def quantity(self) -> str:
        """What was fitted: loss, fid or fd."""
        return self.table.quantity

    def predict(self, *x: float) -> tuple[float, Interval | None]:
        """The fitted quantity at FLOPs (power) or at (params, samples) (surface), with its 95% interval.

        Raises:
            ValueError: the law is of minima, or could not be fitted.
        """
        if not isinstance(self.fit, Fit) or not self.fit.succeeded:
            gives = "rate*" if isinstance(self.fit, RateFit) else "N* and D*"
            raise ValueError(f"there is no law to predict from: {self.fit.reason or f'{self.law} gives {gives}'}.")
        band = self.fit.predict_interval(*x)
        return float(self.fit.predict(*x)), None if band is None else (float(band[0]), float(band[1]))

    def backtest_of(self, name: str) -> Backtest | None:
        """The back-test that speaks for a predicted quantity of the allocation (params, samples or loss)."""
        wanted = "N*" if name in ("params", "samples") else self.quantity
        return next((test for test in self.backtests if test.what == wanted), None)

    def to_dict(self) -> dict[str, Any]:
        """The object of `ditlaw fit --json`: Python values, full precision, None for what is unknown or not finite."""
        allocation = self.allocation
        names = ["N_exponent", "D_exponent"] + (
            ["flops", "params", "samples", "samples_per_param", "loss"] if allocation.flops else []
        )
        about: dict[str, Any] = {name: getattr(allocation, name) for name in names}
        about["ci95"] = {name: allocation.ci95.get(name) for name in names if name != "flops"}
        if allocation.flops:
            tests = {name: self.backtest_of(name) for name in ("params", "loss")}
            about["backtest_error"] = {name: test.error if test else None for name, test in tests.items()}
            about["times_largest_budget"] = allocation.flops / self.largest_flops
        return plain(
            {
                "law": self.law,
                "equation": self.equation,
                "quantity": self.quantity,
                "params": self.params,
                "ci95": self.ci95,
                "outcome": self.fit.outcome,
                "reason": self.fit.reason,
                "starts_agree": self.fit.starts_agree,
                "num_points": self.fit.num_points,
                "allocation": about,
                **self.more,
                "approaches": [vars(a) for a in self.approaches.found] if self.approaches else [],
                "approaches_agree": self.approaches.agree if self.approaches else None,
                "backtest": [t.to_dict() for t in self.backtests],
                "influence": [vars(i) | {"change": i.change, "pair_change": i.pair_change} for i in self.influence],
                "trials": self.trial_counts,
                "diverged": self._diverged(),
                "columns": self.table.columns,
                "derived": self.table.derived,
                "options": vars(self.options) | {"force": self.table.force, "rule": self.fit.rule},
                "warnings": self.warnings,
            }
        )

    @property
    def largest_flops(self) -> float:
        return float(self.rows["flops"].max())

    @property
    def trial_counts(self) -> dict[str, int]:
        """Rows of the table by outcome: measured, censored (ended before their budget), diverged."""
        censored = int(self.table.frame["censored"].sum())
        measured = len(self.table.frame) - censored
        return {"measured": measured, "censored": censored, "diverged": len(self.table.diverged)}

    def _diverged(self) -> list[dict[str, Any]]:
        names = [
            n for n in ("row", "trial_id", "params", "flops", "learning_rate", "reason") if n in self.table.diverged
        ]
        return [dict(zip(names, row, strict=True)) for row in self.table.diverged[names].itertuples(index=False)]

    def plot(self, kind: str | None = None) -> Figure:
        """One figure of this fit (see `figures` for the kinds); by default the one that shows the law itself.

        Raises:
            ValueError: this fit has no figure of that kind.
        """
        from analysis.figures import figures_of

        drawn = figures_of(self, None if kind is None else [kind])
        return next(iter(drawn.values()))

    def figures(self) -> dict[str, Figure]:
        """Every figure that this fit has, by kind."""
        from analysis.figures import figures_of

        return figures_of(self, None)

    def save_plots(self, folder: Path | str, suffix: str = "svg") -> list[Path]:
        """Write every figure into a folder as svg, pdf or png; returns the files."""
        from analysis.drawing import save

        return [save(figure, Path(folder) / f"{kind}.{suffix}") for kind, figure in self.figures().items()]

    def __str__(self) -> str:
        from analysis.fit_page import format_fit

        return format_fit(self.to_dict())

    def _repr_html_(self) -> str:
        from analysis.fit_page import html_fit

        return html_fit(self.to_dict())


def plain(value: Any) -> Any:
    """Python values only, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is pd.NA or value is pd.NaT:
        return None
    return value
