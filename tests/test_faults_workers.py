"""Workers that die at every named point, stand still, raise or lose their clock, on real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults_oracle import SPEC, assert_unharmed

from orchestrator.faults import points
from orchestrator.faults.points import POINTS, Fault
from orchestrator.faults.rig import alive
from orchestrator.planning.plan import Plan, make
from orchestrator.results.store import read_attempts, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = tuple(Fault(point=point, occurrence=40 if point.startswith("step") else 1) for point in POINTS)
OTHERS = (
    Fault(point="step.after", action="clock", occurrence=20),
    Fault(point="step.before", action="raise", occurrence=60),
    Fault(point="step.inside", action="hang", occurrence=80),
)
FREEZE = Fault(point="step.before", action="freeze", occurrence=90)
"""Looks like a hang to the driver; only with --long."""
SAMPLES = "[800, 1600, 3200]"


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Half of what `ditlaw soak` trains: 200 steps leave room for every fault of a trial."""
    spec, text = tmp_path_factory.mktemp("spec") / "soak.yaml", SPEC.read_text()
    assert SAMPLES in text
    spec.write_text(text.replace(SAMPLES, "[400, 800, 1600]"))
    return make(spec)


@pytest.fixture(scope="module")
def alone(group, plan, tmp_path_factory) -> Path:
    """The results of the same trials, one after the other in this process, with no cluster and nothing that breaks."""
    results = tmp_path_factory.mktemp("alone") / "soak"
    member = GangMember(
        rank=0, world_size=1, device=torch.device("cpu"), results=results, data=group, report=lambda progress: None
    )
    for trial in plan.trials:
        assignment = Assignment(
            trial=trial,
            attempt=0,
            gang="gang-0",
            milestones=trial.milestones,
            samples_spent=0,
            checkpoint_seconds=1e9,
            mlflow_run_id=None,
        )
        assert run_attempt(assignment, member) == ("completed", None)
    return results


@pytest.fixture(scope="module")
def broken(rig, plan, tmp_path_factory, pytestconfig):
    """The results of one run in which workers died at every point, and met with all else that can befall them."""
    trials = [trial.trial_id for trial in plan.trials]
    faults = (*KILLS, *OTHERS, *([FREEZE] if pytestconfig.getoption("--long") else []))
    for index, fault in enumerate(faults):
        points.arm(rig.faults, points.Fault(**{**vars(fault), "trial_id": trials[index % len(trials)]}))
    results = tmp_path_factory.mktemp("broken") / "soak"
    driver = rig.drive(plan.source.path, results)
    assert driver.wait(600) == 0, driver.output
    return results


def test_a_sweep_runs_on_a_cluster_that_it_joins(rig, broken):
    table = read_measurements(broken)
    assert len(table) == 12
    assert table["loss"].notna().all()
    assert table["budget_flops"].isna().all()
    assert set(read_attempts(broken).groupby("trial_id")["outcome"].last()) == {"completed"}
    assert all(alive(node.all_processes["raylet"][0].process.pid) for node in rig.nodes), "the cluster goes on"


@pytest.mark.parametrize(
    "fault", [*KILLS, *OTHERS, pytest.param(FREEZE, marks=pytest.mark.long)], ids=lambda f: f"{f.action} at {f.point}"
)
def test_every_fault_has_struck(rig, broken, fault):
    struck = [(each.point, each.action, each.occurrence) for each in points.fired(rig.faults)]
    assert (fault.point, fault.action, fault.occurrence) in struck


def test_nothing_is_lost_and_nothing_done_twice(rig, alone, broken):
    assert_unharmed(rig, broken, alone)


def test_each_attempt_says_how_it_ended_and_keeps_its_log(broken):
    attempts = read_attempts(broken)
    reasons = set(attempts[attempts["outcome"] == "failed"]["reason"])
    assert "its worker process died (killed, or out of memory?)" in reasons
    assert "RuntimeError: a fault was injected at step.before" in reasons
    assert any(reason.startswith("no sign of life for ") for reason in reasons)
    for row in attempts.itertuples():
        log = (broken / "logs" / row.trial_id / f"{row.attempt}.log").read_text()
        assert "attempt begins in process" in log
        assert row.outcome != "failed" or f"the attempt ended: {row.reason}" in log
    gangs = attempts.sort_values("started_at").groupby("gang")["outcome"]
    assert not gangs.apply(lambda outcomes: "failed" in list(outcomes)[:-1]).any(), "a gang that failed is not reused"
