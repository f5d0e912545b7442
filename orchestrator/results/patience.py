"""Waiting for a full disk, or for object storage that is away: what was computed is worth more than the wait."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from orchestrator.results.location import Location, ObjectPath
from orchestrator.results.lock import LockLost

T = TypeVar("T")

Wait = Callable[[OSError], None]
"""Called after each failure with what failed; it raises to give up."""

FULL = (errno.ENOSPC, errno.EDQUOT)


def raised(error: OSError) -> None:
    """Wait for nothing."""
    raise error


def is_full(error: OSError) -> bool:
    """Whether the disk or the quota is full."""
    return error.errno in FULL


def may_pass(error: OSError, place: Location) -> bool:
    """Whether what failed at `place` may succeed later: a full disk, and whatever object storage says but that
    something is not there."""
    answered = not isinstance(place, ObjectPath) or isinstance(error, FileNotFoundError | LockLost)
    return is_full(error) or not answered


def when_there_is_room(write: Callable[[], T], wait: Wait) -> T:
    """What `write` returns; while the disk or the quota is full, `wait` and try again.

    Args:
        write: whole or not at all, so that it can be repeated.
        wait: called after each failure; it raises to give up.

    Raises:
        OSError: anything else that `write` raises.
    """
    return _again(write, is_full, wait)


def when_it_answers(act: Callable[[], T], place: Location, wait: Wait) -> T:
    """What `act` returns; while what it says of `place` may pass, `wait` and try again. As `when_there_is_room`."""
    return _again(act, lambda error: may_pass(error, place), wait)


def _again(act: Callable[[], T], passes: Callable[[OSError], bool], wait: Wait) -> T:
    while True:
        try:
            return act()
        except OSError as error:
            if not passes(error):
                raise
            wait(error)
