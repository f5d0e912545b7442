"""Diverged runs as what they are on an isoFLOP profile: sizes whose loss is worse than any that trained there."""

from __future__ import annotations

import pandas as pd

from analysis.frontier import budget_of
from analysis.isoflop import Minimum, fit_isoflop
from analysis.magnitudes import scientific, with_unit

NEEDED = ("params", "samples", "flops")


def lost_settings(frame: pd.DataFrame, diverged: pd.DataFrame) -> pd.DataFrame:
    """Diverged (budget, size) pairs that no run survived, one row each, with their `budget`."""
    if not len(diverged) or not set(NEEDED) <= set(diverged) or diverged[list(NEEDED)].isna().any(axis=None):
        return diverged.iloc[:0].assign(budget=pd.Series(dtype=float))
    both = pd.concat([frame.assign(lost=False), diverged.assign(lost=True)])
    both = both.assign(budget=budget_of(both)).dropna(subset="budget")
    survived = (~both["lost"]).groupby([both["budget"], both["params"]]).transform("any")
    return both[both["lost"] & ~survived].drop_duplicates(["budget", "params"])


def with_brackets(frame: pd.DataFrame, diverged: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `frame`, and where a budget's best size has only diverged sizes beyond it, the nearest of those.

    A diverged run has no loss, but an outcome: it is worse than every run that trained at its budget. Where the sizes
    that trained bracket the minimum it is not needed and stays out; where they do not, the nearest diverged size
    beyond the best one enters with the largest loss at its budget, which is the least that its outcome says. Each such
    row is told of.
    """
    lost = lost_settings(frame, diverged)
    if not len(lost):
        return frame, []
    keyed = frame.assign(budget=budget_of(frame))
    try:
        minima = fit_isoflop(keyed, num_resamples=0, min_budgets=1).minima
    except ValueError:
        return frame, []
    added, said = [], []
    for minimum in minima:
        row = None if minimum.bracketed else _bracket(minimum, keyed, lost)
        if row is not None:
            added.append(row)
            said.append(
                f"budget {scientific(minimum.flops)} FLOPs: the minimum is bracketed by a diverged run alone "
                f"({with_unit(row['params'])} parameters, entered at the worst loss there, {row['loss']:.4g}); "
                "its N* is no more than that size"
            )
    return (pd.concat([keyed, pd.DataFrame(added)], ignore_index=True) if added else frame), said


def _bracket(minimum: Minimum, keyed: pd.DataFrame, lost: pd.DataFrame) -> pd.Series | None:
    """The nearest diverged size beyond the best trained one, where that is the largest or the smallest."""
    trained = keyed[keyed["budget"] == minimum.flops]
    here = lost[(lost["budget"] / minimum.flops - 1).abs() < 0.05]
    means = trained.groupby("params")["loss"].mean()
    best = means.idxmin()
    above, below = here[here["params"] > means.index.max()], here[here["params"] < means.index.min()]
    if best == means.index.max() and len(above):
        row = above.loc[above["params"].idxmin()].copy()
    elif best == means.index.min() and len(below):
        row = below.loc[below["params"].idxmax()].copy()
    else:
        return None
    row["samples"] *= minimum.flops / row["flops"]
    row["flops"], row["budget"], row["loss"] = minimum.flops, minimum.flops, float(means.max())
    return row.drop("lost")
