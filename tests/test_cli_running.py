"""How `ditlaw run` ends: with the sweep's own exit code, whatever becomes of the view and the report."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sweep_folder import Worker

from orchestrator.cli import main
from orchestrator.results.store import Store, read_measurements
from orchestrator.scheduling import ray_backend
from orchestrator.scheduling.backend import Assignment
from orchestrator.scheduling.local_backend import LocalBackend
from orchestrator.tracking import mlflow_tracker
from orchestrator.tracking.recording import RecordingTracker

SPEC = """
name: tiny
models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 8, depth: 1}]}
arms: {sp: {parameterization: sp}}
training: {batch_size: 32}
budgets: {samples: [64, 128]}
compute: {gangs: 1, retries: 0, backoff_seconds: 0}
"""


class House:
    """Stands in for Ray and MLflow; `answer` is what every attempt comes to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.answer: str | None = None
        self.before: Callable[[], None] = lambda: None
        self.tracker = RecordingTracker()
        (folder / "tiny.yaml").write_text(SPEC)
        self.spec, self.results = folder / "tiny.yaml", folder / "results"
        monkeypatch.setattr(ray_backend, "RayBackend", self._backend)
        monkeypatch.setattr(mlflow_tracker, "MlflowTracker", lambda *arguments: self.tracker)

    def _backend(self, *arguments: object, **options: object) -> LocalBackend:
        backend = LocalBackend(lambda: Worker(Store(self.results), self._answer))
        backend.whole_nodes, backend.could_grow_to = backend.nodes, lambda: None  # type: ignore[attr-defined]
        return backend

    def _answer(self, assignment: Assignment) -> str | None:
        self.before()
        return self.answer

    def run(self, data: Path) -> Result:
        arguments = ["run", self.spec, "--results", self.results, "--data", data]
        return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def house(monkeypatch, tmp_path) -> House:
    return House(monkeypatch, tmp_path)


def test_a_report_that_fails_does_not_fail_the_sweep(house, fashion_mnist, monkeypatch):
    def write_report(*arguments: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("orchestrator.cli.running.write_report", write_report)
    done = house.run(fashion_mnist)
    assert done.exit_code == 0, done.output
    assert "The report could not be written: RuntimeError: no font" in done.output
    assert f"To write it again:\n  ditlaw report {house.results}\n" in done.output
    assert "Report:" not in done.output, "there is none"
    assert house.tracker.outcome == "completed"
    assert len(read_measurements(house.results)) == 2
    again = house.run(fashion_mnist)
    assert (again.exit_code, "Nothing to do" in again.output, "no font" in again.output) == (0, True, True)


def test_a_sweep_without_measurements_keeps_its_exit_code(house, fashion_mnist):
    house.answer = "bad disk"
    done = house.run(fashion_mnist)
    assert done.exit_code == 1, done.output
    assert "was given up: RuntimeError: bad disk" in done.output
    assert house.tracker.outcome == "stopped"


def test_every_trial_of_a_pack_that_was_given_up_is_named(house, fashion_mnist):
    house.spec.write_text(SPEC.replace("gangs: 1", "gangs: 1, packing: 2") + "seeds: {count: 2}\n")
    house.answer = "bad disk"
    done = house.run(fashion_mnist)
    assert done.exit_code == 1, done.output
    assert "2 trials in 1 pack, 1 gang" in done.output
    assert done.output.count("was given up: RuntimeError: bad disk") == 2


def test_what_is_left_after_a_stop_is_counted_in_trials(house, fashion_mnist):
    def stop() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)  # the driver looks a few times a second

    house.spec.write_text(SPEC + "seeds: {count: 2}\n")
    house.before = stop
    done = house.run(fashion_mnist)
    assert done.exit_code == 130, done.output
    assert "Stopped with 1 trial to go. The same command goes on from here." in done.output


def test_a_results_folder_that_fails_midway_closes_the_view(house, fashion_mnist, monkeypatch):
    def append(*arguments: object) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(Store, "append_attempts", append)
    house.answer = "worker lost"
    done = house.run(fashion_mnist)
    assert done.exit_code == 1, done.output
    assert "Input/output error. Measurements so far are safe; mend it, and the same command goes on" in done.output
    assert house.tracker.outcome == "failed"


def test_a_gang_that_fits_no_node_is_refused_before_anything_starts(house, fashion_mnist):
    house.spec.write_text(SPEC.replace("gangs: 1", "workers: 2, cpus_per_worker: 512"))
    done = house.run(fashion_mnist)
    assert done.exit_code == 2, done.output
    assert "does not fit: a gang needs 1024 CPUs (2 workers of 512, " in done.output
    assert not house.results.exists()


def test_a_results_folder_that_cannot_be_written_is_refused_before_anything_starts(house, fashion_mnist, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk that takes no writes cannot be mounted here")
    try:
        house.results = disk / "results"
        done = house.run(fashion_mnist)
        assert done.exit_code == 2, done.output
        assert f"results folder {house.results} cannot be written: {disk} does not allow it." in done.output
        assert house.tracker.plan is None
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)
