"""The sections of a report that show laws: plots with what they say in words, and their tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from analysis import report_page as page
from analysis.arm_plots import arm_differences, compute_multiplier
from analysis.backtest import largest_budget, split_power
from analysis.bootstrap import Interval
from analysis.findings import ArmFindings, Findings
from analysis.fitting import Fit
from analysis.gallery import Gallery
from analysis.isoflop import IsoflopFit
from analysis.law_plots import (
    backtest_of_law,
    backtest_of_minima,
    exponents_side_by_side,
    residual_panels,
)
from analysis.magnitudes import coefficient, with_unit
from analysis.plots import (
    floor_profile,
    isoflop_curves,
    loss_against_compute,
    optimum_against_compute,
    training_curves,
)
from analysis.rate_plots import learning_rate_curves, learning_rate_fans
from analysis.report_tables import (
    approaches_table,
    backtests_table,
    differences_table,
    minima_table,
    predictions_table,
)
from analysis.report_transfer import transfer_tables

ISOFLOP_CAPTION = (
    "Each point is a trial at a budget ({hover}). Curves are parabolas in log N through the sizes near the minimum, "
    "stars their minima; a hollow star is not bracketed."
)
APART = "The arms train different objectives, whose losses do not compare: each objective has axes of its own."


class Sections:
    """The sections of one report. A section without anything to show is an empty text.

    `linked` says whether the points lead to their runs.
    """

    def __init__(self, findings: Findings, gallery: Gallery, *, linked: bool = False) -> None:
        self.findings = findings
        self.gallery = gallery
        self.order = sorted(arm.arm for arm in findings.arms)
        self.shown = [arm for arm in findings.arms if len(arm.trained)]
        self.by_objective = _by_objective(self.shown)
        self.caption = ISOFLOP_CAPTION.format(hover=f"hover for its settings{', click for its run' if linked else ''}")

    def _apart(self) -> str:
        """A word on arms whose losses do not compare, where there are such."""
        return page.paragraph(APART, "note") if len(self.by_objective) > 1 else ""

    def hero(self) -> str:
        """The one plot that shows the answer."""
        best = self.findings.best
        if best is None:
            return ""
        if best.isoflop is not None and best.isoflop.bracketed:
            title = f"{best.arm}: {size_words(best.isoflop.ci95.get('N_exponent'))}"
            return self._isoflop(best, "answer", title, self.caption)
        return self._compute("answer", next(o for o, arms in self.by_objective.items() if best in arms))

    def isoflop(self) -> str:
        """Loss at equal compute, and the minima."""
        if not self.shown:
            return ""
        plots = [
            self._isoflop(arm, f"isoflop-{slug(arm.arm)}", f"{arm.arm}: loss at equal compute", self.caption)
            for arm in self.shown
        ]
        return page.section(
            "isoflop", "Loss at equal compute", self._apart(), page.grid(*plots), minima_table(self.findings)
        )

    def _isoflop(self, arm: ArmFindings, name: str, title: str, caption: str) -> str:
        alike = next(arms for arms in self.by_objective.values() if arm in arms)
        limits = [pd.concat([a.fitted["loss"] for a in alike]).agg(k) for k in ("min", "max")]
        figure = isoflop_curves(
            arm.fitted,
            arm.isoflop,
            title=title,
            diverged=_diverged(arm),
            links=page.point_link,
            loss_limits=(float(limits[0]), float(limits[1])),
        )
        text = "; ".join(
            f"at {m.flops:.3g} FLOPs the minimum is at {with_unit(m.params)} parameters, loss {m.loss:.4g}"
            for m in (arm.isoflop.bracketed if arm.isoflop else [])
            if m.params
        )
        alt = f"Loss against parameters in arm {arm.arm}, one curve a budget. {text}"
        return self.gallery.show(figure, name, alt, caption)

    def compute(self) -> str:
        """The frontier: loss against compute, its laws and what floors the data allow."""
        if not self.shown:
            return ""
        laws = [
            f"<b>{page.escape(a.arm)}</b>: {_with_powers(law_words(a.law) or f'no loss law: {a.law.reason}')}"
            for a in self.shown
        ]
        plots = []
        for objective, arms in self.by_objective.items():
            more = f"-{slug(objective)}" if len(self.by_objective) > 1 else ""
            plots.append(self._compute(f"frontier{more}", objective))
            plots.append(self._floors({a.arm: a.law for a in arms}, f"floor{more}", "loss"))
        words = [*map(page.paragraph, laws), predictions_table(self.findings)]
        return page.section("compute", "Loss against compute", self._apart(), page.grid(*plots), *words)

    def _compute(self, name: str, objective: str) -> str:
        """The frontiers of the arms that train one objective."""
        arms = self.by_objective[objective]
        figure = loss_against_compute(
            {arm.arm: (arm.trained, arm.frontier, arm.law) for arm in arms},
            title=f"Loss of {objective}" if len(self.by_objective) > 1 else "Loss against compute",
            links=page.point_link,
            diverged=pd.concat([_diverged(arm) for arm in arms]),
            order=self.order,
        )
        laws = "; ".join(f"{a.arm}: " + (law_words(a.law) or str(a.law.reason)) for a in arms)
        caption = (
            "Small points: every measurement. Rings: the best of each budget, which the law is fitted to. Band: 95%."
        )
        return self.gallery.show(figure, name, f"Loss against training compute. {laws}", caption)

    def _floors(self, laws: dict[str, Fit], name: str, what: str) -> str:
        profiles = {arm: law for arm, law in laws.items() if law.profile is not None}
        if not profiles:
            return ""
        alt = f"How much worse the {what} law fits with its floor held at each value"
        caption = "Floors below the dashed line are compatible with the data; if 0 is one, no floor is identified."
        drawn = floor_profile(profiles, title=f"Is there a floor of the {what}?", order=self.order, quantity=what)
        return self.gallery.show(drawn, name, alt, caption)

    def optimum(self) -> str:
        """N*(C) and D*(C) by each approach."""
        fits = {a.arm: a.isoflop for a in self.shown if a.isoflop is not None and a.isoflop.bracketed}
        if not fits:
            reasons = "; ".join(f"{a.arm}: {a.isoflop_reason}" for a in self.shown) or "nothing was measured"
            return page.section(
                "optimum", "Best size and data per compute", page.paragraph(page.escape(f"Not fitted. {reasons}."))
            )
        plots = []
        for letter, words in (("N", "parameters"), ("D", "samples")):
            figure = optimum_against_compute(fits, letter, title=f"Compute-optimal {words}", order=self.order)
            exponents = [f"{arm} {fit.params[f'{letter}_exponent']:.3f}" for arm, fit in fits.items() if fit.params]
            alt = f"Compute-optimal {words} against compute. Exponents: {', '.join(exponents) or 'none fitted'}"
            plots.append(self.gallery.show(figure, f"optimum-{letter}", alt))
        for arm in self.shown:
            if len(arm.approaches.found) > 1:
                figure = exponents_side_by_side(arm.approaches, title=f"{arm.arm}: N* by each approach")
                alt = f"Exponent of N* by each approach in arm {arm.arm}. {arm.approaches.verdict}"
                plots.append(self.gallery.show(figure, f"approaches-{slug(arm.arm)}", alt))
        return page.section(
            "optimum", "Best size and data per compute", page.grid(*plots), approaches_table(self.findings)
        )

    def distance(self) -> str:
        """Fréchet distance against compute; silent where none was measured."""
        found = {arm.arm: arm.distance for arm in self.shown if arm.distance is not None}
        names = sorted({distance.name for distance in found.values()})
        plots, laws = [], []
        for name in names:
            part = {arm: d for arm, d in found.items() if d.name == name}
            figure = loss_against_compute(
                {arm: (d.rows, d.frontier, d.law) for arm, d in part.items()},
                title=f"{name} against compute",
                links=page.point_link,
                quantity=name,
                column=next(iter(part.values())).column,
                order=self.order,
            )
            said = {arm: law_words(d.law, name) or f"no {name} law: {d.law.reason}" for arm, d in part.items()}
            alt = f"{name} against training compute. {'; '.join(f'{arm}: {words}' for arm, words in said.items())}"
            plots.append(self.gallery.show(figure, f"distance-{slug(name)}", alt))
            plots.append(self._floors({arm: d.law for arm, d in part.items()}, f"distance-floor-{slug(name)}", name))
            laws += [f"<b>{page.escape(arm)}</b>: {_with_powers(words)}" for arm, words in said.items()]
        if not plots:
            return ""
        title = f"{' and '.join(names)} against compute"
        return page.section("distance", title, page.grid(*plots), *map(page.paragraph, laws))

    def transfer(self) -> str:
        """Whether the best learning rate of one width is that of another, arm beside arm."""
        plots = []
        if self.findings.transfers:
            figure = learning_rate_fans(self.findings.transfers, title="Does the learning rate transfer?")
            words = [text for transfer in self.findings.transfers for text in transfer.sentences()[:1]]
            alt = f"Loss against learning rate by width. {'; '.join(words)}"
            plots.append(self.gallery.show(figure, "transfer", alt, page.escape("; ".join(words))))
        for arm in self.shown:
            if arm.trained["learning_rate"].nunique() > 1:
                title = f"{arm.arm}: loss against learning rate"
                optima = next((t.optima for t in self.findings.transfers if t.arm == arm.arm), [])
                figure = learning_rate_curves(
                    arm.trained, title=title, diverged=_diverged(arm), optima=optima, links=page.point_link
                )
                alt = f"Loss against learning rate in arm {arm.arm}; stars are the optima, hollow where not bracketed"
                plots.append(self.gallery.show(figure, f"rates-{slug(arm.arm)}", alt))
        parts = [page.grid(*plots), *transfer_tables(self.findings)]
        return page.section("transfer", "Learning rates across sizes", *parts) if plots else ""

    def arms(self) -> str:
        """The first arm against the others: at equal size and budget, and in compute to equal quality."""
        plots = []
        for c in self.findings.comparisons:
            name, title = slug(f"{c.second}-{c.quantity}"), f"{c.first} against {c.second}"
            if c.pairs:
                alt = f"Relative {c.quantity} of {title} by size and budget"
                caption = (
                    f"Each arm at its best learning rate. Below 0 {page.escape(c.first)} has the lower {c.quantity}."
                )
                drawn = arm_differences(c, title=f"{title}: {c.quantity}")
                plots.append(self.gallery.show(drawn, f"arms-{name}", alt, caption))
        for quantity in dict.fromkeys(c.quantity for c in self.findings.comparisons):
            compared = [c for c in self.findings.comparisons if c.compute is not None and c.quantity == quantity]
            if compared:
                figure = compute_multiplier(compared, title=f"Compute for equal {quantity}")
                alt = f"Compute multiplier. {'; '.join(text for c in compared for text in c.sentences())}"
                tests = "; ".join(f"{c.first}/{c.second}: {test.sentence()}" for c in compared for test in c.tests)
                plots.append(self.gallery.show(figure, f"multiplier-{slug(quantity)}", alt, page.escape(tests)))
        if not plots:
            return ""
        return page.section("arms", "Arms compared", page.grid(*plots), *differences_table(self.findings))

    def belief(self) -> str:
        """Back-tests against the largest budget, and residuals."""
        plots = []
        for arm in self.shown:
            plots += self._backtests(arm) + self._residuals(arm)
        words = page.paragraph(
            "A law that cannot predict the largest budget from the smaller ones will not predict a larger one. "
            "Residuals without a trend in size, data or compute say that the form fits."
        )
        parts = [page.grid(*plots), backtests_table(self.findings)]
        return page.section("belief", "How far to believe it", words, *parts) if any(parts) else ""

    def _backtests(self, arm: ArmFindings) -> list[str]:
        plots = []
        for test in arm.backtests:
            alt = f"Back-test in arm {arm.arm}. {test.sentence()}"
            if test.what == "loss" and isinstance(test.fit, Fit):
                held = split_power(arm.frontier["flops"].to_numpy(dtype=float))
                figure = backtest_of_law(arm.frontier, held, test, title=f"{arm.arm}: back-test of the loss law")
                plots.append(self.gallery.show(figure, f"backtest-loss-{slug(arm.arm)}", alt))
            elif isinstance(test.fit, IsoflopFit) and arm.isoflop is not None:
                figure = backtest_of_minima(arm.isoflop, test, title=f"{arm.arm}: back-test of N*(C)")
                plots.append(self.gallery.show(figure, f"backtest-size-{slug(arm.arm)}", alt))
        return plots

    def _residuals(self, arm: ArmFindings) -> list[str]:
        if not arm.surface.succeeded:
            return []
        rows = arm.fitted
        columns = {name: rows[name].to_numpy(dtype=float) for name in ("params", "samples", "flops")}
        fitted = arm.surface.predict(columns["params"], columns["samples"])
        logs = np.log(rows["loss"].to_numpy(dtype=float) / fitted)
        largest = np.abs(np.expm1(logs[largest_budget(rows).to_numpy()])).max()
        figure = residual_panels(columns, logs, title=f"{arm.arm}: residuals of the surface L(N, D)")
        spread = np.expm1(np.sqrt(np.mean(logs**2)))
        alt = (
            f"Residuals of the surface in arm {arm.arm}. Root mean square {spread:.2%}, at the largest budget at most "
            f"{largest:.2%}"
        )
        return [self.gallery.show(figure, f"residuals-{slug(arm.arm)}", alt, page.escape(alt.partition(". ")[2]) + ".")]

    def curves(self) -> str:
        """Training curves."""
        curves, plots = self.findings.curves, []
        for arm in self.findings.arms:
            sizes = dict(zip(arm.measured["trial_id"].astype(str), arm.measured["params"].astype(float), strict=True))
            part = curves[curves["trial_id"].isin(list(sizes)) & (curves["loss"] > 0)]
            if len(part):
                figure = training_curves(part, sizes, title=f"{arm.arm}: training")
                alt = f"Training loss against samples seen in arm {arm.arm}"
                plots.append(self.gallery.show(figure, f"training-{slug(arm.arm)}", alt))
        return page.section("curves", "Training curves", page.grid(*plots)) if plots else ""


def _by_objective(arms: list[ArmFindings]) -> dict[str, list[ArmFindings]]:
    """Arms whose losses compare, by what they train."""
    found: dict[str, list[ArmFindings]] = {}
    for arm in arms:
        found.setdefault(" and ".join(sorted(set(arm.trained["objective"]))), []).append(arm)
    return found


def _diverged(arm: ArmFindings) -> pd.DataFrame:
    return arm.measured[arm.measured["outcome"] == "diverged"]


def size_words(exponent: Interval | None) -> str:
    """What the interval of the exponent of N*(C) says of the best size; neutral words where it says nothing."""
    low, high = exponent or (0.0, 0.0)
    if low > 0:
        return "the best size grows with compute"
    return "the best size shrinks with compute" if high < 0 else "loss at equal compute"


def slug(text: str) -> str:
    """A name as part of a file's name and of an anchor."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "arm"


def law_words(fit: Fit, what: str = "loss") -> str:
    """A law against compute with intervals; empty without one."""
    if not fit.succeeded:
        return ""
    band = fit.ci95.get("beta")
    either = "" if fit.floor_identified else ", with or without a floor"
    spread = f" (β 95% {band[0]:.3g} to {band[1]:.3g}{either})" if band else ""
    floor = f" + {fit.params['floor']:.4g}" if fit.floor_identified else ", no floor identified"
    law = f"{what} = {coefficient(fit.params['A'])} · C^−{fit.params['beta']:.4g}{floor}"
    return f"{law}{spread}; best run of each of {fit.num_points} budgets; {fit.rule}"


def _with_powers(words: str) -> str:
    return re.sub(r"\^(−?[\d.]+\d)", r"<sup>\1</sup>", page.escape(words))
