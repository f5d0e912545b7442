"""Writes in the background keep their order, survive an outage, and never make training wait."""

from __future__ import annotations

import threading
import time

import pytest

from orchestrator.results import outbox as results_outbox
from orchestrator.results.location import location
from orchestrator.results.outbox import AT_ONCE, InBackground, outbox_of


def test_a_disk_is_written_at_once_and_object_storage_in_the_background(tmp_path) -> None:
    assert outbox_of(tmp_path) is AT_ONCE
    assert outbox_of(location("s3://bucket/a")).in_background
    done: list[int] = []
    with AT_ONCE as outbox:
        outbox.put(lambda: done.append(1))
        assert done == [1]
        assert not outbox.busy


def test_writes_are_made_in_order_and_all_of_them() -> None:
    done: list[int] = []
    with InBackground() as outbox:
        for number in range(100):
            outbox.put(lambda number=number: done.append(number))
    assert done == list(range(100))


def test_who_puts_does_not_wait_for_the_write() -> None:
    go, done = threading.Event(), []
    with InBackground() as outbox:
        began = time.perf_counter()
        outbox.put(lambda: (go.wait(10), done.append(1)), 10**9)
        assert time.perf_counter() - began < 0.1
        assert outbox.busy
        go.set()
    assert done == [1]
    assert not outbox.busy


def test_an_outage_delays_and_loses_nothing(caplog) -> None:
    done: list[int] = []
    failures = iter([OSError("storage is down")] * 2)

    def write(number: int) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        done.append(number)

    with InBackground() as outbox:
        outbox.put(lambda: write(1))
        outbox.put(lambda: write(2))
    assert done == [1, 2]
    assert caplog.text.count("Training goes on; retrying") == 1


def test_an_outage_that_outlasts_patience_fails_the_attempt_and_what_follows_is_not_written() -> None:
    done: list[int] = []

    def refuse() -> None:
        raise OSError("storage is down")

    def attempt() -> None:
        with InBackground(0.2) as outbox:
            outbox.put(refuse)
            outbox.put(lambda: done.append(2))

    with pytest.raises(OSError, match="results could not be written: storage is down"):
        attempt()
    assert done == []


def test_an_error_of_the_attempt_itself_is_not_hidden_and_earlier_writes_are_made() -> None:
    done: list[int] = []

    def attempt() -> None:
        with InBackground() as outbox:
            outbox.put(lambda: done.append(1))
            raise RuntimeError("exploded")

    with pytest.raises(RuntimeError, match="exploded"):
        attempt()
    assert done == [1]


def test_memory_is_bounded() -> None:
    go = threading.Event()
    with InBackground(most_bytes=100) as outbox:
        outbox.put(lambda: go.wait(10), 80)
        waiting = threading.Thread(target=outbox.put, args=(lambda: None, 30))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive(), "a second large write waits for the first"
        go.set()
        waiting.join(10)
        assert not waiting.is_alive()


@pytest.fixture
def quick_beats(monkeypatch) -> None:
    monkeypatch.setattr(results_outbox, "_BEAT_SECONDS", 0.02)


def test_who_waits_for_writes_shows_that_it_is_alive(quick_beats) -> None:
    beats: list[float] = []
    with InBackground(most_bytes=100, beat=lambda: beats.append(time.monotonic())) as outbox:
        outbox.put(lambda: time.sleep(0.3), 80)
        outbox.put(lambda: time.sleep(0.3), 80)
        assert len(beats) >= 3, "the second write waited for the first"
        before = len(beats)
    assert len(beats) - before >= 3, "the end waited for the second"


def test_a_write_that_never_ends_is_no_sign_of_life(quick_beats) -> None:
    go, beats = threading.Event(), []
    outbox = InBackground(patience_seconds=0.2, beat=lambda: beats.append(time.monotonic()))
    with outbox:
        outbox.put(lambda: go.wait(10))
        began = time.monotonic()
        threading.Timer(0.8, go.set).start()
    assert any(beat - began < 0.2 for beat in beats)
    assert not any(0.4 < beat - began < 0.8 for beat in beats), "patience was over, and no write had ended"
