"""A results folder on S3: the same rows, names and refusals as on a disk."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_results_store import attempt, curve, measurement

from orchestrator.cli import main
from orchestrator.results.checkpoints import checkpoint_folders, checkpoint_name, checkpoints_folder, has_checkpoint
from orchestrator.results.holdings import adopt_checkpoints, adopt_measurements, holdings
from orchestrator.results.location import ObjectPath, location
from orchestrator.results.logs import claim_attempt, claimed_attempts, writing_log
from orchestrator.results.store import Store, read_attempts, read_curves, read_measurements, write_json


@pytest.fixture
def store(s3: str) -> Store:
    return Store(location(f"{s3}/sweeps/one"))


def test_rows_round_trip_and_duplicates_drop(store: Store) -> None:
    assert len(read_measurements(store.folder)) == 0
    store.append_measurements([measurement(loss=0.5, attempt=0), measurement(samples=128)])
    store.append_measurements([measurement(loss=0.7, attempt=1)])
    store.append_curves([curve(samples=64), curve(samples=96)])
    store.append_attempts([attempt(outcome="running")])
    assert len(read_attempts(store.folder)) == 0
    store.append_attempts([attempt(outcome="stopped")])
    assert read_measurements(store.folder)[["samples", "attempt"]].values.tolist() == [[64, 0], [128, 1]]
    assert read_curves(store.folder)["samples"].tolist() == [64, 96]
    assert read_attempts(store.folder, running=True)["outcome"].tolist() == ["stopped"]
    assert len(store.parts("measurements")) == 2


def test_a_damaged_part_is_skipped_and_an_unreachable_one_is_not(store: Store, caplog, monkeypatch) -> None:
    parts = [store.append_measurements([measurement(f"t{index}")]) for index in range(3)]
    damaged = parts[1]
    assert isinstance(damaged, ObjectPath)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert read_measurements(store.folder)["trial_id"].tolist() == ["t0", "t2"]
    assert f"skipped unreadable part {damaged}" in caplog.text

    def unreachable(path: ObjectPath) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(ObjectPath, "read_bytes", unreachable)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        read_measurements(store.folder)


def test_a_folder_belongs_to_one_sweep_and_to_results_alone(store: Store, s3: str) -> None:
    store.claim("A", "digest")
    with pytest.raises(ValueError, match="holds sweep 'A'; got 'B'"):
        Store(store.folder).claim("B", "digest")
    write_json(location(f"{s3}/thesis/notes.json"), {})
    with pytest.raises(ValueError, match=r"is not a results folder: it holds notes\.json"):
        Store(location(f"{s3}/thesis")).check("A")
    with pytest.raises(ValueError, match="is a file; wanted a folder"):
        Store(location(f"{s3}/thesis/notes.json")).check("A")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://no-such-bucket/a", "results at s3://no-such-bucket/a cannot be written: .*NO_SUCH_BUCKET"),
        ("s3://bucket/../escape", "is not a place; wanted s3://BUCKET or s3://BUCKET/PREFIX"),
        ("nonsense://bucket/a", "nothing here opens nonsense://"),
    ],
)
def test_results_that_cannot_be_written_are_refused_before_anything_starts(s3, fashion_mnist, uri, message) -> None:
    refused = CliRunner().invoke(main, ["run", "sweeps/smoke.yaml", "--data", str(fashion_mnist), "--results", uri])
    assert refused.exit_code == 2, refused.output
    assert re.search(message, refused.output), refused.output
    assert "Traceback" not in refused.output


def test_attempts_are_claimed_once_and_their_logs_go_up_whole(store: Store) -> None:
    assert [claim_attempt(store.folder, "t0") for _ in range(3)] == [0, 1, 2]
    assert claimed_attempts(store.folder, "t1") == range(0)
    with writing_log(store.folder, "t0", 2) as path:
        path.write_text("a line")
    assert (store.folder / "logs" / "t0" / "2.log").read_text() == "a line"
    assert claimed_attempts(store.folder, "t0") == range(3)


def test_what_another_sweep_of_the_prefix_has_is_taken_over(store: Store, s3: str) -> None:
    other = Store(location(f"{s3}/sweeps/other"))
    other.append_measurements([measurement("t0", 64, loss=0.25)])
    write_json(other.folder / "plan.json", {"trials": [{"trial_id": "t0"}]})
    for samples in (32, 64):
        folder = checkpoints_folder(other.folder, "t0") / checkpoint_name(samples)
        (folder / "state.safetensors").write_bytes(b"state")
        if samples == 32:
            known = {"bytes": 5, "sha256": hashlib.sha256(b"state").hexdigest()}
            write_json(folder / "manifest.json", {"trial_id": "t0", "files": {"state.safetensors": known}})
    assert [int(f.name) for f in checkpoint_folders(other.folder, "t0")] == [32], "an upload without manifest is none"
    held = holdings(store.folder, ["t0", "t1"])
    assert (held.measured, held.checkpoints) == ({("t0", 64)}, {"t0": (32,), "t1": ()})
    assert adopt_measurements(store, [("t0", 64), ("t1", 64)]) == 1
    assert adopt_checkpoints(store, {"t0": [64]}) == 1
    assert read_measurements(store.folder)["loss"].tolist() == [0.25]
    assert has_checkpoint(store.folder, "t0", 32)
    assert not has_checkpoint(store.folder, "t0", 64)


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc", "..", ".hidden", "s3://bucket"])
def test_a_sweep_s_name_cannot_leave_the_results_folder(tmp_path: Path, name: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(Path("sweeps/smoke.yaml").read_text().replace("name: smoke", f"name: {name!r}"))
    refused = CliRunner().invoke(main, ["plan", str(spec)])
    assert refused.exit_code == 2
    assert "name" in refused.output
