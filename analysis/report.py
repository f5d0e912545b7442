"""The report of a sweep: one HTML file, whole in itself, that answers the question first and shows everything after."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pandas as pd

from analysis import report_page as page
from analysis.answer import answer
from analysis.findings import ArmFindings, Findings, find
from analysis.fitting import Fit
from analysis.law_plots import compute_multiplier, learning_rate_fans
from analysis.magnitudes import scientific, with_unit
from analysis.plots import (
    arm_differences,
    floor_profile,
    isoflop_curves,
    learning_rate_curves,
    loss_against_compute,
    optimum_against_compute,
    training_curves,
)
from analysis.report_tables import (
    approaches_table,
    differences_table,
    measurements_table,
    minima_table,
    run_table,
    spent,
)
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 4_000_000
MAX_PICTURES = 8
"""Sample grids of one arm."""


def write_report(results: Location, out: Path | None = None, *, tracking_ui: str | None = None) -> Location:
    """Write the report of a results folder to `out` (default: report.html in it), whole or not at all; return its path.

    `tracking_ui` is the address of the MLflow pages that points link to (default: the one in the folder's mlflow.json).
    Fits that cannot be made are shown with their reason. Raises ValueError when the folder does not exist.
    """
    if not results.is_dir():
        raise ValueError(f"there is no results folder {results}. Give the folder of a sweep, or run it first.")
    findings = find(results)
    target = out if out is not None else results / "report.html"
    write_bytes(target, _Report(findings, tracking_ui).html().encode())
    logger.info("wrote %s: %d measurements", target, len(findings.measurements))
    return target


class _Report:
    """The sections of one report."""

    def __init__(self, findings: Findings, tracking_ui: str | None) -> None:
        self.findings = findings
        self.ui = (tracking_ui or str(findings.tracking.get("ui") or "")).rstrip("/") or None
        self.order = sorted(arm.arm for arm in findings.arms)
        self.shown = [arm for arm in findings.arms if len(arm.trained)]

    def html(self) -> str:
        """The whole page."""
        f = self.findings
        name = str(f.plan.get("sweep") or (f.measurements["sweep"].iloc[0] if len(f.measurements) else f.folder.name))
        sections = [
            self.first_screen(name),
            page.section("run", "What was run", *run_table(f)),
            self.isoflop(),
            self.compute(),
            self.optimum(),
            self.arms(),
            self.samples(),
            self.curves(),
            page.section("measurements", "Every measurement", *measurements_table(f, self.link)),
            self.warnings(),
            self.reproduce(name),
            page.section("method", "Method", METHOD),
        ]
        return page.page(f"{name}: scaling report", "\n".join(part for part in sections if part))

    def link(self, row: pd.Series) -> str | None:
        """The MLflow page of a measured row; None where it is not known."""
        runs = self.findings.tracking.get("runs") or {}
        run = row.get("mlflow_run_id") if isinstance(row.get("mlflow_run_id"), str) else runs.get(row["trial_id"])
        experiment = self.findings.tracking.get("experiment_id")
        if self.ui is None or run is None or experiment is None:
            return None
        return f"{self.ui}/#/experiments/{experiment}/runs/{run}"

    def point(self, index: str) -> tuple[str, str | None]:
        """Hover text and link of a measured point."""
        row = self.findings.measurements.iloc[int(index)]
        loss = (
            f"loss {row['loss']:.5g}"
            if pd.notna(row["loss"])
            else f"{row['outcome']}: {row['reason'] or 'no reason kept'}"
        )
        words = (
            f"{row['arm']} {row['size']} ({with_unit(row['params'])} parameters), lr {row['learning_rate']:g}\n"
            f"{loss}\n{scientific(row['flops'])} FLOPs, {with_unit(row['samples'])} samples, {row['outcome']}"
        )
        return words, self.link(row)

    def plot(self, figure: object, name: str, alt: str, caption: str = "") -> str:
        return page.plot(figure, name, alt, caption, self.point)  # type: ignore[arg-type]

    def first_screen(self, name: str) -> str:
        """Question, answer in words, and the plot that shows it."""
        f = self.findings
        question = str(f.plan.get("question") or "") or "What does more compute buy, and how should it be spent?"
        count = len(f.warnings)
        links = [("run", "run"), ("isoflop", "isoFLOP"), ("compute", "compute"), ("samples", "samples")]
        links += [("measurements", "measurements"), ("warnings", f"{count} warnings"), ("method", "method")]
        nav = "<nav>" + "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links) + "</nav>"
        words = f'<p class="kicker">ditlaw sweep <b>{page.escape(name)}</b> · {spent(f)}</p>'
        words += f"<h1>{page.escape(question)}</h1>"
        answers = page.bullets(answer(f), "answer")
        return f'<header class="first"><div>{words}{answers}{nav}</div>{self.hero()}</header>'

    def hero(self) -> str:
        best = self.findings.best
        if best is None:
            return ""
        if best.isoflop is not None and best.isoflop.bracketed:
            return self.isoflop_plot(best, "hero", f"{best.arm}: the best size grows with compute")
        return self.compute_plot("hero")

    def isoflop_plot(self, arm: ArmFindings, name: str, title: str) -> str:
        diverged = arm.measured[arm.measured["outcome"] == "diverged"]
        limits = [pd.concat([a.fitted["loss"] for a in self.shown]).agg(k) for k in ("min", "max")]
        figure = isoflop_curves(
            arm.fitted,
            arm.isoflop,
            title=title,
            diverged=diverged,
            links=lambda row: page.point_link(row.name),
            loss_limits=(float(limits[0]), float(limits[1])),
        )
        text = "; ".join(
            f"at {m.flops:.3g} FLOPs the minimum is at {with_unit(m.params)} parameters, loss {m.loss:.4g}"
            for m in (arm.isoflop.bracketed if arm.isoflop else [])
            if m.params
        )
        caption = ""
        if name in ("hero", "iso0"):
            caption = (
                "Each point is a trial at a budget (hover for its settings, click for its run). Curves are parabolas "
                "in log N through the sizes near the minimum, stars their minima; a hollow star is not bracketed."
            )
        return self.plot(figure, name, f"Loss against parameters in arm {arm.arm}, one curve a budget. {text}", caption)

    def isoflop(self) -> str:
        if not self.shown:
            return ""
        plots = [
            self.isoflop_plot(arm, f"iso{k}", f"{arm.arm}: loss at equal compute") for k, arm in enumerate(self.shown)
        ]
        return page.section("isoflop", "Loss at equal compute", page.grid(*plots), minima_table(self.findings))

    def compute_plot(self, name: str) -> str:
        diverged = self.findings.measurements.query("outcome == 'diverged'")
        arms = {arm.arm: (arm.trained, arm.frontier, arm.law) for arm in self.shown}
        figure = loss_against_compute(
            arms,
            title="Loss against compute",
            links=lambda row: page.point_link(row.name),
            diverged=diverged,
            order=self.order,
        )
        laws = "; ".join(f"{a.arm}: " + (law_words(a.law) or str(a.law.reason)) for a in self.shown)
        caption = (
            "Small points: every measurement. Rings: the best of each budget, which the law is fitted to. Band: 95%."
        )
        return self.plot(figure, name, f"Loss against training compute. {laws}", caption)

    def compute(self) -> str:
        if not self.shown:
            return ""
        profiles = {a.arm: a.law for a in self.shown if a.law.profile is not None}
        figure = ""
        if profiles:
            alt = "How much worse the loss law fits with its floor held at each value"
            caption = "Floors below the dashed line are compatible with the data; if 0 is one, no floor is identified."
            drawn = floor_profile(profiles, title="Is there a floor?", order=self.order)
            figure = self.plot(drawn, "floor", alt, caption)
        laws = [
            f"<b>{page.escape(a.arm)}</b>: {_with_powers(law_words(a.law) or f'no loss law: {a.law.reason}')}"
            for a in self.shown
        ]
        return page.section(
            "compute",
            "Loss against compute",
            page.grid(self.compute_plot("compute-plot"), figure),
            *(page.paragraph(law) for law in laws),
            self.distances(),
        )

    def distances(self) -> str:
        """Frechet distance against compute, or that none was measured."""
        found = {arm.arm: arm.distance for arm in self.shown if arm.distance is not None}
        if not found:
            return page.paragraph("Frechet distances: not measured in this sweep.", "note")
        names = sorted({distance.name for distance in found.values()})
        plots = []
        for k, name in enumerate(names):
            part = {arm: d for arm, d in found.items() if d.name == name}
            figure = loss_against_compute(
                {arm: (d.rows, d.frontier, d.law) for arm, d in part.items()},
                title=f"{name} against compute",
                links=lambda row: page.point_link(row.name),
                quantity=name,
                column=next(iter(part.values())).column,
                order=self.order,
            )
            laws = "; ".join(f"{arm}: {law_words(d.law, name) or d.law.reason}" for arm, d in part.items())
            plots.append(self.plot(figure, f"distance{k}", f"{name} against training compute. {laws}", laws))
        return page.grid(*plots)

    def optimum(self) -> str:
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
            alt = f"Compute-optimal {words} against compute; exponents: {', '.join(exponents) or 'none fitted'}"
            plots.append(self.plot(figure, f"optimum-{letter}", alt))
        return page.section(
            "optimum", "Best size and data per compute", page.grid(*plots), approaches_table(self.findings)
        )

    def arms(self) -> str:
        plots = []
        for k, comparison in enumerate(self.findings.comparisons):
            if comparison.pairs:
                title = f"{comparison.first} against {comparison.second}"
                alt = f"Relative loss of {title} by size and budget"
                caption = "Each arm at its best learning rate. Below 0 the first arm has the lower loss."
                plots.append(self.plot(arm_differences(comparison, title=title), f"arms{k}", alt, caption))
        compared = [c for c in self.findings.comparisons if c.compute is not None]
        if compared:
            figure = compute_multiplier(compared, title="Compute for equal loss")
            alt = "; ".join(text for c in compared for text in c.sentences())
            tests = "; ".join(test.sentence() for c in compared for test in c.tests)
            plots.append(self.plot(figure, "multiplier", alt, tests))
        if self.findings.transfers:
            figure = learning_rate_fans(self.findings.transfers, title="Does the learning rate transfer?")
            words = "; ".join(transfer.sentences()[0] for transfer in self.findings.transfers)
            plots.append(self.plot(figure, "fans", words, page.escape(words)))
        for k, arm in enumerate(self.shown):
            if arm.trained["learning_rate"].nunique() > 1:
                title = f"{arm.arm}: learning rate at the largest budget"
                figure = learning_rate_curves(
                    arm.trained,
                    title=title,
                    diverged=arm.measured[arm.measured["outcome"] == "diverged"],
                    links=lambda row: page.point_link(row.name),
                )
                plots.append(self.plot(figure, f"rates{k}", f"Loss against learning rate in arm {arm.arm}"))
        if not plots:
            return ""
        return page.section("arms", "Arms compared", page.grid(*plots), *differences_table(self.findings))

    def samples(self) -> str:
        strips = []
        for arm in self.shown:
            pictures = [self.picture(row) for _, row in arm.frontier.iterrows() if self.picture_path(row) is not None]
            if not pictures:
                rows = arm.trained[[self.picture_path(row) is not None for _, row in arm.trained.iterrows()]]
                pictures = [self.picture(row) for _, row in rows.sort_values("loss").head(4).iterrows()]
            if pictures:
                strips.append(
                    f"<h3>{page.escape(arm.arm)}</h3>"
                    f'<div class="strip" tabindex="0">{"".join(pictures[-MAX_PICTURES:])}</div>'
                )
        words = "" if strips else page.paragraph("No sample grids are in the results folder.", "note")
        return page.section("samples", "Samples along compute", *strips, words)

    def picture_path(self, row: pd.Series) -> Location | None:
        path = self.findings.folder / "samples" / f"{row['trial_id']}-{row['samples']}.png"
        return path if path.is_file() and path.stat().st_size <= MAX_PICTURE_BYTES else None

    def picture(self, row: pd.Series) -> str:
        path = self.picture_path(row)
        assert path is not None
        words = f"{row['size']}, {scientific(row['flops'])} FLOPs, loss {row['loss']:.4g}"
        return page.picture(path, f"Samples of {row['arm']} {words}, one class a row or column", page.escape(words))

    def curves(self) -> str:
        curves, plots = self.findings.curves, []
        for k, arm in enumerate(self.findings.arms):
            sizes = dict(zip(arm.measured["trial_id"].astype(str), arm.measured["params"].astype(float), strict=True))
            part = curves[curves["trial_id"].isin(list(sizes)) & (curves["loss"] > 0)]
            if len(part):
                figure = training_curves(part, sizes, title=f"{arm.arm}: training")
                plots.append(self.plot(figure, f"curves{k}", f"Training loss against samples seen in arm {arm.arm}"))
        return page.section("curves", "Training curves", page.grid(*plots)) if plots else ""

    def warnings(self) -> str:
        items = [page.escape(text) for text in self.findings.warnings]
        words = page.bullets(items, "warnings") or page.paragraph("None.")
        return page.section("warnings", "Read before believing", words)

    def reproduce(self, name: str) -> str:
        spec = str(self.findings.plan.get("spec") or "").rstrip()
        path = self.findings.plan.get("spec_path") or f"{name}.yaml"
        commands = f"ditlaw run {path} --results {self.findings.folder}\nditlaw report {self.findings.folder}"
        commands += f"\nditlaw fit {self.findings.folder} --law isoflop"
        text = f"<p>The spec, as it was run:</p><pre><code>{page.escape(spec)}</code></pre>" if spec else ""
        words = "Running the same command again continues the sweep; nothing that was measured is lost or done twice."
        return page.section(
            "reproduce",
            "How to reproduce",
            text,
            f"<pre><code>{page.escape(commands)}</code></pre>",
            page.paragraph(words),
        )


def law_words(fit: Fit, what: str = "loss") -> str:
    """A law against compute with intervals; empty without one."""
    if not fit.succeeded:
        return ""
    band = fit.ci95.get("beta")
    either = "" if fit.floor_identified else ", with or without a floor"
    spread = f" (β 95% {band[0]:.3g} to {band[1]:.3g}{either})" if band else ""
    floor = f" + {fit.params['floor']:.4g}" if fit.floor_identified else ", no floor identified"
    law = f"{what} = {fit.params['A']:.4g} · C^−{fit.params['beta']:.4g}{floor}"
    return f"{law}{spread}; best run of each of {fit.num_points} budgets; {fit.rule}"


def _with_powers(words: str) -> str:
    return re.sub(r"\^(−?[\d.]+\d)", r"<sup>\1</sup>", page.escape(words))


METHOD = """
<p><b>Compute.</b> Training FLOPs are 3 × forward FLOPs × samples, with a multiply-add counted as 2. N is the backbone's
parameters, D the samples seen.</p>
<p><b>IsoFLOP minima.</b> At each budget a parabola in log N through the losses within 35% of the lowest (of four sizes
at least); minima outside these sizes are shown but not used. N* and D* are power laws through the minima (Hoffmann et
al. 2022, arXiv 2203.15556, section 3.2); cubics through all sizes and the surface
L = E + A/N<sup>α</sup> + B/D<sup>β</sup> stand beside them.</p>
<p><b>Estimation.</b> Laws minimise the summed Huber loss (δ = 10<sup>−3</sup>) of log residuals, started from variable
projection over the exponents, with analytic derivatives (Hoffmann et al. 2022, appendix D.3; Besiroglu et al. 2024,
arXiv 2404.10102). A floor is reported only if a law without one fits worse at the 5% level and its interval stays
above 0.</p>
<p><b>Intervals</b> are 95% percentiles of a bootstrap over trials, since milestones of one trial are not independent;
where trials are few, of a bootstrap that exchanges the residuals of whole trials, widened for the degrees of freedom
used. They hold what the noise of the runs does to a fit, not what a wrong functional form does far outside
the budgets run.</p>
<p><b>Arms.</b> The best runs of two arms are fitted together by least squares of log residuals, with one floor; the
compute multiplier is the FLOPs one arm needs over those of the other to equal loss. Its interval exchanges residuals of
both arms at once where they share their budgets. Equal exponents and equal laws are F tests.</p>
<p><b>Divergence.</b> Diverged trials stay in every table and are marked in the figures; laws are fitted to the
others. Where only a diverged size bounds the best size of a budget, it enters the parabola at the worst loss there.</p>
"""
