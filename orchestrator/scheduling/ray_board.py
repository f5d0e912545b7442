"""A board in the head of a Ray cluster, on which its drivers tell each other what they hold and lack.

One entry a driver in Ray's key-value store, written anew every second. An entry that has not changed for a while is of
a driver that is dead or frozen, and counts no more; the content is compared, so clocks need not agree. A head that
forgets is told again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray.experimental import internal_kv

from orchestrator.scheduling.backend import Claim, GangShape, NeighboursHeard, Node

log = logging.getLogger(__name__)

TELL_SECONDS = 1.0
"""Time between two looks at the board, and two writings of an entry that does not change."""
SILENT_SECONDS = 15.0
"""After so long without a change an entry counts no more."""
FORGET_SECONDS = 600.0
"""After so long it is deleted."""
NAMESPACE, PREFIX = b"ditlaw", b"driver:"


class Board:
    """The board, for one driver of the cluster. `store` and `clock` are Ray's and this process's but in tests."""

    def __init__(self, sweep: str, store: Any = internal_kv, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self.name = f"{sweep}@{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(4)}"
        self._key = PREFIX + self.name.encode()
        self._told: Claim | None = None
        self._told_at = self._looked_at = float("-inf")
        self._beats = 0
        self._seen: dict[bytes, tuple[bytes, float]] = {}
        """What each entry was, and since when."""
        self._heard: tuple[Claim, ...] = ()

    def tell(self, claim: Claim) -> None:
        """Put up what this driver has to say: at once if it is new, else once in a while, as a sign of life."""
        now = self._clock()
        if claim == self._told and now - self._told_at < TELL_SECONDS:
            return
        self._told, self._told_at, self._beats = claim, now, self._beats + 1
        entry = json.dumps({**asdict(claim), "beats": self._beats}).encode()
        try:
            self._store._internal_kv_put(self._key, entry, overwrite=True, namespace=NAMESPACE)
        except Exception as error:  # noqa: BLE001 - a head that restarts is told again
            log.warning("the head of the Ray cluster does not answer: %s", error)

    def look(self) -> list[NeighboursHeard]:
        """What the others say, if that has changed; nothing where the last look was a moment ago."""
        now = self._clock()
        if now - self._looked_at < TELL_SECONDS:
            return []
        self._looked_at = now
        try:
            entries = self._read()
        except Exception as error:  # noqa: BLE001 - a head that restarts is asked again
            log.warning("the head of the Ray cluster does not answer: %s", error)
            return []
        claims = tuple(claim for key in sorted(entries) if (claim := self._living(key, entries[key], now)) is not None)
        self._seen = {key: seen for key, seen in self._seen.items() if key in entries}
        if claims == self._heard:
            return []
        self._heard = claims
        return [NeighboursHeard(claims=claims)]

    def close(self) -> None:
        """Take the entry down."""
        try:
            self._store._internal_kv_del(self._key, namespace=NAMESPACE)
        except Exception as error:  # noqa: BLE001 - it counts no more after a while
            log.info("the entry of this driver stays for a while: %s", error)

    def _read(self) -> dict[bytes, bytes]:
        keys = [key for key in self._store._internal_kv_list(PREFIX, namespace=NAMESPACE) if key != self._key]
        entries = {key: self._store._internal_kv_get(key, namespace=NAMESPACE) for key in keys}
        return {key: entry for key, entry in entries.items() if entry is not None}

    def _living(self, key: bytes, entry: bytes, now: float) -> Claim | None:
        """The claim of an entry, if there is a sign of life of its driver."""
        before = self._seen.get(key)
        if before is None or before[0] != entry:
            before = self._seen[key] = entry, now
        if now - before[1] > FORGET_SECONDS:
            self._store._internal_kv_del(key, namespace=NAMESPACE)
        return _claim(entry) if now - before[1] <= SILENT_SECONDS else None


def _claim(entry: bytes) -> Claim | None:
    """An entry as a claim; None if it is of another version of ditlaw and cannot be understood."""
    try:
        told: Mapping[str, Any] = json.loads(entry)
        return Claim(
            driver=str(told["driver"]),
            sweep=str(told["sweep"]),
            priority=int(told["priority"]),
            held=tuple(Node(name=str(n["name"]), cpus=float(n["cpus"]), gpus=float(n["gpus"])) for n in told["held"]),
            lacks=_shape(told["lacks"]) if told["lacks"] is not None else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        log.info("another driver's entry cannot be understood: %s", error)
        return None


def _shape(told: Mapping[str, Any]) -> GangShape:
    return GangShape(
        workers=int(told["workers"]),
        cpus_per_worker=float(told["cpus_per_worker"]),
        gpus_per_worker=float(told["gpus_per_worker"]),
    )
