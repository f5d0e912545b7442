"""One gang of one worker in a thread of this process: for tests and for stepping through a trial with a debugger."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.scheduling.backend import (
    Assignment,
    AttemptEnded,
    AttemptOutcome,
    Claim,
    Event,
    GangLost,
    GangReady,
    GangShape,
    Node,
    Progress,
)


class LocalWorker(Protocol):
    """What the backend needs of a worker; `orchestrator.training.worker.Worker` is one."""

    def join(self, rank: int, world_size: int, address: str, port: int) -> None: ...
    def run(self, assignment: Assignment) -> tuple[AttemptOutcome, str | None]: ...
    def progress(self) -> Progress | None: ...
    def request_stop(self) -> None: ...


class LocalBackend:
    """A Backend whose gangs are threads. `make_worker` is called once a gang; `port` is for its process group."""

    def __init__(self, make_worker: Callable[[], LocalWorker], port: int = 0) -> None:
        self._make_worker, self._port = make_worker, port
        self._workers: dict[str, LocalWorker] = {}
        self._events: queue.Queue[Event] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def nodes(self) -> Sequence[Node]:
        return [Node(name="local", cpus=os.cpu_count() or 1)]

    def start_gang(self, gang: str, shape: GangShape) -> None:
        assert shape.workers == 1, "a local gang has one worker"

        def start() -> None:
            try:
                worker = self._make_worker()
                worker.join(0, 1, "127.0.0.1", self._port)
                self._workers[gang] = worker
                self._events.put(GangReady(gang=gang))
            except Exception as error:  # noqa: BLE001 - the scheduler decides
                self._events.put(GangLost(gang=gang, reason=str(error)))

        self._start(start)

    def run(self, assignment: Assignment) -> None:
        worker, trial_id = self._workers[assignment.gang], assignment.trial.trial_id
        outcome: AttemptOutcome
        reason: str | None

        def attempt() -> None:
            nonlocal outcome, reason
            try:
                outcome, reason = worker.run(assignment)
            except Exception as error:  # noqa: BLE001 - the scheduler decides
                outcome, reason = "failed", f"{type(error).__name__}: {error}"
            gang, number = assignment.gang, assignment.attempt
            self._events.put(AttemptEnded(gang=gang, trial_id=trial_id, attempt=number, outcome=outcome, reason=reason))

        self._start(attempt)

    def request_stop(self, gang: str) -> None:
        self._workers[gang].request_stop()

    def tell_neighbours(self, claim: Claim) -> None:
        """It has none."""

    def events(self, timeout: float) -> Sequence[Event]:
        try:
            return [self._events.get(timeout=timeout)]
        except queue.Empty:
            return []

    def progress(self) -> dict[str, Progress]:
        known = {gang: worker.progress() for gang, worker in self._workers.items()}
        return {gang: progress for gang, progress in known.items() if progress is not None}

    def stop_gang(self, gang: str) -> None:
        self._workers.pop(gang, None)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.request_stop()
        for thread in self._threads:
            thread.join(timeout=30)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()
