"""Drivers that are killed, started twice, without MLflow, without a head or without room on the disk."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults_oracle import SPEC, assert_unharmed
from mlflow.entities import Run

from orchestrator.faults.havoc import MuteServer, damage, fill
from orchestrator.faults.relay import Relay
from orchestrator.faults.rig import Rig, all_gone
from orchestrator.results.checkpoints import checkpoint_folders
from orchestrator.results.store import read_measurements

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_a_driver_is_killed_checkpoints_rot_and_mlflow_is_absent_then_silent(rig, undisturbed, tmp_path):
    results, mlflow = tmp_path / "soak", MuteServer()
    uri = ("--tracking-uri", f"http://127.0.0.1:{mlflow.port}")
    first = rig.drive(SPEC, results, *uri)
    first.until(lambda: with_two_checkpoints(rig, results))

    second = rig.drive(SPEC, results, *uri)
    assert second.wait(200) == 2, second.output
    assert f"results folder {results} is in use by process {first.process.pid} on " in second.output

    struck, workers = with_two_checkpoints(rig, results), rig.workers()
    first.kill()
    assert all_gone(workers, 20), "workers die with their driver"
    chance = random.Random(1)
    damages = {damage(checkpoint_folders(results, trial_id)[0], chance) for trial_id in struck}
    assert damages

    mlflow.turn()
    again = rig.drive(SPEC, results, *uri, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
    assert again.wait(400) == 0, again.output
    assert "MLflow has not taken everything; the results are complete without it" in again.output
    assert_unharmed(rig, results, undisturbed, damaged=struck)
    sync = [sys.executable, "-m", "orchestrator.cli", "sync", str(results), "--tracking-uri"]
    done = subprocess.run([*sync, f"sqlite:///{tmp_path}/mlflow.db"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def mlflow_server(tmp_path, free_port):
    """The port of a real MLflow server over SQLite."""
    store = f"sqlite:///{tmp_path}/served.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free_port), "--workers"]
    command += ["1", "--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artifacts")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", free_port), timeout=1):
                    break
                time.sleep(0.2)
            yield free_port
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_mlflow_goes_in_the_middle_and_comes_back_slow(rig, undisturbed, mlflow_server, tmp_path):
    from mlflow.tracking import MlflowClient

    rig.forget()
    results, relay = tmp_path / "soak", Relay(mlflow_server)
    client = MlflowClient(f"http://127.0.0.1:{mlflow_server}")

    def runs() -> list[Run]:
        experiment = client.get_experiment_by_name("soak")
        return list(client.search_runs([experiment.experiment_id])) if experiment is not None else []

    driver = rig.drive(SPEC, results, "--tracking-uri", f"http://127.0.0.1:{relay.port}")
    try:
        driver.until(lambda: any("train/loss" in run.data.metrics for run in runs()))
        relay.cut()
        seen = len(read_measurements(results))
        driver.until(lambda: len(read_measurements(results)) > seen + 2)
        relay.mend(delay=0.05)
        assert driver.wait(400) == 0, driver.output
    finally:
        relay.close()
    assert_unharmed(rig, results, undisturbed)
    assert "MLflow has not taken everything" not in driver.output
    shown = [run for run in runs() if "ditlaw.trial_id" in run.data.tags]
    assert len(shown) == 4 == len(runs()) - 1, "no ghost runs"
    for run in shown:
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "eval/loss")) == 3


def test_a_full_disk_is_waited_for(rig, undisturbed, tmp_path):
    rig.forget()
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        driver = rig.drive(SPEC, disk / "soak")
        driver.until(lambda: any(trace.reached > 400 for trace in rig.traces()))
        fill(disk / "ballast")
        driver.until(lambda: "waits for room on the disk of" in driver.output)
        (disk / "ballast").unlink()
        assert driver.wait(400) == 0, driver.output
        assert_unharmed(rig, disk / "soak", undisturbed)
        assert {trace.attempt for trace in rig.traces()} == {0}, "no attempt failed for it"
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


def test_nodes_with_other_versions_are_refused(rig, tmp_path):
    package = tmp_path / "site" / "torch-1.0.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    node = rig.add_node(env_vars={"PYTHONPATH": str(package.parent)})
    try:
        driver = rig.drive(SPEC, tmp_path / "soak")
        assert driver.wait(200) == 2, driver.output
    finally:
        rig.kill_node(node)
    assert "torch 1.0.0 against" in driver.output
    assert "so nothing was started. Install the same versions on every node." in driver.output
    assert not (tmp_path / "soak").exists()


def test_a_head_that_keeps_nothing_takes_the_run_along_and_the_same_command_goes_on(undisturbed, tmp_path):
    results = tmp_path / "soak"
    with Rig(tmp_path / "rig") as first:
        driver = first.drive(SPEC, results)
        driver.until(lambda: any(trace.saved > trace.start for trace in first.traces()))
        workers = first.workers()
        first.cluster.head_node.kill_gcs_server(check_alive=False)
        assert driver.wait(120) == 1
        assert all_gone(workers, 60), "workers die with the cluster"
    with Rig(tmp_path / "rig") as another:  # its ledger goes on
        again = another.drive(SPEC, results)
        assert again.wait(400) == 0, again.output
        assert_unharmed(another, results, undisturbed)


def with_two_checkpoints(rig: Rig, results: Path) -> tuple[str, ...]:
    """Running trials that could fall back on an older checkpoint."""
    trials = {trace.trial_id for trace in rig.traces() if trace.reached < 2400}
    return tuple(trial_id for trial_id in sorted(trials) if len(checkpoint_folders(results, trial_id)) > 1)
