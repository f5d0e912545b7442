"""The training benchmark: its baseline is the same model, and every variant gives a figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.config import SP
from models.configs.dit import DiTConfig
from models.cost import cost
from models.families import build
from orchestrator.bench.baseline import PlainDiT, bare_step, held, loaded, plain_step, reference_step
from orchestrator.bench.memory import Case
from orchestrator.bench.train import Bench, cpu_cases, gpu_cases, peak_of, small_case, time_variants

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
    losses = [float(step(*next(batches))) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_every_variant_gives_a_figure(group, tmp_path: Path):
    case = Case(size="tiny", model=TINY, micro_batch=4, precision="fp32", zero_stage=0)
    bench = Bench(CPU, tmp_path)
    figures = time_variants(
        case, {**bench.variants(case), **bench.packs(case, (2,))}, CPU, 0.2, bench.release, rounds=2
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


def test_cases_are_those_of_the_page():
    assert [case.size for case in gpu_cases(())] == ["S/2", "B/2", "L/2", "XL/2"]
    assert [case.micro_batch for case in gpu_cases(("XL/2", "B/2"))] == [256, 128]
    assert [case.size for case in cpu_cases(("w32", "w96"))] == ["w32", "w96"]
    small = small_case(128, 6, 64, 64, CPU)
    assert (small.model.tokens, small.precision, small.compiled) == (64, "fp32", False)
