"""What `ditlaw plan` says that a sweep will tell."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from analysis.rate_valley import MIN_RATES
from orchestrator.cli import main
from orchestrator.plan_view import MIN_RATES_COMPARED


def planned(spec: str) -> str:
    result = CliRunner().invoke(main, ["plan", spec, "--from-scratch"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("spec", "tells"),
    [
        ("lr_transfer", "each size, and how it moves with size (mup 7 rates at 4 sizes, sp 7 rates at 4 sizes)"),
        ("uvit_rates", "each size (dit-deep 7 rates at 1 size, uvit 7 rates at 1 size)"),
    ],
)
def test_a_sweep_of_learning_rates_tells_these_and_no_law(spec: str, tells: str) -> None:
    said = planned(f"sweeps/{spec}.yaml")
    assert f"What it tells: the best learning rate of {tells}" in said
    assert "isoFLOP minima" not in said
    assert "Expected 95% intervals" not in said


def test_a_sweep_with_budgets_tells_its_laws() -> None:
    said = planned("sweeps/quickstart.yaml")
    assert "Expected 95% intervals" in said
    assert "What it tells" not in said


def test_the_rates_that_a_best_one_needs_are_those_of_the_fit() -> None:
    assert MIN_RATES_COMPARED == MIN_RATES
