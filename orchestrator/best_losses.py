"""The lowest losses of a sweep, by budget. Losses are told apart by their objective: those of different targets are no
measure of the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from orchestrator.results.location import Location
from orchestrator.results.parts import read_new

COLUMNS = ["trial_id", "arm", "size", "objective", "samples", "budget_flops", "loss", "outcome"]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The lowest loss of an arm at one budget; `loss` compares with those of the same `objective`."""

    arm: str
    objective: str
    budget_flops: float | None
    """None where the sweep asked for samples."""
    samples: int
    loss: float
    size: str
    trial_id: str

    @property
    def budget(self) -> float:
        """FLOPs, or else samples."""
        return self.budget_flops if self.budget_flops is not None else float(self.samples)


class BestLosses:
    """The lowest losses of a folder, kept up to date by reading each part of measurements once."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        """Names of the parts that have been read."""
        self._rows = pd.DataFrame(columns=COLUMNS)

    def read(self) -> list[Best]:
        """By budget, objective and arm, now. Raises OSError where the folder cannot be read; the next call makes up."""
        new = read_new(self._folder, "measurements", self._seen, COLUMNS)
        if new.parts:
            self._seen |= {part.name for part in new.parts}
            fresh = new.table.to_pandas()
            self._rows = pd.concat([self._rows, fresh]) if len(self._rows) else fresh
        return lowest(self._rows)


def lowest(rows: pd.DataFrame) -> list[Best]:
    """Of each budget, objective and arm, the cheapest budget first; where the sweep asked for samples, by those."""
    best: dict[tuple[float, str, str], Best] = {}
    records: list[Any] = rows[(rows["outcome"] == "ok") & rows["loss"].notna()].to_dict("records")
    for row in records:
        found = Best(
            arm=str(row["arm"]),
            objective=str(row["objective"]),
            budget_flops=None if pd.isna(row["budget_flops"]) else float(row["budget_flops"]),
            samples=int(row["samples"]),
            loss=float(row["loss"]),
            size=row["size"],
            trial_id=row["trial_id"],
        )
        key = found.budget, found.objective, found.arm
        if key not in best or found.loss < best[key].loss:
            best[key] = found
    return [best[key] for key in sorted(best)]


def leaders(best: Sequence[Best]) -> list[Best]:
    """The lowest loss of each objective at the largest budget that it was measured at, all arms together."""
    by_objective = sorted(best, key=lambda row: (row.objective, -row.budget, row.loss))
    return [next(rows) for _, rows in groupby(by_objective, key=lambda row: row.objective)]
