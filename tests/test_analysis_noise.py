"""Noise of measurements: what was planted is found, and what a table does not tell is not made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.noise import estimate_noise


def table(seeds: int, milestones: int, seed_sd: float, measurement_sd: float, groups: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for group in range(groups):
        for seed in range(seeds):
            shared = rng.normal(0, seed_sd)
            for milestone in range(milestones):
                loss = (1 + 1 / (1 + milestone)) * np.exp(shared + rng.normal(0, measurement_sd))
                rows.append(
                    {
                        "arm": "mup", "size": f"w{group}", "learning_rate": 0.1, "seed": seed,
                        "samples": 64 << milestone, "loss": loss, "loss_sd": 0.004 * loss, "outcome": "ok",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_planted_noise_is_found():
    (found,) = estimate_noise(table(4, 5, 0.02, 0.005))
    assert found.seed == pytest.approx(0.02, rel=0.15)
    assert found.measurement == pytest.approx(0.005, rel=0.1)
    assert found.sampling == pytest.approx(0.004)
    assert found.degrees_of_freedom == 120


def test_noise_that_is_all_of_measurements_is_none_of_seeds():
    (found,) = estimate_noise(table(4, 5, 0.0, 0.01))
    assert found.seed is not None
    assert found.seed < 0.003


def test_one_seed_tells_nothing_but_sampling():
    (found,) = estimate_noise(table(1, 5, 0.02, 0.005))
    assert (found.seed, found.measurement, found.degrees_of_freedom) == (None, None, 0)
    assert found.sampling == pytest.approx(0.004)


def test_one_milestone_cannot_tell_seeds_from_measurements():
    (found,) = estimate_noise(table(4, 1, 0.02, 0.005))
    assert found.seed == pytest.approx(np.hypot(0.02, 0.005), rel=0.15)
    assert found.measurement is None
