"""Which runs a law is fitted to: not the lucky survivor of an unstable learning rate, not the luckiest seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frontier import average_seeds, best_learning_rates, frontier, sound_rates


def runs(*rows: tuple[float, int, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["learning_rate", "seed", "loss"])
    return frame.assign(params=1e6, samples=1e4, flops=6e10, budget_flops=6e10, arm="mup")


def test_a_rate_at_which_a_seed_diverged_is_not_the_best_one() -> None:
    frame = runs((0.1, 0, np.nan), (0.1, 1, np.nan), (0.1, 2, 0.30), (0.01, 0, 0.40), (0.01, 1, 0.42), (0.01, 2, 0.41))
    sound = sound_rates(frame, frame["loss"].isna())
    assert list(frame[sound]["learning_rate"]) == [0.01] * 3
    assert set(best_learning_rates(frame[sound])["learning_rate"]) == {0.01}


def test_where_every_rate_has_a_diverged_seed_the_survivors_count() -> None:
    frame = runs((0.1, 0, np.nan), (0.1, 1, 0.30), (0.01, 0, np.nan), (0.01, 1, 0.42))
    assert list(frame[sound_rates(frame, frame["loss"].isna())]["seed"]) == [1, 1]


def test_the_frontier_is_of_mean_losses_over_seeds() -> None:
    lucky = runs((0.01, 0, 0.30), (0.01, 1, 0.50)).assign(params=1e6)
    steady = runs((0.01, 0, 0.35), (0.01, 1, 0.35)).assign(params=2e6)
    best = frontier(pd.concat([lucky, steady], ignore_index=True))
    assert list(best["params"]) == [2e6]
    assert list(best["loss"]) == [0.35]
    assert len(average_seeds(lucky)) == 1
