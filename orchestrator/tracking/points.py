"""From rows of a results folder to what a tracking server shows: named values against samples seen, parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

EVAL_COLUMNS = (
    "loss", "loss_sd", "loss_train", "fid", "fd", "fd_sd", "fd_inf", "kid", "fd_per_frame", "warping_error",
    "warping_error_generated", "flops", "tokens", "wall_seconds", "gpu_hours", "flops_useful", "flops_wasted",
)  # fmt: skip
QUALITY_COLUMNS = ("loss", "fid", "fd")
TRAIN_COLUMNS = ("loss", "learning_rate", "samples_per_second", "flops")
COST_COLUMNS = ("wall_seconds", "train_seconds", "evaluation_seconds", "startup_seconds", "flops")


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970. A function of the row and the run only, so that a point shown twice is one point."""
    step: int
    """Samples seen."""


def curve_points(row: Mapping[str, Any], run_start: int) -> Iterator[Point]:
    """`train/*` of a row of curves; `run_start` in milliseconds since 1970 (a curve has no clock time of its own)."""
    timestamp = run_start + int(1000 * row["wall_seconds"])
    return _points(row, "train", TRAIN_COLUMNS, timestamp, row["samples"])


def measurement_points(row: Mapping[str, Any]) -> Iterator[Point]:
    """`eval/*` of a measurement against samples seen, and `eval_by_mflop/*` against 10^6 training FLOPs.

    MLflow counts steps in whole numbers of 64 bits, which 1e21 FLOPs would leave.
    """
    timestamp = milliseconds(row["created_at"])
    yield from _points(row, "eval", EVAL_COLUMNS, timestamp, row["samples"])
    yield from _points(row, "eval_by_mflop", QUALITY_COLUMNS, timestamp, round(row["flops"] / 1e6))


def attempt_points(row: Mapping[str, Any]) -> Iterator[Point]:
    """`spent/*` of an attempt: after `eval/*` in MLflow's alphabetical list of charts."""
    return _points(row, "spent", COST_COLUMNS, milliseconds(row["ended_at"]), row["samples_end"])


def milliseconds(moment: Any) -> int:
    """A datetime as milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Pieces of at most `size` items."""
    items = list(items)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and text; empty ones are left out."""
    out: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            out[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return out


def _points(row: Mapping[str, Any], group: str, columns: tuple[str, ...], timestamp: int, step: int) -> Iterator[Point]:
    for column in columns:
        value = row[column]
        # A NaN training loss is news (the trial diverges there); any other NaN is an absent value.
        if value is not None and (not math.isnan(value) or (group, column) == ("train", "loss")):
            yield Point(f"{group}/{column}", float(value), timestamp, int(step))
