"""MLflow as a view: complete, single, and harmless when it is not there."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.results.atomic import write_bytes
from orchestrator.results.compaction import compact
from orchestrator.results.location import location
from orchestrator.results.schema import MEASUREMENT, SCHEMA_VERSION
from orchestrator.results.store import Store, write_json
from orchestrator.tracking import mlflow_tracker
from orchestrator.tracking.address import default_tracking_uri
from orchestrator.tracking.mlflow_tracker import MlflowTracker, open_client, sync

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ABSENT = "http://127.0.0.1:9"
PLAN: dict[str, Any] = {
    "sweep": "tiny",
    "dataset": "procedural-16",
    "dataset_digest": "0123456789abcdef",
    "num_trials": 2,
    "trials": [
        {"trial_id": "aaaa", "arm": "sp", "size": "S", "milestones": [64], "optimizer": {"learning_rate": 1e-3}},
        {"trial_id": "bbbb", "arm": "mup", "size": "S", "milestones": [64], "optimizer": {"learning_rate": 1e-3}},
    ],
}


def measurement(trial_id: str, samples: int, **columns: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(MEASUREMENT.names)
    text = "sweep cell_id arm family size parameterization objective flops_definition precision"
    row |= dict.fromkeys(text.split(), "x")
    whole = "batch_size seed params_total params_backbone tokens zero_stage num_workers attempt"
    row |= dict.fromkeys(whole.split(), 1)
    real = "learning_rate params_matmul flops wall_seconds gpu_hours flops_useful flops_wasted loss"
    row |= dict.fromkeys(real.split(), 0.5)
    row |= {"schema_version": SCHEMA_VERSION, "trial_id": trial_id, "samples": samples, "outcome": "ok"}
    return {**row, "created_at": START + timedelta(seconds=samples), **columns}


def curve(trial_id: str, samples: int, attempt: int = 0, loss: float = 1.0) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "attempt": attempt,
        "samples": samples,
        "flops": 10.0 * samples,
        "loss": loss,
        "learning_rate": 1e-3,
        "samples_per_second": 100.0,
        "wall_seconds": samples / 100,
    }


def attempt(trial_id: str, outcome: str, number: int = 0, reason: str | None = None) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "attempt": number,
        "gang": "g0",
        "host": "h",
        "started_at": START,
        "ended_at": START + timedelta(seconds=10),
        "outcome": outcome,
        "reason": reason,
        "samples_start": 0,
        "samples_end": 64,
        "flops": 640.0,
        "wall_seconds": 10.0,
        "train_seconds": 8.0,
        "evaluation_seconds": 1.0,
        "startup_seconds": 1.0,
        "checkpoint_seconds": None,
        "waited_seconds": None,
        "compile_seconds": None,
    }


def write_results(folder: Path) -> Store:
    """Two trials: one completed, one diverged after an attempt that failed and whose points were replayed."""
    store = Store(folder)
    store.claim("tiny", "d")
    write_json(folder / "plan.json", PLAN)
    store.append_curves([curve("aaaa", samples) for samples in (16, 32, 48, 64)])
    store.append_curves([curve("bbbb", samples) for samples in (16, 32)])
    store.append_attempts([attempt("bbbb", "failed", 0, "worker lost")])
    store.append_curves([curve("bbbb", samples, attempt=1, loss=2.0) for samples in (32, 48)])
    store.append_measurements([measurement("aaaa", 64, fid=12.0)])
    store.append_measurements([measurement("bbbb", 48, loss=None, outcome="diverged", reason="loss is not finite")])
    store.append_attempts([attempt("aaaa", "completed"), attempt("bbbb", "diverged", 1, "loss is not finite")])
    (folder / "samples").mkdir()
    (folder / "samples" / "aaaa-64.png").write_bytes(b"png")
    (folder / "report.html").write_text("<html></html>")
    return store


def show(folder: Path, uri: str) -> MlflowTracker:
    tracker = MlflowTracker(folder, uri, "tiny", poll_seconds=0.05)
    tracker.start(PLAN, {"team": "laws"})
    assert tracker.close(60)
    return tracker


class Server:
    """What an MLflow server holds, as a reader sees it."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        self.experiment_id = self.client.get_experiment_by_name("tiny").experiment_id
        runs = self.client.search_runs([self.experiment_id])
        self.runs = {run.data.tags.get("ditlaw.trial_id", "sweep"): run for run in runs}
        assert len(self.runs) == len(runs), "no ghost runs"

    def history(self, trial_id: str, key: str) -> list[tuple[int, float]]:
        run_id = self.runs[trial_id].info.run_id
        return sorted((metric.step, metric.value) for metric in self.client.get_metric_history(run_id, key))

    def artifacts(self, trial_id: str, folder: str | None = None) -> list[str]:
        return [file.path for file in self.client.list_artifacts(self.runs[trial_id].info.run_id, folder)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder and its view in SQLite, fed once."""
    folder = tmp_path_factory.mktemp("shown")
    write_results(folder)
    show(folder, default_tracking_uri(folder))
    return folder


@pytest.fixture
def folder(shown: Path, tmp_path: Path) -> Path:
    """An empty results folder with an empty database, laid out once for all tests because that takes seconds."""
    blank = shown.parent / "blank.db"
    if not blank.exists():
        from mlflow.tracking import MlflowClient

        MlflowClient(f"sqlite:///{blank}")
    shutil.copy(blank, tmp_path / "mlflow.db")
    return tmp_path


def assert_complete(server: Server) -> None:
    assert server.runs.keys() == {"sweep", "aaaa", "bbbb"}
    assert server.history("aaaa", "train/loss") == [(16, 1.0), (32, 1.0), (48, 1.0), (64, 1.0)]
    assert server.history("bbbb", "train/loss") == [(16, 1.0), (32, 1.0), (48, 2.0)], "replays are single"
    assert server.history("aaaa", "eval/fid") == [(64, 12.0)]
    assert server.history("bbbb", "eval/loss") == []
    assert server.runs["aaaa"].info.status == "FINISHED"
    assert server.runs["bbbb"].data.tags["outcome"] == "diverged"
    assert server.runs["bbbb"].data.tags["reason"] == "loss is not finite"


def test_shows_runs_metrics_tags_and_artifacts(shown: Path) -> None:
    server = Server(default_tracking_uri(shown))
    assert_complete(server)
    parent, child = server.runs["sweep"], server.runs["aaaa"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["team"] == parent.data.tags["team"] == "laws"
    assert child.data.tags["checkpoints"] == str(shown / "checkpoints" / "aaaa")
    assert "Trial `aaaa`" in child.data.tags["mlflow.note.content"]
    experiment = server.client.get_experiment(server.experiment_id)
    assert "ditlaw sync" in experiment.tags["mlflow.note.content"]
    assert server.history("aaaa", "eval_by_mflop/fid") == [(0, 12.0)]
    assert child.data.params["optimizer.learning_rate"] == "0.001"
    assert parent.data.params["num_trials"] == "2"
    for run in (parent, child):
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("procedural-16", "01234567")
    assert server.artifacts("aaaa", "samples") == ["samples/aaaa-64.png"]
    assert server.artifacts("sweep") == ["plan.json", "report.html"]
    assert (shown / "mlflow-artifacts").is_dir()


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_results(folder / "results")
    show(folder / "results", default_tracking_uri(folder))
    assert capfd.readouterr() == ("", "")


def test_cursor_says_where_to_look(shown: Path) -> None:
    cursor = json.loads((shown / "mlflow.json").read_text())
    server = Server(default_tracking_uri(shown))
    assert cursor["tracking_uri"] == default_tracking_uri(shown)
    assert cursor["runs"]["aaaa"] == server.runs["aaaa"].info.run_id
    assert cursor["parent_run_id"] == server.runs["sweep"].info.run_id
    assert cursor["ui"] == f"http://127.0.0.1:5000/#/experiments/{server.experiment_id}"
    assert len(cursor["logged"]) == 3 + 2 + 2 + 1


def test_a_second_run_and_a_sync_add_nothing(shown: Path) -> None:
    before = Server(default_tracking_uri(shown))
    tracker = MlflowTracker(shown, default_tracking_uri(shown), "tiny")
    assert tracker.run_id("aaaa") == before.runs["aaaa"].info.run_id, "known before the server is asked"
    show(shown, default_tracking_uri(shown))
    assert sync(shown, default_tracking_uri(shown), "tiny", timeout=60)
    after = Server(default_tracking_uri(shown))
    assert_complete(after)
    assert {run.info.run_id for run in after.runs.values()} == {run.info.run_id for run in before.runs.values()}


def test_follows_a_sweep_while_it_runs(folder: Path) -> None:
    uri = default_tracking_uri(folder)
    store = Store(folder)
    tracker = MlflowTracker(folder, uri, "tiny", poll_seconds=0.05)
    tracker.start(PLAN)
    wait_for(lambda: tracker.run_id("bbbb") is not None)
    assert Server(uri).runs["aaaa"].info.status == "SCHEDULED"
    store.append_curves([curve("aaaa", 16)])
    wait_for(lambda: Server(uri).runs["aaaa"].info.status == "RUNNING")
    store.append_attempts([attempt("aaaa", "failed", 0, "worker lost")])
    wait_for(lambda: Server(uri).runs["aaaa"].info.status == "FAILED")
    store.append_curves([curve("aaaa", 32, attempt=1)])
    wait_for(lambda: Server(uri).runs["aaaa"].info.status == "RUNNING")
    store.append_attempts([attempt("aaaa", "stopped", 1)])
    assert tracker.close(30, "stopped")
    server = Server(uri)
    assert server.runs["aaaa"].info.status == "KILLED"
    assert server.runs["sweep"].info.status == "KILLED"
    assert server.history("aaaa", "train/loss") == [(16, 1.0), (32, 1.0)]


def test_an_extended_plan_keeps_parameters_and_tags_what_changed(folder: Path) -> None:
    uri = default_tracking_uri(folder)
    for milestones in ([64], [64, 128]):
        trial = {**PLAN["trials"][0], "milestones": milestones}
        tracker = MlflowTracker(folder, uri, "tiny", poll_seconds=0.05)
        tracker.start({**PLAN, "trials": [trial]})
        assert tracker.close(60)
    run = Server(uri).runs["aaaa"]
    assert run.data.params["milestones"] == "[64]"
    assert run.data.tags["plan.milestones"] == "[64, 128]"


def test_an_absent_server_costs_nothing_and_is_made_up_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = folder / "results"
    write_results(results)
    tracker = MlflowTracker(results, ABSENT, "tiny", poll_seconds=0.05)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "orchestrator"):
        tracker.start(PLAN)
        assert tracker.run_id("aaaa") is None
        assert time.monotonic() - began < 1, "the driver never waits"
        assert not tracker.close(30)
    assert time.monotonic() - began < 10
    messages = [record.getMessage() for record in caplog.records]
    refused = f"MLflow at {ABSENT} cannot be written ([Errno 111] Connection refused). The sweep goes on; retrying"
    assert messages.count(refused) == 1
    assert messages[-1] == f"MLflow lacks part of {results}; it can be rebuilt from the Parquet files"
    uri = default_tracking_uri(folder)
    assert sync(results, uri, "tiny", timeout=60)
    assert_complete(Server(uri))


def test_a_hung_server_holds_nothing_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tracker = MlflowTracker(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", "tiny")
        began = time.monotonic()
        tracker.start(PLAN)
        assert not tracker.close(0.5)
        assert time.monotonic() - began < 3


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


class Counting:
    """Stands before an MLflow client and counts what it is told."""

    def __init__(self, client: Any) -> None:
        self._client, self.metrics = client, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.metrics += len(metrics)
        self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def test_what_compaction_has_moved_is_not_shown_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Counting] = []

    def counted(tracking_uri: str) -> Counting:
        clients.append(Counting(open_client(tracking_uri)))
        return clients[-1]

    monkeypatch.setattr(mlflow_tracker, "open_client", counted)
    results, uri = folder / "results", default_tracking_uri(folder)
    store = write_results(results)
    show(results, uri)
    compact(results)
    store.append_curves([curve("bbbb", 64, attempt=1, loss=2.0)])
    show(results, uri)
    compact(results)
    show(results, uri)
    server = Server(uri)
    assert server.history("bbbb", "train/loss") == [(16, 1.0), (32, 1.0), (48, 2.0), (64, 2.0)]
    assert [client.metrics for client in clients] == [clients[0].metrics, 4, 0], "only the new point is told"


def test_an_hour_without_a_server_costs_nothing_even_if_the_parts_are_compacted_meanwhile(folder: Path) -> None:
    results, uri = folder / "results", default_tracking_uri(folder)
    tracker = MlflowTracker(results, ABSENT, "tiny", poll_seconds=0.01)
    tracker.start(PLAN)
    store = write_results(results)
    assert not tracker.close(1)
    store.append_attempts([attempt("aaaa", "running", 1)])
    compact(results)
    assert sync(results, uri, "tiny", timeout=60)
    assert_complete(Server(uri))


def test_results_on_object_storage_are_shown(folder: Path, s3: str) -> None:
    here, there = folder / "results", location(f"{s3}/results")
    write_results(here)
    for path in sorted(here.rglob("*")):
        if path.is_file():
            write_bytes(there / path.relative_to(here).as_posix(), path.read_bytes())
    uri = default_tracking_uri(folder)
    assert sync(there, uri, "tiny", timeout=60)
    server = Server(uri)
    assert_complete(server)
    assert server.artifacts("aaaa", "samples") == ["samples/aaaa-64.png"]
    assert server.artifacts("sweep") == ["plan.json", "report.html"]
    cursor = json.loads((there / "mlflow.json").read_text())
    assert cursor["runs"]["aaaa"] == server.runs["aaaa"].info.run_id
