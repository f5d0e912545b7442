"""The report's sentences on two arms: which is ahead is said once, and by the measure that decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from analysis.answer import compared
from analysis.comparison import Comparison, Pair
from analysis.multiplier import Multiplier


def pairs(gaps: Sequence[float]) -> list[Pair]:
    """A pair a gap: the first arm's loss over the second's, less 1."""
    rates = {"learning_rate": None, "other_learning_rate": None}
    return [
        Pair(size=f"w{k}", params=1e4, flops=1e10, loss=1 + gap, other_loss=1.0, **rates) for k, gap in enumerate(gaps)
    ]


def comparison(
    gaps: Sequence[float], band: tuple[float, float] | None, multiplier: tuple[float, float, float] | None
) -> Comparison:
    """`multiplier` is the value with its interval's ends."""
    compute = None
    if multiplier is not None:
        value, low, high = multiplier
        draws = {"log_coefficient": np.log(np.linspace(low, high, 401)), "exponent": np.zeros(401)}
        compute = Multiplier(
            coefficient=value, exponent=0.0, draws=draws, centre=1e10, measured=(1e9, 1e11), paired=True, floor=None
        )
    return Comparison(
        first="one",
        second="two",
        pairs=pairs(gaps),
        mean_difference=float(np.mean(gaps)) if gaps else None,
        mean_difference_ci95=band,
        compute=compute,
        reason=None if compute else "one has 2 budgets; the law of an arm needs 3",
        frontiers={"one": pd.DataFrame({"flops": [1e9, 1e11]})},
    )


def text(one: Comparison) -> str:
    return re.sub(r"<[^>]+>", "", compared(one))


def test_an_arm_that_is_behind_is_counted_where_it_is_behind() -> None:
    behind = text(comparison([0.2, 0.1, 0.3, 0.2], (0.1, 0.3), None))
    assert "one loses to two at 4 of 4 sizes and budgets: 20.0% higher loss" in behind
    mixed = text(comparison([0.2, -0.1, 0.3, 0.2], (-0.1, 0.4), None))
    assert "one is behind two at 3 of 4 sizes and budgets" in mixed
    assert "one beats two at 3 of 4" in text(comparison([-0.2, -0.1, -0.3, 0.1], (-0.3, -0.01), None))


def test_arms_without_a_size_in_common_are_compared_by_compute() -> None:
    said = text(comparison([], None, (1.57, 1.43, 1.91)))
    assert said.startswith("one beats two: ")
    assert re.search(r"two needs 1\.57 times the compute \(95% 1\.4\d to 1\.9", said)
    assert "share no size and budget" in said
    neither = text(comparison([], None, None))
    assert "are not compared" in neither
    assert "one has 2 budgets; the law of an arm needs 3" in neither


@pytest.mark.parametrize(
    ("gaps", "band", "multiplier", "verdict"),
    [
        ([0.01, 0.012, 0.011], (0.001, 0.02), (1.29, 1.1, 1.5), "Which of one and two is ahead depends"),
        ([-0.01, 0.002, -0.01], (-0.02, 0.01), (0.88, 0.7, 1.1), "one and two are not clearly apart"),
        ([-0.01, -0.02, -0.01], (-0.03, 0.01), (1.3, 1.2, 1.4), "one beats two at 3 of 3"),
        ([0.01, 0.02, 0.01], (0.001, 0.03), (0.9, 0.8, 1.1), "one is behind two at 3 of 3"),
    ],
)
def test_one_sentence_points_one_way(
    gaps: list[float], band: tuple[float, float], multiplier: tuple[float, float, float], verdict: str
) -> None:
    assert text(comparison(gaps, band, multiplier)).startswith(verdict)
