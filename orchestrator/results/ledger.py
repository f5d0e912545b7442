"""Where the training compute of a sweep went, trial by trial, from its attempts and measurements alone.

Every sample that an attempt trained is in exactly one of four accounts, so that they add up to what was spent:

    useful     trained for the first time, up to the trial's last measurement (of a diverged trial: all of it)
    replayed   trained before by another attempt: what a fault cost that lost the way since the last checkpoint
    failed     trained past the last measurement by attempts that failed; where a later attempt goes on from their
               checkpoints, it becomes useful, and where it trains the same again, that is replayed
    pending    the same, by attempts that were stopped or are running, and that wait to go on

`shared` was never spent: one training a measurement would have cost so much more than what was useful, because budgets
of one trial are prefixes of each other, cooldowns begin on a trunk, and other sweeps had trained some of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import pandas as pd

from orchestrator.results.location import Location
from orchestrator.results.schema import RUNNING
from orchestrator.results.store import read_attempts, read_measurements

ACCOUNTS = ("flops_useful", "flops_replayed", "flops_failed", "flops_pending")
COLUMNS = ("trial_id", "flops_spent", *ACCOUNTS, "flops_shared")

Span = tuple[int, int]


def read_ledger(folder: Location) -> pd.DataFrame:
    """The ledger of a results folder, one row a trial. After a killed driver it lacks at most what its attempts did
    since their last curve point or checkpoint, and that only until the next run has entered them.
    """
    return ledger(read_attempts(folder, running=True), read_measurements(folder))


def ledger(attempts: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, training FLOPs in the columns COLUMNS; `flops_spent` is the sum of the four accounts.

    Args:
        attempts: as `read_attempts` gives them.
        measurements: as `read_measurements` gives them.
    """
    attempted = _by_trial(_Attempted, attempts.sort_values("attempt"))
    measured = _by_trial(_Measured, measurements)
    trials = sorted({*attempted, *measured})
    rows = [_trial(trial, attempted.get(trial, []), measured.get(trial, [])) for trial in trials]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Attempted(NamedTuple):
    """What the ledger asks of an attempt; fields are columns."""

    samples_start: int
    samples_end: int
    outcome: str
    flops: float


class _Measured(NamedTuple):
    """What the ledger asks of a measurement; fields are columns."""

    samples: int
    outcome: str
    flops: float


Row = TypeVar("Row", _Attempted, _Measured)


def _by_trial(kind: type[Row], table: pd.DataFrame) -> dict[str, list[Row]]:
    """The rows of each trial, in the order of the table: pandas takes seconds to group thousands of trials."""
    found: dict[str, list[Row]] = defaultdict(list)
    columns = (table[name].tolist() for name in kind._fields)
    for trial, *values in zip(table["trial_id"].tolist(), *columns, strict=True):
        found[trial].append(kind(*values))
    return found


def _trial(trial_id: str, attempts: Sequence[_Attempted], measured: Sequence[_Measured]) -> dict[str, str | float]:
    flops = _flops_per_sample(attempts, measured)
    num_diverged = sum(row.outcome == "diverged" for row in measured)
    ok = [int(row.samples) for row in measured if row.outcome == "ok"]
    reached = max(ok, default=0)
    known: list[Span] = []
    samples = dict.fromkeys(("useful", "replayed", "failed", "pending"), 0)
    for attempt in attempts:
        span, outcome = (int(attempt.samples_start), int(attempt.samples_end)), attempt.outcome
        fresh = _subtract(span, known)
        new = sum(end - start for start, end in fresh)
        useful = new if num_diverged else sum(max(0, min(end, reached) - start) for start, end in fresh)
        samples["replayed"] += span[1] - span[0] - new
        samples["useful"] += useful
        samples["pending" if outcome in ("stopped", "completed", RUNNING) else "failed"] += new - useful
        known = _union([*known, span])
    separate = sum(ok)
    if num_diverged:  # its cells asked for no more than the way to where it diverged
        last = max((end for _, end in known), default=0)
        separate += last * num_diverged
    return {
        "trial_id": trial_id,
        "flops_spent": sum(samples.values()) * flops,
        **{f"flops_{account}": count * flops for account, count in samples.items()},
        "flops_shared": max(0, separate - samples["useful"]) * flops,
    }


def _flops_per_sample(attempts: Sequence[_Attempted], measured: Sequence[_Measured]) -> float:
    """What one sample costs; all rows of a trial say the same."""
    if measured:
        return measured[0].flops / measured[0].samples
    told = [row for row in attempts if row.samples_end > row.samples_start]
    return told[0].flops / (told[0].samples_end - told[0].samples_start) if told else 0.0


def _subtract(span: Span, known: Sequence[Span]) -> list[Span]:
    """The parts of a span outside of sorted, disjoint ones."""
    start, end = span
    parts = []
    for low, high in known:
        if high <= start or low >= end:
            continue
        if start < low:
            parts.append((start, low))
        start = max(start, high)
    return [*parts, (start, end)] if start < end else parts


def _union(spans: Iterable[Span]) -> list[Span]:
    """Sorted and disjoint."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
