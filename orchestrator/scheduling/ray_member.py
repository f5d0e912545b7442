"""The actor of a gang: one worker in a process of its own, and the environment of that process."""

from __future__ import annotations

import gc
import importlib
import os
import socket
from typing import Any, NamedTuple

import ray

from orchestrator.faults import points
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.scheduling.fingerprint import Fingerprint, fingerprint


class Introduction(NamedTuple):
    """What a worker says of itself before it joins."""

    host: str
    port: int
    """A free one on its node, for the process group."""
    fingerprint: Fingerprint


class Member:
    """One worker of a gang. Its class is named, so that the driver need not import torch."""

    def __init__(self, worker: str, arguments: dict[str, Any]) -> None:
        module, name = worker.split(":")
        gc.disable()  # imports leave no garbage, and looking for it is a tenth of their time
        found = importlib.import_module(module)
        gc.enable()
        self._worker = getattr(found, name)(**arguments)

    def introduce(self) -> Introduction:
        """Where this worker is and what it would run."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return Introduction(ray.util.get_node_ip_address(), int(probe.getsockname()[1]), fingerprint())

    def join(self, *arguments: Any) -> None:
        self._worker.join(*arguments)

    def run(self, assignment: Assignment) -> Any:
        return self._worker.run(assignment)

    def progress(self) -> Progress | None:
        progress: Progress | None = self._worker.progress()
        return progress

    def request_stop(self) -> None:
        self._worker.request_stop()


def environment(threads: int, use_gpu: bool) -> dict[str, str]:
    """Environment variables of a worker's process."""
    variables = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    if not use_gpu:
        variables["DS_ACCELERATOR"] = "cpu"
        # Keep freed memory: fresh pages cost a small model up to a tenth of its step.
        variables |= {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
    if points.FOLDER in os.environ:
        variables[points.FOLDER] = os.environ[points.FOLDER]
    return variables
