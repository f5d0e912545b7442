"""Sweeps as jobs of a real cluster on loopback: submitted, submitted again, cancelled, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from click.testing import CliRunner, Result
from listening import beyond_loopback
from rights import without_rights

from orchestrator.cli import main
from orchestrator.cli.submitting import _arguments
from orchestrator.planning.plan import make
from orchestrator.results.store import Store, read_attempts
from orchestrator.scheduling import submission
from orchestrator.status import StatusReader

SPEC = """
name: job
models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 8, depth: 1}]}
arms: {sp: {parameterization: sp}}
training: {batch_size: 32}
budgets: {samples: [64, 6400000], max_epochs: 1000}
evaluation: {loss_images: 64, sample_images: 0}
"""


def ditlaw(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Local(NamedTuple):
    dashboard: str
    address: str
    process: psutil.Process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Local]:
    """The cluster of cluster/local.py, with ports of its own; it ends its own processes."""
    import socket

    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, dashboard = one.getsockname()[1], two.getsockname()[1]
    command = [sys.executable, "cluster/local.py", "-n", "1", "-c", "2", "-p", str(port), "-d", str(dashboard)]
    log = tmp_path_factory.mktemp("cluster") / "log"
    with log.open("w") as out, psutil.Popen(command, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 120
            while "Ctrl-C ends them" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Local(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", process)
        finally:
            started = process.children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            finally:
                for left in [process, *started]:
                    if left.is_running():
                        left.kill()


def wait_for(what: str, condition: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.slow
def test_a_submitted_sweep_runs_once_and_goes_on_after_a_cancel(cluster, tmp_path, fashion_mnist):
    spec, results = tmp_path / "job.yaml", tmp_path / "results"
    spec.write_text(SPEC)
    arguments = ["submit", spec, "--address", cluster.dashboard, "--results", results, "--data", fashion_mnist]
    first = ditlaw(*arguments)
    assert first.exit_code == 0, first.output
    name = f"job-{make(spec).digest}"
    assert f"Submitted job as {name}." in first.output
    second = ditlaw(*arguments)
    assert (second.exit_code, f"job runs already, as {name}; nothing was submitted." in second.output) == (0, True)
    wait_for("a measurement", lambda: len(Store(results).parts("measurements")))
    status = StatusReader(results).read()
    assert (status.state, status.counts["running"]) == ("running", 1)
    assert not beyond_loopback(cluster.process.children(recursive=True)), "every port is on loopback"
    cancelled = ditlaw("cancel", results, "--wait", 120)
    assert cancelled.output.endswith("Stopped. The same command goes on from here.\n"), cancelled.output
    third = ditlaw(*arguments)
    assert f"Submitted job as {name}-2." in third.output, f"what has stopped does not run: {third.output}"
    wait_for("the second attempt", lambda: StatusReader(results).read().counts["running"])
    stopped = ditlaw("cancel", "job", "--address", cluster.dashboard, "--wait", 120)
    assert (stopped.exit_code, stopped.output) == (0, f"{name}-2: stopped\n")
    one, two = read_attempts(results).to_dict("records")
    assert (one["outcome"], two["outcome"]) == ("stopped", "stopped"), "Ray gave it the time to save"
    assert one["samples_end"] == two["samples_start"] > 0
    assert "goes on at" in ditlaw("logs", results).output
    nothing = ditlaw("cancel", "job", "--address", cluster.dashboard)
    assert (nothing.exit_code, "no job of sweep 'job' runs" in nothing.output) == (2, True)


@pytest.mark.slow
def test_a_job_that_finds_something_wrong_says_so(cluster, tmp_path):
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC.replace("name: job", "name: big") + "compute: {workers: 2, cpus_per_worker: 64}\n")
    done = ditlaw("submit", spec, "--address", cluster.dashboard, "--results", tmp_path / "results")
    assert done.exit_code == 2, done.output
    assert "does not fit: a gang needs 128 CPUs" in done.output
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_machine_without_the_token_is_not_let_in(cluster, tmp_path):
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC)
    command = [sys.executable, "-m", "orchestrator.cli", "submit", str(spec), "--address", cluster.dashboard]
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "does not let us in" in done.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "wanted that of the cluster's dashboard, as http://HEAD:8265"),
        ("http://127.0.0.1:9", "no dashboard of a Ray cluster answers at http://127.0.0.1:9"),
        ("http://127.0.0.1:123456", "no dashboard of a Ray cluster answers"),
    ],
)
def test_an_address_that_does_not_answer_is_refused(tmp_path, monkeypatch, address, message):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:10")
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC)
    done = ditlaw("submit", spec, "--address", address, "--results", tmp_path / "results")
    assert (done.exit_code, message in done.output) == (2, True)
    assert not (tmp_path / "results").exists()


def test_bad_folders_and_passwords_are_refused_before_anything_is_sent(tmp_path):
    spec = tmp_path / "job.yaml"
    spec.write_text(SPEC)
    base = ["submit", spec, "--address", "http://127.0.0.1:9"]
    (tmp_path / "file").touch()
    for extra, message in (
        (["--results", tmp_path / "file"], "is a file; wanted a folder"),
        (["--results", "s3://bucket/../x"], "is not a place; wanted s3://BUCKET or s3://BUCKET/PREFIX"),
        (["--tracking-uri", "http://me:secret@host:5000"], "--tracking-uri holds a password"),
    ):
        done = ditlaw(*base, *extra)
        assert (done.exit_code, message in done.output) == (2, True), done.output
        assert "secret" not in done.output


@pytest.mark.parametrize("where", ["/shared/results/job", "{tmp}/private/results/job", "s3://bucket/job", "gs://b/job"])
def test_what_only_the_cluster_sees_is_left_to_the_job(tmp_path, monkeypatch, where):
    """From a machine behind a tunnel: it has no /shared, no credentials, and may not write to what is there."""
    (tmp_path / "job.yaml").write_text(SPEC)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "private").mkdir(mode=0)
    plan, results = make(tmp_path / "job.yaml"), where.format(tmp=tmp_path)
    with without_rights(tmp_path):
        arguments = _arguments(plan, results, None, Path("/shared/data"), retrain=False)
    assert arguments == ["--results", results, "--data", "/shared/data"]


def test_a_folder_of_another_sweep_is_refused_where_it_is_seen(tmp_path):
    (tmp_path / "job.yaml").write_text(SPEC)
    Store(tmp_path / "results").claim("other", "digest")
    done = ditlaw("submit", tmp_path / "job.yaml", "--address", "http://127.0.0.1:9", "--results", tmp_path / "results")
    assert (done.exit_code, "holds sweep 'other'; got 'job'" in done.output) == (2, True), done.output


def test_a_job_has_the_code_and_a_spec_that_stands_alone(tmp_path):
    (tmp_path / "base.yaml").write_text(SPEC)
    (tmp_path / "fit.json").write_text('{"outcome": "ok"}')
    (tmp_path / "job.yaml").write_text("include: base.yaml\nname: other\n")
    plan = make(tmp_path / "job.yaml")
    plan.source.data["models"]["sizes"] = {"expected": {"allocation": "fit.json"}}
    folder = tmp_path / "packed"
    folder.mkdir()
    submission._pack(plan, folder)
    assert (folder / "orchestrator" / "cli" / "__main__.py").exists()
    assert not list(folder.rglob("__pycache__"))
    text = (folder / "sweep.yaml").read_text()
    assert "include" not in text
    assert "name: other" in text
    assert "allocation: allocation-0.json" in text
    assert (folder / "allocation-0.json").read_text() == '{"outcome": "ok"}'
    assert plan.source.data["models"]["sizes"]["expected"]["allocation"] == "fit.json", "the plan stays as it was"


def test_the_token_is_found_where_ray_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert submission._headers() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("at home\n")
    assert submission._headers() == {"Authorization": "Bearer at home"}
    (tmp_path / "elsewhere").write_text("by path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert submission._headers() == {"Authorization": "Bearer by path"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert submission._headers() == {"Authorization": "Bearer itself"}
