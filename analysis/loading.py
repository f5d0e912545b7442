"""Read a table of runs, ours or anybody's, into one frame with the columns that fits use."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.columns import (
    QUANTITIES,
    SCALE,
    find_columns,
    missing_columns,
    no_column,
    others_like,
    plain,
    without_numbers,
    without_unit,
)
from analysis.frontier import sound_rates
from analysis.magnitudes import numbers_of
from analysis.mixing import conditions_of, refuse_mixed
from analysis.reading import is_ours, read_rows
from orchestrator.results.location import Location, location

FLOPS_RULES = ("6ND", "none")
DEFAULT_FLOPS_RULE = "6ND"
"""How one missing of params, samples, flops is derived from the other two where the user names no rule."""

CARRIED: dict[str, tuple[str, ...]] = {
    "trial_id": ("trial_id", "run_id"),
    "budget_flops": ("budget_flops", "flops_budget", "compute_budget"),
    "arm": ("arm",),
    "size": ("size",),
    "width": ("width", "d_model", "hidden_size"),
    "learning_rate": ("learning_rate", "lr", "base_lr", "peak_lr"),
    "seed": ("seed", "random_seed"),
    "unique_samples": ("unique_samples", "unique_tokens"),
    "outcome": ("outcome", "status"),
    "reason": ("reason",),
}
"""Further columns that fits use, and the names they go by."""

DIVERGED = frozenset({"diverged", "divergence", "exploded", "nan"})
CENSORED = frozenset({"stopped", "early_stopped", "stopped_early", "censored", "unreached", "killed", "timeout"})
"""Outcomes of runs that diverged, and of runs that ended before their budget with a loss measured on the way."""

LEAST_COST = 0.05
"""FLOPs for each parameter and sample below which the unit of FLOPs is doubted: a dense model spends 6 on a token."""

MOST_COST = 1e9
"""The same above which it is doubted: of a video of a million tokens a sample costs some 6e6."""

WIDEST = {"params": 1e6, "samples": 1e6, "flops": 1e12, "loss": 1e3}
"""Largest over smallest value of a quantity beyond which its unit is doubted."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Runs as read: `frame` has params, samples, flops (as far as known) and loss, and our columns where present.

    `frame["loss"]` is the quantity that is fitted (`quantity`: loss, fid or fd). `frame["row"]` counts the table's rows
    from 1, the header aside. Rows of `diverged` have no loss; `frame["censored"]` marks runs that ended early.
    """

    source: str
    frame: pd.DataFrame
    raw: pd.DataFrame = field(repr=False)
    """The table as it stands in the file."""
    ours: bool
    columns: dict[str, str]
    """Which column each quantity was read from."""
    quantity: str = "loss"
    derived: str | None = None
    """The one of params, samples, flops that the others gave by flops = 6 params samples."""
    diverged: pd.DataFrame = field(default_factory=pd.DataFrame)
    force: bool = False
    warnings: list[str] = field(default_factory=list)

    def rows(self, *wanted: str) -> tuple[pd.DataFrame, list[str]]:
        """The rows with positive finite `wanted`, and what is to be said of them.

        Raises:
            ValueError: a wanted column is missing, or holds values that are not positive numbers, with their rows
                (with `force` such rows are left out, and that is said).
        """
        missing = [q for q in wanted if q not in self.frame]
        if missing:
            raise ValueError(self._missing(missing))
        sources = [q for q in SCALE if q != self.derived] if self.derived in wanted else []
        sources += ["sd"] if "sd" in self.frame else []
        frame, said = self.frame, []
        for name in dict.fromkeys([*sources, *wanted]):
            bad = ~(np.isfinite(frame[name]) & (frame[name] > 0))
            if bad.any() and name != self.derived:
                said.append(self._bad_values(name, frame.loc[bad, ["row", name]]))
                frame = frame[~bad]
        if not len(frame):
            raise ValueError(
                f"{self.source} has no rows to fit: {'; '.join([*self.warnings, *said]) or 'it is empty'}."
            )
        return frame, said + _doubts(frame, wanted)

    def _missing(self, missing: list[str]) -> str:
        text = missing_columns(missing, self.quantity, self.raw, self.columns)
        if len(missing) == 1 and missing[0] in SCALE and sum(q in self.frame for q in SCALE) == 2:
            return f"{text} To derive it by flops = 6 params samples, say so with --flops-rule 6ND."
        return text

    def _bad_values(self, name: str, bad: pd.DataFrame) -> str:
        column = self.columns.get(name, name)
        shown = ", ".join(f"row {row} ({self.raw[column].iloc[row - 1]})" for row in bad["row"].head(8))
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        if self.force:
            return f"forced: {_count(len(bad), 'row')} without a positive {column} left out: {shown}{more}"
        raise ValueError(
            f"column {column!r} of {self.source} must hold positive finite numbers; got {shown}{more} "
            "(row 1 is the first after the header). Remove these rows, mark them in a column outcome as diverged, "
            "or leave them out with --force."
        )

    def only(self, arm: str) -> Table:
        """The rows of one arm. ValueError where there is none of that name."""
        arms = self.arms
        if arm not in arms:
            raise ValueError(f"the table has no arm {arm!r}. Its arms: {', '.join(arms) or 'none (no column arm)'}.")
        kept = self.frame[self.frame["arm"].astype(str) == arm]
        lost = self.diverged[self.diverged["arm"].astype(str) == arm] if len(self.diverged) else self.diverged
        return replace(self, frame=kept, diverged=lost)

    @property
    def arms(self) -> list[str]:
        every = pd.concat([f["arm"] for f in (self.frame, self.diverged) if "arm" in f] or [pd.Series(dtype=object)])
        return sorted(every.dropna().astype(str).unique())

    def _repr_html_(self) -> str:
        shown = [name for name in ("row", *QUANTITIES, "arm", "outcome") if name in self.frame]
        said = "".join(f"<li>{html.escape(text)}</li>" for text in self.warnings)
        return f"<p>{html.escape(repr(self))}</p><ul>{said}</ul>{self.frame[shown].head().to_html(index=False)}"

    def __repr__(self) -> str:
        return (
            f"Table({self.source}: {_count(len(self.frame), 'row')}, "
            f"{', '.join(f'{q} from {c!r}' for q, c in self.columns.items())})"
        )


def load_table(
    source: Location | str | pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    arm: str | None = None,
    *,
    quantity: str | None = None,
    flops_rule: str | None = None,
    force: bool = False,
) -> Table:
    """The runs in a CSV, JSON or Parquet file or folder, a results folder, or a frame.

    `columns` says which column holds params, samples, flops, loss (guessed by name where absent), and sd, the standard
    deviation of each loss (none where absent). `quantity` is what `loss` means: loss, fid or fd (default: the first
    that is there). `flops_rule` 6ND derives a missing one of params, samples, flops from the other two, `none` forbids
    it. `force` fits rows together that no one law describes.

    Diverged rows, rows without a measurement and duplicates are counted in the warnings, not silently dropped.

    Raises:
        ValueError: nothing can be read, or rows mix what does not belong together; says what was found and the remedy.
    """
    warnings: list[str] = []
    raw, ours, name = _raw(source, warnings)
    if flops_rule is not None and flops_rule not in FLOPS_RULES:
        raise ValueError(f"there is no FLOPs rule {flops_rule!r}; the rules are {', '.join(FLOPS_RULES)}.")
    if not len(raw):
        raise ValueError(f"{name} has no rows to fit: it has column names and nothing below them.")
    found, quantity = find_columns(raw, columns, quantity)
    everything = _filled(raw.assign(**{"row number": np.arange(1, len(raw) + 1)}), raw, warnings)
    if arm is not None:
        everything = _select_arm(everything, arm)
    everything = _drop_duplicates(everything, found.get("loss"), warnings)
    frame = _frame(everything, found, warnings)
    if not ours:
        warnings += others_like(found, raw, quantity)
    derived = _derive(frame, raw, flops_rule, warnings) if not ours else None
    frame, diverged = _outcomes(frame, ours, warnings)
    conditions = conditions_of(everything.loc[frame.index])
    warnings += refuse_mixed(conditions, quantity, force)
    if arm is None and "arm" in frame and frame["arm"].nunique() > 1:
        names = ", ".join(sorted(frame["arm"].dropna().astype(str).unique()))
        warnings.append(f"several arms fitted together ({names}): select one, their laws need not be the same")
    return Table(
        source=name,
        frame=frame,
        raw=raw,
        ours=ours,
        columns=found,
        quantity=quantity,
        derived=derived,
        diverged=diverged,
        force=force,
        warnings=warnings,
    )


def _raw(source: Location | str | pd.DataFrame, warnings: list[str]) -> tuple[pd.DataFrame, bool, str]:
    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True).rename(columns=str)
        return frame, is_ours(frame), "the frame"
    raw, ours = read_rows(location(source), warnings)
    return raw.reset_index(drop=True), ours, str(source)


def _frame(raw: pd.DataFrame, found: Mapping[str, str], warnings: list[str]) -> pd.DataFrame:
    """The columns that fits use, in their own names, as numbers; NaN where an entry is none."""
    frame = pd.DataFrame({"row": raw["row number"].to_numpy(dtype=int)}, index=raw.index)
    for quantity, name in found.items():
        values, example = numbers_of(raw[name])
        scale = without_unit(name)[1]
        if example is not None:
            first = values[raw[name].astype(str) == example].iloc[0]
            warnings.append(f"column {name!r} holds units or signs: {example!r} read as {first:.6g}")
        if scale != 1.0:
            warnings.append(f"column {name!r} read in units of {scale:.6g}, by its name")
        frame[quantity] = values * scale
    columns = {plain(str(name)): name for name in raw.columns if name not in found.values()}
    for carried, names in CARRIED.items():
        column = next((columns[n] for n in names if n in columns), None)
        if column is not None and raw[column].notna().any():
            numeric = carried in ("budget_flops", "learning_rate", "width", "unique_samples")
            frame[carried] = numbers_of(raw[column])[0] if numeric else raw[column]
    return frame


def _select_arm(raw: pd.DataFrame, arm: str) -> pd.DataFrame:
    if "arm" not in raw:
        present = [name for name in map(str, raw.columns) if name != "row number"]
        raise ValueError(no_column(f"column 'arm', so arm {arm!r} cannot be selected", ("arm",), present))
    arms = sorted(raw["arm"].dropna().astype(str).unique())
    if arm not in arms:
        raise ValueError(f"the table has no arm {arm!r}. Its arms: {', '.join(arms)}.")
    return raw[raw["arm"].astype(str) == arm]


def _filled(everything: pd.DataFrame, raw: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """The rows that hold anything: spreadsheets leave empty ones below a table."""
    empty = raw.isna().all(axis=1)
    if not empty.any():
        return everything
    warnings.append(f"{_count(int(empty.sum()), 'empty row')} left out")
    return everything[~empty]


def _drop_duplicates(raw: pd.DataFrame, loss: str | None, warnings: list[str]) -> pd.DataFrame:
    keys = ["trial_id", "samples"]
    known = set(keys) <= set(raw.columns)
    if known:
        order = raw.sort_values("attempt", kind="stable") if "attempt" in raw else raw
        kept = order.drop_duplicates(keys, keep="last").sort_index()
    else:
        kept = raw[~_comparable(raw.drop(columns="row number")).duplicated()]
    if len(kept) < len(raw):
        what = "same trial and samples" if known else "identical rows"
        others = int((raw.groupby(keys, dropna=False)[loss].nunique() > 1).sum()) if known and loss is not None else 0
        if others and "attempt" not in raw:
            what += f"; {others} of them measured twice with different {loss}: the last row counts"
        warnings.append(f"{_count(len(raw) - len(kept), 'duplicate')} dropped ({what})")
    return kept


def _comparable(data: pd.DataFrame) -> pd.DataFrame:
    """The table with lists and maps within its cells as text: rows are compared by what they hold."""
    objects = data.select_dtypes("object")
    has_inside = objects.map(lambda cell: isinstance(cell, list | dict | np.ndarray)).any()
    nested = list(has_inside.index[has_inside])
    return data.astype(dict.fromkeys(nested, str))


def _derive(frame: pd.DataFrame, raw: pd.DataFrame, rule: str | None, warnings: list[str]) -> str | None:
    """Fill the one of params, samples, flops that the table lacks, by flops = 6 params samples; its name.

    One that is there and cannot be read is not lacking.
    """
    lacking = [q for q in SCALE if q not in frame]
    if len(lacking) != 1 or (rule or DEFAULT_FLOPS_RULE) == "none" or without_numbers(lacking[0], "loss", raw):
        return None
    quantity = lacking[0]
    first, second = (q for q in SCALE if q != quantity)
    with np.errstate(divide="ignore", invalid="ignore"):
        if quantity == "flops":
            frame["flops"] = 6.0 * frame["params"] * frame["samples"]
        else:
            frame[quantity] = frame["flops"] / (6.0 * frame["samples" if quantity == "params" else "params"])
    text = f"no column of {quantity}: derived from {first} and {second} by flops = 6 params samples"
    if rule is None:
        text += (
            ", the default rule (--flops-rule none refuses; it does not hold for a DiT, nor for samples of many tokens)"
        )
    warnings.append(text)
    return quantity


def _outcomes(frame: pd.DataFrame, ours: bool, warnings: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measured rows, with `censored`, and the diverged ones; what is set aside is said."""
    words = frame["outcome"].astype(str).str.lower() if "outcome" in frame else pd.Series("ok", index=frame.index)
    diverged, stopped = words.isin(DIVERGED), words.isin(CENSORED)
    short = pd.Series(False, index=frame.index)
    if {"budget_flops", "flops"} <= set(frame):
        short = frame["flops"] < 0.9 * frame["budget_flops"]
    frame = frame.assign(censored=(stopped | short) & ~diverged)
    if diverged.any():
        warnings.append(
            f"{_count(int(diverged.sum()), 'row')} of diverged trials not fitted: a law describes the runs that trained"
        )
    usable = {"flops", "params", "loss"} <= set(frame) and frame.loc[diverged, ["flops", "params"]].notna().all(
        axis=None
    )
    sound = sound_rates(frame, diverged) if usable else ~diverged
    risky = int((~diverged & ~sound).sum())
    if risky:
        warnings.append(f"{_count(risky, 'row')} at learning rates that diverged for another seed not fitted")
    kept = frame[sound]
    if (ours or stopped.any()) and "loss" in frame:
        unmeasured = kept["loss"].isna() & (ours | kept["censored"])
        if unmeasured.any():
            warnings.append(f"{_count(int(unmeasured.sum()), 'row')} without a measurement not fitted")
            kept = kept[~unmeasured]
    return kept, frame[diverged]


def _doubts(frame: pd.DataFrame, wanted: tuple[str, ...]) -> list[str]:
    """Signs that a column mixes units, in words."""
    said = []
    rows = frame["row"].to_numpy()
    for name in wanted:
        values = frame[name].to_numpy(dtype=float)
        low, high = int(values.argmin()), int(values.argmax())
        if values[high] > WIDEST.get(name, np.inf) * values[low]:
            said.append(
                f"{name} spans a factor of {values[high] / values[low]:.1e} ({values[low]:.3g} in row {rows[low]}, "
                f"{values[high]:.3g} in row {rows[high]}): are all rows in the same unit?"
            )
    if set(SCALE) <= set(frame):
        N, D, C = (frame[name].to_numpy(dtype=float) for name in SCALE)
        cost = np.where((N > 0) & (D > 0) & (C > 0), C / np.where((N > 0) & (D > 0), N * D, 1.0), np.nan)
        if np.isfinite(cost).all() and cost.max() > 30 * cost.min():
            low, high = int(cost.argmin()), int(cost.argmax())
            said.append(
                f"flops / (params samples) runs from {cost[low]:.3g} (row {rows[low]}) to {cost[high]:.3g} "
                f"(row {rows[high]}): are all rows in the same units?"
            )
        if np.isfinite(cost).all() and np.median(cost) < LEAST_COST:
            said.append(
                f"flops are {np.median(cost):.1e} times params samples, less than any model spends: is flops in FLOPs?"
            )
        if np.isfinite(cost).all() and np.median(cost) > MOST_COST:
            said.append(
                f"flops are {np.median(cost):.1e} times params samples, more than any model spends: are all three in "
                "plain units?"
            )
        for name, values in (("params", N), ("samples", D)):
            if name in wanted and (values < 1).any():
                said.append(f"{name} falls below 1 (row {rows[int(values.argmin())]}): is flops in FLOPs?")
    return said


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
