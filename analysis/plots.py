"""Figures of a sweep and its arms, for print and for the report. Each returns a matplotlib Figure; none touches pyplot.

A measured point may carry a link (`links`), from which the report makes hover text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.drawing import (
    INK,
    MARKS,
    Links,
    arm_colour,
    arm_line,
    arm_mark,
    blank,
    legend_below,
    log_axis,
    mark_diverged,
    note,
    ordered_colours,
    points,
    styled,
)
from analysis.fitting import Fit
from analysis.frontier import budget_of
from analysis.isoflop import IsoflopFit
from analysis.laws import Array
from analysis.magnitudes import scientific, with_unit


@styled
def isoflop_curves(
    rows: pd.DataFrame,
    fit: IsoflopFit | None,
    *,
    title: str = "",
    diverged: pd.DataFrame | None = None,
    links: Links | None = None,
    loss_limits: tuple[float, float] | None = None,
) -> Figure:
    """Loss against parameters, one curve a budget; minima are stars, hollow where the sizes do not bracket them.

    `rows` has params, flops, loss of one arm; diverged rows are marked on the upper edge at their size.
    """
    figure, axes = blank(title, "parameters N (backbone)", "validation loss")
    budgets = budget_of(rows)
    values = sorted(budgets.dropna().unique())
    minima = {m.flops: m for m in fit.minima} if fit is not None else {}
    colours = ordered_colours(len(values))
    for k, (value, colour) in enumerate(zip(values, colours, strict=False)):
        part = rows[budgets == value]
        label = f"{scientific(value)} FLOPs"
        mark = MARKS[k % len(MARKS)]
        points(axes, part, "params", "loss", links, s=26, marker=mark, color=[colour], zorder=3, label=label)
        if value in minima and np.isfinite(minima[value].coefficients).all():
            m = minima[value]
            grid = np.geomspace(m.sizes[0], m.sizes[1], 80)
            axes.plot(grid, m.curve(grid), color=colour, linewidth=1.4, zorder=2)
            if m.params is not None and m.loss is not None and m.sizes[0] / 1.3 < m.params < m.sizes[1] * 1.3:
                face = colour if m.bracketed else "white"
                axes.plot(m.params, m.loss, "*", markersize=12, color=face, markeredgecolor=INK, zorder=5)
    bracketed = fit.bracketed if fit is not None else []
    axes.plot([m.params for m in bracketed], [m.loss for m in bracketed], ":", color=INK, linewidth=1.2, zorder=4)  # type: ignore[arg-type]
    log_axis(axes, "x", float(rows["params"].min()), float(rows["params"].max()), with_unit)
    low, high = loss_limits or (float(rows["loss"].min()), float(rows["loss"].max()))
    axes.set_ylim(low - 0.04 * (high - low or low), high + 0.12 * (high - low or low))
    mark_diverged(axes, diverged, "params", links)
    if len(values) > 6:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif values:
        axes.legend(loc="best")
    return figure


@styled
def loss_against_compute(
    arms: dict[str, tuple[pd.DataFrame, pd.DataFrame, Fit]],
    *,
    title: str = "",
    links: Links | None = None,
    diverged: pd.DataFrame | None = None,
    quantity: str = "validation loss",
    column: str = "loss",
    order: Sequence[str] = (),
    words: str = "",
) -> Figure:
    """All trials, the best run of each budget, and the law through those with its 95% band.

    `arms` maps a name to (all rows, frontier rows, law); rows have flops and `column`. `words` stand in a corner.
    """
    figure, axes = blank(title, "training compute C (FLOPs)", quantity)
    every = pd.concat([rows for rows, _, _ in arms.values()])
    low, high = float(every["flops"].min()), float(every["flops"].max())
    grid = np.geomspace(low / 1.3, high * 2, 100)
    bottom, top = float(every[column].min()), float(every[column].max())
    for arm, (rows, best, fit) in arms.items():
        colour = arm_colour(order or list(arms), arm)
        mark, many = arm_mark(order or list(arms), arm), len(rows) > 400 and links is None
        points(
            axes, rows, "flops", column, links, s=14, color=colour, alpha=0.35, linewidths=0, zorder=2, rasterized=many
        )
        ring: dict[str, Any] = {"facecolors": "white", "edgecolors": colour, "linewidths": 1.6}
        rings = best if len(best) <= 400 else best.iloc[:0]
        axes.scatter(rings["flops"], rings[column], s=36, marker=mark, zorder=4, label=arm, **ring)
        if fit.succeeded:
            style = arm_line(order or list(arms), arm)
            axes.plot(grid, fit.predict(grid), linestyle=style, color=colour, linewidth=1.5, zorder=3)
            bottom = min(bottom, float(fit.predict(grid).min()))
            band = fit.predict_interval(grid)
            if band is not None:
                axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0, zorder=1)
    log_axis(axes, "x", low / 1.2, high * 1.8, scientific)
    log_axis(axes, "y", bottom, top, "{:.3g}".format)
    mark_diverged(axes, diverged, "flops", links)
    legend_below(figure, axes, ncols=3)
    note(axes, words, "left")
    return figure


@styled
def optimum_against_compute(
    fits: dict[str, IsoflopFit], letter: str, *, title: str = "", order: Sequence[str] = (), words: str = ""
) -> Figure:
    """N* (`letter` N) or D* (D) of each arm against compute: minima, their power law and its 95% band."""
    what = {"N": "optimal parameters N*", "D": "optimal samples D*"}[letter]
    figure, axes = blank(title, "training compute C (FLOPs)", what)
    seen: list[float] = []
    flops = [m.flops for fit in fits.values() for m in fit.minima]
    low, high = min(flops) / 1.5, max(flops) * 3
    grid = np.geomspace(low, high, 60)
    for arm, fit in fits.items():
        colour = arm_colour(order or list(fits), arm)
        minima = [m for m in fit.bracketed if m.params and m.samples]
        x = np.array([m.flops for m in minima])
        y = np.array([float((m.params if letter == "N" else m.samples) or np.nan) for m in minima])
        bars = _bars(minima, y) if letter == "N" else None
        axes.errorbar(
            x,
            y,
            yerr=bars,
            fmt=arm_mark(order or list(fits), arm),
            markersize=6,
            color=colour,
            markeredgecolor="white",
            capsize=2.5,
            linewidth=1.1,
            zorder=4,
            label=_optimum_label(arm, fit, letter),
        )
        seen += [*y, *(end for m in minima if bars is not None for end in m.params_ci95 or ())]
        if fit.params:
            style = arm_line(order or list(fits), arm)
            axes.plot(grid, fit.optimum(letter, grid), linestyle=style, color=colour, linewidth=1.5, zorder=3)
            band = fit.optimum_interval(letter, grid)
            if band is not None:
                axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0, zorder=2)
            seen += list(fit.optimum(letter, grid[[0, -1]]))
    log_axis(axes, "x", low, high, scientific)
    log_axis(axes, "y", min(seen), max(seen), with_unit)
    legend_below(figure, axes, ncols=1)
    note(axes, words, "right")
    return figure


def _bars(minima: Sequence[object], y: Array) -> Array | None:
    bands = [getattr(m, "params_ci95", None) for m in minima]
    if not bands or any(band is None for band in bands):
        return None
    return np.maximum(np.array([[v - b[0], b[1] - v] for v, b in zip(y, bands, strict=True) if b]).T, 0.0)


def _optimum_label(arm: str, fit: IsoflopFit, letter: str) -> str:
    if not fit.params:
        return f"{arm}: no fit"
    band = fit.ci95.get(f"{letter}_exponent")
    words = f" ({band[0]:.2f} to {band[1]:.2f})" if band else ""
    return f"{arm}: {letter}* ∝ C^{fit.params[f'{letter}_exponent']:.3f}{words}"


def named_sizes(sizes: Sequence[float], most: int = 9) -> dict[float, str]:
    """Labels of `most` sizes at most, spread from the smallest to the largest: a legend of all would crowd the axes."""
    places = np.unique(np.linspace(0, len(sizes) - 1, min(most, len(sizes))).round().astype(int))
    return {sizes[k]: with_unit(sizes[k]) for k in places}


@styled
def training_curves(curves: pd.DataFrame, sizes: dict[str, float], *, title: str = "", most: int = 24) -> Figure:
    """Training loss against samples, one line a trial (`most` at most, spread over sizes), coloured by parameters.

    `curves` has trial_id, samples, loss; `sizes` maps a trial_id to its parameters.
    """
    figure, axes = blank(title, "samples seen", "training loss")
    chosen = sorted((t for t in curves["trial_id"].unique() if t in sizes), key=lambda t: sizes[t])
    if len(chosen) > most:
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, most).round().astype(int))]
    distinct = sorted({sizes[t] for t in chosen})
    named = named_sizes(distinct)
    colours = ordered_colours(len(distinct))
    shown = []
    for trial in chosen:
        line = curves[(curves["trial_id"] == trial) & curves["loss"].notna()].sort_values("samples")
        line = (
            line.iloc[np.unique(np.geomspace(1, max(len(line), 1), 120).round().astype(int) - 1)] if len(line) else line
        )
        size = sizes[trial]
        label = None if size in shown else named.get(size)
        shown.append(size)
        axes.plot(
            line["samples"], line["loss"], color=colours[distinct.index(size)], linewidth=1.0, alpha=0.9, label=label
        )
    rows = curves[curves["trial_id"].isin(chosen) & (curves["loss"] > 0)]
    log_axis(axes, "x", float(rows["samples"].min()), float(rows["samples"].max()), with_unit)
    log_axis(axes, "y", float(rows["loss"].min()), float(rows["loss"].quantile(0.995)), "{:.3g}".format)
    axes.legend(title="parameters", title_fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def floor_profile(
    fits: dict[str, Fit], *, title: str = "", order: Sequence[str] = (), quantity: str = "loss"
) -> Figure:
    """How much worse the law fits with its floor held at a value; floors under the dashed line are not refused."""
    figure, axes = blank(title, f"floor held at ({quantity})", "F ratio against the best floor", height=3.8)
    for arm, fit in fits.items():
        if fit.profile is not None:
            kept = fit.profile.statistic < 4 * fit.profile.threshold
            colour = arm_colour(order or list(fits), arm)
            axes.plot(
                fit.profile.floors[kept],
                fit.profile.statistic[kept],
                marker=arm_mark(order or list(fits), arm),
                markersize=3,
                color=colour,
                label=arm,
            )
            axes.axhline(fit.profile.threshold, color=colour, linestyle="--", linewidth=0.9)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
