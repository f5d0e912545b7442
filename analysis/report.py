"""The report of a sweep: one HTML file, whole in itself, that answers the question first and shows everything after."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from analysis import methods
from analysis import report_page as page
from analysis.answer import answer
from analysis.findings import Findings, find
from analysis.gallery import Gallery
from analysis.prediction import Verdict, judge, read_prediction
from analysis.report_clips import consistency
from analysis.report_predictions import predictions
from analysis.report_reproduction import reproduction
from analysis.report_rows import Rows, linked_ui
from analysis.report_samples import samples
from analysis.report_sections import Sections
from analysis.report_tables import cost_tables, run_table, spent
from analysis.report_time import time_tables
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location

logger = logging.getLogger(__name__)


def write_report(
    results: Location,
    out: Location | None = None,
    *,
    tracking_ui: str | None = None,
    target_flops: float | None = None,
    figures: Location | None = None,
    tested: Sequence[Location] = (),
) -> Location:
    """Write the report of a results folder, whole or not at all, and what a paper takes of it; return the page's path.

    Fits that cannot be made are shown with their reason.

    Args:
        results: the folder.
        out: where the page goes; default: report.html in the folder.
        tracking_ui: address of the MLflow pages that points link to; default: the one in the folder's mlflow.json. An
            address of one's own machine is left out there of a page that goes elsewhere, to be read on others.
        target_flops: the budget that the first sentence is about; default: the largest that was run.
        figures: a folder for every figure as PDF and SVG, methods.tex and references.bib. Where it is not given and the
            page goes into the results folder, `figures` in there gets the same without the PDFs, which take longest.
        tested: predictions that `ditlaw predict` wrote, to be held against what is measured.

    Raises:
        ValueError: the folder does not exist, the budget is not a positive number, or a file is no prediction.
    """
    if not results.is_dir():
        raise ValueError(f"there is no results folder {results}. Give the folder of a sweep, or run it first.")
    if target_flops is not None and not 0 < target_flops < float("inf"):
        raise ValueError(f"target FLOPs must be a positive number, got {target_flops:g}; wanted a budget as 1e21.")
    made = [read_prediction(path.read_text(), path) for path in tested]
    findings = find(results, target_flops)
    verdicts = [judge(one, findings.measurements, findings.plan.get("dataset_digest")) for one in made]
    report = _Report(findings, verdicts, tracking_ui or linked_ui(findings, own_machine=out is None))
    target = out if out is not None else results / "report.html"
    write_bytes(target, report.html().encode())
    if figures is not None:
        report.write_figures(figures, pdf=True)
    elif out is None:
        report.write_figures(results / "figures", pdf=False)
    logger.info("wrote %s: %d measurements", target, len(findings.measurements))
    return target


class _Report:
    """One report: its sections in their order."""

    def __init__(self, findings: Findings, verdicts: Sequence[Verdict], tracking_ui: str) -> None:
        self.findings, self.verdicts = findings, verdicts
        self.gallery = Gallery()
        self.rows = Rows(findings, tracking_ui)
        self.methods = methods.paragraphs(findings)

    @property
    def name(self) -> str:
        f = self.findings
        return str(f.plan.get("sweep") or (f.measurements["sweep"].iloc[0] if len(f.measurements) else f.folder.name))

    def html(self) -> str:
        """The whole page."""
        f, sections = self.findings, Sections(self.findings, self.gallery, linked=self.rows.linked)
        warnings = page.bullets([page.escape(text) for text in f.warnings], "warnings") or page.paragraph("None.")
        parts = {
            "isoFLOP": sections.isoflop(),
            "compute": sections.compute(),
            "best size": sections.optimum(),
            "distance": sections.distance(),
            "clips": consistency(f),
            "predictions": predictions(self.verdicts),
            "transfer": sections.transfer(),
            "arms": sections.arms(),
            "how far to believe it": sections.belief(),
            "samples": samples(f),
            "training": sections.curves(),
            "cost": page.section("cost", "What it cost", *run_table(f), *cost_tables(f), *time_tables(f)),
            "every measurement": page.section("measurements", "Every measurement", *self.rows.table()),
            f"{len(f.warnings)} warnings": page.section("warnings", "Read before believing", warnings),
            "reproduce": reproduction(f, self.name),
            "methods": self.method(),
        }
        shown = {title: part for title, part in parts.items() if part}
        first = self.first_screen(sections.hero(), shown)
        body = "\n".join([first, *shown.values(), self.rows.script()])
        return page.page(f"{self.name}: scaling report", body)

    def first_screen(self, hero: str, sections: dict[str, str]) -> str:
        """Question, answer in words, and the plot that shows it."""
        f = self.findings
        question = str(f.plan.get("question") or "") or "What does more compute buy, and how should it be spent?"
        anchors = {title: part.partition('id="')[2].partition('"')[0] for title, part in sections.items()}
        links = "".join(f'<a href="#{anchor}">{page.escape(title)}</a>' for title, anchor in anchors.items())
        words = f'<p class="kicker">ditlaw sweep <b>{page.escape(self.name)}</b> · {spent(f)}</p>'
        words += f"<h1>{page.escape(question)}</h1>"
        answers = page.bullets(answer(f), "answer")
        nav = f'<nav aria-label="Sections">{links}</nav>'
        return f'<section class="first" id="answer"><div>{words}{answers}{nav}</div>{hero}</section>'

    def method(self) -> str:
        """The text, and how it is taken into a paper."""
        latex, bibtex = page.escape(methods.as_latex(self.methods)), page.escape(methods.bibtex(self.methods))
        taken = "".join(
            f"<details><summary>{title}</summary><pre tabindex='0'><code>{text}</code></pre></details>"
            for title, text in (("As LaTeX, for an appendix", latex), ("BibTeX", bibtex))
        )
        return page.section("methods", "Methods", methods.as_html(self.methods), taken)

    def write_figures(self, folder: Location, *, pdf: bool) -> None:
        """Figures, text and references for a paper."""
        self.gallery.write(folder, pdf=pdf)
        write_bytes(folder / "methods.tex", methods.as_latex(self.methods).encode())
        write_bytes(folder / "references.bib", methods.bibtex(self.methods).encode())
