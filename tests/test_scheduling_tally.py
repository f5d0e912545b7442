"""How far a sweep is: in FLOPs, and in the plan's seconds, by which the rest is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.planning.plan import Plan, make
from orchestrator.scheduling import tally
from orchestrator.scheduling.backend import Progress
from orchestrator.scheduling.tally import BELIEVED, Tally
from orchestrator.spec.trial import Trial


class Clock:
    """Stands in for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tally, "time", clock)
    return clock


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Sixteen packs of twelve on one gang, of widths whose FLOP/s differ tenfold."""
    return make(Path("sweeps/studies/h100/h100_transfer.yaml"))


def progress(trial: Trial, samples: int) -> Progress:
    return Progress(
        trial_id=trial.trial_id, attempt=0, phase="training", samples=samples, samples_start=0, loss=None,
        samples_per_second=None,
    )  # fmt: skip


def fresh(plan: Plan) -> Tally:
    return Tally(plan, lambda trial: trial.first)


def test_nothing_is_told_before_anything_is_trained(plan, clock):
    first = fresh(plan).standing(())
    assert (first.flops_done, first.seconds_left) == (0.0, None)


@pytest.mark.parametrize("slower", [1.0, 2.0])
def test_packs_that_take_what_is_planned_or_twice_that_leave_as_much_of_the_rest(plan, clock, slower):
    counted, whole = fresh(plan), 3600 * plan.makespan_hours
    first, trained = plan.packs[0], 0.0
    half = counted.standing(progress(trial, trial.last // 2) for trial in first.trials)
    assert half.seconds_left == pytest.approx(whole - first.total / 2), "as planned, while nothing else is known"
    for pack in plan.packs[:12]:
        clock.now += slower * (pack.total if trained else first.total / 2)
        for trial in pack.trials:
            counted.end(trial, trial.last, trial.last)
        trained += pack.total
        spent = clock.now - 1000 + first.total / 2
        left = counted.standing(()).seconds_left
        assert left == pytest.approx((whole - trained) * (spent + BELIEVED) / (trained + BELIEVED))
    assert left == pytest.approx(slower * (whole - trained), rel=0.2)


def test_what_was_lost_is_to_do_again(plan, clock):
    counted, trial = fresh(plan), plan.trials[0]
    counted.end(trial, trial.last, 0)
    standing = counted.standing(())
    assert (standing.flops_done, standing.flops_here) == (0.0, trial.flops)


def test_what_was_trained_before_is_not_to_do_again(plan, clock):
    done = {trial.trial_id for pack in plan.packs[:8] for trial in pack.trials}
    counted = Tally(plan, lambda trial: trial.last if trial.trial_id in done else trial.first)
    rest = [pack for pack in plan.packs if pack.trials[0].trial_id not in done]
    left = counted.standing([progress(rest[0].trials[0], 128)]).seconds_left
    assert left == pytest.approx(sum(pack.total for pack in rest), rel=0.01)


def test_gangs_side_by_side_share_the_rest(plan, clock):
    compute = plan.sweep.compute.model_copy(update={"gangs": 4})
    four = dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))
    left = fresh(four).standing([progress(four.trials[0], 128)]).seconds_left
    assert left == pytest.approx(sum(four.seconds(trial) for trial in four.trials) / 4, rel=0.01)
