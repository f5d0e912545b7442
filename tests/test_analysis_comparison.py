"""Arms against each other: a planted compute multiplier, tests of equality with their size, and what is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from analysis.comparison import compare_arms


def two_arms(
    rng: np.random.Generator | None = None,
    *,
    saving: float = 1.5,
    steeper: float = 0.0,
    floor: float = 0.3,
    noise: float = 0.003,
    budgets: int = 6,
    shift: float = 1.0,
) -> pd.DataFrame:
    """y = floor + 0.2 (C / (m 1e19))^-b; arm b needs `saving` times the FLOPs of arm a, whose exponent is steeper."""
    rows = []
    for arm, m, exponent in (("a", 1.0, 0.2 + steeper), ("b", saving, 0.2)):
        for flops in np.geomspace(1e18, 1e20, budgets) * (shift if arm == "b" else 1.0):
            error = 0.0 if rng is None else noise * rng.standard_normal()
            loss = (floor + 0.2 * (flops / (m * 1e19)) ** -exponent) * np.exp(error)
            rows.append({"arm": arm, "params": 1e7, "samples": flops / 6e7, "flops": flops, "loss": loss})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_a_planted_multiplier_is_recovered(floor: float) -> None:
    found = compare_arms(two_arms(saving=1.7, steeper=0.03, floor=floor), "a", "b")
    assert found.compute is not None
    for flops in (2e18, 1e19, 8e19):
        above = 0.2 * (flops / 1e19) ** -0.23
        needed = 1.7e19 * (above / 0.2) ** (-1 / 0.2)
        assert float(found.compute.value(flops)) == pytest.approx(needed / flops, rel=1e-4)
    assert (found.compute.floor or 0.0) == pytest.approx(floor, abs=1e-5)


def test_the_multiplier_is_marked_where_only_one_arm_was_run() -> None:
    compute = compare_arms(two_arms(saving=2.0), "a", "b").compute
    assert compute is not None
    assert compute.paired
    assert compute.is_measured(np.array([0.5e18, 1.1e18, 4.9e19, 5.2e19])).tolist() == [False, True, True, False]
    apart = compare_arms(two_arms(saving=1e4, shift=1.3), "a", "b")
    assert apart.compute is not None
    assert not apart.compute.paired
    assert apart.compute.measured is None
    assert "an extrapolation: the arms share no range of loss" in str(apart)


def test_intervals_hold_the_planted_multiplier_and_tests_keep_their_size() -> None:
    rng = np.random.default_rng(0)
    held, refused = [], []
    for _ in range(25):
        found = compare_arms(two_arms(rng, floor=0.0), "a", "b", num_resamples=200)
        assert found.compute is not None
        low, high = found.compute.interval(1e19)
        held.append(bool(low <= 1.5 <= high))
        refused.append(found.tests[0].p_value < 0.05)
    assert np.mean(held) >= 0.85
    assert np.mean(refused) <= 0.15


def test_unequal_exponents_are_refused_and_equal_laws_are_not() -> None:
    rng = np.random.default_rng(1)
    steeper = compare_arms(two_arms(rng, steeper=0.08), "a", "b")
    assert [test.what for test in steeper.tests if test.p_value < 0.01] == ["exponents", "laws"]
    alike = compare_arms(two_arms(rng, saving=1.0), "a", "b")
    assert all(test.p_value > 0.05 for test in alike.tests)
    only_level = compare_arms(two_arms(rng, saving=1.5), "a", "b")
    assert [test.p_value < 0.05 for test in only_level.tests] == [False, True]
    assert "equal laws: refused at 5%" in str(only_level)


def test_too_few_budgets_give_no_multiplier_and_say_why() -> None:
    found = compare_arms(two_arms(budgets=2), "a", "b")
    assert found.compute is None
    assert found.multiplier is None
    assert "no compute multiplier: a has 2 budgets; the law of an arm needs 3" in str(found)


def test_compare_takes_a_table_and_names_its_arms() -> None:
    frame = two_arms()
    found = compare(frame)
    assert (found.first, found.second) == ("a", "b")
    assert "b needs 1.5 times the compute" in str(found)
    assert "<li>b needs 1.5 times the compute" in found._repr_html_()
    assert found.plot().axes[0].get_ylabel() == "compute multiplier (above 1: a saves)"
    with pytest.raises(ValueError, match=r"no arm 'c'. Its arms: a, b"):
        compare(frame, "a", "c")
    with pytest.raises(ValueError, match=r"arms none \(no column arm\); name the two"):
        compare(frame.drop(columns="arm"))
    mixed = frame.assign(flops_definition=np.where(frame["arm"] == "a", "6ND", "counted"))
    with pytest.raises(ValueError, match="mix FLOP definitions"):
        compare(mixed)


def test_the_multiplier_of_laws_without_a_slope_is_drawn() -> None:
    """Its interval reaches from nothing to beyond all numbers."""
    table = two_arms()
    flat = table.assign(loss=1.0 + 0.05 * np.random.default_rng(1).standard_normal(len(table)))
    found = compare_arms(pd.concat([flat, flat.assign(params=2e7, loss=flat["loss"] + 1)]), "a", "b")
    (axes,) = found.plot().axes
    low, high = axes.get_ylim()
    assert 1e-4 < low < 1 < high < 1e4
