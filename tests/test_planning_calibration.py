"""The memory model and the speed table against what was measured on an H100."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.config import preset
from orchestrator.planning.devices import named, training_flops_per_second
from orchestrator.planning.memory import memory

FIRST, FIGURES = (json.loads(Path(f"docs/data/memory_h100_{run}.json").read_text()) for run in (1, 2))
CASES = [case for case in FIGURES["cases"] if case["error"] is None]


def name(case: dict) -> str:
    checkpointing = "-ckpt" if case["activation_checkpointing"] else ""
    steps = f"x{case['micro_steps']}" if case["micro_steps"] > 1 else ""
    offload = "-offload" if case.get("offload") else ""
    shape = f"{case['size']}-{case['micro_batch']}{steps}-{case['precision']}"
    return f"{shape}-{case['zero_stage']}{checkpointing}{offload}"


def test_the_measurements_cover_what_they_should():
    assert len(CASES) == len(FIGURES["cases"]) >= 30
    assert {case["size"] for case in CASES} == {"S/2", "B/2", "L/2", "XL/2"}
    assert {case["zero_stage"] for case in CASES} == {0, 1, 2, 3}
    assert max(case["training_bytes"] for case in CASES) > 50e9


@pytest.mark.parametrize("case", CASES, ids=name)
def test_memory_is_within_15_percent_of_the_measured_peak(case):
    modelled = memory(
        preset(case["size"]),
        micro_batch=case["micro_batch"],
        micro_steps=case["micro_steps"],
        precision=case["precision"],
        zero_stage=case["zero_stage"],
        num_workers=1,
        activation_checkpointing=case["activation_checkpointing"],
        offload=case["offload"],
    )
    assert modelled.training == pytest.approx(case["training_bytes"], rel=0.15)


PLAIN = [c for c in CASES if c["zero_stage"] < 2 and not c["activation_checkpointing"] and c["micro_steps"] == 1]


@pytest.mark.parametrize("case", PLAIN, ids=name)
def test_speeds_of_the_table_are_the_means_of_the_measured_ones(case):
    rate, measured = training_flops_per_second(
        named("h100-80gb"), preset(case["size"]), case["precision"], case["micro_batch"], False
    )
    assert measured
    (earlier,) = [other for other in FIRST["cases"] if name(other) == name(case)]
    speeds = case["flops_per_second"], earlier["flops_per_second"]
    assert rate == pytest.approx(sum(speeds) / 2, rel=0.01)
