"""Figures of arms against each other: their losses and the compute multiplier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.comparison import Comparison
from analysis.drawing import (
    ARM_COLOURS,
    INK,
    LINES,
    MARKS,
    blank,
    legend_below,
    log_axis,
    ordered_colours,
    styled,
)
from analysis.magnitudes import scientific, with_unit


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
