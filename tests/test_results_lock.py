"""One driver at a time: by locks on file systems, where they may fail, and by objects alone on object storage."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.results import lock
from orchestrator.results.location import ObjectPath, location
from orchestrator.results.lock import LockLost

BEAT = 0.1
LEASE = 0.8


@pytest.fixture
def folder(s3: str) -> ObjectPath:
    place = location(f"{s3}/sweep")
    assert isinstance(place, ObjectPath)
    return place


def contenders(folder: ObjectPath) -> list[ObjectPath]:
    return [path for path in (folder / "lock").files_below() if path.suffix == ".json"]


def held(folder: ObjectPath):
    return lock.held(folder, 0.0, BEAT, LEASE)


def stranger(folder: ObjectPath, **columns: object) -> ObjectPath:
    """The object of a contender on another machine."""
    path = folder / "lock" / "stranger.json"
    path.write_bytes(json.dumps({"pid": 7, "host": "far", "machine": "far", "since": "noon", **columns}).encode())
    return path


def test_the_lock_is_exclusive_and_goes_with_its_holder(folder: ObjectPath) -> None:
    with held(folder) as check:
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"is in use by process \d+ on .* choose another --results"), held(folder):
            pass
        assert time.monotonic() - began < LEASE, "a holder that shows itself is refused before its lease is over"
        check()
    assert contenders(folder) == []
    with held(folder):
        pass


def test_a_silent_holder_is_taken_over_and_a_lively_one_is_not(folder: ObjectPath) -> None:
    path = stranger(folder, beat=1)
    began = time.monotonic()
    with held(folder):
        assert LEASE <= time.monotonic() - began < LEASE + 3
        assert not path.exists()
    stranger(folder, beat=1)
    beating = threading.Timer(LEASE / 2, stranger, (folder,), {"beat": 2})
    beating.start()
    with pytest.raises(ValueError, match="is in use by process 7 on far since noon"), held(folder):
        pass
    beating.join()


def test_a_holder_that_was_killed_on_this_machine_need_not_be_waited_for(folder: ObjectPath) -> None:
    code = (
        "import os; from orchestrator.results import lock; from orchestrator.results.location import location\n"
        f"manager = lock.held(location('{folder}')); manager.__enter__()\n"
        "print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert died.stdout == "held\n", died.stderr
    assert len(contenders(folder)) == 1
    began = time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - began < 5


def test_who_has_lost_the_lock_hears_of_it(folder: ObjectPath) -> None:
    with held(folder) as check:
        (mine,) = contenders(folder)
        lock.take_over(mine)
        deadline = time.monotonic() + 5

        def watch() -> None:
            while time.monotonic() < deadline:
                check()
                time.sleep(0.02)

        with pytest.raises(OSError, match="were taken over by another process"):
            watch()


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_by_name(tmp_path: Path, monkeypatch, answer: int) -> None:
    def refuse(file: object, kind: int) -> None:
        raise OSError(answer, os.strerror(answer))

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    message = (
        "without flock .*, which keeps a second driver off. Mount it with locks .*Lustre: -o flock; NFS: .*--results"
    )
    with pytest.raises(ValueError, match=message), lock.held(tmp_path):
        pass
    assert lock.holder(tmp_path) is None, "what is there can still be read"


def test_a_lock_that_is_held_is_not_one_that_cannot_be(tmp_path: Path) -> None:
    with lock.held(tmp_path):
        who = lock.holder(tmp_path)
        assert who is not None
        assert (who[2], f"process {os.getpid()} on " in who[0]) == (True, True)
        with pytest.raises(ValueError, match="is in use by process"), lock.held(tmp_path):
            pass
    assert lock.holder(tmp_path) is None


def test_who_has_to_be_sure_asks_storage_where_the_last_answer_is_old(folder: ObjectPath, monkeypatch) -> None:
    with lock.held(folder, 0.0, 3600.0, LEASE) as check:  # its own thread does not look in time
        (mine,) = contenders(folder)
        lock.take_over(mine)
        check(sure=True)
        time.sleep(LEASE / 2 + 0.05)
        check()
        with monkeypatch.context() as away:
            away.setattr(ObjectPath, "exists", unreachable)
            with pytest.raises(OSError, match="NETWORK_CONNECTION"):
                check(sure=True)
        with pytest.raises(LockLost, match="were taken over by another process"):
            check(sure=True)


def unreachable(path: ObjectPath) -> bool:
    raise OSError("AWS Error NETWORK_CONNECTION")


def test_a_lock_file_that_names_somebody_else_is_lost(tmp_path: Path) -> None:
    """Its file was deleted and locked anew, or the file system keeps no locks between machines."""
    with lock.held(tmp_path) as check:
        check(sure=True)
        lock.holder(tmp_path)
        check()
        (tmp_path / ".lock").unlink()
        check()
        with lock.held(tmp_path) as other:
            other()
            with pytest.raises(LockLost, match=r"was taken over by process \d+ on .* since"):
                check()


def test_of_many_contenders_at_most_one_holds_at_a_time(folder: ObjectPath) -> None:
    inside, most, won = 0, 0, 0
    guard = threading.Lock()

    def contend() -> None:
        nonlocal inside, most, won
        try:
            with held(folder):
                with guard:
                    inside, won = inside + 1, won + 1
                    most = max(most, inside)
                time.sleep(0.3)
                with guard:
                    inside -= 1
        except ValueError:
            pass

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 1
    with held(folder):
        pass
