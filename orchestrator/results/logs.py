"""The log of each attempt, `logs/<trial_id>/<attempt>.log`. Creating one claims the attempt's number."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.results.location import Location, ObjectPath


def log_of(results: Location, trial_id: str, attempt: int) -> Location:
    """Where an attempt's log is."""
    return results / "logs" / trial_id / f"{attempt}.log"


def claimed_attempts(results: Location, trial_id: str) -> range:
    """The attempts of a trial whose numbers have been taken."""
    try:
        found = [path for path in (results / "logs" / trial_id).iterdir() if path.name.endswith(".log")]
    except FileNotFoundError:
        return range(0)
    return range(len(found))


def claim_attempt(results: Location, trial_id: str) -> int:
    """The next attempt's number, taken by creating its log file: no two attempts ever share one.

    On object storage that holds for the driver that has the folder's lock; nobody else claims.
    """
    number = len(claimed_attempts(results, trial_id))
    while True:
        log = log_of(results, trial_id, number)
        if isinstance(log, ObjectPath):
            log.write_bytes(b"")
            return number
        log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            log.open("x").close()
            return number
        number += 1


def add_line(results: Location, trial_id: str, attempt: int, line: str) -> None:
    """Add to the log of an attempt what it could not say itself. On object storage, where nothing can be added to, and
    where there is no room, it is left out."""
    log = log_of(results, trial_id, attempt)
    if isinstance(log, Path):
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write(line + "\n")


@contextlib.contextmanager
def writing_log(results: Location, trial_id: str, attempt: int) -> Iterator[Path]:
    """The file to which an attempt logs; on object storage it is put up when the attempt ends."""
    log = log_of(results, trial_id, attempt)
    if isinstance(log, Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        yield log
        return
    with tempfile.TemporaryDirectory(prefix="ditlaw-log-") as folder:
        local = Path(folder) / log.name
        local.touch()
        try:
            yield local
        finally:
            with contextlib.suppress(OSError):  # a log is no reason to fail an attempt that is done
                log.write_bytes(local.read_bytes())
