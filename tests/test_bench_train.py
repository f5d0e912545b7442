"""The training benchmark: its baseline is the same model, and every variant gives a figure."""

from __future__ import annotations

import dataclasses
import queue
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.config import SP
from models.configs.dit import DiTConfig
from models.cost import cost
from models.families import build
from orchestrator.bench import gangs
from orchestrator.bench.baseline import PlainDiT, bare_step, held, loaded, plain_step, reference_step
from orchestrator.bench.memory import Case
from orchestrator.bench.train import Bench, peak_of, time_variants
from orchestrator.bench.train_cases import (
    COMPILED,
    case_of_variant,
    cpu_cases,
    gpu_cases,
    small_case,
    trial_of_variant,
)

CPU = torch.device("cpu")
TINY = DiTConfig(image_size=8, channels=2, num_classes=3, patch=4, width=16, depth=2, heads=2)


def test_the_baseline_has_the_models_parameters_and_arithmetic():
    """Given the same weights it gives the same output."""
    ours, plain = build(TINY, SP(), 0), PlainDiT(TINY)
    names = {"x_embedder.proj": "patch", "t_embedder.mlp": "time", "y_embedder.embedding_table": "label"}
    names |= {"final_layer.linear": "readout", "final_layer.adaLN_modulation": "modulation"}
    names |= {"adaLN_modulation": "modulation", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    assert sum(p.numel() for p in plain.parameters()) == cost(TINY).params_total
    for name, parameter in ours.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
        for theirs, own in names.items():
            name = name.replace(theirs, own)
        target = plain.get_parameter(name)
        target.data = parameter.detach().reshape(target.shape)
    x, t, y = torch.randn(3, 2, 8, 8), torch.rand(3), torch.tensor([0, 2, 3])
    torch.testing.assert_close(plain(x, t, y), ours(x, t, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [reference_step, plain_step, bare_step])
def test_the_baselines_learn(make):
    torch.manual_seed(0)
    images = torch.full((16, 2, 8, 8), 200, dtype=torch.uint8)
    batches = (
        loaded(images, torch.zeros(16, dtype=torch.long), 8)
        if make is plain_step
        else held(images, torch.zeros(16, dtype=torch.long), 8)
    )
    step = make(TINY, CPU)
    losses = [float(step(*next(batches))) for _ in range(30)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_every_variant_gives_a_figure(group, tmp_path: Path):
    case = Case(size="tiny", model=TINY, micro_batch=4, precision="fp32", zero_stage=0)
    bench = Bench(CPU, tmp_path)
    figures = time_variants(
        case, {**bench.variants(case), **bench.packs(case, (2,))}, CPU, 0.05, bench.release, rounds=2
    )
    assert [figure.variant for figure in figures] == [
        "reference", "plain", "deepspeed", "without deepspeed", "batches alone", "endless batches alone", "pack of 1",
        "pack of 2",
    ]  # fmt: skip
    for figure in figures:
        assert figure.images_per_s > 0
        assert figure.mfu == pytest.approx(figure.images_per_s * cost(TINY).training_flops / peak_of(CPU))
        assert figure.memory_gib is None
        assert figure.first_step_s > 0 < figure.again_s


def test_steps_of_gangs_are_timed_through_deepspeed_and_over_flat_buffers(group, tmp_path: Path):
    """Here of the smallest gang; larger ones are processes that do the same."""
    case = Case(size="tiny", model=TINY, micro_batch=4, precision="fp32", zero_stage=0)
    for variant in ("deepspeed ZeRO-2", "flat"):
        row = gangs.timed(Bench(CPU, tmp_path), case, variant, num_gpus=1, seconds=0.05)
        assert row["images_per_s"] == pytest.approx(4 / (1e-3 * row["step_ms"]))
        assert row["mfu"] == pytest.approx(row["images_per_s"] * cost(TINY).training_flops / peak_of(CPU))


def test_scaling_is_over_as_many_gpus_alone_and_a_failed_gang_has_none():
    def row(variant: str, num_gpus: int, **figures) -> dict:
        return {"case": "B/2 256", "variant": variant, "num_gpus": num_gpus, **figures}

    rows = gangs.with_scaling(
        [
            row("deepspeed ZeRO-1", 1, images_per_s=2634),  # docs/training.md: 97.2 ms, 68.9 ms, and a graph's 93.2 ms
            row("graph", 1, images_per_s=2747),
            row("deepspeed ZeRO-1", 2, images_per_s=3716),
            row("flat", 2, images_per_s=5000),
            row("graph", 2, error="no answer for 240 s"),
        ]
    )
    assert [None if one["scaling"] is None else round(one["scaling"], 3) for one in rows] == [1, 1, 0.705, None, None]
    best = [None if one["scaling_of_best"] is None else round(one["scaling_of_best"], 3) for one in rows]
    assert best == [0.959, 1, 0.676, 0.91, None]


def test_a_gang_that_dies_or_stands_still_leaves_a_row(monkeypatch):
    """Its rows until then stay: here none."""
    worker = SimpleNamespace(exitcode=-6)
    assert gangs._answer(queue.Queue(), [worker]) == {
        "error": "a worker ended with exit code -6; its traceback is above"
    }
    monkeypatch.setattr(gangs, "PATIENCE", 0.0)
    assert gangs._answer(queue.Queue(), []) == {"error": "no answer for 0 s"}


def test_gangs_that_there_cannot_be_are_refused():
    case = Case(size="tiny", model=TINY, micro_batch=4, precision="fp32", zero_stage=0)
    with pytest.raises(ValueError, match="tiny has batches of 4; wanted a number of GPUs that divides them"):
        gangs.run([case], (), 3, 1.0, cuda=False)
    with pytest.raises(ValueError, match="no variant 'zero' with --gpus; wanted one of deepspeed ZeRO-1"):
        gangs.run([case], ("zero",), 2, 1.0, cuda=False)
    with pytest.raises(ValueError, match=f"--gpus 64, and torch sees {torch.cuda.device_count()}; wanted that many"):
        gangs.run([case], (), 64, 1.0)


def test_cases_are_those_of_the_page():
    assert [case.size for case in gpu_cases(())] == ["S/2", "B/2", "L/2", "XL/2"]
    assert [case.micro_batch for case in gpu_cases(("XL/2", "B/2"))] == [256, 128]
    assert [case.size for case in cpu_cases(("w32", "w96"))] == ["w32", "w96"]
    small = small_case(128, 6, 64, 64, CPU)
    assert (small.model.tokens, small.precision, small.compiled) == (64, "fp32", False)


def test_variants_are_told_apart_as_trials_are():
    """The table's speeds are those of plans: `Trial.fast`."""
    case = Case(size="tiny", model=TINY, micro_batch=4)
    fast = {
        name: trial_of_variant(case, name).fast
        for name in ("deepspeed", "graph", COMPILED, "pack of 1", "pack of 8", "pack of 8 without graph", "plain")
    }
    assert [name for name, is_fast in fast.items() if is_fast] == ["graph", COMPILED, "pack of 1", "pack of 8"]
    assert [case_of_variant(case, name).compiled for name in ("graph", COMPILED)] == [False, True]
    assert case_of_variant(case, "graph in fp8").precision == "fp8"
    assert trial_of_variant(dataclasses.replace(case, compiled=True), "deepspeed").fast
    assert not trial_of_variant(dataclasses.replace(case, precision="fp32", zero_stage=0), "graph").fast
