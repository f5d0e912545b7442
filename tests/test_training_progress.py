"""When the workers of a larger gang agree: soon enough for a preemption notice, and seldom enough to cost nothing."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.training.progress import CONTROL_SECONDS, CONTROL_STEPS, Control


def gang(seconds: float, workers: int = 2, save: float = 0.0, steps: int = 200) -> list[int]:
    """The steps after which workers agree, whose own clocks run at different rates; all of them at the same ones."""
    controls = [Control() for _ in range(workers)]
    for rank, control in enumerate(controls):
        control.begin(0, 10.0 * rank)
    agreed, now = [], 0.0
    for step in range(1, steps + 1):
        now += seconds
        due = {control.is_due(step) for control in controls}
        assert len(due) == 1, "else one would wait for the others for ever"
        if due == {True}:
            apart = controls[0].steps_apart
            for rank, control in enumerate(controls):
                control.agreed(step, apart, 10.0 * rank + now * (1 + rank))
            now += save
            agreed.append(step)
    return agreed


@pytest.mark.parametrize(("seconds", "apart"), [(3.0, 1), (1.0, 1), (0.3, 3), (0.09, 11), (0.01, 16), (0.0, 16)])
def test_they_agree_about_once_a_second_and_at_least_every_sixteen_steps(seconds, apart):
    agreed = gang(seconds)
    assert agreed[:2] == [1, 2], "nobody knows yet how long a step takes"
    assert {after - before for before, after in itertools.pairwise(agreed)} <= {apart, 1}
    assert agreed[-1] - agreed[-2] == apart <= CONTROL_STEPS
    assert apart == 1 or apart * seconds <= CONTROL_SECONDS + 1e-9


def test_workers_with_other_clocks_stay_together():
    assert len(gang(0.2, workers=4, save=0.5)) > 10
