"""What the figures of `ditlaw bench evaluation` say: each protocol judged, the default chosen, the figure drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAITHFUL = 0.98
"""Least rank correlation with the right order of checkpoints."""
CHEAP = 0.05
"""Most of the training FLOPs of the largest budget."""

Row = Mapping[str, Any]


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a protocol and number of images, from those of `bench.evaluation.run`.

    rank_correlation: Spearman's with the right order, the mean over disjoint sets of images; lowest_correlation: of the
    worst set; loss_correlation: with the order of the validation losses; median_ratio: of distances to the right ones;
    noise_between_sets and noise_estimated: relative standard deviations, medians over checkpoints, of the distances of
    disjoint sets and as the delta method tells it from one; median_cost and largest_cost: beside the training FLOPs of
    the trial's largest budget. A checkpoint that was not sampled under every protocol, where the study was cut short,
    is left out.
    """
    sampled = Counter(_of(row) for row in rows)
    rows = [row for row in rows if sampled[_of(row)] == max(sampled.values())]
    right = {_of(row): row["by_images"][-1]["fd"][0] for row in rows if row["other_noise"]}
    candidates = [row for row in rows if not row["other_noise"]]
    table = []
    for key in dict.fromkeys((row["sampler"], row["steps"]) for row in candidates):
        own = [row for row in candidates if (row["sampler"], row["steps"]) == key]
        wanted = np.array([right[_of(row)] for row in own])
        for index, first in enumerate(own[0]["by_images"]):
            figures = [row["by_images"][index] for row in own]
            table.append({"sampler": key[0], "steps": key[1], **_judgement(own, figures, wanted, first["images"])})
    return table


def _judgement(own: Sequence[Row], figures: Sequence[Row], wanted: np.ndarray[Any, Any], images: int) -> dict[str, Any]:
    fd = np.array([figure["fd"] for figure in figures])  # [checkpoints, sets]
    ranks = _correlations(fd, wanted)
    losses = [row["loss"] for row in own]
    by_loss = [] if None in losses else _correlations(fd, np.array(losses))
    cost = [images * row["flops_per_image"] / row["training_flops"] for row in own]
    several = fd.shape[1] > 1
    return {
        "images": images,
        "checkpoints": len(own),
        "sets": fd.shape[1],
        "rank_correlation": float(np.mean(ranks)) if ranks else None,
        "lowest_correlation": min(ranks) if ranks else None,
        "loss_correlation": float(np.mean(by_loss)) if by_loss else None,
        "median_ratio": float(np.median(fd[:, 0] / wanted)),
        "noise_between_sets": float(np.median(fd.std(axis=1, ddof=1) / fd.mean(axis=1))) if several else None,
        "noise_estimated": float(np.median([figure["fd_sd"] / figure["fd"][0] for figure in figures])),
        "median_cost": float(np.median(cost)),
        "largest_cost": max(cost),
    }


def _correlations(fd: np.ndarray[Any, Any], order: np.ndarray[Any, Any]) -> list[float]:
    """Spearman's correlation of each set's distances [checkpoints, sets] with an order; none of two checkpoints."""
    return [float(spearmanr(one, order).statistic) for one in fd.T] if len(order) > 2 else []


def _of(row: Row) -> tuple[str, int]:
    return row["trial_id"], row["samples"]


def cheapest_faithful(table: Sequence[Row]) -> Row | None:
    """The cheapest protocol and number of images whose mean rank correlation is FAITHFUL and that is CHEAP for every
    checkpoint; None where there is none."""
    fit = [row for row in table if (row["rank_correlation"] or 0.0) >= FAITHFUL and row["largest_cost"] <= CHEAP]
    return min(fit, key=lambda row: row["median_cost"], default=None)


def draw(tables: Mapping[str, Sequence[Row]]) -> Figure:
    """Rank correlation and noise against cost, a row a data set, a line a protocol; points are numbers of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4 * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), 2, squeeze=False, sharex=True)
    for (ranks, noise), (title, table) in zip(panels, tables.items(), strict=True):
        for sampler, steps in dict.fromkeys((row["sampler"], row["steps"]) for row in table):
            own = [row for row in table if (row["sampler"], row["steps"]) == (sampler, steps)]
            style = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "label": f"{sampler} {steps}"}
            # As 1 - correlation, on a log scale: what matters lies between 0.9 and 1.
            wrong = [max(1 - (row["rank_correlation"] or 0.0), 1e-4) for row in own]
            ranks.plot([row["median_cost"] for row in own], wrong, **style)
            several = [row for row in own if row["noise_between_sets"] is not None]
            noise.plot([row["median_cost"] for row in several], [row["noise_between_sets"] for row in several], **style)
        ranks.axhline(1 - FAITHFUL, color="grey", linewidth=0.8, linestyle=":")
        for axes, label in ((ranks, "1 - rank correlation"), (noise, "relative noise of FD")):
            axes.axvline(CHEAP, color="grey", linewidth=0.8, linestyle=":")
            axes.set(xscale="log", yscale="log", ylabel=label)
            axes.set_title(title, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("cost / training FLOPs of the largest budget")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure
