"""How a worker's writes leave it: at once, or by a thread that keeps their order, so that training never waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from orchestrator.results.location import Location, ObjectPath

_logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long the end of an attempt waits for object storage that does not answer."""
MOST_BYTES = 64 << 30
"""Writes that may wait in memory; beyond that, training waits for them."""
_LONGEST_PAUSE = 15.0
_BEAT_SECONDS = 1.0

Write = Callable[[], object]


class Outbox(Protocol):
    """Takes writes in order. Used as a context, it has written all of them at the end."""

    in_background: bool

    def put(self, write: Write, size: int = 0) -> None:
        """Hand in a write of `size` bytes. It may be tried several times, and raises OSError where it fails."""

    @property
    def busy(self) -> bool:
        """Whether writes are on their way."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _AtOnce:
    """Writes at once: what `put` has returned from is durable."""

    busy = False
    in_background = False

    def put(self, write: Write, size: int = 0) -> None:
        write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


AT_ONCE = _AtOnce()


class InBackground:
    """Writes in a thread, one after the other.

    What is durable is at any time a prefix of what was handed in: a measurement is never there before the checkpoint
    that came before it. A write that storage refuses is tried again until it succeeds; training goes on meanwhile.

    Args:
        patience_seconds: how long the end of an attempt waits for a write that is refused.
        most_bytes: writes that may wait in memory.
        beat: a sign of life of who waits for writes, given as long as one ends now and then: within
            `patience_seconds` of the one before it.
    """

    in_background = True

    def __init__(
        self,
        patience_seconds: float = PATIENCE_SECONDS,
        most_bytes: int = MOST_BYTES,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._patience_seconds, self._most_bytes, self._beat = patience_seconds, most_bytes, beat
        self._waiting: deque[tuple[Write, int]] = deque()
        self._changed = threading.Condition()
        self._bytes = self._written = 0
        self._end = threading.Event()
        self._failure: Exception | None = None
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)

    def put(self, write: Write, size: int = 0) -> None:
        with self._changed:
            self._raise_failure()
            alive = self._watch()
            while self._bytes and self._bytes + size > self._most_bytes and self._failure is None:
                self._changed.wait(_BEAT_SECONDS)
                alive()
            self._raise_failure()
            self._waiting.append((write, size))
            self._bytes += size
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._deadline = time.monotonic() + self._patience_seconds
            self._end.set()
            self._changed.notify_all()
        alive = self._watch()
        while self._thread.is_alive():
            self._thread.join(_BEAT_SECONDS)
            alive()
        if error is None:
            self._raise_failure()

    def _watch(self) -> Callable[[], None]:
        """What beats, from now on, as long as writes end now and then."""
        seen, until = self._written, time.monotonic() + self._patience_seconds

        def alive() -> None:
            nonlocal seen, until
            if self._written > seen:
                seen, until = self._written, time.monotonic() + self._patience_seconds
            if time.monotonic() < until:
                self._beat()

        return alive

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._end.is_set():
                    self._changed.wait()
                if not self._waiting:
                    return
                write, size = self._waiting[0]
            try:
                self._insist(write)
            except Exception as error:  # noqa: BLE001 - raised where the attempt can end
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._bytes -= size
                self._written += 1
                self._changed.notify_all()

    def _insist(self, write: Write) -> None:
        failures = 0
        while True:
            try:
                write()
                return
            except OSError as error:
                failures += 1
                if time.monotonic() > self._deadline:
                    raise
                if failures == 1:
                    _logger.warning("results cannot be written (%s). Training goes on; retrying", error)
                pause = min(0.5 * 2 ** min(failures, 8), _LONGEST_PAUSE, max(0.0, self._deadline - time.monotonic()))
                if self._end.is_set():
                    time.sleep(pause)
                else:
                    self._end.wait(pause)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise OSError(f"results could not be written: {self._failure}") from self._failure


class Checked:
    """Hands on to an outbox; before each write, in the place where it is done, comes a check that raises to forbid it.

    On object storage a check is a request that may take long: whoever hands in a write does not wait for that either.
    """

    def __init__(self, outbox: Outbox, check: Callable[[], None]) -> None:
        self._outbox, self._check = outbox, check
        self.in_background = outbox.in_background

    @property
    def busy(self) -> bool:
        return self._outbox.busy

    def put(self, write: Write, size: int = 0) -> None:
        def checked() -> None:
            self._check()
            write()

        self._outbox.put(checked, size)

    def __enter__(self) -> Self:
        self._outbox.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outbox.__exit__(kind, error, trace)


def outbox_of(results: Location, beat: Callable[[], None] = lambda: None) -> Outbox:
    """At once on a file system, in the background on object storage; `beat` as of `InBackground`."""
    return InBackground(beat=beat) if isinstance(results, ObjectPath) else AT_ONCE
