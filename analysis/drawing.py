"""What every figure shares: colours, marks, text sizes, axes with units, and how a figure is saved.

Colours of arms are Okabe and Ito's, and of ordered budgets or sizes viridis, which colour-blind readers can tell apart;
marks and line styles differ as well, so that a grey print can be read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.laws import Array

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))
INK, FAINT, GREY, DIVERGED = "#1f2430", "#d9dce3", "#5c6474", "#B00020"
WIDTH, HEIGHT = 5.1, 3.8
"""Inches of a one-panel figure."""

FORMATS = ("svg", "pdf", "png")
Links = Callable[[object], str]
"""The link of a measured row, by its label in the index."""

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with this module's text sizes and fonts, whatever the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure as SVG, PDF or PNG (300 dots an inch), by the file's suffix; returns the path.

    Raises:
        ValueError: the suffix is none of these.
    """
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise ValueError(f"{path} ends in {path.suffix!r}; a figure is written as {', '.join(FORMATS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": path.stem}):
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix.lower().lstrip("."))
        figure.savefig(path, dpi=300, metadata=metadata)
    return path


def arm_colour(arms: Sequence[str], arm: str) -> str:
    """The colour of an arm: by its place among the sweep's arms, so that it is the same in every figure."""
    return ARM_COLOURS[list(arms).index(arm) % len(ARM_COLOURS)]


def arm_mark(arms: Sequence[str], arm: str) -> str:
    return MARKS[list(arms).index(arm) % len(MARKS)]


def arm_line(arms: Sequence[str], arm: str) -> Any:
    return LINES[list(arms).index(arm) % len(LINES)]


def ordered_colours(count: int) -> Array:
    """Colours of ordered things, dark to light, none too light for white paper, nor too dark where a screen turns them
    over; shape (count, 4)."""
    return np.asarray(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.78, max(count, 2))))


def blank(title: str, x_label: str, y_label: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure of one panel."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, title, x_label, y_label)
    return figure, axes


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels, a faint grid."""
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=3)


def log_axis(
    axes: Axes,
    which: str,
    low: float,
    high: float,
    label: Callable[[float], str],
    at: Sequence[float] = (),
    most: int = 6,
) -> None:
    """A log axis a little wider than [low, high], plainly labelled `at` values, or at decades, 1, 2, 5 or finer."""
    margin = max((high / low) ** 0.06, 1.02)
    low, high = low / margin, high * margin
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    ticks = list(at) or _ticks(low, high, most)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([label(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    best: list[float] = []
    for stride in (5, 4, 3, 2, 1):
        ticks = [10.0**d for d in decades if d % stride == 0 and low <= 10.0**d <= high]
        best = ticks if len(ticks) <= most else best
    for mantissas in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        best = ticks if len(best) < 3 and len(ticks) <= most + 1 else best
    step = 10.0 ** np.floor(np.log10(high - low))
    for factor in (1, 0.5, 0.2, 0.1):
        if len(best) < 3:
            best = list(np.arange(np.ceil(low / (factor * step)), high / (factor * step) + 1e-9) * factor * step)
    return [float(tick) for tick in best]


def points(axes: Axes, rows: pd.DataFrame, x: str, y: str, links: Links | None = None, **style: object) -> None:
    """Measured points, each with its link."""
    if len(rows):
        artist = axes.scatter(rows[x], rows[y], **style)  # type: ignore[arg-type]
        if links is not None:
            artist.set_urls([links(label) for label in rows.index])


def mark_diverged(axes: Axes, rows: pd.DataFrame | None, x: str, links: Links | None = None) -> None:
    """Crosses on the upper edge: a diverged run has no loss to be drawn at."""
    if rows is not None and len(rows):
        marked = rows.assign(edge=_share_of_height(axes, 0.96))
        points(axes, marked, x, "edge", links, s=34, marker="x", color=DIVERGED, zorder=6, label="diverged")


def mark_above(axes: Axes, rows: pd.DataFrame, x: str, y: str, links: Links | None = None, **style: object) -> None:
    """Triangles below the upper edge, for measured points that lie above it."""
    above = rows[rows[y] > axes.get_ylim()[1]]
    marked = above.assign(edge=_share_of_height(axes, 0.91))
    points(axes, marked, x, "edge", links, **{"s": 22, "marker": "^", "zorder": 6} | style)


def _share_of_height(axes: Axes, share: float) -> float:
    low, high = axes.get_ylim()
    return low * (high / low) ** share if axes.get_yscale() == "log" else low + share * (high - low)


def legend_below(figure: Figure, axes: Axes, ncols: int, title: str | None = None) -> None:
    """The legend of one panel under its axes, where it hides nothing; the figure grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.19 * (-(-len(handles) // ncols) + bool(title)))
        style: dict[str, Any] = {"ncols": ncols, "frameon": False, "title": title, "title_fontsize": 8}
        figure.legend(handles, labels, loc="outside lower center", **style)


def note(axes: Axes, text: str, at: str) -> None:
    """Small words in the lower `left` or `right` corner, for what must stand beside a curve."""
    if text:
        x, side = (0.02, "left") if at == "left" else (0.98, "right")
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
        axes.text(x, 0.03, text, transform=axes.transAxes, ha=side, color=INK, fontsize=8.5, bbox=box, zorder=7)


def dense(count: int) -> dict[str, Any]:
    """Style of a cloud of measured points: many are smaller, fainter, and drawn as one picture."""
    if count <= 400:
        return {"s": 16, "alpha": 0.7}
    return {"s": 6, "alpha": 0.35, "linewidths": 0, "rasterized": True}
