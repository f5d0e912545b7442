"""What earlier versions wrote is read as today's; what later ones write is refused, not guessed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_results_store import curve

from orchestrator.results import migration
from orchestrator.results.migration import migrate, version_of
from orchestrator.results.schema import ATTEMPT, CURVE, SCHEMA_VERSION, VERSION_KEY
from orchestrator.results.store import Store, read_attempts, read_curves, read_measurements

OLD = Path(__file__).parent / "data" / "results-v1"
"""Written by the first version of the store."""


def test_a_folder_of_version_1_is_read_as_it_was_meant() -> None:
    (part,) = (OLD / "measurements").iterdir()
    assert version_of(pq.read_schema(part)) == 1 < SCHEMA_VERSION
    attempts = read_attempts(OLD)
    assert attempts[["attempt", "outcome", "samples_end"]].values.tolist() == [[0, "failed", 48], [1, "completed", 64]]
    assert attempts["checkpoint_seconds"].isna().all()
    measured = read_measurements(OLD)
    assert measured[["schema_version", "loss", "flops_wasted"]].values.tolist() == [[1, 0.5, 160.0]]
    assert read_curves(OLD)["loss"].tolist() == [1 / 16, 1 / 32, 1 / 48, 1 / 64]
    assert Store(OLD).owner() == "old"


def test_old_and_new_parts_are_read_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (old,) = (OLD / "curves").iterdir()
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / old.name).write_bytes(old.read_bytes())
    store.append_curves([curve("t0", 64, attempt=1, loss=0.25), curve("t0", 80, attempt=1, loss=0.2)])
    table = read_curves(tmp_path)
    assert table["samples"].tolist() == [16, 32, 48, 64, 80]
    assert table["loss"].tolist()[-2:] == [0.25, 0.2]


def test_steps_apply_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "SCHEMA_VERSION", 3)
    table = pa.table({"trial_id": ["t"], "attempt": [0], "samples": [2], "kiloflops": [1.5], "wall_seconds": [0.0]})
    steps = {
        "curves": {
            1: lambda t: t.append_column("flops", pa.array([1000 * v.as_py() for v in t["kiloflops"]])),
            2: lambda t: t.append_column("learning_rate", pa.array([v.as_py() / 1500 for v in t["flops"]])),
        }
    }
    (row,) = migrate(table, "curves", 1, steps).to_pylist()
    assert (row["flops"], row["learning_rate"], row["loss"]) == (1500.0, 1.0, None)
    assert migrate(table, "curves", 1, steps).schema == CURVE


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.append_curves([curve()])
    assert isinstance(path, Path)
    table = pq.read_table(path).replace_schema_metadata({VERSION_KEY: b"99"})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=r"curves were written under schema version 99; this ditlaw reads"):
        read_curves(tmp_path)


def test_every_step_leads_to_todays_columns() -> None:
    assert (
        migrate(
            ATTEMPT.empty_table().drop_columns(["checkpoint_seconds", "waited_seconds", "compile_seconds"]),
            "attempts",
            1,
        ).schema
        == ATTEMPT
    )
