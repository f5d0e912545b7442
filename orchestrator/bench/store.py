"""`ditlaw bench store`: durable metric points a second into a results folder, beside MLflow's.

A metric point is one value of one metric at one step, as MLflow counts: a row of a training curve has four.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.results.compaction import compact
from orchestrator.results.parts import read_new
from orchestrator.results.store import Store, read_curves

METRICS = ("loss", "learning_rate", "samples_per_second", "flops")
"""The columns of a curve that are metrics; MLflow is fed the same."""
ROWS_PER_PART = 10_000
SMALL_PART = 250
"""Rows of a part that a worker writes every few seconds."""
MLFLOW_BATCH = 100


def run(parts: int = 40, mlflow_points: int = 10_000, repeats: int = 3, folder: Path = Path()) -> dict[str, Any]:
    """Write `parts` parts and read them back; then write `mlflow_points` points to MLflow in SQLite.

    Returns:
        points_per_s (rows as a worker has them, to Parquet that has been synced to the disk below `folder`; the median
        of `repeats`), points_per_cpu_s (what other processes take on a busy machine left out),
        small_parts_points_per_s (the same in parts of 250 rows), read_points_per_s, compact_seconds (of 40 small
        parts), mlflow_points_per_s and mlflow_points_per_cpu_s (batches of 100), and what they were measured with.
    """
    rows = _rows(ROWS_PER_PART)
    runs = [_write_and_read(rows, parts, folder) for _ in range(repeats)]
    figures: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-store-") as place:
        figures |= _mlflow(Path(place), rows, mlflow_points)
    return {
        **figures,
        "points": parts * ROWS_PER_PART * len(METRICS),
        "repeats": repeats,
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
    }


def _rows(number: int) -> list[dict[str, Any]]:
    """Points of one training curve."""
    return [
        {
            "trial_id": "0123456789abcdef",
            "attempt": 0,
            "samples": 64 * step,
            "flops": 1.5e9 * step,
            "loss": 1 / (1 + 0.01 * step),
            "learning_rate": 1e-3,
            "samples_per_second": 4000.0 + step % 7,
            "wall_seconds": 0.016 * step,
        }
        for step in range(1, number + 1)
    ]


def _write_and_read(rows: list[dict[str, Any]], parts: int, folder: Path) -> dict[str, float]:
    points = parts * len(rows) * len(METRICS)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-store-") as place:
        store = Store(Path(place) / "large")
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(parts):
            store.append_curves(rows)
        write_seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        small = Store(Path(place) / "small")
        began = time.perf_counter()
        for start in range(0, len(rows), SMALL_PART):
            small.append_curves(rows[start : start + SMALL_PART])
        small_seconds = time.perf_counter() - began
        began = time.perf_counter()
        assert len(read_new(store.folder, "curves").table) == parts * len(rows)
        read_seconds = time.perf_counter() - began
        began = time.perf_counter()
        compact(small.folder)
        compact_seconds = time.perf_counter() - began
        assert len(read_curves(small.folder)) == len(rows)
    return {
        "points_per_s": points / write_seconds,
        "points_per_cpu_s": points / cpu_seconds,
        "small_parts_points_per_s": len(rows) * len(METRICS) / small_seconds,
        "read_points_per_s": points / read_seconds,
        "compact_seconds": compact_seconds,
    }


def _mlflow(folder: Path, rows: list[dict[str, Any]], points: int) -> dict[str, float]:
    """Points a second, and a CPU second, of `log_batch` into a fresh SQLite database that is laid out before."""
    from mlflow.entities import Metric

    from orchestrator.tracking.mlflow_tracker import open_client

    client = open_client(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    experiment = client.create_experiment("bench", artifact_location=folder.absolute().as_uri())
    run_id = client.create_run(experiment).info.run_id
    metrics = [Metric(name, row[name], 0, row["samples"]) for row in rows for name in METRICS][:points]
    began, cpu_began = time.perf_counter(), time.process_time()
    for start in range(0, len(metrics), MLFLOW_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MLFLOW_BATCH])
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return {"mlflow_points_per_s": len(metrics) / seconds, "mlflow_points_per_cpu_s": len(metrics) / cpu_seconds}
