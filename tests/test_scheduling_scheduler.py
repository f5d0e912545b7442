"""The scheduler as a pure machine: every schedule of events ends, and nothing is run twice at once or forgotten."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.backend import AttemptEnded, GangLost, GangReady
from orchestrator.scheduling.scheduler import (
    MAX_FAILURES_IN_A_ROW,
    MAX_GANG_LOSSES,
    RunTrial,
    StartGang,
    State,
    StopAttempt,
    StopGang,
    StopRequested,
    begin,
    step,
)


def state(*trials: str, gangs: int = 1, failures: int = 1) -> State:
    return State(order=trials, waiting=trials, max_gangs=gangs, max_failures=failures)


def ended(gang: str, trial: str, outcome: str = "completed") -> AttemptEnded:
    return AttemptEnded(gang=gang, trial_id=trial, attempt=0, outcome=outcome, reason=None)


def test_a_gang_is_kept_from_trial_to_trial():
    now, actions = begin(state("a", "b"))
    assert actions == [StartGang("gang-0")]
    now, actions = step(now, GangReady(gang="gang-0"))
    assert actions == [RunTrial("gang-0", "a")]
    now, actions = step(now, ended("gang-0", "a"))
    assert actions == [RunTrial("gang-0", "b")]
    now, actions = step(now, ended("gang-0", "b"))
    assert (actions, now.finished, now.succeeded) == ([StopGang("gang-0")], True, True)


def test_no_more_gangs_than_work():
    _, actions = begin(state("a", "b", gangs=4))
    assert actions == [StartGang("gang-0"), StartGang("gang-1")]


def test_a_lost_gang_is_replaced_and_its_trial_tried_again():
    now, _ = begin(state("a", "b"))
    now, _ = step(now, GangReady(gang="gang-0"))
    now, actions = step(now, GangLost(gang="gang-0", reason="killed"))
    assert actions == [StopGang("gang-0"), StartGang("gang-1")]
    assert (now.waiting, now.failures) == (("a", "b"), {"a": 1})
    now, _ = step(now, ended("gang-0", "a"))  # too late: from a gang that is gone
    assert now.waiting == ("a", "b")


def test_a_trial_that_keeps_failing_is_given_up_and_the_rest_goes_on():
    now, _ = begin(state("a", "b", failures=1))
    now, _ = step(now, GangReady(gang="gang-0"))
    now, actions = step(now, ended("gang-0", "a", "failed"))
    assert actions == [StopGang("gang-0"), StartGang("gang-1")]
    now, actions = step(now, GangReady(gang="gang-1"))
    assert actions == [RunTrial("gang-1", "a")]
    now, _ = step(now, ended("gang-1", "a", "failed"))
    now, _ = step(now, GangReady(gang="gang-2"))
    now, _ = step(now, ended("gang-2", "b"))
    assert (now.finished, now.succeeded, now.done) == (True, False, {"b"})
    assert now.given_up == {"a": "failed"}


def test_divergence_is_a_result():
    now, _ = begin(state("a"))
    now, _ = step(now, GangReady(gang="gang-0"))
    now, _ = step(now, ended("gang-0", "a", "diverged"))
    assert now.succeeded
    assert now.done == {"a"}


def test_a_stop_lets_attempts_end_and_starts_nothing():
    now, _ = begin(state("a", "b", gangs=2))
    now, _ = step(now, GangReady(gang="gang-0"))
    now, actions = step(now, StopRequested())
    assert actions == [StopAttempt("gang-0")]
    now, actions = step(now, GangReady(gang="gang-1"))
    assert actions == [StopGang("gang-1")]
    now, actions = step(now, ended("gang-0", "a", "stopped"))
    assert actions == [StopGang("gang-0")]
    assert now.finished
    assert set(now.waiting) == {"a", "b"}


def test_gangs_that_never_come_up_end_the_sweep_with_the_reason():
    now, _ = begin(state("a"))
    for index in range(MAX_GANG_LOSSES):
        assert not now.finished
        now, _ = step(now, GangLost(gang=f"gang-{index}", reason="no memory"))
    assert now.finished
    assert now.broken == "no workers could be started: no memory"


def test_what_fails_everywhere_ends_the_sweep_instead_of_burning_it():
    now, _ = begin(state(*(f"t{index}" for index in range(50)), failures=2))
    failed = 0
    while not now.finished:
        gang = next(iter(now.gangs))
        now, _ = step(now, GangReady(gang=gang))
        now, _ = step(now, ended(gang, now.running[gang], "failed"))
        failed += 1
    assert failed == MAX_FAILURES_IN_A_ROW
    assert "6 attempts failed in a row" in now.broken
    assert not now.done


@given(
    trials=st.integers(1, 6),
    gangs=st.integers(1, 3),
    choices=st.lists(st.integers(0, 9), min_size=0, max_size=60),
)
@settings(max_examples=300)
def test_any_order_of_events_ends_with_every_trial_accounted_for(trials, gangs, choices):
    names = {f"t{index}" for index in range(trials)}
    now, actions = begin(state(*sorted(names), gangs=gangs, failures=1))
    choices = iter(choices)
    for _ in range(200):
        for action in actions:
            if isinstance(action, RunTrial):
                assert action.trial_id not in now.done
        assert len(set(now.running.values())) == len(now.running), "a trial runs twice"
        assert len(now.gangs) <= gangs
        if now.finished:
            break
        active = sorted(gang for gang, status in now.gangs.items() if status != "idle")
        gang = active[next(choices, 0) % len(active)]
        kind = next(choices, 9)
        if now.gangs[gang] == "starting":
            event = GangLost(gang=gang, reason="x") if kind == 0 else GangReady(gang=gang)
        else:
            outcome = {0: "failed", 1: "diverged"}.get(kind, "completed")
            if kind == 3:  # too late: from a gang that is gone
                late = ended("gang-99", now.running[gang])
                assert step(now, late) == (now, [])
            event = GangLost(gang=gang, reason="x") if kind == 2 else ended(gang, now.running[gang], outcome)
        now, actions = step(now, event)
    assert now.finished
    assert now.done | set(now.given_up) | set(now.waiting) == names
    assert now.broken is not None or not now.waiting
