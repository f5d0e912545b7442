"""The named points at which a worker can be made to fail: for tests and `ditlaw soak`.

Armed through a folder that the environment variable DITLAW_FAULTS names: one JSON file a fault, taken by whichever
attempt first comes to its point so often. Without the variable a point costs the comparison with None.

The folder also gets a ledger: how far each attempt has come, and up to where it has saved, exact even where the
process is killed. It tells what a fault has cost, which a killed worker cannot say itself.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from orchestrator.faults.clock import jump

FOLDER = "DITLAW_FAULTS"
"""The environment variable that names the folder of armed faults."""

Point = Literal[
    "step.before",
    "step.inside",
    "step.after",
    "checkpoint.write",
    "checkpoint.rename",
    "checkpoint.saved",
    "measurement.write",
    "measurement.written",
]
"""step.inside: between a forward pass and its backward pass; *.write: the bytes are there, under a hidden name;
checkpoint.rename: its folder is whole, under a hidden name; checkpoint.saved, measurement.written: it counts."""
POINTS: tuple[Point, ...] = get_args(Point)

Action = Literal["kill", "hang", "freeze", "raise", "clock"]
"""hang: the attempt stands still, and its process answers; freeze: the process does not answer either; clock: the
wall clock of the process jumps a day back and goes on from there."""

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is to happen, and where."""

    point: Point
    action: Action = "kill"
    occurrence: int = 1
    """At the n-th time that an attempt comes to the point."""
    trial_id: str | None = None
    """In which trial; None for any."""


class Trace(NamedTuple):
    """What the ledger knows of an attempt, in samples seen."""

    trial_id: str
    attempt: int
    start: int
    """Where it began."""
    reached: int
    """After its last step."""
    saved: int
    """Its newest finished checkpoint, or where it began."""
    pid: int
    rank: int = 0
    unsaved_seconds: float = 0.0
    """How long it had trained since its newest checkpoint when its last step but one was done: the longest that it was
    at liberty to go without saving."""


def arm(folder: Path, fault: Fault) -> Path:
    """Arm a fault; its file is renamed to `*.fired` when it happens."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(6)}.armed"
    hidden = path.with_suffix(".tmp")
    hidden.write_text(json.dumps(asdict(fault)))
    hidden.rename(path)
    return path


def armed(folder: Path) -> list[Path]:
    """The faults that have not happened yet."""
    return sorted(folder.glob("*.armed"))


def fired(folder: Path) -> list[Fault]:
    """The faults that have happened."""
    return [Fault(**json.loads(path.read_text())) for path in sorted(folder.glob("*.fired"))]


def ledger(folder: Path) -> list[Trace]:
    """What every attempt has done, by trial and attempt: what the first worker of its gang says."""
    return sorted(trace for trace in _traces(folder) if trace.rank == 0)


def processes(folder: Path) -> set[int]:
    """The processes that have an attempt or had one, all workers of every gang."""
    return {trace.pid for trace in _traces(folder)}


def begin(trial_id: str, attempt: int, samples: int, rank: int = 0) -> None:
    """A worker of a gang begins an attempt, at so many samples. Its process has one at a time."""
    global _watch
    folder = os.environ.get(FOLDER)
    _watch = _Watch(Path(folder), trial_id, attempt, samples, rank) if folder else None


def reach(point: Point, samples: int | None = None) -> None:
    """The attempt is at a point; `samples` is what it has seen after a step, and what a saved checkpoint holds."""
    if _watch is not None:
        _watch.reach(point, samples)


class _Watch:
    """Looks out for armed faults during one attempt, and keeps its place in the ledger."""

    def __init__(self, folder: Path, trial_id: str, attempt: int, samples: int, rank: int) -> None:
        self.folder, self.trial_id = folder, trial_id
        self.counts: Counter[Point] = Counter()
        self.reached = self.saved = samples
        self.start = samples
        self.saved_at: float | None = None
        """When training went on after the newest checkpoint; None until it does."""
        self.unsaved = self.unsaved_before = 0.0
        (folder / "ledger").mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "ledger" / f"{trial_id}-{attempt}-{rank}", "wb", buffering=0)  # noqa: SIM115
        self._note()

    def reach(self, point: Point, samples: int | None) -> None:
        self.counts[point] += 1
        if point == "step.before" and self.saved_at is None:
            self.saved_at = time.perf_counter()
        if samples is not None:
            self._time(point)
            self.reached = max(self.reached, samples)
            self.saved = max(self.saved, samples) if point == "checkpoint.saved" else self.saved
            self._note()
        for path in armed(self.folder):
            if (fault := _taken(path, point, self.trial_id, self.counts[point])) is not None:
                _strike(fault)

    def _time(self, point: Point) -> None:
        """Keep the time since the newest checkpoint, after this step and the one before."""
        if point == "checkpoint.saved":
            self.saved_at, self.unsaved, self.unsaved_before = None, 0.0, 0.0
        elif self.saved_at is not None:
            self.unsaved, self.unsaved_before = time.perf_counter() - self.saved_at, self.unsaved

    def _note(self) -> None:
        entry = _ENTRY.pack(self.start, self.reached, self.saved, os.getpid(), self.unsaved_before)
        os.pwrite(self.file.fileno(), entry, 0)


_watch: _Watch | None = None
_ENTRY = struct.Struct("<qqqqd")


def _traces(folder: Path) -> Iterator[Trace]:
    for path in (folder / "ledger").glob("*") if (folder / "ledger").is_dir() else ():
        trial_id, attempt, rank = path.name.rsplit("-", 2)
        entry = path.read_bytes()
        if len(entry) == _ENTRY.size:  # else it is about to be written
            start, reached, saved, pid, unsaved = _ENTRY.unpack(entry)
            yield Trace(trial_id, int(attempt), start, reached, saved, pid, int(rank), unsaved)


def _taken(path: Path, point: Point, trial_id: str, count: int) -> Fault | None:
    """The fault of a file if it is for here and now; nobody else gets it then."""
    try:
        fault = Fault(**json.loads(path.read_text()))
        if fault.point != point or fault.trial_id not in (None, trial_id) or count < fault.occurrence:
            return None
        path.rename(path.with_suffix(".fired"))
    except FileNotFoundError:  # another worker was first
        return None
    return fault


def _strike(fault: Fault) -> None:
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            threading.Event().wait()
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise RuntimeError(f"a fault was injected at {fault.point}")
        case "clock":
            jump(-DAY)
