"""What passes between the driver and the workers, and the interface of a backend that runs gangs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

from orchestrator.spec.trial import Trial

if TYPE_CHECKING:  # workers import this file and have no use for the language of sweeps
    from orchestrator.spec.compute import Compute

AttemptOutcome = Literal["completed", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One attempt of a trial, handed to a gang."""

    trial: Trial
    attempt: int
    gang: str
    milestones: tuple[int, ...]
    """The milestones that are not measured yet."""
    branch_points: tuple[int, ...] = ()
    """The samples at which cooldowns branch off and no checkpoint is kept yet."""
    samples_spent: int
    """Samples that earlier attempts trained, lost ones included."""
    checkpoint_seconds: float
    keep_finished: bool = True
    """Whether checkpoints outlive the last measurement; if not, there need not be one at every milestone either."""
    mlflow_run_id: str | None
    waited_seconds: float | None = None
    """How long its gang has had nothing to do before; None where nobody knows, and of a mate."""
    mates: tuple[Assignment, ...] = ()
    """Attempts of other trials of its shape that are trained with it, as one stacked model."""

    @property
    def members(self) -> tuple[Assignment, ...]:
        """This attempt and its mates."""
        return self, *self.mates


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a running attempt is."""

    trial_id: str
    attempt: int
    phase: Literal["starting", "training", "evaluating", "waiting for disk space"]
    samples: int
    samples_start: int
    """Samples of the checkpoint from which this attempt went on."""
    loss: float | None
    samples_per_second: float | None
    beats: int = 0
    """Signs of life of its gang so far."""
    mates: tuple[Progress, ...] = ()
    """Of the attempts that are trained with it."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine: what it has of each resource, less what others hold there."""

    name: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GangReady:
    """A gang has joined its process group and waits for work."""

    gang: str
    nodes: tuple[str, ...] = ()
    """The node of each worker, by rank; empty where the backend does not know."""


@dataclass(frozen=True, kw_only=True)
class AttemptEnded:
    """An attempt returned; its measurements, if any, are in the store."""

    gang: str
    trial_id: str
    attempt: int
    outcome: AttemptOutcome
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class GangLost:
    """A gang's process died or could not start."""

    gang: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A trial has a finished checkpoint at exactly `samples`."""

    trial_id: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class NodeAdded:
    """A node has joined, or one that is there has another size now."""

    node: Node


@dataclass(frozen=True, kw_only=True)
class NodeDraining:
    """A node will go soon: a preemption notice, or its owner's wish."""

    node: str


@dataclass(frozen=True, kw_only=True)
class NodeLost:
    """A node is gone. Its gangs are reported lost one by one."""

    node: str


@dataclass(frozen=True, kw_only=True)
class GangShape:
    """The workers of a gang and what each of them needs."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    @property
    def cpus(self) -> float:
        """Of all its workers."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        """Of all its workers."""
        return self.workers * self.gpus_per_worker

    @classmethod
    def of(cls, compute: Compute, workers: int) -> Self:
        """The gang that a trial of so many workers asks for."""
        return cls(workers=workers, cpus_per_worker=compute.cpus_per_worker, gpus_per_worker=compute.gpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a driver says of itself to the others of its cluster."""

    driver: str
    """A name that no other driver has."""
    sweep: str
    priority: int
    """Of the trial that lacks a gang; where none does, the highest one that runs."""
    held: tuple[Node, ...] = ()
    """What its gangs have of each node."""
    lacks: GangShape | None = None
    """The gang that it would start next, had it the room."""


@dataclass(frozen=True, kw_only=True)
class NeighboursHeard:
    """What the other drivers of the cluster say now."""

    claims: tuple[Claim, ...]


Event = GangReady | AttemptEnded | GangLost | CheckpointSaved | NodeAdded | NodeDraining | NodeLost | NeighboursHeard


class Backend(Protocol):
    """Runs gangs somewhere. Calls return at once; what happened comes from `events`."""

    def nodes(self) -> Sequence[Node]:
        """The machines as they are now; `events` tells of changes."""

    def start_gang(self, gang: str, shape: GangShape) -> None:
        """Begin to start a gang; GangReady or GangLost follows."""

    def run(self, assignment: Assignment) -> None:
        """Begin an attempt on a ready gang; AttemptEnded or GangLost follows."""

    def request_stop(self, gang: str) -> None:
        """Ask the gang's attempt to write a checkpoint and end; AttemptEnded follows."""

    def tell_neighbours(self, claim: Claim) -> None:
        """Let the other drivers of the cluster know of this one; NeighboursHeard tells of them."""

    def events(self, timeout: float) -> Sequence[Event]:
        """What happened since the last call; waits at most `timeout` seconds for a first event."""

    def progress(self) -> dict[str, Progress]:
        """The last known progress of each busy gang, by gang."""

    def stop_gang(self, gang: str) -> None:
        """End a gang's processes."""

    def close(self) -> None:
        """End every gang and leave."""
