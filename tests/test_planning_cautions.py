"""What a plan warns of: it can be run all the same."""

from __future__ import annotations

import pytest
import yaml

from orchestrator.planning.cautions import cautions
from orchestrator.planning.plan import make

SPEC = {
    "name": "t",
    "models": {"patch": 7, "head_dim": 8, "sizes": [{"name": "a", "width": 16, "depth": 1}]},
    "arms": {"sp": {}},
    "training": {"batch_size": 1},
    "budgets": {"flops": [1e10, 2e10]},
    "evaluation": {"loss_images": 1, "sample_images": 0},
}
ISOFLOP = {"rule": "isoflop", "expected": {"params": 20_000, "flops": 1e10}, "depth": 1}


@pytest.fixture
def told(tmp_path):
    def cautions_of(**changes) -> list[str]:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}))
        return cautions(make(path))

    return cautions_of


def test_a_sound_plan_has_none(told):
    assert told() == []


def test_evaluation_that_costs_more_than_training(told):
    (text,) = told(evaluation={"loss_images": 8192, "loss_draws": 8})
    assert text.startswith("Evaluation costs more than training. Lower evaluation.loss_images")


@pytest.mark.parametrize(
    ("warmup", "wanted"),
    [
        (1000, None),
        (2000, "1 measurement is made in the warmup or before as much again was trained, the earliest that of sp a"),
        (4000, "2 measurements are made in the warmup or before as much again was trained, the earliest that of sp a"),
    ],
)
def test_measurements_in_the_warmup(told, warmup, wanted):
    budgets = {"samples": [3000, 6000]}
    texts = told(training={"batch_size": 1, "warmup_samples": warmup}, budgets=budgets)
    assert [text[: len(wanted or "")] for text in texts] == ([wanted] if wanted else [])
    if warmup == 4000:
        assert " sp a within 4,000 samples: " in texts[0]
    if warmup == 2000:
        assert " 3,000 samples after the start, of which warmup takes 2,000 samples: " in texts[0]


def test_budgets_that_whole_steps_miss(told):
    batch = {"batch_size": 8192}
    (text,) = told(training=batch)
    assert text.startswith("2 measurements are moved by more than 2% of the budget by rounding to whole steps, most ")
    assert told(training=batch, budgets={"samples": [8192, 16_384]}) == [], "they are whole steps"


@pytest.mark.parametrize(("head_dim", "coarse"), [(2, False), (16, True)])
def test_a_coarse_ladder(told, head_dim, coarse):
    models = {"patch": 7, "head_dim": head_dim, "sizes": {**ISOFLOP, "per_budget": 5, "ratio": 1.5}}
    texts = told(models=models)
    assert [text.startswith("Sizes of the isoFLOP ladder are up to ") for text in texts] == [True] * coarse
    assert all("where a ratio of 1.5 was asked for" in text for text in texts)


def test_the_memory_and_the_start_of_compiled_training_are_told(told):
    gpu = {"device": "h100-80gb", "gpus_per_worker": 1, "precision": "bf16"}
    assert told(compute=gpu) == []
    (text,) = told(compute={**gpu, "compile": True, "graphs": False})
    assert text.endswith("leave out about half a minute of compiling for each size on each gang.")
    (text,) = told(compute={**gpu, "compile": True})
    assert "Without it these trials are graphs of kernels, within 1% as fast alone" in text
