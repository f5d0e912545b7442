"""Figures of a sweep, for print and for the report. Every function returns a matplotlib Figure; none touches pyplot.

Colours are Okabe and Ito's for arms and viridis for ordered budgets, which colour-blind readers can tell apart. A
measured point may carry a link (`points`), from which the report makes hover text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from analysis.fitting import Fit
from analysis.frontier import budget_of
from analysis.isoflop import IsoflopFit
from analysis.laws import Array
from analysis.magnitudes import scientific, with_unit
from analysis.transfer import Comparison

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, FAINT, DIVERGED = "#1f2430", "#d9dce3", "#B00020"
WIDTH, HEIGHT = 5.1, 3.8
"""Inches of a one-panel figure."""

Links = Callable[[pd.Series], str | None]
"""The link of a measured row, None for no link."""

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
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with this module's text sizes and fonts, whatever the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def arm_colour(arms: Sequence[str], arm: str) -> str:
    """The colour of an arm: by its place among the sweep's arms, so that it is the same in every figure."""
    return ARM_COLOURS[list(arms).index(arm) % len(ARM_COLOURS)]


def _figure(title: str, x_label: str, y_label: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=3)
    return figure, axes


def _log_axis(
    axes: Axes, which: str, low: float, high: float, label: Callable[[float], str], at: Sequence[float] = ()
) -> None:
    """A log axis a little wider than [low, high], plainly labelled `at` values, or at decades, 1, 2, 5 or finer."""
    margin = max((high / low) ** 0.06, 1.02)
    low, high = low / margin, high * margin
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    ticks = list(at) or _ticks(low, high, 6)
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


def _points(axes: Axes, rows: pd.DataFrame, x: str, y: str, links: Links | None, **style: object) -> None:
    """Measured points, each with its link."""
    if len(rows):
        artist = axes.scatter(rows[x], rows[y], **style)  # type: ignore[arg-type]
        if links is not None:
            artist.set_urls([links(row) or "" for _, row in rows.iterrows()])


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
    figure, axes = _figure(title, "parameters N (backbone)", "validation loss")
    budgets = budget_of(rows)
    values = sorted(budgets.dropna().unique())
    minima = {m.flops: m for m in fit.minima} if fit is not None else {}
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(values), 2)))
    for value, colour in zip(values, colours, strict=False):
        part = rows[budgets == value]
        label = f"{scientific(value)} FLOPs"
        _points(axes, part, "params", "loss", links, s=26, color=[colour], zorder=3, label=label)
        if value in minima and np.isfinite(minima[value].coefficients).all():
            m = minima[value]
            grid = np.geomspace(m.sizes[0], m.sizes[1], 80)
            axes.plot(grid, m.curve(grid), color=colour, linewidth=1.4, zorder=2)
            if m.params is not None and m.loss is not None and m.sizes[0] / 1.3 < m.params < m.sizes[1] * 1.3:
                face = colour if m.bracketed else "white"
                axes.plot(m.params, m.loss, "*", markersize=14, color=face, markeredgecolor=INK, zorder=5)
    bracketed = fit.bracketed if fit is not None else []
    axes.plot([m.params for m in bracketed], [m.loss for m in bracketed], ":", color=INK, linewidth=1.2, zorder=4)  # type: ignore[arg-type]
    _log_axis(axes, "x", float(rows["params"].min()), float(rows["params"].max()), with_unit)
    low, high = loss_limits or (float(rows["loss"].min()), float(rows["loss"].max()))
    axes.set_ylim(low - 0.04 * (high - low or low), high + 0.12 * (high - low or low))
    _mark_diverged(axes, diverged, "params", links)
    if values:
        axes.legend(ncols=1 if len(values) < 7 else 2, loc="best")
    return figure


def _mark_diverged(axes: Axes, rows: pd.DataFrame | None, x: str, links: Links | None) -> None:
    """Crosses on the upper edge: a diverged run has no loss to be drawn at."""
    if rows is None or not len(rows):
        return
    top = axes.get_ylim()
    y = top[0] * (top[1] / top[0]) ** 0.96 if axes.get_yscale() == "log" else top[0] + 0.96 * (top[1] - top[0])
    marked = rows.assign(edge=y)
    _points(axes, marked, x, "edge", links, s=34, marker="x", color=DIVERGED, zorder=6, label="diverged")


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
) -> Figure:
    """All trials, the best run of each budget, and the law through those with its 95% band.

    `arms` maps a name to (all rows, frontier rows, law); rows have flops and `column`.
    """
    figure, axes = _figure(title, "training compute C (FLOPs)", quantity)
    every = pd.concat([rows for rows, _, _ in arms.values()])
    low, high = float(every["flops"].min()), float(every["flops"].max())
    grid = np.geomspace(low / 1.3, high * 2, 100)
    bottom, top = float(every[column].min()), float(every[column].max())
    for arm, (rows, best, fit) in arms.items():
        colour = arm_colour(order or list(arms), arm)
        _points(axes, rows, "flops", column, links, s=14, color=colour, alpha=0.35, linewidths=0, zorder=2)
        axes.scatter(
            best["flops"],
            best[column],
            s=36,
            facecolors="white",
            edgecolors=colour,
            linewidths=1.6,
            zorder=4,
            label=arm,
        )
        if fit.succeeded:
            axes.plot(grid, fit.predict(grid), color=colour, linewidth=1.5, zorder=3)
            bottom = min(bottom, float(fit.predict(grid).min()))
            band = fit.predict_interval(grid)
            if band is not None:
                axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0, zorder=1)
    _log_axis(axes, "x", low / 1.2, high * 1.8, scientific)
    _log_axis(axes, "y", bottom, top, "{:.3g}".format)
    _mark_diverged(axes, diverged, "flops", links)
    axes.legend(loc="upper right")
    return figure


@styled
def optimum_against_compute(
    fits: dict[str, IsoflopFit], letter: str, *, title: str = "", order: Sequence[str] = ()
) -> Figure:
    """N* (`letter` N) or D* (D) of each arm against compute: minima, their power law and its 95% band."""
    what = {"N": "optimal parameters N*", "D": "optimal samples D*"}[letter]
    figure, axes = _figure(title, "training compute C (FLOPs)", what)
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
            fmt="o",
            markersize=6,
            color=colour,
            markeredgecolor="white",
            capsize=2.5,
            linewidth=1.1,
            zorder=4,
            label=_optimum_label(arm, fit, letter),
        )
        seen += list(y)
        if fit.params:
            axes.plot(grid, fit.optimum(letter, grid), color=colour, linewidth=1.5, zorder=3)
            band = fit.optimum_interval(letter, grid)
            if band is not None:
                axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0, zorder=2)
            seen += list(fit.optimum(letter, grid[[0, -1]]))
    _log_axis(axes, "x", low, high, scientific)
    _log_axis(axes, "y", min(seen), max(seen), with_unit)
    axes.legend(loc="upper left")
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


@styled
def arm_differences(comparison: Comparison, *, title: str = "") -> Figure:
    """Relative loss of one arm over another against size, one line a budget; below 0 the first arm is better."""
    name = f"loss of {comparison.first} over {comparison.second}, %"
    figure, axes = _figure(title, "parameters N (backbone)", name)
    pairs = pd.DataFrame(
        [{"params": p.params, "flops": p.flops, "gap": p.loss / p.other_loss - 1} for p in comparison.pairs]
    )
    values = sorted(pairs["flops"].unique())
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(values), 2)))
    for value, colour in zip(values, colours, strict=False):
        part = pairs[pairs["flops"] == value].sort_values("params")
        axes.plot(
            part["params"],
            100 * part["gap"],
            "o-",
            color=colour,
            markersize=5,
            linewidth=1.2,
            label=f"{scientific(value)} FLOPs",
        )
    axes.axhline(0, color=INK, linewidth=1)
    reach = 1.25 * max(0.05, float(100 * pairs["gap"].abs().max()))
    low = -reach if (pairs["gap"] < 0).any() else -0.2 * reach
    axes.set_ylim(low, reach if (pairs["gap"] > 0).any() else 0.2 * reach)
    _log_axis(axes, "x", float(pairs["params"].min()), float(pairs["params"].max()), with_unit)
    axes.legend(ncols=2)
    return figure


@styled
def learning_rate_curves(
    rows: pd.DataFrame, *, title: str = "", diverged: pd.DataFrame | None = None, links: Links | None = None
) -> Figure:
    """Loss against learning rate at the largest budget, one line a size; diverged runs there on the upper edge."""
    figure, axes = _figure(title, "base learning rate", "validation loss")
    budgets = budget_of(rows)
    part = rows[budgets == budgets.max()]
    sizes = sorted(part["params"].unique())
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(sizes), 2)))
    for size, colour in zip(sizes, colours, strict=False):
        line = part[part["params"] == size].sort_values("learning_rate")
        axes.plot(line["learning_rate"], line["loss"], "-", color=colour, linewidth=1.2)
        _points(axes, line, "learning_rate", "loss", links, s=26, color=[colour], zorder=3, label=with_unit(size))
    lost = None if diverged is None else diverged[budget_of(diverged) >= 0.9 * budgets.max()]
    rates = sorted({*part["learning_rate"], *([] if lost is None else lost["learning_rate"])})
    _log_axis(axes, "x", rates[0], rates[-1], "{:.2g}".format, at=rates if len(rates) <= 6 else ())
    _mark_diverged(axes, lost, "learning_rate", links)
    axes.legend(title="parameters", title_fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def training_curves(curves: pd.DataFrame, sizes: dict[str, float], *, title: str = "", most: int = 24) -> Figure:
    """Training loss against samples, one line a trial (`most` at most, spread over sizes), coloured by parameters.

    `curves` has trial_id, samples, loss; `sizes` maps a trial_id to its parameters.
    """
    figure, axes = _figure(title, "samples seen", "training loss")
    chosen = sorted((t for t in curves["trial_id"].unique() if t in sizes), key=lambda t: sizes[t])
    if len(chosen) > most:
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, most).round().astype(int))]
    distinct = sorted({sizes[t] for t in chosen})
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(distinct), 2)))
    shown = []
    for trial in chosen:
        line = curves[(curves["trial_id"] == trial) & curves["loss"].notna()].sort_values("samples")
        line = (
            line.iloc[np.unique(np.geomspace(1, max(len(line), 1), 120).round().astype(int) - 1)] if len(line) else line
        )
        size = sizes[trial]
        label = None if size in shown else with_unit(size)
        shown.append(size)
        axes.plot(
            line["samples"], line["loss"], color=colours[distinct.index(size)], linewidth=1.0, alpha=0.9, label=label
        )
    rows = curves[curves["trial_id"].isin(chosen) & (curves["loss"] > 0)]
    _log_axis(axes, "x", float(rows["samples"].min()), float(rows["samples"].max()), with_unit)
    _log_axis(axes, "y", float(rows["loss"].min()), float(rows["loss"].quantile(0.995)), "{:.3g}".format)
    axes.legend(title="parameters", title_fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def floor_profile(fits: dict[str, Fit], *, title: str = "", order: Sequence[str] = ()) -> Figure:
    """How much worse the law fits with its floor held at a value; floors under the dashed line are not refused."""
    figure, axes = _figure(title, "floor held at (loss)", "F ratio against the best floor", height=3.8)
    for arm, fit in fits.items():
        if fit.profile is not None:
            kept = fit.profile.statistic < 4 * fit.profile.threshold
            colour = arm_colour(order or list(fits), arm)
            axes.plot(
                fit.profile.floors[kept], fit.profile.statistic[kept], "o-", markersize=3, color=colour, label=arm
            )
            axes.axhline(fit.profile.threshold, color=colour, linestyle="--", linewidth=0.9)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
