"""Waiting for a full disk: what was computed is worth more than the wait."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT)


def when_there_is_room(write: Callable[[], T], wait: Callable[[OSError], None]) -> T:
    """What `write` returns; while the disk or the quota is full, `wait` and try again.

    Args:
        write: whole or not at all, so that it can be repeated.
        wait: called after each failure; it raises to give up.

    Raises:
        OSError: anything else that `write` raises.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            wait(error)
