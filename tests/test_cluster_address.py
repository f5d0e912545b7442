"""Joining a cluster that is already running: the code travels, the gangs run there, the cluster is left as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.results.store import read_attempts, read_measurements

pytestmark = pytest.mark.slow

HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
print("ADDRESS", cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def test_ray_client_is_refused_with_what_to_give_instead(tmp_path):
    from orchestrator.scheduling.ray_backend import RayBackend

    with pytest.raises(ValueError, match=r"got 'ray://head:10001', which is Ray Client; wanted HOST:PORT of the head"):
        RayBackend("ray://head:10001", tmp_path, tmp_path)


def test_a_sweep_runs_on_a_cluster_it_joins(tmp_path, fashion_mnist):
    spec = tmp_path / "joined.yaml"
    spec.write_text(
        "name: joined\n"
        "models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 8, depth: 1}, {name: b, width: 16, depth: 1}]}\n"
        "arms: {sp: {parameterization: sp}}\n"
        "training: {batch_size: 32}\n"
        "budgets: {samples: [64, 128]}\n"
        "evaluation: {loss_images: 64, sample_images: 0}\n"
        "compute: {gangs: 2}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as head:
        try:
            address = next(line for line in head.stdout if line.startswith("ADDRESS")).split()[1]
            arguments = ["run", spec, "--address", address, "--results", tmp_path / "results", "--data", fashion_mnist]
            done = subprocess.run(
                [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert head.poll() is None, "the cluster goes on without us"
        finally:
            head.stdin.write("\n")
            head.stdin.flush()
            try:
                head.wait(timeout=30)
            finally:
                head.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_measurements(tmp_path / "results")
    assert len(table) == 4
    assert table["loss"].notna().all()
    assert table["budget_flops"].isna().all()
    assert set(read_attempts(tmp_path / "results")["outcome"]) == {"completed"}
