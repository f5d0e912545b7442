"""The exponent of N*(C) by every approach that a table allows, side by side, and whether they agree."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.allocation import Allocation, CostRelation, allocate_power, allocate_surface
from analysis.backtest import NO_FIT
from analysis.bootstrap import Interval
from analysis.estimating import Options, estimate_isoflop, estimate_law, sd_of
from analysis.fitting import Fit
from analysis.frontier import is_isoflop
from analysis.isoflop import IsoflopFit
from analysis.laws import SurfaceLaw


def exponent_words(value: float) -> str:
    """An exponent to four places; what is 0 there is 0, not 1.7e-15 and not -0."""
    return f"{round(value, 4) + 0.0:.4g}"


@dataclass(frozen=True, kw_only=True)
class Approach:
    """One approach's exponent of N*(C). Without an interval, `ci95` is None."""

    name: str
    N_exponent: float
    ci95: Interval | None
    outcome: str

    @property
    def half_width(self) -> float:
        return 0.0 if self.ci95 is None else (self.ci95[1] - self.ci95[0]) / 2

    def words(self) -> str:
        band = f" (95% {exponent_words(self.ci95[0])} to {exponent_words(self.ci95[1])})" if self.ci95 else ""
        return f"{exponent_words(self.N_exponent)} by {self.name}{band}"


@dataclass(frozen=True, kw_only=True)
class Approaches:
    """All of them. Those whose fit did not converge are listed and not judged."""

    found: list[Approach]

    @property
    def judged(self) -> list[Approach]:
        return [a for a in self.found if a.outcome == "converged"]

    @property
    def disagreements(self) -> list[tuple[Approach, Approach]]:
        """Pairs that differ by more than sqrt(h1^2 + h2^2), with h the half-widths of their 95% intervals.

        That is the 5% test of two independent normal estimates. Approaches share their runs, so their errors are alike
        and the rule errs towards agreement: what it calls a disagreement is one. The cubic, which has no interval, is
        held against the parabola's.
        """
        return [
            (one, two)
            for one, two in combinations(self.judged, 2)
            if ((one.ci95 and two.ci95) or {one.name, two.name} == {"parabola", "cubic"})
            and max(one.half_width, two.half_width) > 0
            and abs(one.N_exponent - two.N_exponent) > np.hypot(one.half_width, two.half_width) + 1e-9
        ]

    @property
    def agree(self) -> bool | None:
        """None where fewer than two approaches can be judged, or none has an interval."""
        known = len(self.judged) > 1 and any(a.ci95 for a in self.judged)
        return not self.disagreements if known else None

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(a.words())}, {a.outcome.replace('_', ' ')}</li>" for a in self.found)
        return f"<ul>{items}</ul><p>{html.escape(self.verdict)}</p>"

    @property
    def verdict(self) -> str:
        if self.agree is None:
            return "the N* exponents cannot be compared: fewer than two fits converged, or none has an interval"
        if self.agree:
            return f"estimators agree within their intervals: N* exponent {', '.join(a.words() for a in self.judged)}"
        texts = [f"{one.words()}, {two.words()}" for one, two in self.disagreements]
        return f"estimators disagree: N* exponent {'; '.join(texts)}: further apart than their intervals allow"


def approaches(
    frame: pd.DataFrame,
    *,
    isoflop: IsoflopFit | None = None,
    surface: tuple[Fit, Allocation] | None = None,
    options: Options | None = None,
) -> Approaches:
    """The exponents by isoFLOP parabolas and cubics, by the best run of each budget, and by the surface.

    Hoffmann et al. 2022, arXiv 2203.15556: approaches 2, 2, 1 and 3. `frame` has params, samples, flops and loss; fits
    that are at hand are passed in.
    """
    found = []
    options = replace(options or Options(), floor="free").beside(len(frame))
    if is_isoflop(frame):
        if isoflop is None:
            isoflop = _isoflop(frame, options)
        if isoflop is not None and isoflop.params:
            band = isoflop.ci95.get("N_exponent")
            found.append(_approach("parabola", isoflop.params["N_exponent"], band, isoflop.outcome))
            if isoflop.cubic_exponent is not None:
                found.append(_approach("cubic", isoflop.cubic_exponent, None, isoflop.outcome))
        best = allocate_power(NO_FIT, frame, None)
        if best.N_exponent is not None:
            found.append(_approach("the best runs", best.N_exponent, best.ci95.get("N_exponent"), "converged"))
    surface = surface or _surface(frame, options)
    if surface is not None and surface[1].N_exponent is not None:
        fit, allocation = surface
        found.append(_approach(fit.law.name, surface[1].N_exponent, allocation.ci95.get("N_exponent"), fit.outcome))
    return Approaches(found=found)


def _approach(name: str, value: float, band: Interval | None, outcome: str) -> Approach:
    return Approach(name=name, N_exponent=float(value), ci95=band, outcome=outcome)


def _isoflop(frame: pd.DataFrame, options: Options) -> IsoflopFit | None:
    try:
        return estimate_isoflop(frame, options)
    except ValueError:
        return None


def _surface(frame: pd.DataFrame, options: Options) -> tuple[Fit, Allocation] | None:
    x = frame[["params", "samples"]].to_numpy(dtype=float)
    loss = frame["loss"].to_numpy(dtype=float)
    fit = estimate_law(SurfaceLaw(), x, loss, frame.get("trial_id"), options, sd_of(frame))
    return (fit, allocate_surface(fit, CostRelation.of(frame), None)) if fit.succeeded else None
