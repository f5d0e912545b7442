"""A full disk is waited for; whatever else the disk says is an error."""

from __future__ import annotations

import errno

import pytest

from orchestrator.results.patience import when_there_is_room


def test_it_waits_until_there_is_room():
    failures, waits = [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota")], []

    def write() -> str:
        if failures:
            raise failures.pop(0)
        return "written"

    assert when_there_is_room(write, waits.append) == "written"
    assert [error.errno for error in waits] == [errno.ENOSPC, errno.EDQUOT]


def test_other_errors_are_raised_at_once():
    def write() -> None:
        raise OSError(errno.EACCES, "not allowed")

    with pytest.raises(OSError, match="not allowed"):
        when_there_is_room(write, lambda error: pytest.fail("waited"))


def test_who_waits_may_give_up():
    def write() -> None:
        raise OSError(errno.ENOSPC, "full")

    def give_up(error: OSError) -> None:
        raise error

    with pytest.raises(OSError, match="full"):
        when_there_is_room(write, give_up)
