"""Whether a sweep that was disturbed gives what an undisturbed one gives, and what the faults have cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.faults.points import Trace
from orchestrator.planning.plan import Plan
from orchestrator.results.parts import parts_of, read_parts
from orchestrator.results.schema import MEASUREMENT

HOW = (
    "attempt", "mlflow_run_id", "wall_seconds", "gpu_hours", "flops_wasted", "created_at",
)  # fmt: skip
"""Columns that say how a measurement came about; all others are data, and the same however the sweep was run."""
DATA = [name for name in MEASUREMENT.names if name not in HOW]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What faults have cost, in samples and FLOPs of training that was done again."""

    flops_useful: float
    flops_wasted: float
    worst_steps: int
    """Most steps that one attempt lost: those since its last checkpoint."""
    worst_seconds: float
    """Longest that an attempt had trained without saving, before its last step."""

    @property
    def share(self) -> float:
        """Of what was spent."""
        return self.flops_wasted / (self.flops_useful + self.flops_wasted)


def table(folder: Path) -> pd.DataFrame:
    """Every measurement as it was written, duplicates included, in a fixed order."""
    rows = read_parts(parts_of(folder, "measurements"), "measurements").to_pandas()
    return rows.sort_values(["trial_id", "samples", "created_at"]).reset_index(drop=True)


def problems(disturbed: Path, undisturbed: Path) -> list[str]:
    """How the measurements differ in data, and which are there more than once; empty where nothing is wrong."""
    got, wanted = table(disturbed), table(undisturbed)
    keys = ["trial_id", "samples"]
    found = [
        f"{trial_id} is measured {count} times at {samples} samples"
        for (trial_id, samples), count in Counter(zip(got["trial_id"], got["samples"], strict=True)).items()
        if count != 1
    ]
    missing = set(map(tuple, wanted[keys].to_numpy())) ^ set(map(tuple, got[keys].to_numpy()))
    found += [f"{trial_id} at {samples} samples is in one of them only" for trial_id, samples in sorted(missing)]
    if not found:
        found += [
            f"column {name} differs in {count} of {len(wanted)} rows"
            for name in DATA
            if (count := sum(_bits(a) != _bits(b) for a, b in zip(got[name], wanted[name], strict=True)))
        ]
    return found


def cost(plan: Plan, traces: Iterable[Trace]) -> Cost:
    """What the ledger of a run says of the training that was done again."""
    trials = {trial.trial_id: trial for trial in plan.trials}
    traces = [trace for trace in traces if trace.trial_id in trials]
    spent = sum((t.reached - t.start) * trials[t.trial_id].flops_per_sample for t in traces)
    useful = sum(trial.flops for trial in plan.trials)
    steps = [(t.reached - t.saved) // trials[t.trial_id].batch_size for t in traces]
    seconds = max((trace.unsaved_seconds for trace in traces), default=0.0)
    return Cost(
        flops_useful=useful, flops_wasted=spent - useful, worst_steps=max(steps, default=0), worst_seconds=seconds
    )


def forgotten(traces: Iterable[Trace], excused: Collection[str] = ()) -> list[str]:
    """Attempts that began before a checkpoint of an earlier one: more was lost than one interval.

    `excused` are trials of which a checkpoint was damaged.
    """
    by_trial: dict[str, list[Trace]] = {}
    for trace in sorted(traces):
        by_trial.setdefault(trace.trial_id, []).append(trace)
    return [
        f"attempt {after.attempt} of {trial_id} began at {after.start} samples, though one was saved at {before.saved}"
        for trial_id, attempts in by_trial.items()
        for before, after in pairwise(attempts)
        if after.start < before.saved and trial_id not in excused
    ]


def unsaved(traces: Iterable[Trace], checkpoint_seconds: float) -> list[str]:
    """Attempts that went without a checkpoint for longer than the interval, and one step: more could be lost."""
    return [
        f"attempt {trace.attempt} of {trace.trial_id} trained {trace.unsaved_seconds:.2f} s without saving, and one "
        f"more step; wanted a checkpoint every {checkpoint_seconds:g} s"
        for trace in traces
        if trace.unsaved_seconds > checkpoint_seconds
    ]


def _bits(value: object) -> object:
    """For comparison to the last bit; all kinds of "nothing" are one."""
    if value is None or value is pd.NaT or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, np.ndarray):
        return tuple(_bits(item) for item in value.tolist())
    return value.hex() if isinstance(value, float) else value
