"""The figure of concept directions: how well a line tells the classes in a model's features, against compute."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.drawing import arm_colour, arm_mark, blank, log_axis, styled
from analysis.magnitudes import scientific


@styled
def concept_plot(rows: pd.DataFrame) -> Figure:
    """Separability against training FLOPs: an arm a colour and mark, the sizes of an arm the larger the heavier.

    Args:
        rows: columns arm, size, flops, mean (of the classes' areas under the ROC curve); rows of several seeds are
            averaged. Sizes come in the order of the rows.

    Raises:
        ValueError: there are no rows.
    """
    if not len(rows):
        raise ValueError("no rows to draw; wanted at least one trial")
    figure, axes = blank("A line that tells the classes", "training FLOPs", "mean area under the ROC curve")
    arms = list(dict.fromkeys(rows["arm"]))
    for arm in arms:
        mine = rows[rows["arm"] == arm]
        sizes = list(dict.fromkeys(mine["size"]))
        for place, size in enumerate(sizes):
            line = mine[mine["size"] == size].groupby("flops")["mean"].mean()
            weight = 0.8 + 1.4 * (place + 1) / len(sizes)
            axes.plot(
                line.index, line.to_numpy(), color=arm_colour(arms, arm), marker=arm_mark(arms, arm), linewidth=weight,
                markersize=2.5 + 1.5 * weight, label=f"{arm} {size}",
            )  # fmt: skip
    log_axis(axes, "x", float(rows["flops"].min()), float(rows["flops"].max()), scientific)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
