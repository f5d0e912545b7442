"""Budgets, the best learning rate of each size, and the best run of each budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.laws import Array

SAME_BUDGET = 0.10
"""Runs whose FLOPs differ by less than this share of the next one belong to one budget."""


def budget_of(frame: pd.DataFrame) -> pd.Series:
    """The budget in FLOPs of each row: `budget_flops` where present, else runs clustered within 10% in log FLOPs.

    A cluster is named by its geometric mean. A chain of close runs that spans more than 30% is no budget: it gets NaN.
    """
    if "budget_flops" in frame and pd.to_numeric(frame["budget_flops"], errors="coerce").notna().all():
        return frame["budget_flops"].astype(float)
    logs = np.log(frame["flops"].to_numpy(dtype=float))
    order = np.argsort(logs, kind="stable")
    cluster = np.empty(len(logs), dtype=int)
    cluster[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > np.log1p(SAME_BUDGET))])[: len(logs)]
    grouped = pd.Series(logs, index=frame.index).groupby(cluster)
    centre = grouped.transform("mean").where(grouped.transform(lambda v: v.max() - v.min()) <= np.log(1.3))
    return pd.Series(np.exp(centre), index=frame.index)


@dataclass(frozen=True)
class Level:
    """What is alike in runs that are compared across sizes: their budget in FLOPs, or their samples."""

    column: Literal["flops", "samples"]
    value: float

    def among(self, frame: pd.DataFrame, within: float = 1e-3) -> pd.Series:
        """Which rows are at it; of FLOPs, within a share of them."""
        if self.column == "samples":
            return frame["samples"] == self.value
        return (budget_of(frame) / self.value - 1).abs() <= within


def common_level(frame: pd.DataFrame, of: str = "params") -> Level:
    """The largest budget; or, where budgets are samples, so that it is that of one size alone, the most samples that as
    many sizes as possible (told apart by the column `of`) have seen."""
    largest = Level("flops", float(budget_of(frame).max()))
    if "samples" not in frame:
        return largest
    sizes = frame.groupby("samples")[of].nunique()
    if not len(sizes) or sizes.max() <= frame.loc[largest.among(frame), of].nunique():
        return largest
    return Level("samples", float(sizes[sizes == sizes.max()].index.max()))


def is_isoflop(frame: pd.DataFrame) -> bool:
    """Whether most rows share a budget with runs of other sizes."""
    if "params" not in frame or "flops" not in frame or not len(frame):
        return False
    sizes = frame.assign(budget=budget_of(frame)).groupby("budget")["params"].transform("nunique")
    return bool((sizes.reindex(frame.index).fillna(0) >= 2).mean() > 0.5)


def best_learning_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at the learning rate with the lowest mean loss over seeds, for each arm, size and budget."""
    if "learning_rate" not in frame or "params" not in frame or not len(frame):
        return frame
    keys = [budget_of(frame).rename("budget"), frame["params"]]
    keys += [frame["arm"].astype(str)] if "arm" in frame else []
    mean = frame["loss"].groupby([*keys, frame["learning_rate"]], dropna=False).transform("mean")
    best = mean.groupby(keys, dropna=False).transform("min")
    return frame[mean <= best]


def sound_rates(frame: pd.DataFrame, diverged: pd.Series, params: str = "params") -> pd.Series:
    """Which rows a law may be fitted to: trained ones, at learning rates at which no seed diverged.

    A learning rate at which one seed of three survives would otherwise be chosen for its survivor. Where every learning
    rate of a size and budget has a diverged seed, the survivors count. `params` names the column of the sizes.
    """
    if "learning_rate" not in frame or params not in frame or not diverged.any():
        return ~diverged
    keys = [budget_of(frame).rename("budget"), frame[params]]
    keys += [frame["arm"].astype(str)] if "arm" in frame else []
    risky = diverged.groupby([*keys, frame["learning_rate"]], dropna=False).transform("any")
    hopeless = risky.groupby(keys, dropna=False).transform("all")
    return ~diverged & (~risky | hopeless)


def average_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for all seeds of a setting, with their mean loss: the best of several seeds is luck, not a model.

    A column `sd` is of the mean then.
    """
    keys = [name for name in ("arm", "params", "samples", "learning_rate") if name in frame]
    if "seed" not in frame or frame["seed"].nunique() < 2:
        return frame
    settings = frame.groupby(keys, dropna=False)
    averaged = {"loss": settings["loss"].transform("mean")}
    if "sd" in frame:
        variance = (frame["sd"] ** 2).groupby([frame[key] for key in keys], dropna=False)
        averaged["sd"] = np.sqrt(variance.transform("sum")) / variance.transform("size")
    return frame.assign(**averaged).drop_duplicates(keys)


def frontier(frame: pd.DataFrame) -> pd.DataFrame:
    """The best setting of each budget, seeds averaged; without budgets, those that no cheaper one beats; by FLOPs."""
    frame = average_seeds(frame)
    if is_isoflop(frame):
        keyed = frame.assign(budget=budget_of(frame))
        rows = keyed.dropna(subset="budget").groupby("budget")["loss"].idxmin()
        return frame.loc[rows].sort_values("flops")
    ordered = frame.sort_values(["flops", "loss"])
    lowest: Array = np.minimum.accumulate(ordered["loss"].to_numpy(dtype=float))
    return ordered[np.concatenate([[True], np.diff(lowest) < 0])[: len(ordered)]]


def with_sound_sizes(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """Without its samples where sizes or samples are not all positive, which is said.

    A law of compute needs neither; N* and D* need both.
    """
    sized = [name for name in ("params", "samples") if name in frame]
    bad = ~(frame[sized] > 0).all(axis=1)
    if len(sized) < 2 or not bad.any():
        return frame
    warnings.append(
        f"no N* and D*: {' or '.join(sized)} of {int(bad.sum())} rows are no positive numbers "
        f"(row {int(frame.loc[bad, 'row'].iloc[0])} first)"
    )
    return frame.drop(columns="samples")
