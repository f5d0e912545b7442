"""The report's table of learning rates: the best one of each size, how far it moved, and what the wrong one costs."""

from __future__ import annotations

from analysis.bootstrap import Interval
from analysis.findings import Findings
from analysis.frontier import Level
from analysis.learning_rate import RateOptimum
from analysis.magnitudes import scientific, with_unit
from analysis.rate_valley import CLIFF_RISE, CLIFF_SLOPE
from analysis.report_page import bullets, escape, paragraph, table
from analysis.transfer import RateTransfer

COLUMNS = [
    ("arm", True),
    ("size", True),
    ("N", False),
    ("best rate", False),
    ("95%", False),
    ("moved, half octaves", False),
    ("95%", False),
    ("base's rate costs", False),
    ("95%", False),
]


def transfer_tables(findings: Findings) -> list[str]:
    """A row an arm and size, and what a row cannot hold; nothing where no arm has learning rates of two sizes."""
    rows = [row for transfer in findings.transfers for row in _rows(findings, transfer)]
    if not rows:
        return []
    notes = [text for transfer in findings.transfers for text in _notes(findings, transfer)]
    places = " and ".join(sorted(map(_at, {transfer.level for transfer in findings.transfers})))
    words = (
        f"Optima of quadratics in log learning rate at {places}, through the rates around the best one that are not "
        "beyond a cliff: a rate at which a run diverged, or, above the best, one at which the loss jumps (by over "
        f"{CLIFF_SLOPE:.0%} an octave, to over {CLIFF_RISE:.0%} above the lowest). Moved: from the smallest size that "
        "has a best rate, in steps of a factor of √2. The cost is the loss at that size's best rate over the loss at "
        "the own best one, less 1: by the quadratic among its rates, else as measured at the rates on either side, and "
        "an extrapolation only beyond all that was measured."
    )
    return [table(COLUMNS, rows), bullets(notes, "note"), paragraph(words, "note")]


def _notes(findings: Findings, transfer: RateTransfer) -> list[str]:
    """Of each size, why its optimum is not bracketed, and where the base's rate is not stable."""
    names, base, said = _names(findings, transfer), transfer.base, []
    for optimum in transfer.optima:
        parts = [] if optimum.reason is None else [optimum.reason]
        if base is not None and optimum.transferred_note is not None:
            parts.append(f"the rate of {names[base.scale]}, {base.rate:.3g}: {optimum.transferred_note}")
        if parts:
            said.append(escape(f"{transfer.arm} at {names[optimum.scale]}: {'; '.join(parts)}"))
    return said


def transfer_answer(findings: Findings) -> list[str]:
    """How far the best learning rate moves from the smallest size to the largest, in a sentence an arm, with markup."""
    said = []
    for transfer in findings.transfers:
        base, names = transfer.base, _names(findings, transfer)
        last = next((o for o in reversed(transfer.optima) if o.rate is not None), None)
        if base is None or last is None or last is base:
            continue
        moved, spread, _, sure = _against(last)
        ends = f"from {escape(names[base.scale])} to {escape(names[last.scale])}"
        said.append(
            f"<strong>{escape(transfer.arm)}: {ends} the best learning rate moves by {moved} half octaves</strong>"
            f"{_in_words(spread)}{_costs(last, base)}{_in_words(sure)}.{_doubt(transfer, names, (base, last))}"
        )
    return said


def _costs(optimum: RateOptimum, base: RateOptimum) -> str:
    cost = optimum.transferred
    if cost is None:
        return ""
    if cost.loss is None:
        return f"; the smaller's, {base.rate:.3g}, at the larger: {escape(str(cost))}"
    told = cost.told(" of the larger's loss")
    return f"; the smaller's costs {escape(told)}"


def _doubt(transfer: RateTransfer, names: dict[float, str], ends: tuple[RateOptimum, RateOptimum]) -> str:
    """Which of the sizes at the ends have no bracketed optimum, and which ones no best rate at all."""
    doubtful = [o for o in transfer.optima if o.rate is None] + [o for o in ends if not o.bracketed]
    return "".join(f" At {escape(names[o.scale])} {escape(str(o.reason))}." for o in doubtful)


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
        ]
        for optimum in transfer.optima
    ]


def _against(optimum: RateOptimum) -> list[str]:
    """How far the optimum lies from the base's, and what that one's rate costs."""
    moved = optimum.moved_ci95
    halves = None if moved is None else (2 * moved[0], 2 * moved[1])
    cost = optimum.transferred
    return [
        "" if optimum.moved_octaves is None else f"{2 * optimum.moved_octaves:+.2f}",
        _band(halves, "{:+.2f}"),
        "" if cost is None else "unstable" if cost.loss is None else escape(str(cost)),
        _band(optimum.transferred_ci95, "{:.2%}"),
    ]


def _band(band: Interval | None, form: str) -> str:
    return f"{form.format(band[0])} to {form.format(band[1])}" if band else ""
