"""Figures of learning rates: loss against rate with the optimum of each size, and how the optima drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawing import (
    ARM_COLOURS,
    FAINT,
    INK,
    LINES,
    MARKS,
    Links,
    blank,
    dress,
    log_axis,
    mark_above,
    mark_diverged,
    ordered_colours,
    points,
    styled,
)
from analysis.frontier import common_level
from analysis.laws import Array
from analysis.learning_rate import RateOptimum
from analysis.magnitudes import with_unit
from analysis.plots import named_sizes
from analysis.rate_valley import MeasuredRates
from analysis.transfer import RateTransfer

MOST_CURVES = 8
"""Of one fan: more widths cannot be told apart."""
HEADROOM = 0.15
"""Share of the height above the losses before the cliffs: for what lies above the axis, and what diverged."""


@styled
def learning_rate_curves(
    rows: pd.DataFrame,
    *,
    title: str = "",
    diverged: pd.DataFrame | None = None,
    optima: Sequence[RateOptimum] = (),
    links: Links | None = None,
) -> Figure:
    """Loss against learning rate at the largest budget (or equal samples), one line a size, through the mean of seeds.

    Stars are the `optima` (of parameters), hollow where no quadratic brackets them. The axis ends above the losses
    before the cliffs (`MeasuredRates.cliff_above`); what lies above it, and what diverged, is marked on the edge.
    """
    figure, axes = blank(title, "base learning rate", "validation loss")
    level = common_level(rows)
    part = rows[level.among(rows)].dropna(subset="learning_rate")
    lost = part.iloc[:0] if diverged is None else diverged[level.among(diverged, within=0.1)]
    sizes = sorted(part["params"].unique())
    named = named_sizes(sizes)
    colours = dict(zip(sizes, ordered_colours(len(sizes)), strict=False))
    drawn = []
    for k, (size, colour) in enumerate(colours.items()):
        line, gone = part[part["params"] == size], lost[lost["params"] == size]
        mean = line.groupby("learning_rate")["loss"].agg(lambda losses: np.exp(np.log(losses).mean()))
        mean = mean.reindex(mean.index.union(gone["learning_rate"].dropna()))  # a line ends where a run diverged
        axes.plot(mean.index, mean, LINES[k % 4], color=colour, linewidth=1.2)
        style: dict[str, Any] = {"marker": MARKS[k % len(MARKS)], "color": [colour], "label": named.get(size)}
        points(axes, line, "learning_rate", "loss", links, s=26, zorder=3, **style)
        drawn.append((line, _before_cliff(size, line, gone), colour))
    for optimum in optima:
        _star(
            axes, optimum, float(np.exp(optimum.best_log_loss)), ordered_colours(len(sizes))[sizes.index(optimum.scale)]
        )
    rates = sorted({*part["learning_rate"], *lost["learning_rate"].dropna()})
    log_axis(axes, "x", rates[0], rates[-1], "{:.2g}".format, at=rates if len(rates) <= 6 else ())
    shown = pd.concat([before["loss"] for _, before, _ in drawn])
    reach = max(float(shown.max() - shown.min()), 1e-3 * float(shown.max()))
    axes.set_ylim(float(shown.min()) - 0.05 * reach, float(shown.max()) + HEADROOM * reach)
    for line, _, colour in drawn:
        mark_above(axes, line, "learning_rate", "loss", links, color=[colour])
    mark_diverged(axes, lost, "learning_rate", links)
    _explain(axes, part["loss"].max() > axes.get_ylim()[1], f"above the axis, up to {part['loss'].max():.3g}")
    axes.legend(title="parameters", title_fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _before_cliff(size: float, line: pd.DataFrame, gone: pd.DataFrame) -> pd.DataFrame:
    """The rows at rates below that at which the loss jumps or runs diverge."""
    measured = MeasuredRates.of(size, line, gone)
    cliff = None if measured is None else measured.cliff_above
    before = line if cliff is None else line[line["learning_rate"] < cliff.rate]
    return before if len(before) else line


def _star(axes: Axes, optimum: RateOptimum, height: float, colour: Array) -> None:
    if optimum.rate is not None:
        face = colour if optimum.bracketed else "white"
        axes.plot(
            optimum.rate, height, "*", color=face, markeredgecolor=INK, markersize=12, markeredgewidth=0.8, zorder=5
        )


def _explain(axes: Axes, is_clipped: bool, words: str) -> None:
    """The marks on the edge in the legend."""
    if is_clipped:
        axes.plot([], [], "^", color=INK, markersize=4.5, label=words)


@styled
def learning_rate_fans(transfers: Sequence[RateTransfer], *, title: str = "") -> Figure:
    """Loss over the best loss against learning rate, one fan an arm and one curve a width; stars are the optima, hollow
    where no quadratic brackets them.

    The axis ends above the losses that quadratics go through; what lies above it, and what diverged, is marked on the
    edge. Of many widths a fan shows `MOST_CURVES`, from the smallest to the largest, and says so.
    The last panel shows the optima against width: level where a learning rate transfers.
    """
    figure = Figure(figsize=(3.1 * (len(transfers) + 1), 4.1), layout="constrained")
    variable = transfers[0].variable
    optima = [optimum for transfer in transfers for optimum in transfer.optima]
    every = np.concatenate([rates for o in optima for rates in (o.measured.rates, o.measured.diverged)])
    worst = max(1e-3, *(float(_rise(o)[o.measured.valley].max()) for o in optima))
    for k, transfer in enumerate(transfers):
        axes = figure.add_subplot(1, len(transfers) + 1, k + 1)
        dress(axes, transfer.arm, "learning rate", "loss above the best, %" if k == 0 else "")
        places = np.linspace(0, len(transfer.optima) - 1, min(len(transfer.optima), MOST_CURVES)).round().astype(int)
        log_axis(axes, "x", float(every.min()), float(every.max()), "{:.2g}".format, most=4)
        axes.set_ylim(-6 * worst, 100 * (1 + HEADROOM) * worst)
        for m, (place, colour) in enumerate(zip(places, ordered_colours(len(places)), strict=False)):
            _fan(axes, m, transfer.optima[place], colour)
        chosen = [transfer.optima[place] for place in places]
        _explain(axes, any(100 * _rise(o).max() > axes.get_ylim()[1] for o in chosen), "above the axis")
        if any(len(o.measured.diverged) for o in chosen):
            axes.plot([], [], "x", color=INK, markersize=5, label="diverged")
        of_all = "" if len(places) == len(transfer.optima) else f", {len(places)} of {len(transfer.optima)}"
        below: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, -0.2),
            "ncols": 3,
        }  # nothing is hidden there
        axes.legend(title=f"{variable}{of_all}", title_fontsize=8.5, fontsize=8, columnspacing=1.0, **below)
    axes = figure.add_subplot(1, len(transfers) + 1, len(transfers) + 1)
    _drifts(axes, transfers)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=11)
    return figure


def _rise(optimum: RateOptimum) -> Array:
    """Of each measured rate, its loss over the best one, less 1."""
    return np.asarray(np.expm1(optimum.measured.log_loss - optimum.best_log_loss))


def _fan(axes: Axes, k: int, optimum: RateOptimum, colour: Array) -> None:
    measured, part = optimum.measured, optimum.measured.valley
    if optimum.quadratic is not None:
        grid = np.geomspace(measured.rates[part][0], measured.rates[part][-1], 60)
        heights = 100 * np.expm1(np.log(optimum.curve(grid)) - optimum.best_log_loss)
        axes.plot(grid, heights, linestyle=LINES[k % 4], color=colour, linewidth=1.2)
    table = pd.DataFrame({"rate": measured.rates, "rise": 100 * _rise(optimum)})
    style: dict[str, Any] = {"marker": MARKS[k % len(MARKS)], "color": [colour]}
    points(axes, table.iloc[part], "rate", "rise", s=22, zorder=3, label=with_unit(optimum.scale), **style)
    points(axes, table.drop(index=table.index[part]), "rate", "rise", s=14, alpha=0.45, zorder=2, **style)
    mark_above(axes, table, "rate", "rise", color=[colour])
    top = axes.get_ylim()
    axes.plot(measured.diverged, np.full(len(measured.diverged), top[0] + 0.96 * (top[1] - top[0])), "x", color=colour)
    _star(axes, optimum, 0.0, colour)


def _drifts(axes: Axes, transfers: Sequence[RateTransfer]) -> None:
    """The best learning rate against width, one line an arm through those that are bracketed; others are hollow."""
    variable = transfers[0].variable
    dress(axes, "drift of the optimum", "width" if variable == "width" else "parameters N", "best learning rate")
    rates: list[float] = []
    for k, transfer in enumerate(transfers):
        found = [o for o in transfer.optima if o.bracketed]
        between = [(o.scale, o.rate) for o in transfer.optima if not o.bracketed and o.rate is not None]
        x = np.array([o.scale for o in found])
        y = np.array([o.rate for o in found], dtype=float)
        bands = [o.rate_ci95 for o in found]
        bars = None if any(b is None for b in bands) else np.abs(np.array(bands, dtype=float).T - y)
        label = transfer.arm
        if transfer.drift_per_doubling is not None:
            label += f": {transfer.drift_per_doubling:+.2f} octaves a doubling"
        axes.errorbar(
            x,
            y,
            yerr=bars,
            fmt=MARKS[k % len(MARKS)],
            linestyle=LINES[k % len(LINES)],
            color=ARM_COLOURS[k % len(ARM_COLOURS)],
            capsize=2.5,
            linewidth=1.3,
            markersize=5,
            label=label,
        )
        mark, colour = MARKS[k % len(MARKS)], ARM_COLOURS[k % len(ARM_COLOURS)]
        places, heights = [scale for scale, _ in between], [rate for _, rate in between]
        axes.plot(places, heights, mark, color=colour, markerfacecolor="white", markersize=5)
        rates += [*y, *heights, *(float(v) for b in bands if b is not None for v in b)]
    scales = sorted({o.scale for t in transfers for o in t.optima})
    show = "{:g}".format if variable == "width" else with_unit
    log_axis(axes, "x", scales[0], scales[-1], show, at=scales if len(scales) <= 5 else ())
    if rates:
        log_axis(axes, "y", min(rates) / 1.2, max(rates) * 1.6, "{:.2g}".format)
        axes.legend(loc="upper right", fontsize=8)
    axes.grid(color=FAINT)
