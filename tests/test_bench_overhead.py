"""The benchmark of overhead: its trials go the whole way, and its figures are of them."""

from __future__ import annotations

import pandas as pd
import pytest

from orchestrator.bench.overhead import _all_up, _busy, run


@pytest.mark.long
def test_a_trial_that_does_nothing_costs_little():
    figures = run(trials=20, busy_trials=16, gangs=1, peers=False)
    assert {"per_trial_ms", "per_trial_p95_ms", "startup_s", "busy_share", "cores", "ray"} <= set(figures)
    assert 0 < figures["per_trial_ms"] < 1000, "20 ms on two quiet cores"
    assert 0.1 < figures["busy_share_with_start"] <= figures["busy_share"] <= 1.0


def test_busy_is_the_time_in_trials_while_all_gangs_are_up():
    begun = [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.75, 1.0]
    attempts = pd.DataFrame({"gang": ["a"] * 5 + ["b"] * 3, "started_at": pd.to_datetime(begun, unit="s", utc=True)})
    attempts["ended_at"] = attempts["started_at"] + pd.Timedelta(seconds=0.25)
    assert _busy(attempts, *_all_up(attempts, 2)) == pytest.approx(0.2 / 0.25)
    whole = attempts["started_at"].min(), attempts["ended_at"].max()
    assert _busy(attempts, *whole) == pytest.approx(8 * 0.2 / (2 * 1.25))
    assert _busy(attempts, *_all_up(attempts, 3)) is None, "the third one never came"
