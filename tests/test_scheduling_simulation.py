"""The simulated cluster: known makespans, books that add up, faults that cost what they may, and speed."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.scheduling.backend import GangShape, Node
from orchestrator.scheduling.simulation import simulate
from orchestrator.scheduling.state import Job, Kind, Limit, Policy
from orchestrator.scheduling.study import Faults, Outcome, Work, lower_bound, works_of

STARTUP = 30.0
WSD = """\
name: cooled
models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 16, depth: 1}, {name: b, width: 32, depth: 2}]}
arms: {sp: {parameterization: sp}}
training: {batch_size: 32, learning_rate: [1e-3, 2e-3], schedule: {name: wsd, cooldown: 0.25}}
budgets: {samples: [640, 1280, 2560]}
compute: {gpus_per_worker: 1, workers: 2}
"""


def work(name: str, seconds: float, gpus: int = 1, sweep: str = "s", **more: object) -> Work:
    shape = GangShape(workers=gpus, cpus_per_worker=1, gpus_per_worker=1)
    job = Job(trial_id=name, kind=Kind(sweep, shape), seconds=seconds, last=1000, **more)
    return Work(job=job, flops=seconds * gpus * 1e12, stops=(job.last,), checkpoint_seconds=60)


def nodes(count: int, gpus: int = 8) -> list[Node]:
    return [Node(name=f"n{index:02d}", cpus=64, gpus=gpus) for index in range(count)]


def branch(name: str, trunk: str, first: int, seconds: float) -> Work:
    job = work(name, seconds, waits_for=(trunk, first)).job
    job = Job(trial_id=name, kind=job.kind, seconds=seconds, first=first, last=first + 100, waits_for=(trunk, first))
    return Work(job=job, flops=seconds * 1e12, stops=(job.last,), checkpoint_seconds=60)


def starts(outcome: Outcome) -> dict[str, float]:
    """When each trial began for the first time."""
    first: dict[str, float] = {}
    for span in outcome.spans:
        first[span.trial_id] = min(first.get(span.trial_id, math.inf), span.start)
    return first


def test_without_faults_the_makespan_is_what_one_works_out_by_hand():
    works = [work("a", 100), work("b", 70), work("c", 40), work("d", 20)]
    outcome = simulate(works, nodes(1, gpus=2))
    assert outcome.seconds == STARTUP + 120  # a, d beside b, c
    assert outcome.bound == lower_bound([w.job for w in works], nodes(1, gpus=2)) == 115
    assert (outcome.busy, outcome.available, outcome.attempts) == (230, 2 * 150, 4)
    assert outcome.held == 2 * 150, "the gang that is done first is kept for a retry of the other's trial"
    assert (outcome.flops_wasted, outcome.gangs, outcome.last_start) == (0, 2, 30 + 100)


def test_a_branch_begins_when_its_trunk_passes_not_when_it_ends():
    works = [work("trunk", 1000, chain=1100), branch("b", "trunk", 500, 350), branch("c", "trunk", 900, 200)]
    outcome = simulate(works, nodes(1))
    assert starts(outcome) == {"trunk": STARTUP, "b": 2 * STARTUP + 500, "c": STARTUP + 900}
    assert outcome.seconds == STARTUP + 1100
    assert outcome.bound == 1100
    assert simulate(works, nodes(1, gpus=1)).seconds == STARTUP + 1550


def test_a_lost_node_costs_what_was_done_since_the_checkpoint():
    works = [work(f"t{index}", 10_000) for index in range(16)]
    outcome = simulate(works, nodes(2), faults=Faults(mtbf_hours=20, repair_hours=0.1), seed=1)
    assert outcome.failures >= 3
    assert outcome.attempts == 16 + outcome.attempts_lost
    assert outcome.busy == pytest.approx(16 * 10_000 + outcome.lost)
    assert 0 < outcome.lost <= 60 * outcome.attempts_lost
    assert outcome.flops_wasted == pytest.approx(outcome.lost * 1e12)
    assert outcome.available == pytest.approx(16 * outcome.seconds - 8 * 360 * outcome.failures, rel=0.05)


def test_notice_of_a_preemption_saves_what_it_would_cost():
    works = [work(f"t{index}", 10_000) for index in range(16)]
    faults = {"preemptions_per_day": 60.0, "repair_hours": 0.2}
    cut = simulate(works, nodes(2), faults=Faults(**faults), seed=2)
    told = simulate(works, nodes(2), faults=Faults(**faults, notice_seconds=60), seed=2)
    assert cut.flops_wasted > 0 == told.flops_wasted
    assert min(cut.preemptions, told.preemptions) >= 3
    assert told.attempts > 16, "they were stopped and went on elsewhere"


def test_the_same_seed_gives_the_same_and_another_one_does_not():
    works = [work(f"t{index}", 5000 + index, gpus=1 + index % 3) for index in range(30)]
    faults = Faults(mtbf_hours=30, preemptions_per_day=1, noise=0.3)
    one, same, other = (simulate(works, nodes(2), faults=faults, seed=seed) for seed in (5, 5, 6))
    assert one == same
    assert one.seconds != other.seconds


def test_noise_keeps_the_mean():
    works = [work(f"t{index}", 1000) for index in range(2000)]
    outcome = simulate(works, nodes(8), faults=Faults(noise=0.5), seed=0)
    assert outcome.busy / 2000 == pytest.approx(1000, rel=4 * 0.53 / 2000**0.5)


def test_sweeps_share_by_turns_limits_and_priorities():
    works = [work(f"{sweep}{index}", 100, sweep=sweep) for sweep in "pq" for index in range(40)]
    fair = simulate(works, nodes(1)).sweep_seconds
    assert fair["p"] == pytest.approx(fair["q"], rel=0.2)
    most = simulate(works, nodes(1), limits={"p": Limit(gpus=2)})
    assert most.sweep_seconds["q"] < most.sweep_seconds["p"]
    assert most.sweep_seconds["p"] == STARTUP + 2000
    urgent = [w if w.job.kind.sweep == "p" else work(w.job.trial_id, 100, sweep="q", priority=1) for w in works]
    first = simulate(urgent, nodes(1)).sweep_seconds
    assert first["q"] == STARTUP + 500
    assert first["p"] > first["q"]


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_largest_gang_is_not_starved(seed):
    """Once no longer job is left to go before it, it starts when what runs then has ended."""
    chance = random.Random(seed)
    small = [work(f"s{index}", chance.uniform(10, 1000)) for index in range(60)]
    big = work("big", chance.uniform(100, 900), gpus=8)
    outcome = simulate([*small, big], nodes(1))
    begun = starts(outcome)
    longer = [begun[w.job.trial_id] for w in small if w.job.seconds > big.job.seconds]
    assert begun["big"] <= max([0.0, *longer]) + 1000 + 3 * STARTUP
    assert outcome.seconds <= 1.5 * outcome.bound + 1000


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_whatever_the_faults_no_device_is_used_twice_and_all_work_is_done(seed):
    chance = random.Random(seed)
    works = []
    for index in range(chance.randint(1, 25)):
        works.append(work(f"t{index}", chance.uniform(10, 5000), gpus=chance.choice([1, 2, 4, 8, 12])))
        if chance.random() < 0.3:
            works.append(branch(f"b{index}", f"t{index}", chance.choice([200, 600]), chance.uniform(10, 900)))
    faults = Faults(
        mtbf_hours=chance.choice([2, 50, math.inf]),
        preemptions_per_day=chance.choice([0.0, 5.0]),
        notice_seconds=chance.choice([0.0, 100.0]),
        repair_hours=chance.choice([0.05, 1.0]),
        noise=chance.choice([0.0, 0.4]),
    )
    policy = Policy(recycle_after=chance.choice([None, 2]))
    outcome = simulate(works, nodes(2), faults=faults, policy=policy, seed=seed)
    ends = {span.trial_id: span.end for span in outcome.spans if span.outcome == "completed"}
    assert len([span for span in outcome.spans if span.outcome == "completed"]) == len(ends) == len(works)
    assert outcome.seconds >= max(ends.values())
    on: dict[tuple, list] = defaultdict(list)
    for span in outcome.spans:
        on["trial", span.trial_id].append(span)
        for allotment in span.placement:
            for device, _ in allotment.gpus:
                on[allotment.node, device].append(span)
    for spans in on.values():
        spans.sort(key=lambda span: (span.start, span.end))
        assert all(one.end <= two.start + 1e-6 for one, two in itertools.pairwise(spans))
    if faults.noise == 0:
        assert outcome.seconds >= outcome.bound
        total = sum(w.job.seconds * w.job.kind.shape.workers for w in works)
        assert outcome.busy == pytest.approx(total + outcome.lost)
        for w in works:
            if w.job.waits_for:
                trunk, point = w.job.waits_for
                passed = min(span.start for span in on["trial", trunk]) + point / 1000 * next(
                    x.job.seconds for x in works if x.job.trial_id == trunk
                )
                assert on["trial", w.job.trial_id][0].start >= passed - 1e-6


def test_a_plan_is_simulated_whole(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(WSD)
    plan = make(path)
    outcome = simulate(works_of(plan), nodes(1))
    assert outcome.trials == len(plan.trials) == 16
    assert outcome.flops == pytest.approx(plan.flops_planned)
    assert outcome.busy == pytest.approx(2 * sum(plan.seconds(trial) for trial in plan.trials), rel=1e-3)


@pytest.mark.parametrize(
    ("works", "message"),
    [
        ([], "there is no trial to simulate"),
        ([work("a", 1), work("a", 1, sweep="t")], "trial a is in s and t; wanted it once"),
        ([work("a", 1, gpus=17)], r"sweep s needs gangs of 17 workers with 1 GPUs .* has 16 GPUs and 128 CPUs on 2"),
    ],
)
def test_what_cannot_be_simulated_is_refused(works, message):
    with pytest.raises(ValueError, match=message):
        simulate(works, nodes(2))


@pytest.mark.parametrize("wrong", [{"mtbf_hours": 0.0}, {"repair_hours": -1.0}, {"noise": -0.1}])
def test_faults_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value:g}; wanted a number"):
        Faults(**wrong)


def test_two_thousand_trials_on_a_thousand_gpus_take_no_time():
    """A fifth of the scale that is promised (10,000 on 4,096 in 10 s), in a fifth of its time on a busy machine."""
    chance = random.Random(0)
    works = [work(f"t{index}", chance.lognormvariate(9, 1), gpus=chance.choice([1, 2, 4, 8])) for index in range(2000)]
    began = time.process_time()
    outcome = simulate(works, nodes(128), faults=Faults(mtbf_hours=20_000, preemptions_per_day=0.1), seed=0)
    assert time.process_time() - began < 3.0
    assert outcome.failures + outcome.preemptions > 5
    assert outcome.seconds < 1.2 * outcome.bound


def test_the_command_prints_a_summary_a_json_object_and_a_figure(tmp_path):
    path, figure = tmp_path / "spec.yaml", tmp_path / "schedule.png"
    path.write_text(WSD)
    asked = ["simulate", str(path), "--gpus", "12", "--mtbf-hours", "10000"]
    shown = CliRunner().invoke(main, [*asked, "-o", str(figure)])
    assert shown.exit_code == 0, shown.output
    assert "12 GPUs on 2 nodes" in shown.output
    assert "16 of 16 trials, on 6 gangs" in shown.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    answer = json.loads(CliRunner().invoke(main, [*asked, "--json"]).output)
    assert answer["num_trials"] == answer["attempts"] == 16
    assert answer["makespan_hours"] >= answer["makespan_bound_hours"] > 0
    assert 0 < answer["utilisation"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "1"], "needs gangs of 2 workers with 1 GPUs and 1 CPUs each; the cluster has 1 GPUs"),
        (["--gpus", "8", "--limit", "cooled=1"], "sweep cooled may hold None gangs and 1.0 GPUs at once"),
        (["--gpus", "8", "--limit", "other=1"], "--limit got 'other=1'; wanted NAME=NUMBER with a name among cooled"),
        (["--gpus", "8", "--priority", "cooled=high"], "--priority got 'cooled=high'; wanted a number after the '='"),
    ],
)
def test_the_command_refuses_what_cannot_be(tmp_path, arguments, message):
    path = tmp_path / "spec.yaml"
    path.write_text(WSD)
    done = CliRunner().invoke(main, ["simulate", str(path), *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        "try: main(['simulate', 'sweeps/quickstart.yaml', '--gpus', '2', '--json'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'deepspeed', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stderr.strip() == "[]"
