"""A worker of a gang, as a backend holds it: it joins, runs attempts one after the other, and says how it is going."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from orchestrator.results.location import location
from orchestrator.results.logs import writing_log
from orchestrator.scheduling.backend import Assignment, AttemptOutcome, Progress
from orchestrator.training import engine
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt
from orchestrator.training.packing import run_pack


class Worker:
    """One process of a gang.

    Args:
        results: the sweep's results folder or URI, the same for every worker.
        data: the dataset's folder.
        threads: CPU threads to compute with.
        use_gpu: compute on the first visible GPU.
    """

    def __init__(self, results: str, data: str, threads: int, use_gpu: bool) -> None:
        self._results, self._data = location(results), Path(data)
        self._threads, self._use_gpu = threads, use_gpu
        self._member: GangMember | None = None
        self._progress: dict[str, Progress] = {}
        """Of the running attempts, by trial; the first is the one that the gang is known by."""

    def join(self, rank: int, world_size: int, address: str, port: int) -> None:
        """Join the gang's process group. Collective."""
        torch.set_num_threads(self._threads)
        engine.join(rank, world_size, address, port, self._use_gpu)
        device = torch.device("cuda", 0) if self._use_gpu else torch.device("cpu")
        self._member = GangMember(
            rank=rank,
            world_size=world_size,
            device=device,
            results=self._results,
            data=self._data,
            report=self._keep,
        )
        gc.freeze()  # what was imported stays: the search for garbage after every trial need not go through it

    def run(self, assignment: Assignment) -> tuple[AttemptOutcome, str | None]:
        """Run one attempt. Collective."""
        assert self._member is not None, "join comes first"
        # OpenMP keeps the number of threads per calling thread.
        torch.set_num_threads(self._threads)
        self._member.samples = 0
        self._progress = {one.trial.trial_id: _starting(one) for one in assignment.members}
        with contextlib.ExitStack() as logs:
            for one in assignment.members:
                path = logs.enter_context(writing_log(self._results, one.trial.trial_id, one.attempt))
                logs.enter_context(_log_file(path))
            try:
                run = run_pack if assignment.mates or self._flat(assignment) else run_attempt
                return run(assignment, self._member)
            finally:
                # Not at the beginning: a request may overtake the attempt that it is for.
                self._member.stop.clear()

    def _flat(self, assignment: Assignment) -> bool:
        """Whether it is trained as a pack of one, over flat buffers and without DeepSpeed."""
        return assignment.trial.stepping != "deepspeed" and self._use_gpu

    def progress(self) -> Progress | None:
        """Where the running attempt is, with its signs of life; answered while it runs."""
        member = self._member
        if member is None or not self._progress:
            return None
        first, *mates = self._progress.values()
        samples = first.samples if mates else max(first.samples, member.samples)
        return replace(first, samples=samples, beats=member.beats, mates=tuple(mates))

    def request_stop(self) -> None:
        """Let the running attempt write a checkpoint and end; answered while it runs."""
        if self._member is not None:
            self._member.stop.set()

    def _keep(self, progress: Progress) -> None:
        assert self._member is not None
        self._progress = {**self._progress, progress.trial_id: progress}
        self._member.samples = progress.samples
        self._member.beat()


def _starting(assignment: Assignment) -> Progress:
    """Before anything is known of an attempt."""
    first = assignment.trial.first
    return Progress(
        trial_id=assignment.trial.trial_id,
        attempt=assignment.attempt,
        phase="starting",
        samples=first,
        samples_start=first,
        loss=None,
        samples_per_second=None,
    )


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything that ditlaw logs during an attempt, and the traceback that ends one, kept beside the results."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("orchestrator")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.info("attempt begins in process %d on %s", os.getpid(), socket.gethostname())
    try:
        yield
    except Exception:
        logger.exception("the attempt failed")
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk is no reason to fail what is done
            handler.close()
