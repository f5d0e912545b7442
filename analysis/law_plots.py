"""Figures of one fit: its surface, residuals, resamples, back-test, and the approaches to N* side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import special

from analysis.allocation import CostRelation, law_optimum
from analysis.approaches import Approaches
from analysis.backtest import Backtest
from analysis.drawing import (
    ARM_COLOURS,
    GREY,
    INK,
    MARKS,
    WIDTH,
    blank,
    dense,
    dress,
    log_axis,
    note,
    points,
    styled,
)
from analysis.fitting import Fit
from analysis.isoflop import IsoflopFit
from analysis.laws import Array
from analysis.magnitudes import scientific, with_unit

BLUE, ORANGE, GREEN = ARM_COLOURS[:3]
HALO = [effects.withStroke(linewidth=2.5, foreground="white")]


@styled
def surface_contours(
    rows: pd.DataFrame,
    fit: Fit,
    cost: CostRelation,
    *,
    title: str = "",
    quantity: str = "validation loss",
    words: str = "",
) -> Figure:
    """Contours of the fitted surface over compute and size, the runs, and the ridge of best sizes N*(C) with its band.

    `rows` has params, samples, flops and loss; `cost` turns (C, N) into samples.
    """
    figure, axes = blank(title, "training compute C (FLOPs)", "parameters N", height=4.1)
    low_c, high_c = float(rows["flops"].min()) / 1.5, float(rows["flops"].max()) * 4
    low_n, high_n = float(rows["params"].min()) / 1.3, float(rows["params"].max()) * 1.3
    C, N = np.meshgrid(np.geomspace(low_c / 2, high_c * 2, 140), np.geomspace(low_n / 1.5, high_n * 1.5, 140))
    D = C / (cost.coefficient * N**cost.params_exponent)
    loss = fit.predict(N, D, D) if fit.law.name == "repeated" else fit.predict(N, D)
    bottom, top = float(rows["loss"].min()) * 0.97, float(rows["loss"].quantile(0.98))
    levels = np.unique([float(f"{level:.3g}") for level in np.geomspace(bottom, top, 9)])
    drawn = axes.contour(C, N, loss, levels=levels, colors=GREY, linewidths=0.8, zorder=2)
    shade = axes.scatter(rows["flops"], rows["params"], c=rows["loss"], cmap="viridis_r", zorder=3, **dense(len(rows)))
    shade.set_clim(bottom, top)
    if not fit.is_degenerate:
        _ridge(axes, fit, cost, np.geomspace(low_c, high_c, 60))
    log_axis(axes, "x", low_c, high_c, scientific)
    log_axis(axes, "y", low_n, high_n, with_unit)
    axes.clabel(drawn, fmt="%.3g", fontsize=7.5, inline_spacing=2)
    bar = figure.colorbar(shade, ax=axes, pad=0.02, aspect=28)
    bar.set_label(quantity, color=INK)
    bar.outline.set_visible(False)
    bar.solids.set_alpha(1)  # type: ignore[union-attr]
    if not fit.is_degenerate:
        axes.legend(loc="upper left")
    note(axes, words, "right")
    return figure


def _ridge(axes: Axes, fit: Fit, cost: CostRelation, grid: Array) -> None:
    """N*(C) with its band."""
    best = law_optimum(fit.law.name, fit.params, cost, grid)["params"]
    axes.plot(grid, best, color=ORANGE, linewidth=2.2, zorder=5, path_effects=HALO, label="best size N*(C)")
    if fit.draws:
        each = law_optimum(fit.law.name, {k: v[:, None] for k, v in fit.draws.items()}, cost, grid)["params"]
        axes.fill_between(grid, *np.nanpercentile(each, [2.5, 97.5], axis=0), color=ORANGE, alpha=0.25, linewidth=0)


@styled
def residual_panels(
    columns: Mapping[str, Array], residuals: Array, *, title: str = "", quantity: str = "loss"
) -> Figure:
    """Residuals in percent against each column (params, samples, flops as there are), and against normal quantiles.

    `residuals` are logs of found over fitted, shape (n,). The line is a running median: it should stay at 0. Residuals
    beyond 8 robust standard deviations are drawn as triangles on the edge, so that the others can be seen.
    """
    names = {"params": "parameters N", "samples": "samples D", "flops": "compute C (FLOPs)"}
    shown = [name for name in names if name in columns]
    panels = len(shown) + 1
    across = 2 if panels > 1 else 1
    down = -(-panels // across)
    figure = Figure(figsize=(WIDTH * 1.25, 2.5 * down + 0.3), layout="constrained")
    percent = 100 * np.expm1(residuals)
    reach = 1.15 * float(min(np.max(np.abs(percent)), 8 * 1.4826 * np.median(np.abs(percent)))) or 1.0
    for k, name in enumerate(shown):
        axes = figure.add_subplot(down, across, k + 1)
        dress(axes, "", names[name], "residual, %" if k % across == 0 else "")
        values = np.asarray(columns[name], dtype=float)
        far = np.abs(percent) > reach
        axes.scatter(values[~far], percent[~far], color=BLUE, **dense(len(values)))
        for side, mark in ((1, "^"), (-1, "v")):
            out = far & (np.sign(percent) == side)
            axes.scatter(
                values[out], np.full(out.sum(), side * 0.95 * reach), color=ORANGE, marker=mark, s=22, zorder=4
            )
        axes.axhline(0, color=INK, linewidth=0.9)
        x, y = _running_median(values, percent)
        axes.plot(x, y, color=ORANGE, linewidth=1.6, label="running median")
        label = scientific if name == "flops" else with_unit
        log_axis(axes, "x", float(values.min()), float(values.max()), label, most=4)
        axes.set_ylim(-reach, reach)
        if k == 0:
            axes.legend(loc="best")
    axes = figure.add_subplot(down, across, panels)
    _quantiles(axes, percent)
    words = title or f"Residuals of the {quantity}: found over fitted"
    figure.suptitle(words, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=11)
    return figure


def _running_median(x: Array, y: Array, bins: int = 9) -> tuple[Array, Array]:
    """Medians of y in bins of x of equal count."""
    order = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, max(1, len(x) // 3))) if len(part)]
    return np.array([np.median(x[p]) for p in parts]), np.array([np.median(y[p]) for p in parts])


def _quantiles(axes: Axes, percent: Array) -> None:
    """Sorted residuals against normal quantiles, with the line through their quartiles."""
    dress(axes, "", "normal quantile", "residual quantile, %")
    normal = special.ndtri((np.arange(len(percent)) + 0.5) / len(percent))
    ordered = np.sort(percent)
    axes.scatter(normal, ordered, color=GREEN, marker="s", **dense(len(percent)))
    low, high = np.percentile(percent, [25, 75])
    slope = (high - low) / (2 * special.ndtri(0.75))
    axes.plot(normal, (low + high) / 2 + slope * normal, color=INK, linewidth=1, label="normal")
    axes.legend(loc="upper left")


@styled
def bootstrap_cloud(
    draws: Mapping[str, Array], estimate: Mapping[str, float], x: str, y: str, *, title: str = ""
) -> Figure:
    """Two parameters over the resamples, with the estimate and each one's 95% interval as a grey cross."""
    figure, axes = blank(title, _symbol(x), _symbol(y))
    one, two = np.asarray(draws[x]), np.asarray(draws[y])
    known = np.isfinite(one) & np.isfinite(two)
    one, two = one[known], two[known]
    keep = np.ones(len(one), dtype=bool)
    for values in (one, two):
        low, high = np.percentile(values, [0.5, 99.5])
        keep &= (values >= low) & (values <= high)
    axes.scatter(one[keep], two[keep], color=BLUE, s=7, alpha=0.35, linewidths=0, rasterized=True, label="resamples")
    (x0, x1), (y0, y1) = np.percentile(one, [2.5, 97.5]), np.percentile(two, [2.5, 97.5])
    axes.plot([x0, x1], [estimate[y]] * 2, color=INK, linewidth=1.4, solid_capstyle="butt", label="95% intervals")
    axes.plot([estimate[x]] * 2, [y0, y1], color=INK, linewidth=1.4, solid_capstyle="butt")
    axes.plot(estimate[x], estimate[y], "o", color=ORANGE, markeredgecolor="white", markersize=8, label="estimate")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.legend(loc="best")
    return figure


def _symbol(name: str) -> str:
    return {"alpha": "exponent α of N", "beta": "exponent β", "N_exponent": "exponent of N*(C)"}.get(
        name, name.replace("_", " ")
    )


@styled
def backtest_of_law(
    rows: pd.DataFrame,
    held: NDArray[np.bool_],
    test: Backtest,
    *,
    title: str = "",
    quantity: str = "validation loss",
) -> Figure:
    """A law against compute fitted without the largest budget, and what was found there; `held` marks those rows."""
    smaller = test.fit
    assert isinstance(smaller, Fit)
    figure, axes = blank(title, "training compute C (FLOPs)", quantity)
    kept = rows[~held]
    points(axes, kept, "flops", "loss", color=BLUE, label="fitted", zorder=3, **dense(len(rows)))
    points(
        axes, rows[held], "flops", "loss", color=ORANGE, marker="D", s=38, zorder=4, label="largest budget, left out"
    )
    low, high = float(rows["flops"].min()), float(rows["flops"].max())
    _law_and_edge(axes, smaller, low, float(kept["flops"].max()), high * 1.3)
    log_axis(axes, "x", low, high * 1.3, scientific)
    values = np.concatenate([rows["loss"].to_numpy(dtype=float), np.atleast_1d(smaller.predict(high * 1.3))])
    log_axis(axes, "y", float(values.min()), float(values.max()), "{:.3g}".format)
    _missed(axes, test)
    axes.legend(loc="lower left")
    return figure


def _law_and_edge(axes: Axes, fit: Fit, low: float, edge: float, high: float) -> None:
    """The law: solid where it was fitted, dashed beyond, with its band."""
    for grid, style in ((np.geomspace(low, edge, 80), "-"), (np.geomspace(edge, high, 30), "--")):
        axes.plot(grid, fit.predict(grid), style, color=INK, linewidth=1.4, zorder=2)
        band = fit.predict_interval(grid)
        if band is not None:
            axes.fill_between(grid, *band, color=BLUE, alpha=0.15, linewidth=0, zorder=1)


def _missed(axes: Axes, test: Backtest) -> None:
    """What the prediction missed by, in the upper right corner."""
    held = {True: "inside its 95%", False: "outside its 95%", None: "no interval"}[test.covered]
    axes.text(
        0.98,
        0.97,
        f"missed by {test.error:+.2%}\n{held}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=INK,
        fontsize=9,
    )


@styled
def backtest_of_minima(fit: IsoflopFit, test: Backtest, *, title: str = "") -> Figure:
    """N*(C) through all minima but that of the largest budget, and the minimum found there."""
    smaller = test.fit
    assert isinstance(smaller, IsoflopFit)
    figure, axes = blank(title, "training compute C (FLOPs)", "optimal parameters N*")
    minima = [m for m in fit.bracketed if m.params is not None]
    flops = np.array([m.flops for m in minima])
    best = np.array([m.params for m in minima], dtype=float)
    held = flops >= test.flops * 0.999
    axes.plot(flops[~held], best[~held], "o", color=BLUE, markeredgecolor="white", label="fitted", zorder=4)
    axes.plot(flops[held], best[held], "D", color=ORANGE, markersize=7, label="largest budget, left out", zorder=5)
    edge, low, high = float(flops[~held].max()), float(flops.min()) / 1.3, float(flops.max()) * 1.5
    for grid, style in ((np.geomspace(low, edge, 30), "-"), (np.geomspace(edge, high, 20), "--")):
        axes.plot(grid, smaller.optimum("N", grid), style, color=INK, linewidth=1.4)
        band = smaller.optimum_interval("N", grid)
        if band is not None:
            axes.fill_between(grid, *band, color=BLUE, alpha=0.15, linewidth=0)
    log_axis(axes, "x", low, high, scientific)
    ends = smaller.optimum("N", np.array([low, high]))
    log_axis(axes, "y", min(best.min(), ends[0]), max(best.max(), ends[1]), with_unit)
    axes.text(0.98, 0.05, f"missed by {test.error:+.1%}", transform=axes.transAxes, ha="right", color=INK, fontsize=9)
    axes.legend(loc="upper left")
    return figure


@styled
def backtest_of_surface(
    x: Sequence[Array],
    found: Array,
    held: NDArray[np.bool_],
    test: Backtest,
    *,
    title: str = "",
    quantity: str = "validation loss",
) -> Figure:
    """Found against predicted by the surface fitted without the largest budget; `held` marks that budget's runs."""
    assert isinstance(test.fit, Fit)
    predicted = test.fit.predict(*x)
    figure, axes = blank(title, f"{quantity} predicted by the smaller budgets", f"{quantity} found")
    axes.scatter(predicted[~held], found[~held], color=BLUE, label="fitted", **dense(len(found)))
    axes.scatter(
        predicted[held], found[held], color=ORANGE, marker="D", s=26, zorder=4, label="largest budget, left out"
    )
    low, high = float(min(found.min(), predicted.min())), float(max(found.max(), predicted.max()))
    axes.plot([low, high], [low, high], color=INK, linewidth=1, label="equal")
    log_axis(axes, "x", low, high, "{:.3g}".format)
    log_axis(axes, "y", low, high, "{:.3g}".format)
    axes.text(0.98, 0.05, f"missed by {test.error:+.2%}", transform=axes.transAxes, ha="right", color=INK, fontsize=9)
    axes.legend(loc="upper left")
    return figure


@styled
def exponents_side_by_side(approaches: Approaches, *, title: str = "") -> Figure:
    """The exponent of N*(C) by each approach with its interval; hollow where the fit did not converge."""
    figure, axes = blank("", "exponent of N*(C)", "", height=0.5 * len(approaches.found) + 1.5)
    for k, a in enumerate(approaches.found):
        colour = BLUE if a.outcome == "converged" else GREY
        if a.ci95 is not None:
            axes.plot(a.ci95, [k, k], color=colour, linewidth=2.2, solid_capstyle="butt")
        face = colour if a.outcome == "converged" else "white"
        axes.plot(a.N_exponent, k, MARKS[k % len(MARKS)], color=face, markeredgecolor=colour, markersize=8)
    axes.set_yticks(range(len(approaches.found)), [a.name for a in approaches.found])
    axes.set_ylim(len(approaches.found) - 0.4, -0.6)
    axes.grid(False, axis="y")
    verdict = {True: ": they agree", False: ": they disagree", None: ""}
    axes.set_title(title + verdict[approaches.agree], loc="left", color=INK, fontweight="bold")
    return figure
