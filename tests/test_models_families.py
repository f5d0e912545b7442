"""What holds for every family: counted cost, a coordinate check, a golden loss trace, initialisation from a seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_bytes import saved_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import FAMILIES, SP, CompleteP, MaskedTokens, MuP, RectifiedFlow
from models.configs.base import ModelConfig
from models.configs.clips import ClipConfig
from models.coordinate_check import Protocol, check, slopes, steepest
from models.cost import activation_bytes, cost, inference_bytes, working_bytes
from models.families import MODULES, build
from models.objectives import Objective, build_objective
from models.parameterization import parameter_groups, tagged_parameters
from models.paths import over
from models.pyramid import PyramidFlow

MUP = MuP(base_width=32)

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "dit": ("dit", {}),
    "unet": ("unet", {}),
    "unet three levels": ("unet", {"multipliers": (1, 1, 2), "attention": (8, 2), "learn_sigma": True, "channels": 3}),
    "mmdit": ("mmdit", {}),
    "mmdit cross": ("mmdit", {"conditioning": "cross"}),
    "mmdit in-context": ("mmdit", {"conditioning": "in-context", "qk_norm": False}),
    "flux": ("flux", {}),
    "flux guidance": ("flux", {"guidance": True, "singles_per_double": 2}),
    "uvit": ("uvit", {}),
    "jit": ("jit", {}),
    "masked": ("masked", {}),
    "video full": ("video-dit", {}),
    "video factorised": ("video-dit", {"attention": "factorised", "positions": "rope", "qk_norm": True}),
    "video causal": ("video-dit", {"attention": "causal", "patch_frames": 1}),
    "video windowed cross": ("video-dit", {"attention": "windowed", "patch_frames": 1, "conditioning": "cross"}),
    "video of two lengths and levels": ("video-dit", {"frame_counts": (2, 4), "levels": 2}),
    "unet3d": ("unet3d", {"frames": 2}),
    "unet3d full": ("unet3d", {"convolution": "full", "frames": 3, "frame_counts": (1, 3), "attention": (8,)}),
}
"""Families with options, by name."""

BESIDE_DIT = [name for name, (family, _) in EXAMPLES.items() if name == family != "dit"]
"""The plain example of every family but the DiT, which has tests of its own."""


def example(name: str, width: int = 32, depth: int = 2) -> ModelConfig:
    family, options = EXAMPLES[name]
    return FAMILIES[family].example(width=width, depth=depth, head_dim=16, **options)


def objective_of(config: ModelConfig) -> Objective:
    """The plainest one that trains the model."""
    return build_objective(RectifiedFlow() if config.predicts == "images" else MaskedTokens())


def batch(config: ModelConfig, size: int = 2, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, *config.shape, generator=generator)
    return tuple(v.to(device) for v in (x, torch.rand(size, generator=generator), torch.arange(size)))


def test_every_family_has_a_module_an_example_and_a_page() -> None:
    assert set(MODULES) == set(FAMILIES.values())
    assert {family for family, _ in EXAMPLES.values()} == set(FAMILIES)
    page = Path("docs/families.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_parameters_and_flops_are_those_counted(name: str) -> None:
    config = example(name)
    with torch.device("meta"):
        model = MODULES[type(config)](config, MUP)
        x, y = torch.zeros(2, *config.shape), torch.zeros(2, dtype=torch.long)
        views = config.views if isinstance(config, ClipConfig) else ()
        sizes = [x[:, :, : view.frames, : view.image_size, : view.image_size] for view in views] or [x]
        inputs = [model.inputs(size, torch.zeros(2), y) for size in sizes]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for one in inputs:
                model(*one)
    params = {n: p.numel() for n, p in model.named_parameters()}
    tables = [n for n in params if n == "positions" or "embedding_table" in n]
    assert cost(config).params_total == sum(params.values())
    assert cost(config).params_backbone == sum(params.values()) - sum(params[n] for n in tables)
    assert counter.get_total_flops() == pytest.approx(2 * len(sizes) * cost(config).forward_flops, rel=1e-12)
    assert cost(config).tokens == config.tokens


@pytest.mark.parametrize("name", EXAMPLES)
def test_activation_bytes_bound_what_autograd_saves(name: str) -> None:
    config = example(name)
    model, objective = build(config, MUP, 0), objective_of(config)
    x, t, y = batch(config, 4)
    whole = saved_bytes(model, lambda: objective.loss(model, x, y, t, x).mean()) / 4
    assert whole <= activation_bytes(config, "fp32", False) * 1.02
    assert whole >= activation_bytes(config, "fp32", False) * 0.6
    assert activation_bytes(config, "fp32", True) < activation_bytes(config, "fp32", False)
    assert activation_bytes(config, "bf16", False) < activation_bytes(config, "fp32", False)
    assert 0 < working_bytes(config, "bf16") <= inference_bytes(config, "fp32")


@pytest.mark.parametrize("name", EXAMPLES)
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    config = dataclasses.replace(example(name), zero_init=False)
    x, t, y = batch(config)
    gradients = []
    for checkpointing in (False, True):
        model = build(config, MUP, 0)
        with torch.no_grad():  # a readout that is not zero
            for parameter in model.parameters():
                parameter.add_(0.01)
        model.activation_checkpointing = checkpointing
        model(*model.inputs(x, t, y)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", EXAMPLES)
def test_weights_come_from_the_seed_and_every_one_has_a_role(name: str) -> None:
    config = example(name)
    before = torch.get_rng_state()
    first, again, other = (build(config, MUP, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    model = build(config, CompleteP(base_width=32, base_depth=2), 0)
    assert len(list(tagged_parameters(model))) == len(list(model.parameters()))
    groups = parameter_groups(model, CompleteP(base_width=16, base_depth=1), 1e-3, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", [*BESIDE_DIT, "mmdit cross", "flux guidance", "video windowed cross"])
def test_mup_is_flat_over_widths(name: str) -> None:
    """Within DiT's tolerance. The U-Nets, whose widest levels cost most, over smaller widths (the 3-D one over 16 to
    48, of small frames; docs/video.md has its slopes of many more draws). The U-ViT from its own start, without zeros:
    an attention that started at zero is one step of Adam, whose part that does not add up falls as width^-1/2
    (docs/families.md)."""
    family, options = EXAMPLES[name]
    widths, depth = {"unet": ((32, 128), 1), "unet3d": ((16, 48), 1)}.get(family, ((64, 256), 2))
    if family == "unet3d":
        options = {**options, "image_size": 4, "attention": (2,)}
    protocol = Protocol(
        seeds={"uvit": 32, "unet3d": 12}.get(family, 16), steps=2, head_dim=16, family=family, options=options,
        batch_size=8, zero_init=family != "uvit",
    )  # fmt: skip
    found = slopes(check("width", widths, depth, MUP, protocol))
    assert abs(steepest(found).slope) < 0.05, steepest(found)
    assert {s.layer for s in found} > {"output", "x_embedder"}


@pytest.mark.parametrize("name", [name for name in BESIDE_DIT if "unet" not in name])
def test_completep_is_flat_over_depths_and_mup_is_not(name: str) -> None:
    """By how far training moves the last stream. The U-Net's depth is blocks of a level: its stages do not compare."""
    family, options = EXAMPLES[name]
    protocol = Protocol(depth_seeds=2, steps=2, head_dim=16, family=family, options=options, batch_size=8)

    def moved(parameterization: MuP | CompleteP) -> float:
        found = slopes(check("depth", (3, 15), 32, parameterization, protocol))
        return steepest(found, "change", ("blocks.last",)).slope

    assert abs(moved(CompleteP(base_width=32, base_depth=3))) < 0.12
    assert moved(MUP) > 0.4


@pytest.mark.parametrize("name", ["unet", "flux"])
def test_sp_is_not_flat_over_widths(name: str) -> None:
    family, options = EXAMPLES[name]
    protocol = Protocol(seeds=2, steps=1, head_dim=16, family=family, options=options, batch_size=4)
    found = slopes(check("width", (32, 128), 1, SP(), protocol))
    assert abs(steepest(found).slope) > 0.4


def trace(config: ModelConfig) -> list[float]:
    """Six steps on blobs of one brightness a class: of clips of every length in turn, and on every resolution at once
    by the objective that is of several."""
    model = build(config, MUP, 3)
    objective = PyramidFlow((1.0, 2.0)) if config.resolutions > 1 else objective_of(config)
    lengths = config.frame_counts if isinstance(config, ClipConfig) else ()
    optimizer = torch.optim.AdamW(parameter_groups(model, MUP, 5e-3, 0.01), betas=(0.9, 0.99))
    generator, losses = torch.Generator().manual_seed(7), []
    for step in range(6):
        y = torch.randint(0, config.num_classes + 1, (8,), generator=generator)
        x = torch.randn(8, *config.shape, generator=generator)
        x = x[:, :, : lengths[step % len(lengths)]] if lengths else x
        x = torch.tanh(x * 0.2 + over(y, x) * 0.2 - 0.8)
        t = objective.draw_t(torch.rand(8, generator=generator))
        loss = objective.loss(model, x, y, t, torch.randn(x.shape, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 6))
    return losses


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_loss_trace(name: str) -> None:
    assert trace(example(name)) == pytest.approx(GOLDEN[name], rel=2e-4)


GOLDEN = {
    "dit": [1.408497, 1.222259, 1.256748, 1.16213, 1.171382, 0.966601],
    "unet": [1.408497, 1.06478, 1.088611, 0.952775, 0.754904, 0.723552],
    "unet three levels": [1.358252, 1.143373, 1.023379, 1.232676, 1.48602, 1.312803],
    "mmdit": [1.408497, 1.222259, 1.255052, 1.156476, 1.14604, 0.951513],
    "mmdit cross": [1.408497, 1.222259, 1.254079, 1.143649, 1.121369, 0.942681],
    "mmdit in-context": [1.408497, 1.222259, 1.255328, 1.158557, 1.151923, 0.954645],
    "flux": [1.408497, 1.195877, 1.207028, 1.086411, 1.021384, 0.813135],
    "flux guidance": [1.408497, 1.195877, 1.19884, 1.050763, 1.009095, 0.855809],
    "uvit": [1.408497, 1.197971, 1.204227, 1.157939, 1.050189, 0.914003],
    "jit": [1.408497, 1.225821, 1.262589, 1.163581, 1.204566, 0.970018],
    "masked": [3.178054, 3.048275, 2.888335, 2.67925, 2.462363, 2.354819],
    "video full": [1.290103, 1.147563, 1.196733, 1.167065, 1.191356, 1.119231],
    "video factorised": [1.290103, 1.125914, 1.158088, 1.128971, 1.143951, 1.072442],
    "video causal": [1.290103, 1.142158, 1.201626, 1.158245, 1.160533, 1.073672],
    "video windowed cross": [1.290103, 1.142158, 1.196589, 1.146731, 1.149447, 1.052547],
    "video of two lengths and levels": [1.931803, 1.737611, 1.973141, 1.882652, 1.48679, 1.695911],
    "unet3d": [1.341347, 1.039455, 0.996344, 0.820144, 0.808349, 0.682152],
    "unet3d full": [1.349944, 1.08429, 0.903311, 1.126911, 1.046506, 1.028544],
}
