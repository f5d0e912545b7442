"""What `ditlaw coord-check` does: run coordinate checks, say what they found, and lay them out for the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.coordinate_plot import Line, Panel, coordinate_plot
from models.coordinate_check import (
    CHANGE_TOLERANCE,
    ENDS,
    TOLERANCE,
    Axis,
    Protocol,
    Reading,
    Slope,
    check,
    is_flat,
    parameterization_named,
    slopes,
    steepest,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One parameterization over widths or over depths."""

    parameterization: str
    axis: Axis
    readings: list[Reading]
    slopes: list[Slope]


def find(
    names: Sequence[str], widths: Sequence[int], depths: Sequence[int], protocol: Protocol, *, width: int, depth: int
) -> list[Finding]:
    """A check of every parameterization over widths at `depth`, then over depths at `width`; none to leave one out.

    Base width and depth are the smallest of each check.

    Raises:
        ValueError: a name is not known, or a width, a depth or their number will not do.
    """
    if not names or not (widths or depths):
        raise ValueError("nothing to check; wanted a parameterization, and widths or depths")
    findings = []
    axes: tuple[tuple[Axis, Sequence[int], int], ...] = (("width", widths, depth), ("depth", depths, width))
    for axis, extents, other in axes:
        for name in names if extents else ():
            base_width, base_depth = (min(extents), other) if axis == "width" else (other, min(extents))
            parameterization = parameterization_named(name, base_width=base_width, base_depth=base_depth)
            readings = check(axis, extents, other, parameterization, protocol)
            findings.append(Finding(parameterization=name, axis=axis, readings=readings, slopes=slopes(readings)))
    return findings


def verdict(finding: Finding) -> str:
    """One line: whether sizes are flat, and which layer is the least so."""
    size, change = steepest(finding.slopes), steepest(finding.slopes, "change", ENDS)
    word = "flat" if is_flat(finding.slopes) else "NOT flat"
    return (
        f"{finding.parameterization} over {finding.axis}: {word}; steepest size: {size.layer} at step {size.step} "
        f"({size.slope:+.3f}, flat is within {TOLERANCE}), steepest change at the end: {change.layer} at step "
        f"{change.step} ({change.slope:+.3f}, flat is within {CHANGE_TOLERANCE})"
    )


def slope_lines(finding: Finding) -> list[str]:
    """A table of slopes in plain text: a layer a line, then size and change after each step."""
    found = {(s.layer, s.measure, s.step): s.slope for s in finding.slopes}
    steps = sorted({s.step for s in finding.slopes if s.step > 0})
    lines = [f"{'layer':30s}" + "".join(f"  {m + ' ' + str(k):>8s}" for m in ("size", "change") for k in steps)]
    for layer in dict.fromkeys(s.layer for s in finding.slopes):
        cells = (found.get((layer, measure, step)) for measure in ("size", "change") for step in steps)
        lines.append(f"{layer:30s}" + "".join("         -" if c is None else f"  {c:+8.3f}" for c in cells))
    return lines


def as_json(finding: Finding) -> dict[str, Any]:
    """Everything measured, with the verdict."""
    return {
        "parameterization": finding.parameterization,
        "axis": finding.axis,
        "flat": is_flat(finding.slopes),
        "tolerance": TOLERANCE,
        "steepest_size": asdict(steepest(finding.slopes)),
        "change_tolerance": CHANGE_TOLERANCE,
        "steepest_change": asdict(steepest(finding.slopes, "change", ENDS)),
        "slopes": [asdict(slope) for slope in finding.slopes],
        "readings": [asdict(reading) for reading in finding.readings],
    }


def save_figure(findings: Sequence[Finding], steps: int, path: Path) -> None:
    """Write the figure of the last step to `path`."""
    coordinate_plot([_panel(finding, steps) for finding in findings], steps=steps).savefig(path, dpi=150)


def _panel(finding: Finding, steps: int) -> Panel:
    last = {s.layer: s.slope for s in finding.slopes if s.step == steps and s.measure == "size"}
    lines = []
    for layer, slope in last.items():
        mine = sorted((r for r in finding.readings if (r.layer, r.step) == (layer, steps)), key=lambda r: r.extent)
        lines.append(Line(layer=layer, extents=[r.extent for r in mine], values=[r.size for r in mine], slope=slope))
    word = "flat" if is_flat(finding.slopes) else "not flat"
    names = {"sp": "SP", "mup": "µP", "completep": "CompleteP"}
    return Panel(title=f"{names[finding.parameterization]}: {word}", axis=finding.axis, lines=lines)
