"""The figure of a schedule: which device did what when, and how busy all of them were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.drawing import ARM_COLOURS, FAINT, INK, styled

WIDTH, HEIGHT = 8.0, 6.0
"""Inches."""
LOST = "#b00020"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An attempt on one device or node. Times in hours."""

    row: int
    """Which one, from 0."""
    start: float
    end: float
    group: str
    """What is told apart by colour."""
    lost: bool
    """Whether it was cut off by a fault."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """Numbers of devices from a time on, in hours."""

    time: float
    up: float
    held: float
    busy: float


@styled
def schedule_plot(
    bars: Sequence[Bar], levels: Sequence[Level], rows: int, *, row: str, device: str, title: str = ""
) -> Figure:
    """Bars of attempts by device above, and the number of busy devices over time below.

    Args:
        bars: the attempts.
        levels: in the order of time; the last one is the end.
        rows: number of them.
        row: what a row is, as GPU or node.
        device: what is counted, as GPU.
        title: of the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not bars or len(levels) < 2:
        raise ValueError("no attempts to draw; wanted at least one")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    groups = list(dict.fromkeys(bar.group for bar in bars))
    for index, group in enumerate(groups):
        colour = ARM_COLOURS[index % len(ARM_COLOURS)]
        for lost, edge in ((False, "none"), (True, LOST)):
            boxes = [_box(bar) for bar in bars if (bar.group, bar.lost) == (group, lost)]
            upper.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors=edge, linewidths=0.6, alpha=0.85))
    handles = [Patch(color=ARM_COLOURS[i % len(ARM_COLOURS)], label=group) for i, group in enumerate(groups[:8])]
    if any(bar.lost for bar in bars):
        handles.append(Patch(facecolor="none", edgecolor=LOST, label="cut off by a fault"))
    upper.legend(handles=handles, loc="upper right", fontsize="small")
    upper.set(ylim=(rows, 0), ylabel=row, title=title)
    times = [level.time for level in levels]
    for values, colour, label in (
        ([level.up for level in levels], FAINT, "up"),
        ([level.held for level in levels], ARM_COLOURS[1], "held by gangs"),
        ([level.busy for level in levels], ARM_COLOURS[0], "busy"),
    ):
        lower.fill_between(times, values, step="post", color=colour, linewidth=0, label=label)
    lower.set(xlim=(0, times[-1]), ylim=(0, None), xlabel="hours", ylabel=f"{device}s")
    lower.legend(loc="lower left", fontsize="small", labelcolor=INK)
    return figure


def _box(bar: Bar) -> list[tuple[float, float]]:
    top, bottom = bar.row, bar.row + 1
    return [(bar.start, top), (bar.end, top), (bar.end, bottom), (bar.start, bottom)]
