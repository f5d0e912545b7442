"""The report's section of predictions that were written before their budget was run: predicted against measured."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import report_page as page
from analysis.bootstrap import Interval
from analysis.magnitudes import scientific, with_unit
from analysis.prediction import Prediction, Tested, Verdict

COLUMNS = [
    ("arm", True),
    ("FLOPs", False),
    ("what", True),
    ("by", True),
    ("predicted", False),
    ("95%", False),
    ("measured", False),
    ("error", False),
    ("inside", True),
    ("measured with", True),
    ("the law's 95%", False),
]
WORDS = (
    "What was written into a file by the laws of smaller budgets, before this one was run. The first interval is that "
    "of one measurement: the law's, with the scatter of the fitted points about it; inside or not is asked of that one."
)


def predictions(verdicts: Sequence[Verdict]) -> str:
    """The section; an empty text without a prediction."""
    if not verdicts:
        return ""
    rows = [row for verdict in verdicts for row in _rows(verdict)]
    notes = page.bullets([_note(verdict) for verdict in verdicts], "notes")
    title = "Predictions put to the test"
    return page.section("predictions", title, page.paragraph(WORDS), page.table(COLUMNS, rows), notes)


def _rows(verdict: Verdict) -> list[list[str]]:
    made, rows = verdict.prediction, []
    for one in made.expected:
        found = next((tested for tested in verdict.tested if tested.expected is one), None)
        cells = [page.escape(made.arm), scientific(made.flops), page.escape(one.what), page.escape(one.by)]
        cells += [f"{one.value:.4g}", _band(one.ci95)]
        cells += _measured(found) if found else ["", "", "not measured", ""]
        rows.append([*cells, _band(one.law_ci95)])
    return rows


def _measured(found: Tested) -> list[str]:
    inside = {True: "yes", False: "no", None: "no interval"}[found.inside]
    size = f"{page.escape(found.size)}, {with_unit(found.params)}"
    return [f"{found.measured:.4g}", f"{found.error:+.2%}", inside, size]


def _band(band: Interval | None) -> str:
    return f"{band[0]:.4g} to {band[1]:.4g}" if band else ""


def _note(verdict: Verdict) -> str:
    made = verdict.prediction
    commit = str(made.made_with.get("commit") or "")
    size = _recommended(made)
    text = (
        f"{made.arm} at {scientific(made.flops)} FLOPs: written at {made.written_at} by ditlaw "
        f"{made.made_with.get('versions', {}).get('ditlaw', '')}{f' ({commit[:12]})' if commit else ''} from "
        f"{made.fitted.count} measurements of sweep {made.sweep} up to "
        f"{scientific(made.fitted.largest_budget_flops)} FLOPs ({made.times_largest:.3g} times less), the newest "
        f"of {made.fitted.newest}{size}."
    )
    return page.escape(" ".join([text, *(f"{note[0].upper()}{note[1:]}." for note in verdict.notes)]))


def _recommended(made: Prediction) -> str:
    if made.params is None:
        return ""
    band = f" (95% {with_unit(made.params_ci95[0])} to {with_unit(made.params_ci95[1])})" if made.params_ci95 else ""
    return f"; it recommends {with_unit(made.params)} parameters{band}"
