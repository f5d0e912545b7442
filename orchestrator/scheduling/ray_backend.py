"""Gangs on Ray: a placement group and one actor a worker, kept from trial to trial.

Only Ray Core is used. A gang asks for resources once; its processes, process group, data and compiled code then serve
trial after trial.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state  # for developers, as yet nowhere else
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.results.location import Location
from orchestrator.scheduling.backend import (
    Assignment,
    AttemptEnded,
    Claim,
    Event,
    GangLost,
    GangReady,
    GangShape,
    Node,
    Progress,
)
from orchestrator.scheduling.fingerprint import differences, fingerprint
from orchestrator.scheduling.ray_board import Board
from orchestrator.scheduling.ray_member import Introduction, Member, environment
from orchestrator.scheduling.ray_nodes import NodeWatch, check_code, placed_on, reason_of

log = logging.getLogger(__name__)

WORKER = "orchestrator.training.worker:Worker"
POLL_SECONDS = 0.5
"""Time between two looks at the progress of the gangs."""
LISTEN_SECONDS = 5.0
"""Counts at most as silence between two looks at the gangs: a driver that storage holds up hears nothing."""
LOCAL_STARTS = 3
"""Tries of starting Ray on this machine."""
START_SECONDS = 300.0
"""A gang may be silent for so long while it starts, or its attempt does: libraries and data come over networks. Ten
times `hang_seconds` is enough, though, where that is short."""


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
    silent_seconds: float = 0.0
    """Since it last gave a sign of life or took a step of its start, as far as this driver was listening."""

    def wait_for(self, what: str, pending: list[Any]) -> None:
        """Begin to wait for its next answers."""
        self.waits_for, self.pending, self.silent_seconds = what, pending, 0.0


class RayBackend:
    """A Backend on a Ray cluster.

    Args:
        address: of a running cluster ("host:port" or "auto"), or None for one of its own on this machine.
        results: the sweep's results folder, on a file system that every node shares, or on object storage.
        data: the dataset's folder on every node.
        worker: "module:class" of the workers.
        hang_seconds: a gang without a sign of life for so long is taken for dead.
        cpus: of a cluster of its own; default: those that this process may use.

    Raises:
        ValueError: no Ray answers at `address`, or its nodes have other code or versions than this process.
    """

    def __init__(
        self,
        address: str | None,
        results: Location,
        data: Path,
        *,
        worker: str = WORKER,
        hang_seconds: float = 600.0,
        cpus: int | None = None,
    ) -> None:
        self._worker, self._hang_seconds = worker, hang_seconds
        self._start_seconds = max(hang_seconds, min(START_SECONDS, 10 * hang_seconds))
        self._sweep = results.absolute().name
        self._arguments = {"results": str(results.absolute()), "data": str(data.absolute())}
        self._gangs: dict[str, _Gang] = {}
        self._events: list[Event] = []
        self._last_poll, self._listened_at = 0.0, time.monotonic()
        _connect(address, cpus)
        self._fingerprint = fingerprint()
        self._watch = NodeWatch()
        # Nobody else drives a cluster of its own.
        self._board = Board(self._sweep) if address is not None else None
        if address is not None:
            check_code()

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
        return self._watch.nodes

    def start_gang(self, gang: str, shape: GangShape) -> None:
        bundle = {"CPU": shape.cpus_per_worker}
        if shape.gpus_per_worker:
            bundle["GPU"] = shape.gpus_per_worker
        group = placement_group([bundle] * shape.workers, strategy="PACK", name=self._name(gang))
        self._gangs[gang] = _Gang(shape=shape, group=group, pending=[group.ready()])

    def run(self, assignment: Assignment) -> None:
        gang = self._gangs[assignment.gang]
        gang.assignment, gang.progress = assignment, None
        name = f"{assignment.trial.name}, attempt {assignment.attempt}"  # as Ray's dashboard and state API show it
        gang.wait_for("attempt", [member.run.options(name=name).remote(assignment) for member in gang.members])

    def request_stop(self, gang: str) -> None:
        for member in self._gangs[gang].members:
            member.request_stop.remote()

    def tell_neighbours(self, claim: Claim) -> None:
        if self._board is not None:
            self._board.tell(replace(claim, driver=self._board.name))

    def events(self, timeout: float) -> Sequence[Event]:
        deadline = time.monotonic() + timeout
        self._events += self._watch.look(self._held())
        self._events += self._board.look() if self._board is not None else []
        self._look_for_hangs()
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
        if self._board is not None:
            self._board.close()
            self._board = None
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
            gang.nodes = placed_on(gang.group)
            gang.members = [self._member(name, gang, rank) for rank in range(gang.shape.workers)]
            gang.wait_for("introduction", [member.introduce.remote() for member in gang.members])
        elif gang.waits_for == "introduction":
            self._introduced(name, gang, answers)
        elif gang.waits_for == "join":
            gang.wait_for("work", [])
            self._events.append(GangReady(gang=name, nodes=gang.nodes))
        else:
            assert gang.assignment is not None
            outcome, reason = answers[0]
            trial_id, attempt = gang.assignment.trial.trial_id, gang.assignment.attempt
            gang.progress = None
            gang.wait_for("work", [])
            self._events.append(
                AttemptEnded(gang=name, trial_id=trial_id, attempt=attempt, outcome=outcome, reason=reason)
            )

    def _introduced(self, name: str, gang: _Gang, members: list[Introduction]) -> None:
        """Let the workers join each other, if they are what this driver wants."""
        for member in members:
            if differs := differences(self._fingerprint, member.fingerprint):
                gang.wait_for("its end", [])
                self._events.append(GangLost(gang=name, reason=f"its worker on {member.host} has {differs}"))
                return
        world, host, port = gang.shape.workers, members[0].host, members[0].port
        gang.wait_for("join", [m.join.remote(rank, world, host, port) for rank, m in enumerate(gang.members)])

    def _lost(self, name: str, gang: _Gang, error: Exception) -> None:
        reason = reason_of(error)
        gang.pending = []
        # First what became of its node: its trial is not to blame for that.
        gone = self._watch.knock(gang.nodes) if isinstance(error, ray.exceptions.RayActorError) else []
        reason = "the node of a worker died" if gone else reason
        self._events += [*gone, *self._watch.look(self._held(), at_once=True)]
        if gang.waits_for == "attempt" and isinstance(error, ray.exceptions.RayTaskError):
            assert gang.assignment is not None
            trial_id, attempt = gang.assignment.trial.trial_id, gang.assignment.attempt
            self._events.append(
                AttemptEnded(gang=name, trial_id=trial_id, attempt=attempt, outcome="failed", reason=reason)
            )
        else:
            self._events.append(GangLost(gang=name, reason=reason))

    def _held(self) -> Iterator[tuple[GangShape, tuple[str, ...]]]:
        """What this driver has of the nodes."""
        for gang in self._gangs.values():
            yield gang.shape, gang.nodes or placed_on(gang.group)

    def _look_for_hangs(self) -> None:
        """A gang that gives no sign of life for long is lost: stuck in a collective, or frozen."""
        now = time.monotonic()
        listened, self._listened_at = min(now - self._listened_at, LISTEN_SECONDS), now
        for name, gang in self._gangs.items():
            gang.silent_seconds += listened
            busy = gang.waits_for == "attempt" and gang.progress is not None and gang.progress.phase != "starting"
            patience = self._hang_seconds if busy else self._start_seconds
            if gang.waits_for in ("introduction", "join", "attempt") and gang.silent_seconds > patience:
                gang.waits_for, gang.pending = "its end", []
                reason = f"no sign of life for {gang.silent_seconds:.0f} s (compute.hang_minutes)"
                self._events.append(GangLost(gang=name, reason=reason))

    def _member(self, name: str, gang: _Gang, rank: int) -> Any:
        threads = max(1, int(gang.shape.cpus_per_worker))
        use_gpu = gang.shape.gpus_per_worker > 0
        actor = ray.remote(Member).options(
            name=f"{self._name(name)}-{rank}",
            num_cpus=gang.shape.cpus_per_worker,
            num_gpus=gang.shape.gpus_per_worker,
            # Two threads: one runs the attempt, the other answers while it does.
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(gang.group, placement_group_bundle_index=rank),
            runtime_env={"env_vars": environment(threads, use_gpu)},
        )
        return actor.remote(self._worker, {**self._arguments, "threads": threads, "use_gpu": use_gpu})

    def _name(self, gang: str) -> str:
        """Its name in Ray's dashboard and state API."""
        return f"ditlaw-{self._sweep}-{gang}-{os.getpid()}"

    def _poll(self, gang: _Gang) -> None:
        """Take in the last answer about progress and ask for the next, without waiting."""
        if gang.waits_for != "attempt":
            return
        if gang.progress_reference is not None:
            ready, _ = ray.wait([gang.progress_reference], timeout=0)
            if not ready:
                return
            with contextlib.suppress(Exception):
                before, gang.progress = gang.progress, ray.get(ready[0])
                if gang.progress is not None and (before is None or before.beats != gang.progress.beats):
                    gang.silent_seconds = 0.0
        gang.progress_reference = gang.members[0].progress.remote()


def _connect(address: str | None, cpus: int | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its clusters with token authentication on, and says so at length.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        _start_local(cpus or len(os.sched_getaffinity(0)), quiet)
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"--address got {address!r}, which is Ray Client; wanted HOST:PORT of the head node, as ray start --head "
            "prints it: a driver has to be part of the cluster. From outside, ditlaw submit runs it there."
        )
    try:
        _knock(address)
        ray.init(address=address, runtime_env={"py_modules": _packages()}, **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds, down to bare RuntimeError
        raise ValueError(
            f"no Ray cluster answers at {address!r}: {reason_of(error)}. Give the address of a running head node "
            "(ray start --head prints it), or leave --address out to run on this machine."
        ) from None


def _start_local(cpus: int, options: dict[str, Any]) -> None:
    """Start a Ray of this machine alone. A machine that is very busy can take longer than Ray waits for itself."""
    # Ray's own niceness of 15 leaves workers a thirtieth of a core that anything else wants too: they never come up.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A worker of a gang has an environment of its own: it cannot be one of those that Ray keeps ready.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    for left in reversed(range(LOCAL_STARTS)):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            return
        except Exception as error:
            ray.shutdown()
            if left == 0:
                raise ValueError(
                    f"Ray did not start on this machine in {LOCAL_STARTS} tries: {reason_of(error)}. Free some of its "
                    "cores and memory, or start a cluster (ray start --head) and give its --address."
                ) from error


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _packages() -> list[str]:
    """This code, to be sent to the cluster's nodes."""
    root = Path(__file__).parents[2]
    return [str(root / package) for package in ("orchestrator", "models", "analysis")]
