"""The report's table of learning rates: the best one of each size, how far it moved, and what the wrong one costs."""

from __future__ import annotations

from analysis.bootstrap import Interval
from analysis.findings import Findings
from analysis.frontier import Level
from analysis.learning_rate import RateOptimum
from analysis.magnitudes import scientific, with_unit
from analysis.report_page import escape, paragraph, table
from analysis.transfer import RateTransfer

COLUMNS = [
    ("arm", True),
    ("size", True),
    ("N", False),
    ("best learning rate", False),
    ("95%", False),
    ("moved, half octaves", False),
    ("95%", False),
    ("the smallest's rate costs", False),
    ("95%", False),
    ("", True),
]


def transfer_tables(findings: Findings) -> list[str]:
    """A row an arm and size; nothing where no arm has a learning rate of two sizes to compare."""
    rows = [row for transfer in findings.transfers for row in _rows(findings, transfer)]
    if not rows:
        return []
    levels = {transfer.level for transfer in findings.transfers}
    places = " and ".join(sorted(map(_at, levels)))
    words = (
        f"Optima of quadratics in log learning rate at {places}. Moved: from the smallest size with a bracketed "
        "optimum, in steps of a factor of √2. The cost is the loss at that size's best rate over the loss at the own "
        "best one, less 1."
    )
    return [table(COLUMNS, rows), paragraph(words, "note")]


def transfer_answer(findings: Findings) -> list[str]:
    """How far the best learning rate moves from the smallest size to the largest, in a sentence an arm, with markup."""
    said = []
    for transfer in findings.transfers:
        base, names = transfer.base, _names(findings, transfer)
        last = next((o for o in reversed(transfer.optima) if o.bracketed), None)
        if base is None or last is None or last is base:
            continue
        moved, spread, cost, sure = _against(last)
        ends = f"from {escape(names[base.scale])} to {escape(names[last.scale])}"
        said.append(
            f"<strong>{escape(transfer.arm)}: {ends} the best learning rate moves by {moved} half octaves</strong>"
            f"{_in_words(spread)}; the smaller's costs {cost} of the larger's loss{_in_words(sure)}."
        )
    return said


def _in_words(band: str) -> str:
    return f" (95% {band})" if band else ""


def _names(findings: Findings, transfer: RateTransfer) -> dict[float, str]:
    """The sizes of an arm by what `RateOptimum.scale` is here: parameters."""
    arm = next(arm for arm in findings.arms if arm.arm == transfer.arm)
    return dict(zip(arm.trained["params"].astype(float), arm.trained["size"].astype(str), strict=True))


def _at(level: Level) -> str:
    return f"{with_unit(level.value)} samples" if level.column == "samples" else f"{scientific(level.value)} FLOPs"


def _rows(findings: Findings, transfer: RateTransfer) -> list[list[str]]:
    names, base = _names(findings, transfer), transfer.base
    return [
        [
            escape(transfer.arm),
            escape(names[optimum.scale]),
            with_unit(optimum.scale),
            f"{optimum.rate:.3g}" if optimum.rate is not None else "",
            _band(optimum.rate_ci95, "{:.3g}"),
            *(["the base", "", "the base", ""] if optimum is base else _against(optimum)),
            escape(optimum.reason or ""),
        ]
        for optimum in transfer.optima
    ]


def _against(optimum: RateOptimum) -> list[str]:
    """How far the optimum lies from the base's, and what that one's rate costs."""
    if optimum.moved_octaves is None or optimum.transferred_loss is None:
        return ["", "", "", ""]
    moved = optimum.moved_ci95
    halves = None if moved is None else (2 * moved[0], 2 * moved[1])
    beyond = "" if optimum.transferred_measured else ", extrapolated"
    cost = f"{optimum.transferred_loss:.2%}{beyond}"
    return [
        f"{2 * optimum.moved_octaves:+.2f}",
        _band(halves, "{:+.2f}"),
        cost,
        _band(optimum.transferred_ci95, "{:.2%}"),
    ]


def _band(band: Interval | None, form: str) -> str:
    return f"{form.format(band[0])} to {form.format(band[1])}" if band else ""
