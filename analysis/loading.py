"""Read a table of runs, ours or anybody's, into one frame with the columns that fits use."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.frontier import sound_rates
from orchestrator.results.store import read_planned

logger = logging.getLogger(__name__)

SCALE = ("params", "samples", "flops")
QUANTITIES = (*SCALE, "loss")

GUESSES: dict[str, tuple[str, ...]] = {
    "params": (
        "params",
        "params_backbone",
        "params_total",
        "parameters",
        "num_params",
        "n_params",
        "model_size",
        "n",
        "size",
    ),
    "samples": ("samples", "tokens", "samples_seen", "num_samples", "images", "num_tokens", "n_tokens", "d", "data"),
    "flops": ("flops", "training_flops", "training_flop", "train_flops", "compute", "flop", "c", "total_flops"),
    "loss": ("loss", "val_loss", "validation_loss", "eval_loss", "test_loss", "final_loss", "l", "fid"),
}
"""Names tried in turn (case aside) where a column is not given."""

CARRIED = ("trial_id", "budget_flops", "arm", "size", "learning_rate", "seed", "outcome", "reason")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to fit: `frame` has params, samples, flops (as far as known), loss, and our columns where present."""

    frame: pd.DataFrame
    ours: bool
    num_read: int
    num_diverged: int = 0
    warnings: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        return all(name in self.frame for name in names)


def read_rows(path: Path, warnings: list[str]) -> tuple[pd.DataFrame, bool]:
    """The rows of a results folder, a CSV or Parquet file, or a folder of them; and whether they are ours."""
    if not path.exists():
        raise ValueError(
            f"there is no table at {path}. Give a CSV or Parquet file, a folder of them, or a results folder."
        )
    if path.is_dir():
        home = path.parent if path.name == "measurements" else path
        if (home / "measurements").is_dir():
            planned, others = read_planned(home)
            if others:
                warnings.append(f"{_count(others, 'row')} not of the spec as it stands, and not used")
            return planned, True
        files = sorted(f for f in path.iterdir() if _kind(f))
        if not files:
            raise ValueError(f"{path} holds no CSV or Parquet file and no measurements/ folder.")
        frame = pd.concat([_read_file(file) for file in files], ignore_index=True)
    else:
        frame = _read_file(path)
    return frame, {"schema_version", "trial_id", "samples", "flops", "loss"} <= set(frame.columns)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz", ".tsv", ".txt")):
        return "csv"
    return "parquet" if name.endswith((".parquet", ".pq")) else None


def _read_file(path: Path) -> pd.DataFrame:
    try:
        if _kind(path) == "parquet":
            return pd.read_parquet(path)
        frame = pd.read_csv(path, sep="\t" if path.name.lower().endswith(".tsv") else ",", comment="#")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} could not be read as a table: {error}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def find_columns(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Which column holds each quantity: as given, else guessed. ValueError when a given one is not there."""
    present = [str(name) for name in frame.columns]
    found: dict[str, str] = {}
    for quantity, name in (columns or {}).items():
        if quantity not in QUANTITIES:
            nearest = difflib.get_close_matches(quantity, QUANTITIES, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"columns names {quantity!r}; the quantities are {', '.join(QUANTITIES)}.{hint}")
        if name not in present:
            raise ValueError(_no_column(f"column {name!r} (for {quantity})", name, present))
        found[quantity] = name
    lower = {name.lower(): name for name in reversed(present)}
    for quantity in QUANTITIES:
        if quantity not in found:
            match = next((lower[g] for g in GUESSES[quantity] if g in lower and _numeric(frame[lower[g]])), None)
            if match is not None and match not in found.values():
                found[quantity] = match
    return found


def _numeric(column: pd.Series) -> bool:
    """Whether at least one entry is a number: a column `size` of names is not the parameters."""
    return bool(pd.to_numeric(column, errors="coerce").notna().any())


def _no_column(what: str, name: str, present: list[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), [p.lower() for p in present], n=1, cutoff=0.5)
    hint = next((f" The nearest name is {p!r}." for p in present if nearest and p.lower() == nearest[0]), "")
    return f"the table has no {what}. It has: {', '.join(present) or 'no columns'}.{hint}"


def load_table(
    path: Path,
    wanted: tuple[str, ...],
    columns: Mapping[str, str] | None = None,
    arm: str | None = None,
) -> Table:
    """The rows at `path` that a fit can use, with `wanted` quantities (of params, samples, flops, loss) filled.

    Diverged and unmeasured rows and duplicates are counted in the warnings, not silently dropped. Raises ValueError
    for missing columns, for an unknown arm, and for values that are not positive numbers (with their rows).
    """
    warnings: list[str] = []
    raw, ours = read_rows(path, warnings)
    raw = raw.reset_index(drop=True)
    if arm is not None:
        raw = _select_arm(raw, arm)
    num_read = len(raw)
    raw = _drop_duplicates(raw, warnings)
    found = find_columns(raw, columns)
    derived = _to_derive(found, wanted, raw)
    raw, num_diverged = _set_aside(raw, found, ours, warnings)
    frame = pd.DataFrame(index=raw.index)
    for quantity, name in found.items():
        if quantity in wanted or quantity in SCALE:
            frame[quantity] = _positive(raw, name, path)
    if derived is not None:
        frame[derived] = _derive(frame, derived)
        first, second = (q for q in SCALE if q != derived)
        warnings.append(f"no column of {derived}: derived from {first} and {second} by flops = 6 params samples")
    for name in CARRIED:
        if name in raw and name not in frame:
            frame[name] = raw[name]
    _name_arms(frame, arm, warnings)
    return Table(frame=frame, ours=ours, num_read=num_read, num_diverged=num_diverged, warnings=warnings)


def _select_arm(raw: pd.DataFrame, arm: str) -> pd.DataFrame:
    if "arm" not in raw:
        raise ValueError(
            _no_column(f"column 'arm', so arm {arm!r} cannot be selected", "arm", list(map(str, raw.columns)))
        )
    arms = sorted(raw["arm"].dropna().astype(str).unique())
    if arm not in arms:
        raise ValueError(f"the table has no arm {arm!r}. Its arms: {', '.join(arms)}.")
    return raw[raw["arm"].astype(str) == arm].reset_index(drop=True)


def _drop_duplicates(raw: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    keys = ["trial_id", "samples"]
    known = set(keys) <= set(raw.columns)
    order = raw.sort_values("attempt", kind="stable") if known and "attempt" in raw else raw
    kept = (order.drop_duplicates(keys, keep="last") if known else raw.drop_duplicates()).sort_index()
    if len(kept) < len(raw):
        what = "same trial and samples" if known else "identical rows"
        warnings.append(f"{_count(len(raw) - len(kept), 'duplicate')} dropped ({what})")
    return kept


def _set_aside(
    raw: pd.DataFrame, found: Mapping[str, str], ours: bool, warnings: list[str]
) -> tuple[pd.DataFrame, int]:
    """Without diverged rows and, in ours, learning rates that diverged for a seed and rows that were not measured."""
    loss = found.get("loss")
    diverged = pd.Series(False, index=raw.index)
    if "outcome" in raw:
        diverged = raw["outcome"].astype(str).str.lower() == "diverged"
    if diverged.any():
        warnings.append(
            f"{_count(int(diverged.sum()), 'row')} of diverged trials not fitted: a law describes the runs that trained"
        )
    sound = sound_rates(raw, diverged, found.get("params", "params")) if ours else ~diverged
    risky = int((~diverged & ~sound).sum())
    if risky:
        warnings.append(f"{_count(risky, 'row')} at learning rates that diverged for another seed not fitted")
    kept = raw[sound]
    if ours and loss is not None:
        unmeasured = kept[loss].isna()
        if unmeasured.any():
            warnings.append(f"{_count(int(unmeasured.sum()), 'row')} without a {loss} not fitted")
            kept = kept[~unmeasured]
    return kept, int(diverged.sum())


def _to_derive(found: dict[str, str], wanted: tuple[str, ...], raw: pd.DataFrame) -> str | None:
    """The one of params, samples, flops that two others give; ValueError where a wanted column is beyond that."""
    lacking = [q for q in SCALE if q not in found]
    missing = [q for q in wanted if q not in found and lacking != [q]]
    if missing:
        text = " ".join(_not_found(q, raw) for q in missing)
        raise ValueError(f"{text} Say which it is with columns: {', '.join(f'{q}=NAME' for q in missing)}.")
    return lacking[0] if len(lacking) == 1 else None


def _not_found(quantity: str, raw: pd.DataFrame) -> str:
    """Why no column serves for a quantity: there is none of a known name, or it holds no numbers."""
    lower = {str(name).lower(): str(name) for name in raw.columns}
    for guess in GUESSES[quantity]:
        if guess in lower and len(raw):
            value = raw[lower[guess]].iloc[0]
            return f"column {lower[guess]!r} holds no numbers (first: {value}); wanted those of {quantity}."
    return _no_column(f"column for {quantity} (tried {', '.join(GUESSES[quantity])})", quantity, list(lower.values()))


def _derive(frame: pd.DataFrame, quantity: str) -> pd.Series:
    if quantity == "flops":
        return 6.0 * frame["params"] * frame["samples"]
    other = "samples" if quantity == "params" else "params"
    return frame["flops"] / (6.0 * frame[other])


def _positive(raw: pd.DataFrame, name: str, path: Path) -> pd.Series:
    values = pd.to_numeric(raw[name], errors="coerce").astype(float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        rows = [int(str(i)) + 1 for i in raw.index[bad]]
        shown = ", ".join(f"row {row} ({raw[name].loc[row - 1]})" for row in rows[:8])
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise ValueError(
            f"column {name!r} of {path} must hold positive finite numbers; got {shown}{more} "
            "(row 1 is the first after the header). Remove these rows, or mark them in a column outcome as diverged."
        )
    return values


def _name_arms(frame: pd.DataFrame, arm: str | None, warnings: list[str]) -> None:
    if arm is None and "arm" in frame and frame["arm"].nunique() > 1:
        names = ", ".join(sorted(frame["arm"].dropna().astype(str).unique()))
        warnings.append(f"several arms fitted together ({names}): select one, their laws need not be the same")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
