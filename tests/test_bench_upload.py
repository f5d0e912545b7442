"""The benchmark of uploads: its arithmetic on steps that are known, and storage that is as slow as it says."""

from __future__ import annotations

import time

import pytest

from orchestrator.bench.upload import Pause, Step, intervals, run, slow_storage


def steps(*spans: tuple[float, float, bool]) -> list[Step]:
    return [Step(began, ended, uploading) for began, ended, uploading in spans]


def test_a_checkpoint_costs_its_pause_and_what_it_makes_steps_longer():
    pauses = [Pause(0.0, 0.5), Pause(6.0, 6.5), Pause(9.0, 9.5)]
    taken = steps((0.5, 2.0, True), (2.0, 3.5, True), (3.5, 4.5, False), (4.5, 6.0, False), (6.5, 9.0, True))
    (found,) = intervals(taken, pauses)
    assert (found.seconds, found.pause_seconds, found.upload_seconds) == (6.0, 0.5, 3.0)
    assert found.lost_seconds == pytest.approx(0.5 + (1.5 + 1.5) - 2 * 1.25)


def test_storage_is_as_slow_as_it_is_told(tmp_path):
    storage = slow_storage(tmp_path, bytes_per_s=1e5, latency_seconds=0.05)
    began = time.monotonic()
    (storage / "a" / "b").write_bytes(bytes(10_000))
    assert time.monotonic() - began >= 0.15
    assert (tmp_path / "bucket" / "results" / "a" / "b").stat().st_size == 10_000
    assert (storage / "a" / "b").exists()
    assert not (storage / "a" / "c").exists()


@pytest.mark.long
def test_a_real_attempt_is_timed():
    figures = run(checkpoints=3, width=32, megabytes_per_s=1.0, latency_ms=20.0)
    assert figures["checkpoints"] >= 2
    assert figures["upload_s"] > 0.2
    assert 0 < figures["pause_share"] < 0.05
