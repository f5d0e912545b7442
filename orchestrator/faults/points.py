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
    """What every attempt has done, by trial and attempt."""
    return sorted(_traces(folder))


def begin(trial_id: str, attempt: int, samples: int) -> None:
    """An attempt begins, at so many samples. Its process has one at a time."""
    global _watch
    folder = os.environ.get(FOLDER)
    _watch = _Watch(Path(folder), trial_id, attempt, samples) if folder else None


def reach(point: Point, samples: int | None = None) -> None:
    """The attempt is at a point; `samples` is what it has seen after a step, and what a saved checkpoint holds."""
    if _watch is not None:
        _watch.reach(point, samples)


class _Watch:
    """Looks out for armed faults during one attempt, and keeps its place in the ledger."""

    def __init__(self, folder: Path, trial_id: str, attempt: int, samples: int) -> None:
        self.folder, self.trial_id = folder, trial_id
        self.counts: Counter[Point] = Counter()
        self.reached = self.saved = samples
        self.start = samples
        (folder / "ledger").mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "ledger" / f"{trial_id}-{attempt}", "wb", buffering=0)  # noqa: SIM115
        self._note()

    def reach(self, point: Point, samples: int | None) -> None:
        self.counts[point] += 1
        if samples is not None:
            self.reached = max(self.reached, samples)
            self.saved = max(self.saved, samples) if point == "checkpoint.saved" else self.saved
            self._note()
        for path in armed(self.folder):
            if (fault := _taken(path, point, self.trial_id, self.counts[point])) is not None:
                _strike(fault)

    def _note(self) -> None:
        os.pwrite(self.file.fileno(), _ENTRY.pack(self.start, self.reached, self.saved, os.getpid()), 0)


_watch: _Watch | None = None
_ENTRY = struct.Struct("<qqqq")


def _traces(folder: Path) -> Iterator[Trace]:
    for path in (folder / "ledger").glob("*") if (folder / "ledger").is_dir() else ():
        trial_id, _, attempt = path.name.rpartition("-")
        entry = path.read_bytes()
        if len(entry) == _ENTRY.size:  # else it is about to be written
            yield Trace(trial_id, int(attempt), *_ENTRY.unpack(entry))


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
