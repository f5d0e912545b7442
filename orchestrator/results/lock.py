"""One driver at a time on a results folder.

On a file system the kernel keeps the lock, and drops it with its process. On object storage, where there are no locks
and not everywhere conditional writes, each contender puts an object of its own below `lock/`, and then lists. Storage
shows an object as soon as its put returns, so of two contenders at least one sees the other, and whoever sees another
withdraws: both cannot hold the lock, though both may withdraw and try again. The holder rewrites its object every few
seconds. Contenders compare what it says over time, so no two clocks need agree; one that has not changed for
LEASE_SECONDS is dead: a note is put beside its object, which is deleted. A holder that finds that has lost the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from orchestrator.results.location import Location, ObjectPath

_logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a holder says that it is alive."""
LEASE_SECONDS = 60.0
"""How long a holder may be silent before others take it for dead."""
_LOOK_SECONDS = 0.1
"""Longest time for which somebody who only looks who holds the lock could be in the way."""
_TRIES = 5
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What a file system without flock answers: Lustre without its option, NFS without lockd, some of FUSE."""
_BYTES = 512
"""Size of a contender's object. pyarrow asks for the size before it reads: it must not change in between."""
_FILE = ".lock"
PREFIX = "lock"
"""Below which the contenders' objects lie, on object storage."""


class Check(Protocol):
    """Raises LockLost once the lock has been lost.

    To be `sure` it asks object storage, where the last answer is old, and raises OSError where that does not answer.
    """

    def __call__(self, sure: bool = False) -> None: ...


class LockLost(OSError):
    """Another process has the results folder now: this one must not write there any more."""


@contextlib.contextmanager
def held(
    folder: Location,
    wait_seconds: float = 0.0,
    beat_seconds: float = BEAT_SECONDS,
    lease_seconds: float = LEASE_SECONDS,
) -> Iterator[Check]:
    """Holds the lock of a results folder. Gives a function that raises LockLost once it has been lost.

    Raises ValueError naming the holder when another process has it, and still has it after `wait_seconds`.
    """
    if isinstance(folder, ObjectPath):
        with _leased(_Lease(folder, beat_seconds, lease_seconds), wait_seconds) as lease:
            yield lease.check
    else:
        with _file_lock(folder, wait_seconds) as check:
            yield check


def holder(folder: Location) -> tuple[str, datetime | None, bool] | None:
    """Who has the lock, since when, and whether it is alive; one that died is named until the next one comes.

    None where nobody has it and the last one left in good order. On object storage a holder counts as alive while it is
    there: whether it still beats takes a while to see.
    """
    if isinstance(folder, ObjectPath):
        with contextlib.suppress(FileNotFoundError):
            for path in (folder / PREFIX).iterdir():
                if path.is_file() and (says := _state(path)):
                    return _holder(says), _since(says), not _is_dead_here(says)
        return None
    try:
        with (folder / _FILE).open() as file:
            try:
                alive = not _locked(file, 0.0, fcntl.LOCK_SH)
            except _WithoutLocks:  # so nobody has it
                alive = False
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (_holder(_parsed(text)), _since(_parsed(text)), alive) if text or alive else None


@contextlib.contextmanager
def _file_lock(folder: Path, wait_seconds: float) -> Iterator[Check]:
    folder.mkdir(parents=True, exist_ok=True)
    myself = _myself()

    def check(sure: bool = False) -> None:
        """Not every file system keeps locks between machines, and a deleted file can be locked again."""
        try:
            other = _parsed((folder / _FILE).read_text())
        except OSError:  # that it cannot be read says nothing of who holds it
            return
        if other and other != myself:
            raise LockLost(f"results folder {folder} was taken over by {_holder(other)}; this one writes no more there")

    with (folder / _FILE).open("a+") as file:
        try:
            mine = _locked(file, max(wait_seconds, _LOOK_SECONDS))
        except _WithoutLocks as error:
            raise ValueError(
                f"results folder {folder} is on a file system without flock ({error}), which keeps a second driver "
                "off. Mount it with locks (Lustre: -o flock; NFS: version 4, or 3 with lockd running), or choose "
                "another --results, which may be object storage."
            ) from error
        if not mine:
            file.seek(0)
            raise _in_use(folder, _parsed(file.read()))
        file.truncate(0)
        file.write(json.dumps(myself))
        file.flush()
        try:
            yield check
        finally:
            file.truncate(0)  # before the lock goes, so that nobody reads of a holder that has left


def _locked(file: IO[str], seconds: float, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether a lock on an open file could be had within so many seconds. Raises _WithoutLocks."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(1.0, seconds / 5))
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise _WithoutLocks(*error.args) from error
            raise


class _WithoutLocks(OSError):
    """The file system has no locks."""


@contextlib.contextmanager
def _leased(lease: _Lease, wait_seconds: float) -> Iterator[_Lease]:
    """The lease from here on, tried again and again for so many seconds."""
    deadline = time.monotonic() + wait_seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lease)
                break
            except ValueError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)
        yield lease


class _Lease:
    """The lock of a folder on object storage, from `with` to its end."""

    def __init__(self, folder: ObjectPath, beat_seconds: float, lease_seconds: float) -> None:
        self._folder, self._beat_seconds, self._lease_seconds = folder, beat_seconds, lease_seconds
        self._mine = folder / PREFIX / f"{secrets.token_hex(8)}.json"
        self._beats, self._who = 0, _myself()
        self._over, self._lost = threading.Event(), threading.Event()
        self._heard_at = time.monotonic()
        """When storage last said that the lock is held."""
        self._one_look = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="results-lock", daemon=True)

    def __enter__(self) -> _Lease:
        for attempt in range(_TRIES):
            for other in self._others():
                self._outlive(other)
            self._beat("claims")
            if not (others := self._others()):
                self._beat("holds")
                self._heard_at = time.monotonic()
                self._thread.start()
                return self
            self._withdraw()
            if attempt == _TRIES - 1:
                raise _in_use(self._folder, _state(others[0]))
            time.sleep(random.uniform(0.1, 0.2) * 2**attempt)  # two that saw each other should not do so again
        raise AssertionError("the last try returns or raises")

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        if not self._lost.is_set():
            self._withdraw()

    def check(self, sure: bool = False) -> None:
        """Raises LockLost once another process has taken the folder over; see `Check`."""
        if sure and time.monotonic() - self._heard_at > self._lease_seconds / 2:
            self._look()
        if self._lost.is_set():
            raise LockLost(
                f"results at {self._folder} were taken over by another process, because this one was silent for more "
                f"than {self._lease_seconds:g} seconds; it writes nothing more there"
            )

    def _others(self) -> list[ObjectPath]:
        try:
            return [path for path in (self._folder / PREFIX).iterdir() if path != self._mine and path.suffix == ".json"]
        except FileNotFoundError:
            return []

    def _outlive(self, other: ObjectPath) -> None:
        """Wait until `other` shows that it is alive, which is refused, or has been silent for too long."""
        first = _state(other)
        if _is_dead_here(first):
            other.unlink(missing_ok=True)
            return
        began = time.monotonic()
        said = False
        while time.monotonic() - began < self._lease_seconds:
            now = _state(other)
            if not now:  # it has left
                return
            if now != first:
                raise _in_use(self._folder, now)
            if not said and time.monotonic() - began > 2 * self._beat_seconds:
                _logger.warning(
                    "%s was in use by %s, which is silent; taking over in %.0f seconds",
                    self._folder, _holder(first), self._lease_seconds - 2 * self._beat_seconds,
                )  # fmt: skip
                said = True
            time.sleep(min(1.0, self._beat_seconds / 5))
        take_over(other)

    def _keep(self) -> None:
        while not self._over.wait(self._beat_seconds):
            try:
                self._look()
            except OSError as error:  # nobody can take over what nobody can reach; the next beat tells
                _logger.debug("the lock of %s cannot be renewed: %s", self._folder, error)
            if self._lost.is_set():
                return

    def _look(self) -> None:
        """See whether the lock is still held, and say so."""
        with self._one_look:
            if self._lost.is_set():
                return
            if _taken(self._mine).exists() or not self._mine.exists():
                self._lost.set()
                self._withdraw()
                _logger.error("the lock of %s was taken over by another process", self._folder)
                return
            self._beat("holds")
            self._heard_at = time.monotonic()

    def _beat(self, state: str) -> None:
        self._beats += 1
        text = json.dumps({**self._who, "state": state, "beat": self._beats})
        self._mine.write_bytes(text.ljust(_BYTES).encode())

    def _withdraw(self) -> None:
        with contextlib.suppress(OSError):
            self._mine.unlink(missing_ok=True)


def take_over(holder: ObjectPath) -> None:
    """End the claim of a holder that is taken for dead.

    If it wakes up at this moment it may put its object back once; the note beside it tells it that it has lost.
    """
    _taken(holder).write_bytes(b"")
    holder.unlink(missing_ok=True)


def _taken(holder: ObjectPath) -> ObjectPath:
    return holder.with_name(holder.name.replace(".json", ".taken"))


def _state(path: ObjectPath) -> dict[str, Any]:
    """What a contender says of itself; nothing where it has left."""
    try:
        return _parsed(path.read_text()) or {"unreadable": True}
    except FileNotFoundError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine, and is no more: then nobody need wait."""
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> str:
    """This boot of this machine, and its process numbers' namespace: containers share the former only."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown-{os.getpid()}"


def _myself() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat()
    return {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "since": since}


def _holder(holder: dict[str, Any]) -> str:
    try:
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except KeyError:
        return "another process"


def _since(holder: dict[str, Any]) -> datetime | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return datetime.fromisoformat(holder["since"])
    return None


def _in_use(folder: Location, holder: dict[str, Any]) -> ValueError:
    return ValueError(
        f"results folder {folder} is in use by {_holder(holder)}. Wait for it (--wait), stop it (ditlaw cancel), or "
        "choose another --results."
    )
