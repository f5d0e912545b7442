"""Figures of arms against each other: their losses, the compute multiplier, and how the learning rate transfers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.comparison import Comparison
from analysis.drawing import (
    ARM_COLOURS,
    FAINT,
    INK,
    LINES,
    MARKS,
    blank,
    dress,
    legend_below,
    log_axis,
    ordered_colours,
    styled,
)
from analysis.laws import Array
from analysis.learning_rate import RateOptimum
from analysis.magnitudes import scientific, with_unit
from analysis.transfer import RateTransfer


@styled
def arm_differences(comparison: Comparison, *, title: str = "") -> Figure:
    """Relative loss or distance of one arm over another by size, a line a budget; below 0 the first arm is better."""
    name = f"{comparison.quantity} of {comparison.first} over {comparison.second}, %"
    figure, axes = blank(title, "parameters N (backbone)", name)
    pairs = pd.DataFrame(
        [{"params": p.params, "flops": p.flops, "gap": p.loss / p.other_loss - 1} for p in comparison.pairs]
    )
    values = sorted(pairs["flops"].unique())
    colours = ordered_colours(len(values))
    for k, (value, colour) in enumerate(zip(values, colours, strict=False)):
        part = pairs[pairs["flops"] == value].sort_values("params")
        axes.plot(
            part["params"],
            100 * part["gap"],
            marker=MARKS[k % len(MARKS)],
            color=colour,
            markersize=5,
            linewidth=1.2,
            label=f"{scientific(value)} FLOPs",
        )
    axes.axhline(0, color=INK, linewidth=1)
    reach = 1.25 * max(0.05, float(100 * pairs["gap"].abs().max()))
    low = -reach if (pairs["gap"] < 0).any() else -0.2 * reach
    axes.set_ylim(low, reach if (pairs["gap"] > 0).any() else 0.2 * reach)
    log_axis(axes, "x", float(pairs["params"].min()), float(pairs["params"].max()), with_unit)
    legend_below(figure, axes, ncols=2)
    return figure


WIDEST_MULTIPLIER = 1e3
"""Most that the axis of a compute multiplier reaches to, either way: the interval of a flat law has no end."""


@styled
def compute_multiplier(comparisons: Sequence[Comparison], *, title: str = "") -> Figure:
    """FLOPs the second arm needs over those of the first to the same loss, with 95% bands; dashed beyond the runs."""
    shown = [c for c in comparisons if c.compute is not None]
    figure, axes = blank(
        title, f"compute C of {shown[0].first} (FLOPs)", f"compute multiplier (above 1: {shown[0].first} saves)"
    )
    flops = pd.concat([rows["flops"] for c in shown for rows in c.frontiers.values()])
    low, high = float(flops.min()), float(flops.max()) * 3
    grid = np.geomspace(low, high, 200)
    seen = [1.0]
    for k, comparison in enumerate(shown):
        multiplier = comparison.compute
        assert multiplier is not None
        inside = multiplier.is_measured(grid)
        value, colour = multiplier.value(grid), ARM_COLOURS[k % len(ARM_COLOURS)]
        axes.fill_between(grid, *multiplier.interval(grid), color=colour, alpha=0.15, linewidth=0)
        axes.plot(grid, value, linestyle=":", color=colour, linewidth=1.2)
        solid = np.where(inside, value, np.nan)
        label = f"{comparison.second} over {comparison.first}"
        axes.plot(grid, solid, linestyle=LINES[k % len(LINES)], color=colour, linewidth=2, label=label)
        near = multiplier.interval(np.array([low, high / 3]))
        seen += list(np.clip(np.concatenate([*near, value]), 1 / WIDEST_MULTIPLIER, WIDEST_MULTIPLIER))
    axes.axhline(1, color=INK, linewidth=1)
    log_axis(axes, "x", low, high, scientific)
    log_axis(axes, "y", min(seen), max(max(seen), 1.1), "{:.3g}×".format)
    legend_below(figure, axes, ncols=2, title="dotted: beyond the runs")
    return figure


MOST_CURVES = 8
"""Of one fan: more widths cannot be told apart."""


@styled
def learning_rate_fans(transfers: Sequence[RateTransfer], *, title: str = "") -> Figure:
    """Loss over the best loss against learning rate, one fan an arm and one curve a width; stars are the optima.

    Of many widths a fan shows `MOST_CURVES`, from the smallest to the largest, and says so.
    The last panel shows the optima against width: level where a learning rate transfers.
    """
    figure = Figure(figsize=(3.1 * (len(transfers) + 1), 3.4), layout="constrained")
    variable = transfers[0].variable
    every = np.concatenate([o.rates for t in transfers for o in t.optima])
    worst = max(float(np.max(o.losses / o.losses.min())) for t in transfers for o in t.optima) - 1
    for k, transfer in enumerate(transfers):
        axes = figure.add_subplot(1, len(transfers) + 1, k + 1)
        dress(axes, transfer.arm, "learning rate", "loss above the best, %" if k == 0 else "")
        places = np.linspace(0, len(transfer.optima) - 1, min(len(transfer.optima), MOST_CURVES)).round().astype(int)
        for m, (place, colour) in enumerate(zip(places, ordered_colours(len(places)), strict=True)):
            optimum = transfer.optima[place]
            _fan(axes, m, optimum, colour)
        log_axis(axes, "x", float(every.min()), float(every.max()), "{:.2g}".format, most=4)
        axes.set_ylim(-4 * worst, 110 * worst)
        of_all = "" if len(places) == len(transfer.optima) else f", {len(places)} of {len(transfer.optima)}"
        axes.legend(title=f"{variable}{of_all}", title_fontsize=8.5, loc="best", fontsize=8)
    axes = figure.add_subplot(1, len(transfers) + 1, len(transfers) + 1)
    _drifts(axes, transfers)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=11)
    return figure


def _fan(axes: Axes, k: int, optimum: RateOptimum, colour: Array) -> None:
    rates, losses, curve, rate = optimum.rates, optimum.losses, optimum.curve, optimum.rate
    grid = np.geomspace(rates[0], rates[-1], 60)
    best = float(curve(np.array([rate]))[0]) if rate is not None else float(losses.min())
    axes.plot(grid, 100 * (curve(grid) / best - 1), linestyle=LINES[k % 4], color=colour, linewidth=1.2)
    label = with_unit(optimum.scale)
    axes.plot(rates, 100 * (losses / best - 1), MARKS[k % len(MARKS)], color=colour, markersize=4.5, label=label)
    if rate is not None and optimum.bracketed:
        axes.plot(rate, 0, "*", color=colour, markeredgecolor=INK, markersize=11, zorder=5)


def _drifts(axes: Axes, transfers: Sequence[RateTransfer]) -> None:
    """The best learning rate against width, one line an arm."""
    variable = transfers[0].variable
    dress(axes, "drift of the optimum", "width" if variable == "width" else "parameters N", "best learning rate")
    rates: list[float] = []
    for k, transfer in enumerate(transfers):
        found = [o for o in transfer.optima if o.bracketed and o.rate is not None]
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
        rates += [*y, *(float(v) for b in bands if b is not None for v in b)]
    scales = sorted({o.scale for t in transfers for o in t.optima})
    show = "{:g}".format if variable == "width" else with_unit
    log_axis(axes, "x", scales[0], scales[-1], show, at=scales if len(scales) <= 5 else ())
    if rates:
        log_axis(axes, "y", min(rates) / 1.2, max(rates) * 1.6, "{:.2g}".format)
        axes.legend(loc="upper right", fontsize=8)
    axes.grid(color=FAINT)
