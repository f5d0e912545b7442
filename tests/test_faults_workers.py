"""Workers that die at every named point, stand still, raise or lose their clock, on real Ray."""

from __future__ import annotations

import pytest
from faults_oracle import SPEC, assert_unharmed

from orchestrator.faults import points
from orchestrator.faults.points import POINTS, Fault
from orchestrator.faults.rig import alive
from orchestrator.planning.plan import make
from orchestrator.results.store import read_attempts, read_measurements

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = tuple(Fault(point=point, occurrence=40 if point.startswith("step") else 1) for point in POINTS)
OTHERS = (
    Fault(point="step.after", action="clock", occurrence=20),
    Fault(point="step.before", action="raise", occurrence=60),
    Fault(point="step.inside", action="hang", occurrence=80),
)
FREEZE = Fault(point="step.before", action="freeze", occurrence=90)
"""Looks like a hang to the driver; only with --long."""


@pytest.fixture(scope="module")
def broken(rig, undisturbed, tmp_path_factory, pytestconfig):
    """The results of one run in which workers died at every point, and met with all else that can befall them."""
    trials = [trial.trial_id for trial in make(SPEC).trials]
    faults = (*KILLS, *OTHERS, *([FREEZE] if pytestconfig.getoption("--long") else []))
    for index, fault in enumerate(faults):
        points.arm(rig.faults, points.Fault(**{**vars(fault), "trial_id": trials[index % len(trials)]}))
    results = tmp_path_factory.mktemp("broken") / "soak"
    driver = rig.drive(SPEC, results)
    assert driver.wait(600) == 0, driver.output
    return results


def test_a_sweep_runs_on_a_cluster_that_it_joins(rig, undisturbed):
    table = read_measurements(undisturbed)
    assert len(table) == 12
    assert table["loss"].notna().all()
    assert table["budget_flops"].isna().all()
    assert set(read_attempts(undisturbed)["outcome"]) == {"completed"}
    assert all(alive(node.all_processes["raylet"][0].process.pid) for node in rig.nodes), "the cluster goes on"


@pytest.mark.parametrize(
    "fault", [*KILLS, *OTHERS, pytest.param(FREEZE, marks=pytest.mark.long)], ids=lambda f: f"{f.action} at {f.point}"
)
def test_every_fault_has_struck(rig, broken, fault):
    struck = [(each.point, each.action, each.occurrence) for each in points.fired(rig.faults)]
    assert (fault.point, fault.action, fault.occurrence) in struck


def test_nothing_is_lost_and_nothing_done_twice(rig, undisturbed, broken):
    assert_unharmed(rig, broken, undisturbed)


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
