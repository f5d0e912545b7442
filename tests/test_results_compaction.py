"""Compaction loses nothing and repeats nothing, whoever reads, writes or dies meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_results_store import attempt, curve, measurement

from orchestrator.cli import main
from orchestrator.results import compaction
from orchestrator.results.compaction import compact, inputs_of
from orchestrator.results.location import location
from orchestrator.results.parts import read_new
from orchestrator.results.store import Store, read_attempts, read_curves, read_measurements

OLD = Path(__file__).parent / "data" / "results-v1"


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(tmp_path / "results")
    return Store(location(f"{request.getfixturevalue('s3')}/results"))


def fill(store: Store, parts: int = 6) -> None:
    for index in range(parts):
        store.append_curves([curve("t0", 10 * index + i, attempt=index % 2) for i in range(10)])
        store.append_measurements([measurement("t0", 64 * (index // 2), attempt=index)])
    for outcome in ("running", "failed", "completed"):
        store.append_attempts([attempt(outcome=outcome)])


def test_many_parts_become_one_and_read_the_same(store: Store) -> None:
    fill(store)
    before = [read(store.folder) for read in (read_measurements, read_curves, read_attempts)]
    names = {part.name for part in store.parts("curves")}
    done = {one.kind: one for one in compact(store.folder)}
    assert (done["curves"].parts_before, done["curves"].parts_after, done["curves"].rows) == (6, 1, 60)
    for reader, table in zip((read_measurements, read_curves, read_attempts), before, strict=True):
        assert reader(store.folder).equals(table)
    (part,) = store.parts("curves")
    assert inputs_of(part) == names
    assert [one.rows for one in compact(store.folder)] == [0, 0, 0], "there is nothing left to do"
    store.append_curves([curve("t0", 5, attempt=7, loss=0.125)])
    assert store.parts("curves")[-1] != part, "what is written later sorts later"
    compact(store.folder)
    assert names < inputs_of(store.parts("curves")[0])
    assert read_curves(store.folder)["loss"].dropna().tolist() == [0.125]


def test_parts_stay_below_the_size_that_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    compact(tmp_path, rows=30)
    assert [len(read_new(tmp_path, "curves").table), len(store.parts("curves"))] == [60, 2]
    parts = store.parts("curves")
    compact(tmp_path, rows=30)
    assert store.parts("curves") == parts


def test_a_damaged_part_is_left_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    fill(store)
    footless, corrupt = store.parts("curves")[2], store.parts("measurements")[2]
    footless.write_bytes(footless.read_bytes()[:-20])
    data = bytearray(corrupt.read_bytes())
    data[4:200] = bytes(196)
    corrupt.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        rows = len(read_curves(tmp_path))
        compact(tmp_path)
    assert footless.exists()
    assert corrupt.exists()
    assert f"unreadable part {footless} is left where it is" in caplog.text
    assert "parts of" in caplog.text
    assert len(read_curves(tmp_path)) == rows == 50


COMPACTOR = """
import sys
from pathlib import Path
from orchestrator.results.compaction import compact
while True:
    compact(Path(sys.argv[1]), rows=200)
"""


def test_no_row_is_lost_while_others_write_and_read_and_the_compactor_is_killed(tmp_path: Path) -> None:
    store, written, stop = Store(tmp_path), [0], threading.Event()
    misses: list[int] = []

    def write() -> None:
        while not stop.wait(0.005):
            store.append_curves([curve("t0", written[0] + i) for i in range(10)])
            written[0] += 10

    def read() -> None:
        while not stop.is_set():
            least = written[0]
            if (rows := len(read_curves(tmp_path))) < least:
                misses.append(least - rows)

    threads = [threading.Thread(target=work) for work in (write, read)]
    compactor = subprocess.Popen([sys.executable, "-c", COMPACTOR, str(tmp_path)])
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 60
        while sum("+" in part.name for part in store.parts("curves")) < 2:
            assert compactor.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(compactor.pid, signal.SIGKILL)
        compactor.wait(10)
        stop.set()
        for thread in threads:
            thread.join()
    assert misses == []
    assert read_curves(tmp_path)["samples"].tolist() == list(range(written[0]))
    compact(tmp_path)
    assert read_curves(tmp_path)["samples"].tolist() == list(range(written[0]))


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.mark.parametrize("survived", range(8))
def test_killed_after_any_number_of_its_steps_it_leaves_every_row(tmp_path, monkeypatch, survived: int) -> None:
    store, steps = Store(tmp_path), iter(range(survived))
    for index in range(6):
        store.append_curves([curve("t0", 10 * index + i) for i in range(10)])

    def or_killed(step):
        def counted(*args, **options):
            if next(steps, None) is None:
                raise Killed
            return step(*args, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_bytes", or_killed(compaction.write_bytes))
        patch.setattr(Path, "unlink", or_killed(Path.unlink))
        with pytest.raises(Killed):
            compact(tmp_path, rows=35)
    assert read_curves(tmp_path)["samples"].tolist() == list(range(60))
    compact(tmp_path, rows=35)
    compact(tmp_path, rows=200)
    assert len(store.parts("curves")) == 1
    assert len(read_new(tmp_path, "curves").table) == 60


def test_killed_between_writing_and_deleting_rows_are_there_twice_and_then_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, parts=3)
    inputs = {part: part.read_bytes() for part in store.parts("curves")}
    compact(tmp_path)
    for part, data in inputs.items():
        part.write_bytes(data)
    assert len(read_new(tmp_path, "curves").table) == 60
    assert read_curves(tmp_path)["samples"].tolist() == list(range(30))
    done = {one.kind: one for one in compact(tmp_path)}
    assert (done["curves"].rows, done["curves"].repeated) == (30, 30)
    assert len(store.parts("curves")) == 1


def test_old_parts_come_out_in_todays_schema(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    before = read_attempts(tmp_path / "old")
    result = CliRunner().invoke(main, ["compact", str(tmp_path / "old")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "attempts      2 -> 1 files (2 rows rewritten)" in result.output
    assert "curves        1 -> 1 files (4 rows rewritten)" in result.output, "one old part is rewritten too"
    assert read_attempts(tmp_path / "old").equals(before)
    assert CliRunner().invoke(main, ["compact", str(tmp_path / "absent")]).exit_code == 2
