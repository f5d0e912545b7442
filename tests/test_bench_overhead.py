"""The benchmark of overhead: its trials go the whole way, and its figures are of them."""

from __future__ import annotations

import pytest

from orchestrator.bench.overhead import run

pytestmark = pytest.mark.long


def test_a_trial_that_does_nothing_costs_little():
    figures = run(trials=20, busy_trials=16, gangs=2, peers=False)
    assert {"per_trial_ms", "per_trial_p95_ms", "startup_s", "busy_share", "cores", "ray"} <= set(figures)
    assert 0 < figures["per_trial_ms"] < 1000, "20 ms on two quiet cores"
    assert 0.1 < figures["busy_share"] <= 1.0
