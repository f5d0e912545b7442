"""The memory benchmark: its cases run through real attempts, here without memory to measure."""

from __future__ import annotations

import json

import torch
from click.testing import CliRunner

from orchestrator.bench.memory import Case, cases, measure
from orchestrator.cli import main


def test_cases_of_a_gpu_cover_sizes_stages_and_checkpointing():
    found = cases(cuda=True)
    assert len({case.name for case in found}) == len(found) <= 35
    assert {case.size for case in found} == {"S/2", "B/2", "L/2", "XL/2"}
    for size in ("S/2", "B/2", "L/2", "XL/2"):
        of_size = [case for case in found if case.size == size]
        assert {case.zero_stage for case in of_size} >= {1, 2, 3}
        assert {case.activation_checkpointing for case in of_size} == {True, False}
        assert len({case.micro_batch for case in of_size}) >= 3
    assert {case.zero_stage for case in found if case.precision == "fp32"} == {0}


def test_the_command_runs_and_writes_raw_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "memory.json"
    done = CliRunner().invoke(main, ["bench", "memory", "--steps", "1", "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(path.read_text())
    assert written["torch"] == torch.__version__
    assert [case["micro_steps"] for case in written["cases"]] == [1, 2]
    for case in written["cases"]:
        assert case["error"] is None
        assert case["images_per_second"] > 0
        assert case["modelled_training_bytes"] > 0
        assert case["training_bytes"] is None
    unknown = CliRunner().invoke(main, ["bench", "memory", "--size", "S/3"])
    assert unknown.exit_code == 2
    assert "no case is of S/3" in unknown.output


def test_a_case_that_fails_does_not_end_the_others(monkeypatch):
    good = cases(cuda=False)[0]

    def run(case: Case, *rest):
        if case.micro_batch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if case.micro_batch == 2:
            raise RuntimeError("something else")
        return {"images_per_second": 1.0}

    monkeypatch.setattr("orchestrator.bench.memory._run", run)
    sizes = [
        Case(size="tiny", model=good.model, micro_batch=batch, precision="fp32", zero_stage=0) for batch in (1, 2, 4)
    ]
    outcomes = list(measure(sizes, 1, torch.device("cpu")))
    assert [outcome.error for outcome in outcomes] == [
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB",
        "RuntimeError: something else",
        None,
    ]
