"""What a cluster's nodes have free, device by device, and which of them a gang goes to. A pure value.

A worker is on one node and, where it uses GPUs, on one device; several workers of less than a GPU share one. A gang
takes as few nodes as it would on an empty cluster, so that it is never torn over a fragmented one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from orchestrator.scheduling.backend import GangShape, Node
from orchestrator.scheduling.persistent import SortedMap

NOWHERE: frozenset[str] = frozenset()
"""No nodes."""
UNITS = 10_000
"""Resources are counted in whole 1/10,000, as Ray does: sums of fractions come out exactly."""


class Room(NamedTuple):
    """Resources of a node in UNITS; the GPUs one by one."""

    cpus: int
    gpus: tuple[int, ...]

    @property
    def kind(self) -> Room:
        """The same, whatever the order of the devices."""
        return Room(self.cpus, tuple(sorted(self.gpus)))

    def plus(self, allotment: Allotment, times: int) -> Room:
        """With so many times an allotment more."""
        gpus = list(self.gpus)
        for device, units in allotment.gpus:
            gpus[device] += times * units
        return Room(self.cpus + times * allotment.cpus, tuple(gpus))


class Allotment(NamedTuple):
    """What a gang holds of one node, in UNITS."""

    node: str
    cpus: int
    gpus: tuple[tuple[int, int], ...]
    """(device, units) of each worker that uses one."""


Placement = tuple[Allotment, ...]


@dataclass(frozen=True)
class Cluster:
    """The nodes: what each has in all, and free. Every change gives a new Cluster; the old one stays as it was."""

    totals: SortedMap[str, Room]
    free: SortedMap[str, Room]
    alike: Mapping[Room, SortedMap[str, None]]
    """Nodes by what they have free: alike ones are interchangeable, and there are few kinds."""
    sizes: Mapping[Room, int]
    """Number of nodes by what they have in all."""

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Cluster:
        """An empty cluster of these nodes."""
        cluster = Cluster(SortedMap(), SortedMap(), {}, {})
        for node in nodes:
            cluster = cluster.with_node(node)
        return cluster

    @property
    def cpus(self) -> float:
        """CPUs in all."""
        return sum(room.cpus * count for room, count in self.sizes.items()) / UNITS

    @property
    def gpus(self) -> float:
        """GPUs in all."""
        return sum(sum(room.gpus) * count for room, count in self.sizes.items()) / UNITS

    def span(self, shape: GangShape) -> int | None:
        """The fewest nodes that could hold such a gang, were they empty; None if all together could not."""
        left, nodes = shape.workers, 0
        for holds, room in sorted(((_holds(room, shape), room) for room in self.sizes), reverse=True):
            count = min(self.sizes[room], -(-left // holds)) if holds else 0
            left, nodes = left - count * holds, nodes + count
            if left <= 0:
                return nodes
        return None

    def workers(self, shape: GangShape) -> int:
        """How many workers of `shape` it could hold, were it empty."""
        return sum(_holds(room, shape) * count for room, count in self.sizes.items())

    def least_share(self, shape: GangShape) -> int:
        """The fewest workers that any node of a placement can have."""
        most = max((_holds(room, shape) for room in self.sizes), default=0)
        return max(1, shape.workers - ((self.span(shape) or 1) - 1) * most)

    def would_hold(self, node: str, allotments: Iterable[Allotment], shape: GangShape) -> int:
        """How many workers of `shape` a node would have room for without these allotments."""
        room = self.free.get(node)
        if room is None:
            return 0
        for allotment in allotments:
            room = room.plus(allotment, 1)
        return _holds(room.kind, shape)

    def place(self, shape: GangShape, avoid: Collection[str] = ()) -> Placement | None:
        """Where a gang would go, off the nodes to `avoid`: the tightest fit on the fewest nodes. None: nowhere now."""
        span = self.span(shape)
        rooms = sorted((holds, room) for room in self.alike if (holds := _holds(room, shape)))
        chosen: dict[str, int] = {}
        left = shape.workers
        while left > 0:
            if span is None or len(chosen) == span:
                return None
            enough = [pair for pair in rooms if pair[0] >= left]
            for holds, room in enough or rooms[::-1]:
                node = next((name for name in self.alike[room] if name not in chosen and name not in avoid), None)
                if node is not None:
                    chosen[node] = min(left, holds)
                    left -= chosen[node]
                    break
                rooms.remove((holds, room))
            else:
                if not enough:
                    return None
        return tuple(_allotment(node, self.free[node], shape, workers) for node, workers in chosen.items())

    def placed_on(self, shape: GangShape, nodes: Iterable[str]) -> Placement:
        """The placement of a gang whose workers were found on `nodes`, one a worker; unknown nodes are left out."""
        workers: dict[str, int] = {}
        for node in nodes:
            workers[node] = workers.get(node, 0) + 1
        return tuple(
            _allotment(node, self.free[node], shape, count) for node, count in workers.items() if node in self.free
        )

    def take(self, placement: Placement) -> Cluster:
        """With a placement in use."""
        return self._changed(placement, -1)

    def release(self, placement: Placement) -> Cluster:
        """With a placement free again, as far as its nodes are still there."""
        return self._changed(placement, 1)

    def with_node(self, node: Node) -> Cluster:
        """With a node added, or of another size: what is in use there stays in use."""
        whole = int(node.gpus)
        gpus = [UNITS] * whole + ([round((node.gpus - whole) * UNITS)] if node.gpus > whole else [])
        total = Room(round(node.cpus * UNITS), tuple(gpus))
        old = self.totals.get(node.name, Room(0, ()))
        free = self.free.get(node.name, Room(0, ()))
        devices = max(len(free.gpus), len(gpus))
        room = Room(
            free.cpus + total.cpus - old.cpus,
            tuple(_at(free.gpus, d) + _at(total.gpus, d) - _at(old.gpus, d) for d in range(devices)),
        )
        sizes = _counted(_counted(self.sizes, old, -1) if node.name in self.totals else self.sizes, total, 1)
        return Cluster(self.totals.set(node.name, total), self.free, self.alike, sizes)._with_room(node.name, room)

    def without_node(self, name: str) -> Cluster:
        """With a node gone; the same where it is not there."""
        if name not in self.totals:
            return self
        kind = self.free[name].kind
        sizes = _counted(self.sizes, self.totals[name], -1)
        alike = _filed(self.alike, kind, self.alike[kind].without(name))
        return Cluster(self.totals.without(name), self.free.without(name), alike, sizes)

    def _changed(self, placement: Placement, sign: int) -> Cluster:
        cluster = self
        for allotment in placement:
            if allotment.node in cluster.free:
                cluster = cluster._with_room(allotment.node, cluster.free[allotment.node].plus(allotment, sign))
        return cluster

    def _with_room(self, name: str, room: Room) -> Cluster:
        alike, old = self.alike, self.free.get(name)
        if old is not None:
            alike = _filed(alike, old.kind, alike[old.kind].without(name))
        alike = _filed(alike, room.kind, alike.get(room.kind, _NOBODY).set(name, None))
        return Cluster(self.totals, self.free.set(name, room), alike, self.sizes)


_NOBODY: SortedMap[str, None] = SortedMap()


@lru_cache(maxsize=4096)
def _holds(room: Room, shape: GangShape) -> int:
    """Workers of `shape` that fit `room`."""
    cpus, gpus = _needs(shape)
    by_cpus = room.cpus // cpus if cpus else shape.workers
    by_gpus = sum(max(0, free) // gpus for free in room.gpus) if gpus else shape.workers
    return max(0, min(by_cpus, by_gpus))


def _needs(shape: GangShape) -> tuple[int, int]:
    """What a worker needs, in UNITS."""
    return round(shape.cpus_per_worker * UNITS), round(shape.gpus_per_worker * UNITS)


def _allotment(node: str, room: Room, shape: GangShape, workers: int) -> Allotment:
    """So many workers on a node, each on the fullest device that still has room for it (else on the emptiest)."""
    cpus, need = _needs(shape)
    free, devices = list(room.gpus), []
    for _ in range(workers if need and free else 0):
        device = min(range(len(free)), key=lambda d: (free[d] < need, free[d] if free[d] >= need else -free[d], d))
        free[device] -= need
        devices.append((device, need))
    return Allotment(node, workers * cpus, tuple(devices))


def _at(gpus: tuple[int, ...], device: int) -> int:
    return gpus[device] if device < len(gpus) else 0


def _counted(sizes: Mapping[Room, int], room: Room, change: int) -> dict[Room, int]:
    counts = {**sizes, room: sizes.get(room, 0) + change}
    return {room: count for room, count in counts.items() if count}


def _filed(
    alike: Mapping[Room, SortedMap[str, None]], kind: Room, names: SortedMap[str, None]
) -> dict[Room, SortedMap[str, None]]:
    filed = {**alike, kind: names}
    if not names:
        del filed[kind]
    return filed
