"""What a cluster has to offer a plan: whether its gangs fit, which trials go first, which ports are opened."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from sweep_folder import smoke

from orchestrator.cli import main
from orchestrator.planning.plan import Plan, make
from orchestrator.planning.priorities import priorities_of
from orchestrator.scheduling.backend import Node
from orchestrator.scheduling.fitting import check_fit
from orchestrator.scheduling.jobs import jobs_of
from orchestrator.scheduling.loopback import VARIABLE, keep_to_loopback
from orchestrator.spec.source import SpecError


def with_workers(workers: int, **compute: object) -> Plan:
    plan = smoke()
    sweep = plan.sweep.model_copy(update={"compute": plan.sweep.compute.model_copy(update=compute)})
    trials = [dataclasses.replace(trial, num_workers=1) for trial in plan.trials]
    trials[2] = dataclasses.replace(trials[2], num_workers=workers)
    return dataclasses.replace(plan, sweep=sweep, trials=tuple(trials))


def test_what_does_not_fit_is_named_with_what_would():
    plan = with_workers(16, gpus_per_worker=1.0)
    nodes = [Node(name="a", cpus=64, gpus=8), Node(name="b", cpus=2, gpus=4)]
    with pytest.raises(ValueError, match="does not fit") as error:
        check_fit(plan, nodes)
    trial = plan.trials[2]
    assert str(error.value) == (
        f"trial {trial.name} ({trial.trial_id}) does not fit: a gang needs 16 GPUs (16 workers of 1, each on one "
        "node); the cluster's nodes have 8, 4. A gang of 10 such workers would fit: lower compute.workers or "
        "compute.gpus_per_worker in the spec, or join a larger cluster with --address."
    )
    check_fit(with_workers(10, gpus_per_worker=1.0), nodes)


def test_a_cluster_without_the_resource_offers_nothing():
    with pytest.raises(ValueError, match=r"the cluster's nodes have 0\. Lower compute\.workers or"):
        check_fit(with_workers(1, gpus_per_worker=1.0), [Node(name="a", cpus=64)])


def test_workers_need_cpus_and_gpus_on_the_same_node():
    apart = [Node(name="a", cpus=64), Node(name="b", cpus=1, gpus=8)]
    with pytest.raises(ValueError, match="A gang of 1 such workers would fit"):
        check_fit(with_workers(2, gpus_per_worker=1.0), apart)


def test_an_autoscaler_may_bring_what_is_not_there():
    plan, head = with_workers(16, gpus_per_worker=1.0), [Node(name="head", cpus=0)]
    check_fit(plan, head, Node(name="autoscaler", cpus=1536, gpus=64))
    with pytest.raises(ValueError, match="nodes have 0, and may grow to 8 in all"):
        check_fit(plan, head, Node(name="autoscaler", cpus=192, gpus=8))


def spec(folder: Path, compute: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(Path("sweeps/smoke.yaml").read_text().replace("compute: {gangs: 2}", f"compute: {compute}"))
    return path


def test_keys_of_a_cluster_do_not_change_what_is_trained(tmp_path):
    keys = "{gangs: 2, max_gpus: 4, priority: 3, priorities: {\"arm == 'mup'\": 1}, retries: 5, recycle_after: 9}"
    plan, plain = make(spec(tmp_path, keys)), make(Path("sweeps/smoke.yaml"))
    assert [trial.trial_id for trial in plan.trials] == [trial.trial_id for trial in plain.trials]
    assert plan.digest == plain.digest
    assert plan.as_json()["retries"] == 5


def test_conditions_add_to_the_priority_of_trials(tmp_path):
    keys = "{priority: 3, priorities: {\"arm == 'mup'\": 10, width >= 16: 100, \"'w' in size and seed == 0\": -1}}"
    plan = make(spec(tmp_path, keys))
    priorities = priorities_of(plan.sweep.compute, plan.trials)
    found = {(trial.arm, trial.size): number for trial, number in zip(plan.trials, priorities, strict=True)}
    mup, sp = {"w8": 12, "w16": 112, "w32": 112}, {"w8": 2, "w16": 102, "w32": 102}
    assert found == {(arm, size): n for arm, sizes in (("mup", mup), ("sp", sp)) for size, n in sizes.items()}
    jobs = jobs_of(plan, [(trial,) for trial in plan.trials], lambda trial: False)
    assert sorted(job.priority for job in jobs) == sorted(found.values())
    assert jobs_of(plan, [plan.trials[:1]], lambda trial: False, 0)[0].priority == priorities[0] - 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{priorities: {\"colour == 'red'\": 1}}", "names 'colour'; wanted names among arm, batch_size"),
        ("{priorities: {import os: 1}}", "wanted a condition"),
        ("{gpus_per_worker: 1, workers: 8, max_gpus: 4}", "max_gpus 4 is less than one gang has: 8"),
        ("{recycle_after: 0}", "greater than or equal to 1"),
    ],
)
def test_bad_keys_are_refused(tmp_path, keys, message):
    with pytest.raises(SpecError) as error:
        make(spec(tmp_path, keys))
    assert message in str(error.value) or message.replace("greater than or equal to", "at least") in str(error.value)


def test_limits_and_priorities_of_specs_hold_in_a_simulation(tmp_path):
    path = spec(tmp_path, "{gpus_per_worker: 1, max_gpus: 2}")
    done = CliRunner().invoke(main, ["simulate", str(path), "--gpus", "8", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    assert figures["device_hours_held"] <= 2 * figures["makespan_hours"] * (1 + 1e-9)
    assert figures["gangs"] == 2


def test_ray_keeps_to_loopback_unless_it_joins_what_does_not():
    alone: dict[str, str] = {}
    keep_to_loopback(None, alone)
    assert alone == {VARIABLE: "0"}
    kept = {VARIABLE: "1"}
    keep_to_loopback(None, kept)
    assert kept == {VARIABLE: "1"}, "what a person sets stays"
    remote: dict[str, str] = {}
    keep_to_loopback("10.0.0.1:6379", remote)
    keep_to_loopback("auto", remote)
    assert remote == {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        keep_to_loopback(f"127.0.0.1:{server.getsockname()[1]}", alone := {})
        assert alone == {VARIABLE: "0"}
    with socket.create_server(("0.0.0.0", 0)) as server:
        keep_to_loopback(f"127.0.0.1:{server.getsockname()[1]}", beyond := {})
        assert beyond == {}
