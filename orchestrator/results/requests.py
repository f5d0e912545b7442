"""What a person asks of a sweep from outside its driver: requests, kept in the results folder beside the results.

    requests/<time>-<name>.json    {"kind": "stop" | "retry", "trials": [...], "attempts": {...}, "at": ...}

Any machine that sees the folder can ask, and a driver that is started later finds what was asked before it. A request
is written once and never changed. A stop is for the driver of its time and is dropped with it; a retry stays, for the
count of a trial's failures begins anew with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, ObjectPath, entries
from orchestrator.results.logs import claimed_attempts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing asked of a sweep."""

    kind: Literal["stop", "retry"]
    at: datetime
    trials: tuple[str, ...] = ()
    attempts: Mapping[str, int] = field(default_factory=dict)
    """How many attempts each trial had had; empty in requests of earlier versions."""
    path: Location


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """When a fresh count of a trial's failures was asked for."""

    at: datetime
    attempts: int | None
    """How many attempts it had had, if known: clocks of two machines need not agree."""

    def forgets(self, attempt: Mapping[str, Any]) -> bool:
        """Whether an attempt (its row) had begun before."""
        if self.attempts is not None:
            return int(attempt["attempt"]) < self.attempts
        return bool(attempt["started_at"] < self.at)


def ask(folder: Location, kind: Literal["stop", "retry"], trials: Collection[str] = ()) -> Request:
    """Leave a request in a results folder. Raises OSError where it cannot be written."""
    at = datetime.now(UTC)
    path = folder / "requests" / f"{at:%Y%m%dT%H%M%S.%f}Z-{kind}-{secrets.token_hex(4)}.json"
    attempts = {trial: len(claimed_attempts(folder, trial)) for trial in sorted(trials)}
    request = {"kind": kind, "trials": sorted(trials), "attempts": attempts, "at": at.isoformat()}
    write_bytes(path, (json.dumps(request) + "\n").encode())
    return Request(kind=kind, at=at, trials=tuple(sorted(trials)), attempts=attempts, path=path)


def requests_of(folder: Location) -> list[Request]:
    """The requests in a results folder, oldest first; an unreadable one is reported through logging and skipped.

    Raises OSError where object storage does not answer: what was asked is not known then.
    """
    found = []
    for path in _listed(folder / "requests"):
        try:
            found.append(_request(path, json.loads(path.read_bytes())))
        except FileNotFoundError:  # dropped meanwhile
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(path, ObjectPath) and isinstance(error, OSError):
                raise
            log.warning("request %s is skipped: %s", path, error)
    return found


def retried_at(folder: Location) -> dict[str, Fresh]:
    """When a fresh count of retries was asked for last, by trial_id."""
    asked = [request for request in requests_of(folder) if request.kind == "retry"]
    return {
        trial: Fresh(at=request.at, attempts=request.attempts.get(trial))
        for request in asked
        for trial in request.trials
    }


def drop_stops(folder: Location) -> None:
    """Forget the requests to stop: they were for a driver that has ended."""
    for request in requests_of(folder):
        if request.kind == "stop":
            with contextlib.suppress(FileNotFoundError):
                request.path.unlink()


def _listed(folder: Location) -> list[Location]:
    try:
        return [path for path in entries(folder) if path.suffix == ".json" and not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def _request(path: Location, content: Any) -> Request:
    if content["kind"] not in ("stop", "retry"):
        raise ValueError(f"kind is {content['kind']!r}; wanted stop or retry")
    at = datetime.fromisoformat(content["at"])
    attempts = {str(trial): int(number) for trial, number in content.get("attempts", {}).items()}
    return Request(kind=content["kind"], at=at, trials=tuple(map(str, content["trials"])), attempts=attempts, path=path)
