"""Gangs on Ray: a placement group and one actor a worker, kept from trial to trial.

Only Ray Core is used. A gang asks for resources once; its processes, process group, data and compiled code then serve
trial after trial.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state  # for developers, as yet nowhere else
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.results.location import Location
from orchestrator.scheduling.backend import (
    Assignment,
    AttemptEnded,
    Event,
    GangLost,
    GangReady,
    GangShape,
    Node,
    NodeAdded,
    NodeLost,
    Progress,
)

log = logging.getLogger(__name__)

WORKER = "orchestrator.training.worker:Worker"
POLL_SECONDS = 0.5
"""Time between two looks at the progress of the gangs."""
NODES_SECONDS = 2.0
"""Time between two looks at the nodes."""


class Member:
    """The actor: one worker of a gang. Its class is named, so that the driver need not import torch."""

    def __init__(self, worker: str, arguments: dict[str, Any]) -> None:
        module, name = worker.split(":")
        self._worker = getattr(importlib.import_module(module), name)(**arguments)

    def address(self) -> tuple[str, int]:
        """This node's address and a free port on it, for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def join(self, *arguments: Any) -> None:
        self._worker.join(*arguments)

    def run(self, assignment: Assignment) -> Any:
        return self._worker.run(assignment)

    def progress(self) -> Progress | None:
        progress: Progress | None = self._worker.progress()
        return progress

    def request_stop(self) -> None:
        self._worker.request_stop()


@dataclass
class _Gang:
    shape: GangShape
    group: PlacementGroup
    nodes: tuple[str, ...] = ()
    """The node of each worker, once they are placed."""
    members: list[Any] = field(default_factory=list)
    waits_for: str = "placement"
    pending: list[Any] = field(default_factory=list)
    assignment: Assignment | None = None
    progress: Progress | None = None
    progress_reference: Any = None


class RayBackend:
    """A Backend on a Ray cluster.

    Args:
        address: of a running cluster ("host:port", "ray://..." or "auto"), or None for one of its own on this machine.
        results: the sweep's results folder, on a file system that every node shares, or on object storage.
        data: the dataset's folder on every node.

    Raises:
        ValueError: no Ray answers at `address`.
    """

    def __init__(self, address: str | None, results: Location, data: Path) -> None:
        self._arguments = {"results": str(results.absolute()), "data": str(data.absolute())}
        self._gangs: dict[str, _Gang] = {}
        self._events: list[Event] = []
        self._last_poll = 0.0
        _connect(address)
        self._nodes: dict[str, Node] = {}
        self._last_nodes = 0.0
        self._look_at_nodes()

    def whole_nodes(self) -> list[Node]:
        """The machines with all that they have, whoever holds it now."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        return [
            Node(name=node["NodeID"], cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
            for node in alive
        ]

    def could_grow_to(self) -> Node | None:
        """What the cluster's autoscaler may bring it to, taken together; None where it has none."""
        most = state.get_max_resources_from_cluster_config()
        return Node(name="autoscaler", cpus=most.get("CPU", 0.0), gpus=most.get("GPU", 0.0)) if most else None

    def nodes(self) -> Sequence[Node]:
        return list(self._nodes.values())

    def start_gang(self, gang: str, shape: GangShape) -> None:
        bundle = {"CPU": shape.cpus_per_worker}
        if shape.gpus_per_worker:
            bundle["GPU"] = shape.gpus_per_worker
        group = placement_group([bundle] * shape.workers, strategy="PACK", name=f"ditlaw-{gang}-{os.getpid()}")
        self._gangs[gang] = _Gang(shape=shape, group=group, pending=[group.ready()])

    def run(self, assignment: Assignment) -> None:
        gang = self._gangs[assignment.gang]
        gang.assignment, gang.progress, gang.waits_for = assignment, None, "attempt"
        gang.pending = [member.run.remote(assignment) for member in gang.members]

    def request_stop(self, gang: str) -> None:
        for member in self._gangs[gang].members:
            member.request_stop.remote()

    def events(self, timeout: float) -> Sequence[Event]:
        deadline = time.monotonic() + timeout
        self._events += self._look_at_nodes()
        while not self._events:
            pending = {reference: name for name, gang in self._gangs.items() for reference in gang.pending}
            left = max(0.0, deadline - time.monotonic())
            if not pending:
                time.sleep(min(left, 0.05))
            else:
                ready, _ = ray.wait(list(pending), timeout=left)
                for name in {pending[reference] for reference in ready}:
                    self._advance(name, self._gangs[name])
            if time.monotonic() >= deadline:
                break
        happened, self._events = self._events, []
        return happened

    def progress(self) -> dict[str, Progress]:
        if time.monotonic() - self._last_poll > POLL_SECONDS:
            self._last_poll = time.monotonic()
            for gang in self._gangs.values():
                self._poll(gang)
        return {name: gang.progress for name, gang in self._gangs.items() if gang.progress is not None}

    def stop_gang(self, gang: str) -> None:
        held = self._gangs.pop(gang, None)
        if held is None:
            return
        for member in held.members:
            with contextlib.suppress(Exception):
                ray.kill(member)
        with contextlib.suppress(Exception):
            remove_placement_group(held.group)

    def close(self) -> None:
        for gang in list(self._gangs):
            self.stop_gang(gang)
        ray.shutdown()

    def _advance(self, name: str, gang: _Gang) -> None:
        """One of the gang's pending calls came back: take the next step, or report what happened."""
        ready, _ = ray.wait(gang.pending, num_returns=len(gang.pending), timeout=0)
        try:
            answers = ray.get(ready)
        except Exception as error:  # noqa: BLE001 - whatever ended a worker is a reason, not a crash of the driver
            self._lost(name, gang, error)
            return
        if len(ready) < len(gang.pending):
            # The others follow within a collective; wait a moment rather than spin.
            ray.wait([r for r in gang.pending if r not in ready], timeout=0.05)
            return
        self._next(name, gang, answers)

    def _next(self, name: str, gang: _Gang, answers: list[Any]) -> None:
        if gang.waits_for == "placement":
            gang.nodes = _placed_on(gang.group)
            gang.members = [self._member(name, gang, rank) for rank in range(gang.shape.workers)]
            gang.waits_for, gang.pending = "address", [gang.members[0].address.remote()]
        elif gang.waits_for == "address":
            world, (host, port) = gang.shape.workers, answers[0]
            gang.waits_for = "join"
            gang.pending = [m.join.remote(rank, world, host, port) for rank, m in enumerate(gang.members)]
        elif gang.waits_for == "join":
            gang.waits_for, gang.pending = "work", []
            self._events.append(GangReady(gang=name, nodes=gang.nodes))
        else:
            assert gang.assignment is not None
            outcome, reason = answers[0]
            trial_id, attempt = gang.assignment.trial.trial_id, gang.assignment.attempt
            gang.waits_for, gang.pending, gang.progress = "work", [], None
            self._events.append(
                AttemptEnded(gang=name, trial_id=trial_id, attempt=attempt, outcome=outcome, reason=reason)
            )

    def _lost(self, name: str, gang: _Gang, error: Exception) -> None:
        reason = _reason(error)
        gang.pending = []
        if gang.waits_for == "attempt" and isinstance(error, ray.exceptions.RayTaskError):
            assert gang.assignment is not None
            trial_id, attempt = gang.assignment.trial.trial_id, gang.assignment.attempt
            self._events.append(
                AttemptEnded(gang=name, trial_id=trial_id, attempt=attempt, outcome="failed", reason=reason)
            )
        else:
            self._events.append(GangLost(gang=name, reason=reason))

    def _look_at_nodes(self) -> list[NodeAdded | NodeLost]:
        """What has changed about the nodes. A node counts for what is free there or held by gangs of this driver:
        other drivers of the cluster have the rest."""
        if time.monotonic() - self._last_nodes < NODES_SECONDS:
            return []
        self._last_nodes = time.monotonic()
        before, self._nodes = self._nodes, self._nodes_now()
        lost = [NodeLost(node=name) for name in before if name not in self._nodes]
        return lost + [NodeAdded(node=node) for name, node in self._nodes.items() if before.get(name) != node]

    def _nodes_now(self) -> dict[str, Node]:
        found = {
            name: Node(name=name, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))
            for name, free in available_resources_per_node().items()
        }
        for gang in self._gangs.values():
            for name in gang.nodes or _placed_on(gang.group):
                if (node := found.get(name)) is not None:
                    cpus, gpus = node.cpus + gang.shape.cpus_per_worker, node.gpus + gang.shape.gpus_per_worker
                    found[name] = Node(name=name, cpus=round(cpus, 4), gpus=round(gpus, 4))
        return found

    def _member(self, name: str, gang: _Gang, rank: int) -> Any:
        threads = max(1, int(gang.shape.cpus_per_worker))
        use_gpu = gang.shape.gpus_per_worker > 0
        actor = ray.remote(Member).options(
            name=f"ditlaw-{name}-{rank}-{os.getpid()}",
            num_cpus=gang.shape.cpus_per_worker,
            num_gpus=gang.shape.gpus_per_worker,
            # Two threads: one runs the attempt, the other answers while it does.
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(gang.group, placement_group_bundle_index=rank),
            runtime_env={"env_vars": _environment(threads, use_gpu)},
        )
        return actor.remote(WORKER, {**self._arguments, "threads": threads, "use_gpu": use_gpu})

    def _poll(self, gang: _Gang) -> None:
        """Take in the last answer about progress and ask for the next, without waiting."""
        if gang.waits_for != "attempt":
            return
        if gang.progress_reference is not None:
            ready, _ = ray.wait([gang.progress_reference], timeout=0)
            if not ready:
                return
            with contextlib.suppress(Exception):
                gang.progress = ray.get(ready[0])
        gang.progress_reference = gang.members[0].progress.remote()


def _placed_on(group: PlacementGroup) -> tuple[str, ...]:
    """The node of each bundle; empty while there is no room for the group."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    placed = tuple(nodes[rank] for rank in sorted(nodes))
    return placed if all(placed) else ()


def _environment(threads: int, use_gpu: bool) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    if not use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
        # Keep freed memory: fresh pages cost a small model up to a tenth of its step.
        environment |= {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
    return environment


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its clusters with token authentication on, and says so at length.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, runtime_env={"py_modules": _packages()}, **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds, down to bare RuntimeError
        raise ValueError(
            f"no Ray cluster answers at {address!r}: {_reason(error)}. Give the address of a running head node "
            "(ray start --head prints it), or leave --address out to run on this machine."
        ) from None


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _packages() -> list[str]:
    """This code, to be sent to the cluster's nodes."""
    root = Path(__file__).parents[2]
    return [str(root / package) for package in ("orchestrator", "models", "analysis")]


def _reason(error: Exception) -> str:
    """The cause in one line: of an exception in a worker, its own type and text."""
    if isinstance(error, ray.exceptions.RayActorError):
        return "its worker process died (killed, or out of memory?)"
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else 'no message'}"
