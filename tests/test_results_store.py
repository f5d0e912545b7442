"""The results folder survives anything: killed writers, damaged parts, repeated work, strangers' folders."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.results.schema import ATTEMPT, CURVE, MEASUREMENT, SCHEMA_VERSION
from orchestrator.results.store import (
    Store,
    read_attempts,
    read_curves,
    read_measurements,
    write_json,
)

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_VALUES = {pa.string(): "x", pa.int32(): 1, pa.int64(): 2, pa.float64(): 0.5, pa.timestamp("us", tz="UTC"): START}


def row_of(schema: pa.Schema, **columns: Any) -> dict[str, Any]:
    """A row with every column that must be filled, and nothing in those that need not."""
    row = {field.name: None if field.nullable else _VALUES[field.type] for field in schema}
    return {**row, **columns}


def measurement(trial_id: str = "t0", samples: int = 64, **columns: Any) -> dict[str, Any]:
    fixed = {"schema_version": SCHEMA_VERSION, "trial_id": trial_id, "samples": samples, "outcome": "ok"}
    return row_of(MEASUREMENT, **fixed, **columns)


def curve(trial_id: str = "t0", samples: int = 64, **columns: Any) -> dict[str, Any]:
    return row_of(CURVE, trial_id=trial_id, samples=samples, **columns)


def attempt(trial_id: str = "t0", number: int = 0, outcome: str = "completed") -> dict[str, Any]:
    return row_of(ATTEMPT, trial_id=trial_id, attempt=number, outcome=outcome)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_measurements_round_trip_with_their_types(store: Store) -> None:
    store.append_measurements([measurement(loss=0.25, created_at=START), measurement(samples=128)])
    table = read_measurements(store.folder)
    assert list(table.columns) == MEASUREMENT.names
    assert table["loss"].tolist()[0] == 0.25
    assert table["fid"].isna().all()
    assert table["fid"].dtype == "float64"
    assert table["created_at"].tolist() == [START, START]
    assert table["samples"].tolist() == [64, 128]


@pytest.mark.parametrize("reader", [read_measurements, read_curves, read_attempts])
@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_absent_folder_has_all_columns(tmp_path: Path, reader: Any, exists: bool) -> None:
    table = reader(tmp_path if exists else tmp_path / "absent")
    schema = {read_measurements: MEASUREMENT, read_curves: CURVE, read_attempts: ATTEMPT}[reader]
    assert list(table.columns) == schema.names
    assert len(table) == 0


def test_a_measurement_done_twice_counts_once_the_first_time(store: Store) -> None:
    later = START + timedelta(seconds=1)
    store.append_measurements([measurement(loss=2.0, attempt=1, created_at=later)])
    store.append_measurements([measurement(loss=1.0, attempt=0, created_at=START), measurement(samples=128)])
    store.append_measurements([measurement(loss=3.0, attempt=2, created_at=START)])
    table = read_measurements(store.folder)
    assert table[["samples", "attempt"]].values.tolist() == [[64, 0], [128, 1]]
    assert table["loss"].tolist()[0] == 1.0


def test_a_replayed_curve_point_is_the_latest_attempt_s(store: Store) -> None:
    store.append_curves([curve(samples=64, attempt=1, loss=0.5), curve(samples=96, attempt=1, loss=0.4)])
    store.append_curves([curve(samples=32, attempt=0, loss=0.7), curve(samples=64, attempt=0, loss=0.6)])
    table = read_curves(store.folder)
    assert table["samples"].tolist() == [32, 64, 96]
    assert table["loss"].tolist() == [0.7, 0.5, 0.4]


def test_an_attempt_reported_twice_is_its_last_report(store: Store) -> None:
    store.append_attempts([attempt(outcome="failed")])
    store.append_attempts([attempt(outcome="completed"), attempt(number=1)])
    assert read_attempts(store.folder)[["attempt", "outcome"]].values.tolist() == [[0, "completed"], [1, "completed"]]


def test_parts_are_listed_in_the_order_they_were_written(store: Store) -> None:
    written = [store.append_curves([curve(f"t{9 - index}")]) for index in range(5)]
    assert store.parts("curves") == written
    assert store.parts("attempts") == []
    assert store.append_curves([]) is None


def test_a_truncated_part_is_named_and_skipped(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    parts = [store.append_measurements([measurement(f"t{index}")]) for index in range(3)]
    assert parts[1] is not None
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        table = read_measurements(store.folder)
    assert table["trial_id"].tolist() == ["t0", "t2"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"skipped unreadable part {parts[1]}")


def test_an_older_part_lacks_columns_and_reads_as_null(store: Store) -> None:
    path = store.append_measurements([measurement()])
    assert path is not None
    older = pq.read_table(path).drop_columns(["fd_encoder"])
    pq.write_table(older, path.with_name("older.parquet"))
    path.unlink()
    table = read_measurements(store.folder)
    assert list(table.columns) == MEASUREMENT.names
    assert table["fd_encoder"].isna().all()


def test_plain_pandas_reads_the_folder_while_temporaries_lie_there(store: Store) -> None:
    store.append_measurements([measurement("t0")])
    store.append_measurements([measurement("t1")])
    (store.folder / "measurements" / ".tmp-1-2-x.parquet").write_bytes(b"PAR1 half a part")
    table = pd.read_parquet(store.folder / "measurements")
    assert sorted(table["trial_id"]) == ["t0", "t1"]
    assert list(table.columns) == MEASUREMENT.names
    assert len(store.parts("measurements")) == 2


def test_rows_with_wrong_columns_are_refused_and_nothing_is_written(store: Store) -> None:
    row = measurement()
    del row["loss"], row["seed"]
    with pytest.raises(ValueError, match="have unknown columns FID, lr and missing columns loss, seed; wanted exactly"):
        store.append_measurements([{**row, "lr": 1, "FID": 2}])
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sweep": None}, "column sweep of measurements is None; wanted string"),
        ({"batch_size": "many"}, "column batch_size of measurements does not hold int64"),
        ({"batch_size": 1.5}, "column batch_size of measurements does not hold int64"),
        ({"outcome": "fine"}, "column outcome of measurements is 'fine'; wanted one of ok, diverged"),
        ({"created_at": datetime(2026, 1, 1)}, "column created_at of measurements has no time zone; wanted UTC"),
        ({"trial_id": "../x"}, "trial_id '../x' cannot name a file"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(store: Store, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.append_measurements([{**measurement(), **columns}])
    assert not store.folder.exists()


WRITER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from test_results_store import Store, curve
store = Store(Path(sys.argv[1]))
n = 0
while True:
    store.append_curves([curve("t0", n + i) for i in range(200)])
    n += 200
"""


def test_a_killed_writer_leaves_whole_parts_only(store: Store) -> None:
    tests = Path(__file__).parent
    code = WRITER.format(tests=str(tests), root=str(tests.parent))
    for kill in range(3):
        before = len(store.parts("curves"))
        writer = subprocess.Popen([sys.executable, "-c", code, str(store.folder)])
        try:
            deadline = time.monotonic() + 60
            while len(store.parts("curves")) < before + 20:
                assert writer.poll() is None, "the writer died by itself"
                assert time.monotonic() < deadline
                time.sleep(0.003 * (kill + 1))
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(10)
    parts = store.parts("curves")
    assert all(pq.read_table(part).num_rows == 200 for part in parts)
    assert len(pd.read_parquet(store.folder / "curves")) == 200 * len(parts)


def test_a_folder_belongs_to_one_sweep(store: Store) -> None:
    store.claim("A", "digest1")
    store.claim("A", "digest2")
    assert json.loads((store.folder / "sweep.json").read_text()) == {"sweep": "A", "digest": "digest2"}
    with pytest.raises(ValueError, match=r"holds sweep 'A'; got 'B'\. Choose another --results, or"):
        store.claim("B", "digest1")


def test_results_without_their_owner_file_belong_to_the_sweep_they_measured(store: Store) -> None:
    store.append_measurements([measurement(sweep="A")])
    assert store.owner() == "A"
    with pytest.raises(ValueError, match="holds sweep 'A'; got 'B'"):
        store.claim("B", "d")


def test_a_damaged_owner_file_is_reported(store: Store) -> None:
    store.claim("A", "d")
    (store.folder / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep.json cannot be read .* Write the name of the sweep there"):
        store.claim("A", "d")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"is not a results folder: it holds thesis\.tex"):
        Store(tmp_path).claim("A", "d")
    with pytest.raises(ValueError, match="is not a results folder"), Store(tmp_path).lock():
        pass
    with pytest.raises(ValueError, match="is a file; wanted a folder"):
        Store(tmp_path / "thesis.tex").claim("A", "d")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_driver_at_a_time(store: Store) -> None:
    with store.lock():
        message = rf"is in use by process {os.getpid()} on .* choose another --results"
        with pytest.raises(ValueError, match=message), Store(store.folder).lock():
            pass
        store.claim("A", "d")
    with Store(store.folder).lock():
        pass


def test_json_is_whole_and_valid(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "plan.json", {"trials": [1.5, None]})
    assert json.loads((tmp_path / "new" / "plan.json").read_text()) == {"trials": [1.5, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "new" / "plan.json", {"loss": float("nan")})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


def test_rows_that_the_plan_does_not_ask_for_are_set_aside_and_names_are_the_plans(tmp_path: Path) -> None:
    from test_analysis_planted import write_results

    from orchestrator.results.store import read_planned

    folder = write_results(tmp_path / "results", diverge=False, rates=(1e-3,), sizes=("10K", "25K"))
    whole = read_measurements(folder)
    table, others = read_planned(folder)
    assert (len(table), others) == (len(whole), 0)
    plan = json.loads((folder / "plan.json").read_text())
    dropped = plan["trials"].pop()
    plan["trials"][0]["arm"] = "renamed"
    plan["trials"][1]["milestones"].pop()
    write_json(folder / "plan.json", plan)
    table, others = read_planned(folder)
    assert others == len(dropped["milestones"]) + 1
    assert dropped["trial_id"] not in set(table["trial_id"])
    assert set(table.loc[table["trial_id"] == plan["trials"][0]["trial_id"], "arm"]) == {"renamed"}
    (folder / "plan.json").unlink()
    assert len(read_planned(folder)[0]) == len(whole)
