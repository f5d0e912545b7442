"""A checkpoint is there whole or not at all, and a damaged one never becomes a silent start from zero."""

from __future__ import annotations

import json
import logging
import shutil
import time

import pytest
import torch

from orchestrator.results.checkpoints import checkpoint_folders
from orchestrator.results.location import ObjectPath, location
from orchestrator.results.outbox import InBackground
from orchestrator.training.checkpoint import MANIFEST, STATE, Checkpoint, Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, "abc")


def checkpoint(samples: int) -> Checkpoint:
    return Checkpoint(samples=samples, tensors={"w": torch.full((3,), float(samples))}, counters={"steps": samples})


def test_the_newest_comes_back_whole(checkpoints):
    for samples in (8, 16, 24):
        checkpoints.save(checkpoint(samples))
    found = checkpoints.newest(at_most=100)
    assert (found.samples, found.counters) == (24, {"steps": 24})
    assert torch.equal(found.tensors["w"], torch.full((3,), 24.0))
    assert sorted(folder.name for folder in checkpoints.folder.iterdir()) == [
        "000000000000016",
        "000000000000024",
        "newest.json",
    ]


@pytest.mark.parametrize("damage", ["truncated", "manifest missing", "manifest broken", "another trial", "bit flip"])
def test_a_damaged_one_is_reported_and_the_one_before_it_used(checkpoints, caplog, damage):
    checkpoints.save(checkpoint(8))
    checkpoints.save(checkpoint(16))
    folder = checkpoints.folder / "000000000000016"
    state, manifest = folder / STATE, folder / MANIFEST
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-5])
    elif damage == "bit flip":
        data = bytearray(state.read_bytes())
        data[-1] ^= 1
        state.write_bytes(bytes(data))
    elif damage == "manifest missing":
        manifest.unlink()
    elif damage == "manifest broken":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "trial_id": "other"}))
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(at_most=100).samples == 8
    assert str(folder) in caplog.text


def test_a_damaged_one_is_none_of_those_that_are_kept(checkpoints):
    """It may be past the one that training went on from: then two whole ones are kept below it, and it goes."""
    checkpoints.save(checkpoint(8))
    checkpoints.save(checkpoint(32))
    (checkpoints.folder / "000000000000032" / STATE).write_bytes(b"")
    assert checkpoints.newest(at_most=100).samples == 8
    checkpoints.save(checkpoint(16))
    assert [int(f.name) for f in checkpoint_folders(checkpoints.results, "abc")] == [16, 8]
    checkpoints.save(checkpoint(24))
    assert [int(f.name) for f in checkpoint_folders(checkpoints.results, "abc")] == [24, 16]
    (checkpoints.folder / "000000000000024" / STATE).write_bytes(b"")
    assert checkpoints.newest(at_most=100).samples == 16
    checkpoints.save(checkpoint(24))
    assert checkpoints.newest(at_most=100).samples == 24, "a damaged one that is reached again is written again"


def test_those_past_a_budget_that_was_added_are_none_either(checkpoints):
    for samples in (64, 128, 8, 16, 24):
        checkpoints.save(checkpoint(samples))
    assert [int(f.name) for f in checkpoint_folders(checkpoints.results, "abc")] == [128, 64, 24, 16]


def test_when_all_are_damaged_a_person_decides(checkpoints):
    checkpoints.save(checkpoint(8))
    (checkpoints.folder / "000000000000008" / STATE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints in .* is whole; wanted at least one"):
        checkpoints.newest(at_most=100)


def test_none_at_all_is_a_start_from_zero(checkpoints):
    assert checkpoints.newest(at_most=100) is None


def test_an_unfinished_write_does_not_count(checkpoints):
    checkpoints.save(checkpoint(8))
    (checkpoints.folder / ".000000000000016.123").mkdir()
    assert checkpoints.newest(at_most=100).samples == 8


def test_a_budget_below_what_is_kept_starts_again_and_says_so(checkpoints, caplog):
    for samples in (16, 24):
        checkpoints.save(checkpoint(samples))
    assert checkpoints.newest(at_most=20).samples == 16
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(at_most=8) is None
    assert "it starts again" in caplog.text
    checkpoints.save(checkpoint(8))
    assert checkpoints.newest(at_most=8).samples == 8


def test_the_loss_of_the_newest_is_noticed(checkpoints, caplog):
    checkpoints.save(checkpoint(8))
    checkpoints.save(checkpoint(16))
    shutil.rmtree(checkpoints.folder / "000000000000016")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(at_most=100).samples == 8
    assert "000000000000016, the last that was saved, is gone" in caplog.text


def test_on_object_storage_one_counts_with_its_manifest_and_old_ones_go(s3, caplog):
    checkpoints = Checkpoints(location(f"{s3}/results"), "abc", keep=[8])
    assert checkpoints.newest(at_most=100) is None
    for samples in (8, 16, 24, 32):
        checkpoints.save(checkpoint(samples))
    assert [int(f.name) for f in checkpoint_folders(checkpoints.results, "abc")] == [32, 24, 8]
    found = checkpoints.newest(at_most=100)
    assert (found.samples, found.counters) == (32, {"steps": 32})
    assert torch.equal(found.tensors["w"], torch.full((3,), 32.0))
    assert checkpoints.at(8).samples == 8
    newest = checkpoints.folder / "000000000000032"
    (newest / STATE).write_bytes((newest / STATE).read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(at_most=100).samples == 24
    assert f"checkpoint {newest} is skipped: its state.safetensors has 79 bytes" in caplog.text
    (newest / MANIFEST).unlink()
    assert checkpoints.newest(at_most=100).samples == 24
    with pytest.raises(ValueError, match="which the trial begins, is not there"):
        checkpoints.at(32)


def test_storage_that_does_not_answer_is_no_reason_to_use_an_older_one(s3, monkeypatch):
    checkpoints = Checkpoints(location(f"{s3}/results"), "abc")
    checkpoints.save(checkpoint(8))

    def unreachable(path):
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(ObjectPath, "read_bytes", unreachable)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        checkpoints.newest(at_most=100)


def test_an_upload_takes_no_time_from_the_step(s3, monkeypatch):
    put = ObjectPath.write_bytes

    def slow(path, data):
        time.sleep(0.2)
        put(path, data)

    monkeypatch.setattr(ObjectPath, "write_bytes", slow)
    results = location(f"{s3}/results")
    began = time.perf_counter()
    with InBackground() as outbox:
        checkpoints = Checkpoints(results, "abc", outbox=outbox)
        checkpoints.save(checkpoint(8))
        blocked = time.perf_counter() - began
        assert checkpoint_folders(results, "abc") == []
    assert time.perf_counter() - began > 0.6, "a state, a manifest and a pointer"
    assert blocked < 0.05
    assert Checkpoints(results, "abc").newest(at_most=8).samples == 8
