"""Nodes that drain, nodes that vanish, and a head that is restarted, on several real raylets."""

from __future__ import annotations

import pytest
from faults_oracle import SPEC, assert_unharmed

from orchestrator.faults.points import Trace
from orchestrator.faults.rig import Rig
from orchestrator.results.store import read_attempts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def gangs(rig: Rig) -> dict[str, str]:
    """The placement groups that Ray knows, by name, with their state."""
    groups = rig.cluster.global_state.placement_group_table()
    return {group["name"]: group["state"] for group in groups.values() if group["state"] != "REMOVED"}


def busy_attempts(rig: Rig) -> list[Trace]:
    """Those that train now, a few steps past their beginning."""
    alive = set(rig.workers())
    traces = {trace.pid: trace for trace in rig.traces() if trace.pid in alive}  # the newest of each process
    return [trace for trace in traces.values() if trace.start + 80 < trace.reached]


def test_nodes_drain_and_vanish_and_the_head_restarts(rig, undisturbed, tmp_path):
    results = tmp_path / "soak"
    driver = rig.drive(SPEC, results)

    def went_on(trace: Trace) -> bool:
        return any(t.trial_id == trace.trial_id and t.attempt > trace.attempt for t in rig.traces())

    driver.until(lambda: len(busy_attempts(rig)) == 2)
    drained, lost = busy_attempts(rig)
    assert all(name.startswith("ditlaw-soak-gang-") for name in gangs(rig))
    actors = rig.cluster.global_state.actor_table(None, actor_state_name="ALIVE").values()
    assert {f"{name}-0" for name in gangs(rig)} >= {actor["Name"] for actor in actors}, "workers by their gang's name"
    going = rig.node_of(drained.pid)
    rig.drain_node(going)
    rig.kill_node(rig.node_of(lost.pid))
    driver.until(lambda: "PENDING" in gangs(rig).values())  # an autoscaler sees the demand, and brings nodes
    rig.add_node()
    rig.add_node()
    driver.until(lambda: went_on(drained) and went_on(lost))
    rig.kill_node(going)
    rig.restart_head()

    assert driver.wait(400) == 0, driver.output
    assert_unharmed(rig, results, undisturbed)
    attempts = read_attempts(results).set_index(["trial_id", "attempt"])
    row = attempts.loc[drained.trial_id, drained.attempt]
    assert row["outcome"] == "stopped"
    after = next(t for t in rig.traces() if t[:2] == (drained.trial_id, drained.attempt + 1))
    assert after.start == row["samples_end"], "saved just in time: not one step was done again"
    assert attempts.loc[lost.trial_id, lost.attempt]["reason"].endswith("the node of a worker died")
