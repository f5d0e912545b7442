"""A cluster of several raylets on this machine, and a driver on it, both to be broken."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.faults import points

HOST = "127.0.0.2"
"""On the loopback, and not called localhost: Ray would replace that by an address others can reach."""
PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's protocol."""
HEALTH = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray starts workers at niceness 15; on a busy machine they would hardly get on.
    "RAY_worker_niceness": "0",
    # A node that is gone is missed after seconds, not after a quarter of a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
    # Without its storage a lost head takes the cluster with it; sooner than after a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "8",
}


class Rig:
    """A head without CPUs and nodes of one CPU each, whose workers find armed faults in `folder`/faults.

    Args:
        folder: for armed faults, the head's storage and what drivers print.
        nodes: how many.
        durable: the head keeps its tables on the disk (Ray's embedded RocksDB), and can be started again.
        variables: of the environment of nodes and drivers.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, durable: bool = False, variables: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.faults = folder, folder / "faults"
        self.faults.mkdir(parents=True, exist_ok=True)
        storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")} if durable else {}
        self._variables = {**HEALTH, **storage, **(variables or {}), points.FOLDER: str(self.faults)}
        self._num_drivers = 0
        with self._environment():
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": HOST}
            self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add_node(wait=False) for _ in range(nodes)]
        self.cluster.wait_for_nodes()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """For drivers."""
        return str(self.cluster.address)

    def close(self) -> None:
        """End every process of the cluster."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):  # one that is frozen cannot see that its node goes
                os.kill(pid, signal.SIGCONT)
        self.cluster.shutdown()

    # What works.

    def drive(self, spec: Path, results: Path, *arguments: str, **variables: str) -> Driver:
        """Start `ditlaw run` on this cluster."""
        self._num_drivers += 1
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(spec), "--address", self.address]
        command += ["--results", str(results), *arguments]
        output = self.folder / f"driver-{self._num_drivers}.log"
        with output.open("wb") as file:
            environment = {**os.environ, **self._variables, **variables}
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        return Driver(process, output)

    def add_node(self, wait: bool = True, **arguments: Any) -> Any:
        """One node of a CPU more, as an autoscaler would bring it."""
        with self._environment():
            node = self.cluster.add_node(num_cpus=1, node_ip_address=HOST, wait=wait, **arguments)
        if wait:
            self.nodes.append(node)
        return node

    def traces(self) -> list[points.Trace]:
        """What every attempt has done."""
        return points.ledger(self.faults)

    def workers(self) -> list[int]:
        """Processes that have an attempt, or had one, and are alive."""
        return sorted(filter(alive, points.processes(self.faults)))

    def forget(self) -> None:
        """Empty the ledger, and take away all faults, for another run of the same trials."""
        for path in (*(self.faults / "ledger").glob("*"), *self.faults.glob("*.fired"), *points.armed(self.faults)):
            path.unlink()

    def node_of(self, pid: int) -> Any:
        """The node on which a worker runs."""
        return next(node for node in self.nodes if node.all_processes["raylet"][0].process.pid == _parent(pid))

    # What breaks it.

    def kill_node(self, node: Any) -> None:
        """The node goes without a word."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def drain_node(self, node: Any, seconds: float = 60.0) -> None:
        """A preemption notice: the node will go in so many seconds."""
        deadline = int((time.time() + seconds) * 1000)
        client = importlib.import_module("ray._raylet").GcsClient(address=self.address)
        accepted, why = client.drain_node(node.node_id, PREEMPTION, "preempted", deadline)
        assert accepted, why

    def restart_head(self, pause: float = 1.0) -> None:
        """The head's process is killed and, a while later, started again where it was."""
        head = self.cluster.head_node
        with self._environment():
            head.kill_gcs_server(check_alive=False)
            time.sleep(pause)
            head.start_gcs_server()

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Processes of Ray inherit this one's environment."""
        before = dict(os.environ)
        os.environ.update(self._variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class Driver:
    """A running `ditlaw run`."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self._output = process, output

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def wait(self, seconds: float) -> int:
        """Its exit code; TimeoutError with its output if it takes longer."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"the driver did not end in {seconds:g} s; it printed:\n{self.output}") from None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def until(self, condition: Callable[[], object], seconds: float = 240.0) -> None:
        """Wait for a condition while the driver runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the driver ended with {self.process.returncode}; it printed:\n{self.output}")
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing in {seconds:g} s; the driver printed:\n{self.output}")
            time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def all_gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
