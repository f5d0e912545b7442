"""The isoFLOP map of a plan: which sizes are measured at which compute, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.magnitudes import scientific, with_unit

MAX_ARMS = 3
"""More arms at the same places cannot be told apart."""
COLORS = ("#0072B2", "#D55E00", "#009E73")
MARKERS = ("o", "s", "^")
RATIOS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0)


def plan_map(cells: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Cells in the plane of training FLOPs and backbone parameters.

    Measurements of one trajectory are joined by a line; grey lines are of equal tokens a parameter.

    Args:
        cells: mappings with arm, trial, params, flops, tokens_per_param, and x, the budget (`in_flops` or not).
        title: the sweep's name.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    if len(arms) > MAX_ARMS:
        _draw_arm(axes, cells, f"{len(arms)} arms", 0, 1)
    for index, arm in enumerate(arms if len(arms) <= MAX_ARMS else []):
        _draw_arm(axes, [cell for cell in cells if cell["arm"] == arm], arm, index, len(arms))
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="backbone parameters")
    axes.margins(0.1)
    _equal_ratios(axes, cells)
    _ticks(axes.xaxis, [cell["x"] for cell in cells if cell["in_flops"]], scientific)
    _ticks(axes.yaxis, [cell["params"] for cell in cells], with_unit)
    axes.set_title(title, loc="left", fontsize=11)
    if len(arms) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.3)
    return figure


def _draw_arm(axes: Any, cells: Sequence[Mapping[str, Any]], arm: str, index: int, arms: int) -> None:
    """One arm; where arms lie on each other, the later ones are drawn smaller and within."""
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    for trial in dict.fromkeys(cell["trial"] for cell in cells):
        points = sorted((cell["flops"], cell["params"]) for cell in cells if cell["trial"] == trial)
        axes.plot(*zip(*points, strict=True), color=color, lw=0.8, alpha=0.5)
    side = max(2.5, 8.5 - 8.5 * index / max(arms, 2))
    face = "white" if index == 0 and arms > 1 else color
    flops, params = [cell["flops"] for cell in cells], [cell["params"] for cell in cells]
    axes.plot(flops, params, color=color, marker=marker, ms=side, mfc=face, ls="", label=arm)


def _ticks(axis: Any, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Ticks at the values themselves, thinned where they would overlap."""
    values = sorted(set(values))
    if not values:
        return
    kept = [values[0]]
    closest = (np.log(values[-1] / values[0]) or 1.0) / 11
    for value in values[1:]:
        if np.log(value / kept[-1]) > closest:
            kept.append(value)
    axis.set_ticks(kept, [text(value) for value in kept], fontsize=8)
    axis.set_ticks([], minor=True)


def _equal_ratios(axes: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    """Lines of equal tokens a parameter: FLOPs are parameters squared times the ratio times the models' own factor."""
    factor = float(np.median([c["flops"] / (c["params"] ** 2 * c["tokens_per_param"]) for c in cells]))
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for ratio in RATIOS:
        params = np.sqrt(np.array([left, right]) / (factor * ratio))
        axes.plot([left, right], params, color="0.8", lw=0.7, zorder=0)
        if low < params[1] < high:
            axes.annotate(
                with_unit(ratio),
                (right, params[1]),
                (3, 0),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
                va="center",
            )
    axes.annotate(
        "tokens a parameter", (1, 0.5), (26, 0), xycoords="axes fraction", textcoords="offset points", rotation=270,
        fontsize=8, color="0.4", va="center", ha="left",
    )  # fmt: skip
    axes.set(xlim=(left, right), ylim=(low, high))
