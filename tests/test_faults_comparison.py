"""The comparison that ends a soak can fail: in the last bit, for a row too many, and for a checkpoint forgotten."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_analysis_planted import measurement

from orchestrator.faults.comparison import cost, forgotten, problems, unsaved
from orchestrator.faults.points import Trace
from orchestrator.planning.plan import make
from orchestrator.results.store import Store


def write(folder: Path, *losses: float, attempt: int = 0) -> Path:
    for index, loss in enumerate(losses):
        row = measurement("aaaa", "sp", "10K", 1e-3, 64 * (index + 1), 1e9, loss, datetime.now(UTC))
        Store(folder).append_measurements([row | {"attempt": attempt}])
    return folder


@pytest.fixture
def whole(tmp_path):
    return write(tmp_path / "whole", 1.0, 0.5)


def test_the_same_data_by_another_attempt_is_no_problem(whole, tmp_path):
    assert problems(write(tmp_path / "other", 1.0, 0.5, attempt=7), whole) == []


def test_the_last_bit_counts(whole, tmp_path):
    other = write(tmp_path / "other", 1.0, math.nextafter(0.5, 1.0))
    assert "column loss differs in 1 of 2 rows" in problems(other, whole)


def test_rows_that_are_missing_or_double_are_named(whole, tmp_path):
    other = write(tmp_path / "other", 1.0)
    assert problems(other, whole) == ["aaaa at 128 samples is in one of them only"]
    write(other, 1.0)
    assert "aaaa is measured 2 times at 64 samples" in problems(other, whole)


def test_an_attempt_that_forgets_a_checkpoint_is_found_out():
    first, second = Trace("aaaa", 0, 0, 480, 400, 1), Trace("aaaa", 1, 320, 800, 800, 2)
    (problem,) = forgotten([second, first])
    assert problem == "attempt 1 of aaaa began at 320 samples, though one was saved at 400"
    assert forgotten([second, first], excused={"aaaa"}) == []
    assert forgotten([first, second._replace(start=400)]) == []


def test_an_attempt_that_does_not_save_in_time_is_found_out():
    first, second = Trace("aaaa", 0, 0, 480, 400, 1, 0, 0.29), Trace("aaaa", 1, 320, 800, 800, 2, 0, 0.31)
    (problem,) = unsaved([first, second], 0.3)
    assert problem.startswith("attempt 1 of aaaa trained 0.31 s without saving, and one more step; wanted")


def test_what_was_trained_twice_is_counted_in_flops():
    plan = make(Path("sweeps/soak.yaml"))
    trial = plan.trials[0]
    plan = replace(plan, trials=(trial,))
    spent = cost(
        plan, [Trace(trial.trial_id, 0, 0, 480, 400, 1), Trace(trial.trial_id, 1, 400, trial.last, trial.last, 2)]
    )
    assert spent.flops_wasted == 80 * trial.flops_per_sample
    assert spent.flops_useful == trial.flops
    assert spent.worst_steps == 80 // trial.batch_size
