"""The figure of a coordinate check: activation sizes against width or depth, one panel a parameterization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from analysis.drawing import ARM_COLOURS, FAINT, INK, styled

# Colours and marks together tell the kinds apart, in print and for colour-blind readers alike.
KINDS: tuple[tuple[str, str, str, str], ...] = (
    ("output", "output", ARM_COLOURS[1], "o"),
    ("attn", "attention", ARM_COLOURS[0], "s"),
    ("mlp", "MLP", ARM_COLOURS[2], "^"),
    ("adaLN_modulation", "adaLN", ARM_COLOURS[3], "D"),
    ("embedder", "embedders", ARM_COLOURS[4], "v"),
    ("", "residual stream", ARM_COLOURS[5], "P"),
)
"""End of a layer's name, its kind, colour and mark; the first that fits counts."""

PANEL_WIDTH, PANEL_HEIGHT = 4.3, 3.9
"""Inches."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One layer: RMS values over widths or depths, and the slope of their logarithms."""

    layer: str
    extents: Sequence[int]
    values: Sequence[float]
    slope: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One parameterization over widths or depths."""

    title: str
    axis: str
    """What the horizontal axis shows: width or depth."""
    lines: Sequence[Line]


@styled
def coordinate_plot(panels: Sequence[Panel], *, steps: int) -> Figure:
    """One panel a parameterization, one row for widths and one for depths; kinds of layers named with their slopes.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("no panels to draw; wanted at least one")
    rows = list(dict.fromkeys(panel.axis for panel in panels))
    columns = max(sum(panel.axis == axis for panel in panels) for axis in rows)
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, axis in enumerate(rows):
        mine = [panel for panel in panels if panel.axis == axis]
        low, high = _reach(mine)
        for column, cell in enumerate(grid[row]):
            if column >= len(mine):
                cell.set_visible(False)
                continue
            _draw(cell, mine[column])
            cell.set_ylim(low, high)
            if column == 0:
                cell.set_ylabel(f"RMS of activation, step {steps}", color=INK)
    return figure


def _reach(panels: Sequence[Panel]) -> tuple[float, float]:
    """One vertical range for all panels of a row, with room for the legend below."""
    values = [value for panel in panels for line in panel.lines for value in line.values if value > 0]
    low, high = min(values, default=0.1), max(values, default=1.0)
    return low / (high / low) ** 0.55 / 1.2, high * 1.3


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(panel.axis, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for end, kind, colour, mark in KINDS:
        lines = [line for line in panel.lines if _kind(line.layer) == end]
        for index, line in enumerate(lines):
            label = f"{kind} {_range([other.slope for other in lines])}" if index == 0 else None
            axes.plot(
                line.extents,
                line.values,
                marker=mark,
                markersize=4,
                linewidth=1.1,
                color=colour,
                alpha=0.85,
                label=label,
            )
    extents = sorted({extent for line in panel.lines for extent in line.extents})
    axes.xaxis.set_major_locator(FixedLocator(extents))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=3)
    axes.legend(loc="lower left", ncols=2, title="slopes", title_fontsize=8, fontsize=7, columnspacing=0.8)


def _kind(layer: str) -> str:
    return next(end for end, *_ in KINDS if layer.endswith(end))


def _range(slopes: Sequence[float]) -> str:
    low, high = min(slopes), max(slopes)
    return f"{low:+.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:+.2f} to {high:+.2f}"
