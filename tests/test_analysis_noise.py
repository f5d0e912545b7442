"""Noise of measurements: what was planted is found, and what a table does not tell is not made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.noise import estimate_noise, stored_noise
from orchestrator.expectations import expectations
from orchestrator.planning.plan import make


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


def keep(folder: Path, *estimates: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "noise.json").write_text(json.dumps({"relative_sd": estimates}))


def test_stored_noise_is_read_from_its_file_or_folder(tmp_path):
    (found,) = estimate_noise(table(4, 5, 0.02, 0.005, groups=3))
    keep(tmp_path, dataclasses.asdict(found))
    assert stored_noise(tmp_path) == stored_noise(tmp_path / "noise.json") == found
    for quantity, message in (("loss", "holds no noise"), ("fd", "does not tell how much the fd scatters")):
        with pytest.raises(ValueError, match=message):
            stored_noise(tmp_path / "nowhere" if quantity == "loss" else tmp_path, quantity)
    keep(tmp_path, {"quantity": "loss"})
    with pytest.raises(ValueError, match="Run `ditlaw noise` on results with several seeds"):
        stored_noise(tmp_path)


def test_a_plan_expects_what_noise_was_measured(tmp_path):
    """Ten times the noise, about ten times the interval; what the spec gives itself counts more."""
    stored = {"quantity": "loss", "sampling": None, "degrees_of_freedom": 9}
    keep(tmp_path / "quiet", {**stored, "seed": 0.001, "measurement": 0.0005})
    keep(tmp_path / "loud", {**stored, "seed": 0.01, "measurement": 0.005})
    keep(tmp_path / "silent", {**stored, "seed": 0.0, "measurement": None})

    def width(expect: str) -> float:
        path = tmp_path / "sweep.yaml"
        path.write_text(
            f"name: s\ninclude: {Path('sweeps/quickstart.yaml').absolute()}\n"
            f"arms: {{sp: null}}\nbudgets: {{flops: [1e11, 2e11, 4e11]}}\nexpect: {{{expect}}}\n"
        )
        intervals = {one.name: one for one in expectations(make(path))["mup"] if one.method == "surface"}
        one = intervals["N_exponent"]
        return one.high - one.low

    quiet, loud = width("noise: quiet"), width("noise: loud/noise.json")
    assert 4 < loud / quiet < 25
    assert width("noise: loud, seed_noise: 0.001, measurement_noise: 0.0005") == quiet
    with pytest.raises(ValueError, match="silent tells of no noise at all"):
        width("noise: silent")
