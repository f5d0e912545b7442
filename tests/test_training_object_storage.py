"""A trial whose results lie on S3: the same numbers, the same safety, and no waiting for uploads."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from orchestrator.planning.plan import make
from orchestrator.results.ledger import read_ledger
from orchestrator.results.location import Location, ObjectPath, location
from orchestrator.results.logs import claim_attempt
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.scheduling.books import Books
from orchestrator.training import loop
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(scope="module")
def plan():
    plan = make(Path("sweeps/smoke.yaml"))
    trial = next(trial for trial in plan.trials if (trial.arm, trial.size) == ("mup", "w8"))
    return dataclasses.replace(plan, trials=(trial,))


def member_of(group: Path, results: Location, report=lambda progress: None) -> GangMember:
    return GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=results, data=group, report=report)


def attempt(plan, member: GangMember, seconds: float = 1e9):
    """One attempt as the driver would begin it, books and all."""
    store = Store(member.results)
    books = Books(plan, store)
    books.close_abandoned()
    (trial,) = plan.trials
    assignment = Assignment(
        trial=trial,
        attempt=claim_attempt(member.results, trial.trial_id),
        gang="gang-0",
        milestones=books.lacking(trial),
        samples_spent=books.spent(trial.trial_id),
        checkpoint_seconds=seconds,
        mlflow_run_id=None,
    )
    return run_attempt(assignment, member)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_after_a_kill_nothing_measured_is_lost_and_the_ledger_knows_what_it_cost(
    group, plan, tmp_path, request, where, monkeypatch
):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)  # else a fast machine is past the next milestone before it reports
    results = tmp_path / "results" if where == "disk" else location(f"{request.getfixturevalue('s3')}/results")
    (trial,) = plan.trials
    reached, killed_at = 0, (trial.milestones[0] + trial.milestones[1]) // 2

    def report(progress) -> None:
        nonlocal reached
        reached = max(reached, progress.samples)
        if progress.phase == "training" and progress.samples >= killed_at:
            raise Killed

    with pytest.raises(Killed):
        attempt(plan, member_of(group, results, report))
    assert len(read_attempts(results)) == 0
    assert len(read_attempts(results, running=True)) == 1
    assert read_measurements(results)["samples"].tolist() == [trial.milestones[0]]
    assert attempt(plan, member_of(group, results)) == ("completed", None)
    assert read_measurements(results)["samples"].tolist() == list(trial.milestones)
    assert read_attempts(results)[["outcome", "samples_start"]].values.tolist() == [
        ["failed", 0],
        ["completed", trial.milestones[0]],
    ]
    (row,) = read_ledger(results).to_dict("records")
    assert row["flops_useful"] == trial.last * trial.flops_per_sample
    lost = (reached - trial.milestones[0]) * trial.flops_per_sample
    assert 0 <= row["flops_replayed"] <= lost, "what was trained since the checkpoint, as far as curves were written"
    assert row["flops_spent"] == row["flops_useful"] + row["flops_replayed"]
    last = read_measurements(results).iloc[-1]
    assert last["flops_wasted"] == row["flops_replayed"]


def test_slow_uploads_do_not_slow_the_steps(group, plan, s3, monkeypatch):
    """Each upload takes as long as many steps; training stands still for copies of the state only."""
    put, uploads = ObjectPath.write_bytes, []

    def slow(path: ObjectPath, data: bytes) -> None:
        time.sleep(0.05)
        uploads.append(path)
        put(path, data)

    monkeypatch.setattr(ObjectPath, "write_bytes", slow)
    storage = location(f"{s3}/results")
    assert attempt(plan, member_of(group, storage), seconds=0.0) == ("completed", None)
    row = read_attempts(storage).iloc[0]
    assert len(uploads) > 12
    assert row["checkpoint_seconds"] < 0.25 * 0.05 * len(uploads)
