"""A trial whose results lie on S3: the same numbers, the same safety, and no waiting for uploads."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from orchestrator.planning.plan import make
from orchestrator.results.checkpoints import checkpoint_folders
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


def test_steps_do_not_wait_for_storage_that_stands_still(group, plan, s3, monkeypatch):
    """From the first step to the last one no request is answered; checkpoints and measurements come after all."""
    storage, (trial,) = location(f"{s3}/results"), plan.trials
    answering, waited = threading.Event(), []
    answering.set()

    def standing_still(method):
        def request(path: ObjectPath, *arguments, **options):
            if not answering.is_set() and threading.current_thread() is threading.main_thread():
                waited.append(method.__name__)
            assert answering.wait(60), "a step waits for storage, which waits for the last step"
            return method(path, *arguments, **options)

        return request

    for name in ("_info", "_listing", "read_bytes", "write_bytes", "unlink", "remove_tree"):
        monkeypatch.setattr(ObjectPath, name, standing_still(getattr(ObjectPath, name)))

    def report(progress) -> None:
        if progress.phase == "evaluating":
            (answering.set if progress.samples == trial.last else answering.clear)()

    assert attempt(plan, member_of(group, storage, report), seconds=0.0) == ("completed", None)
    assert waited == []
    assert read_measurements(storage)["samples"].tolist() == list(trial.milestones)
    assert [int(folder.name) for folder in checkpoint_folders(storage, trial.trial_id)] == [*trial.milestones[:0:-1]]
