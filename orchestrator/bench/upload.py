"""`ditlaw bench upload`: what checkpoints that go to slow object storage cost the steps of the training that goes on.

A real attempt trains and saves into storage with a latency and a bandwidth. Between two checkpoints the steps during
the upload are held against those after it, so that a machine whose speed drifts is fair to both.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from models.configs.dit import DiTConfig
from orchestrator.bench.memory import Case, alone_in_a_gang, assignment_of, environment, member_of, trial_of
from orchestrator.results.location import Location, ObjectPath
from orchestrator.results.outbox import Outbox, outbox_of
from orchestrator.training.loop import Attempt

SCHEME = "slow"


class Step(NamedTuple):
    """One step, in seconds since any fixed moment."""

    began: float
    ended: float
    uploading: bool
    """Whether writes were under way when it began."""


class Pause(NamedTuple):
    """Training stood still to hand in a checkpoint."""

    began: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From the moment a checkpoint was begun to the next one."""

    seconds: float
    pause_seconds: float
    upload_seconds: float
    uploading: list[float]
    """Seconds of each step during the upload."""
    quiet: list[float]
    """Seconds of each step after it."""

    @property
    def lost_seconds(self) -> float:
        """What the checkpoint cost: the pause, and what steps during its upload took longer than those after it."""
        return self.pause_seconds + sum(self.uploading) - len(self.uploading) * statistics.fmean(self.quiet)


class TimedAttempt(Attempt):
    """An attempt that notes when it stepped and when it stood still."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.steps: list[Step] = []
        self.pauses: list[Pause] = []
        super().__init__(*arguments, **options)

    def step(self) -> torch.Tensor:
        uploading, began = self.outbox.busy, time.perf_counter()
        loss = super().step()
        loss.item()  # on a GPU the host is ahead
        self.steps.append(Step(began, time.perf_counter(), uploading))
        return loss

    def _save(self) -> None:
        began = time.perf_counter()
        super()._save()
        self.pauses.append(Pause(began, time.perf_counter()))


def run(
    checkpoints: int = 12, width: int = 256, megabytes_per_s: float = 20.0, latency_ms: float = 100.0, batch: int = 4
) -> dict[str, Any]:
    """Train a DiT of `width` until so many checkpoints are up, one after the other, each followed by as much quiet.

    Returns:
        blocked_share (of the training time: pauses, and what steps take longer during an upload) with its standard
        error over checkpoints blocked_share_se, pause_share (pauses alone), step_ms and uploading_step_ms (medians of
        steps without and with an upload), upload_s and checkpoint_megabytes, the storage, and what it was measured
        with.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = DiTConfig(image_size=16, channels=4, num_classes=10, patch=2, width=width, depth=6, heads=width // 32)
    case = Case(size=f"w{width}", model=model, micro_batch=batch, precision="fp32", zero_stage=0)
    with tempfile.TemporaryDirectory() as folder, alone_in_a_gang(device):
        root = slow_storage(Path(folder), 1e6 * megabytes_per_s, latency_ms / 1e3)
        with outbox_of(root) as outbox:
            attempt = _attempt(case, device, root, outbox, megabytes_per_s)
            megabytes = _train(attempt, checkpoints) / 1e6
    found = intervals(attempt.steps, attempt.pauses)
    shares = [interval.lost_seconds / interval.seconds for interval in found]
    seconds = sum(interval.seconds for interval in found)
    return {
        "blocked_share": sum(interval.lost_seconds for interval in found) / seconds,
        "blocked_share_se": statistics.stdev(shares) / math.sqrt(len(shares)),
        "pause_share": sum(interval.pause_seconds for interval in found) / seconds,
        "step_ms": 1e3 * statistics.median(s for interval in found for s in interval.quiet),
        "uploading_step_ms": 1e3 * statistics.median(s for interval in found for s in interval.uploading),
        "upload_s": statistics.median(interval.upload_seconds for interval in found),
        "checkpoint_megabytes": megabytes,
        "checkpoints": len(found),
        "megabytes_per_s": megabytes_per_s,
        "latency_ms": latency_ms,
        "threads": torch.get_num_threads(),
        **environment(device),
    }


def intervals(steps: Sequence[Step], pauses: Sequence[Pause]) -> list[Interval]:
    """The steps between each two checkpoints; those whose upload was not over before the next one are left out."""
    found = []
    for pause, after in itertools.pairwise(pauses):
        inside = [step for step in steps if pause.ended <= step.began < after.began]
        uploading = [step for step in inside if step.uploading]
        quiet = [step.ended - step.began for step in inside if not step.uploading]
        if uploading and quiet:
            found.append(
                Interval(
                    seconds=after.began - pause.began,
                    pause_seconds=pause.ended - pause.began,
                    upload_seconds=uploading[-1].ended - pause.ended,
                    uploading=[step.ended - step.began for step in uploading],
                    quiet=quiet,
                )
            )
    return found


def _attempt(case: Case, device: torch.device, root: Location, outbox: Outbox, megabytes_per_s: float) -> TimedAttempt:
    """The attempt, which will save as soon as it may once as much quiet has followed an upload."""
    trial = trial_of(case, 10**6)
    state_bytes = 4 * 4 * trial.params_total  # weights, two moments and the average
    assignment = replace(assignment_of(trial), checkpoint_seconds=2 * state_bytes / (1e6 * megabytes_per_s))
    return TimedAttempt(assignment, member_of(case, device, root), outbox)


def _train(attempt: TimedAttempt, checkpoints: int) -> float:
    """Train until so many checkpoints have been followed by another; returns the bytes of one."""
    story = attempt.story()
    next(story)
    while len(attempt.pauses) <= checkpoints:
        story.send(attempt.step())
    attempt.engine.close()
    return float(4 * 4 * attempt.trial.params_total)


def slow_storage(folder: Path, bytes_per_s: float, latency_seconds: float) -> ObjectPath:
    """Object storage below a folder of this machine, in which every request has a latency and writes a bandwidth."""

    class SlowFile:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: Any) -> int:
            time.sleep(len(data) / bytes_per_s)
            return int(self._file.write(data))

    class SlowStorage(DirFileSystem):
        cachable = False

        def __init__(self, **options: Any) -> None:
            super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True), **options)

        def open(self, *arguments: Any, **options: Any) -> SlowFile:
            time.sleep(latency_seconds)
            return SlowFile(super().open(*arguments, **options))

        def info(self, *arguments: Any, **options: Any) -> Any:
            time.sleep(latency_seconds)
            return super().info(*arguments, **options)

        def find(self, *arguments: Any, **options: Any) -> Any:
            time.sleep(latency_seconds)
            return super().find(*arguments, **options)

    fsspec.register_implementation(SCHEME, SlowStorage, clobber=True)
    return ObjectPath(SCHEME, "bucket/results")
