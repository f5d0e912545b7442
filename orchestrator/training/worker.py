"""A worker of a gang, as a backend holds it: it joins, runs attempts one after the other, and says how it is going."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from orchestrator.results.location import location
from orchestrator.results.logs import writing_log
from orchestrator.scheduling.backend import Assignment, AttemptOutcome, Progress
from orchestrator.training import engine
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt


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
        self._progress: Progress | None = None

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

    def run(self, assignment: Assignment) -> tuple[AttemptOutcome, str | None]:
        """Run one attempt. Collective."""
        assert self._member is not None, "join comes first"
        # OpenMP keeps the number of threads per calling thread.
        torch.set_num_threads(self._threads)
        self._member.stop.clear()
        self._progress = None
        log = writing_log(self._results, assignment.trial.trial_id, assignment.attempt)
        with log as path, _log_file(path):
            return run_attempt(assignment, self._member)

    def progress(self) -> Progress | None:
        """Where the running attempt is; answered while it runs."""
        return self._progress

    def request_stop(self) -> None:
        """Let the running attempt write a checkpoint and end; answered while it runs."""
        if self._member is not None:
            self._member.stop.set()

    def _keep(self, progress: Progress) -> None:
        self._progress = progress


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything that ditlaw logs during an attempt, and the traceback that ends one, kept beside the results."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("orchestrator")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception:
        logger.exception("the attempt failed")
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
