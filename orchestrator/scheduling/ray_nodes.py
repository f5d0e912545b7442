"""The nodes of a Ray cluster: what they have for this driver, which are about to go, and what code they would run."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import ray

# For developers, as yet nowhere else.
from ray._private.state import available_resources_per_node
from ray._private.state import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.scheduling.backend import GangShape, Node, NodeAdded, NodeDraining, NodeLost
from orchestrator.scheduling.fingerprint import Fingerprint, differences, fingerprint

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Time between two looks at the nodes: how late a preemption notice may be heard."""
KNOCK_SECONDS = 5.0
"""Longest wait for a raylet to accept a connection."""
ANSWER_SECONDS = 60.0
"""Longest wait for the nodes to say what code they have."""

Held = Iterable[tuple[GangShape, tuple[str, ...]]]
"""Gangs of this driver: their shape, and the node of each worker."""


class NodeWatch:
    """Tells what has changed about the nodes since the last look.

    A node counts for what is free there or held by gangs of this driver: other drivers of the cluster have the rest.
    A draining one (`ray drain-node`, an autoscaler's or a cloud's preemption notice) is told of once, and counts no
    more.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._draining: set[str] = set()
        self._silent: set[str] = set()
        """Gone, though the head does not know it yet."""
        self._last = float("-inf")
        self.look(())

    @property
    def nodes(self) -> list[Node]:
        """Those that take work."""
        return list(self._nodes.values())

    def look(self, held: Held, at_once: bool = False) -> list[NodeAdded | NodeDraining | NodeLost]:
        """What has changed; nothing where the last look was a moment ago, or the head does not answer."""
        if not at_once and time.monotonic() - self._last < LOOK_SECONDS:
            return []
        self._last = time.monotonic()
        try:
            known, going = _room(held), set(ray_state.get_draining_nodes())
        except Exception as error:  # noqa: BLE001 - a head that restarts is asked again
            log.warning("the head of the Ray cluster does not answer: %s", error)
            return []
        self._silent &= set(known)
        found = {name: node for name, node in known.items() if name not in self._silent}
        taking = {name: node for name, node in found.items() if name not in going}
        there = set(self._nodes) | self._draining
        draining = [NodeDraining(node=name) for name in found if name in going and name in self._nodes]
        lost = [NodeLost(node=name) for name in there if name not in found]
        added = [NodeAdded(node=node) for name, node in taking.items() if self._nodes.get(name) != node]
        self._nodes, self._draining = taking, going & set(found)
        return [*draining, *lost, *added]

    def knock(self, names: Collection[str]) -> list[NodeLost]:
        """Those of these nodes whose raylet has gone: the head takes seconds to miss it, its workers die at once."""
        there = {name: node for name, node in _alive().items() if name in names}
        silent = {name for name, node in there.items() if not _answers(node)} - self._silent
        self._silent |= silent
        for name in silent:
            self._nodes.pop(name, None)
        self._draining -= silent
        return [NodeLost(node=name) for name in sorted(silent)]


def placed_on(group: PlacementGroup) -> tuple[str, ...]:
    """The node of each bundle; empty while there is no room for the group."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    placed = tuple(nodes[rank] for rank in sorted(nodes))
    return placed if all(placed) else ()


def check_code() -> None:
    """Raise ValueError, with every difference, if a node would run other code or versions than this process has."""
    ours, wrong = fingerprint(), []
    answers = {_ask(name): (name, node["NodeManagerHostname"]) for name, node in _alive().items()}
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_SECONDS)
    for answer in ready:  # one that is too busy to answer is asked again when a gang starts there
        name, host = answers[answer]
        try:
            if differs := differences(ours, ray.get(answer)):
                wrong.append(f"{host} has {differs}")
        except Exception as error:  # noqa: BLE001 - whatever keeps a node from running this code is what is asked for
            if name in _alive():  # one that went meanwhile runs nothing
                wrong.append(f"{host} cannot run this code ({reason_of(error)})")
    if wrong:
        raise ValueError(
            "nodes of the cluster would not run what this driver plans: "
            + "; ".join(wrong)
            + ". Results could differ without a word, so nothing was started. Install the same versions on every node."
        )


def reason_of(error: Exception) -> str:
    """The cause in one line: of an exception in a worker, its own type and text."""
    if isinstance(error, ray.exceptions.RayActorError):
        node = "its node has died" in str(error)
        return "the node of a worker died" if node else "its worker process died (killed, or out of memory?)"
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else 'no message'}"


def _alive() -> dict[str, Mapping[str, Any]]:
    """The nodes that the head takes for alive, by name."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether a node's raylet accepts connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _ask(node: str) -> Any:
    task = ray.remote(_fingerprint).options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), name="ditlaw check of code"
    )
    return task.remote()


def _fingerprint() -> Fingerprint:
    return fingerprint()


def _room(held: Held) -> dict[str, Node]:
    found = {
        name: Node(name=name, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))
        for name, free in available_resources_per_node().items()
    }
    for shape, names in held:
        for name in names:
            if (node := found.get(name)) is not None:
                cpus, gpus = node.cpus + shape.cpus_per_worker, node.gpus + shape.gpus_per_worker
                found[name] = Node(name=name, cpus=round(cpus, 4), gpus=round(gpus, 4))
    return found
