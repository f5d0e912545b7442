import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_bytes import saved_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from models.config import SP, DiTConfig, MuP, RectifiedFlow, preset
from models.cost import activation_bytes, cost, working_bytes
from models.dit import DiT
from models.families import build
from models.objectives import build_objective
from models.published import preset_table


def paper_config(size: str, patch: int) -> DiTConfig:
    return preset(f"DiT-{size}/{patch}", image_size=32, channels=4, num_classes=1000, learn_sigma=True)


@pytest.mark.parametrize(
    ("size", "params"), [("S", 32_865_056), ("B", 130_315_808), ("L", 457_840_672), ("XL", 674_834_720)]
)
def test_trainable_parameters_equal_the_published_models(size: str, params: int) -> None:
    config = paper_config(size, 2)
    with torch.device("meta"):
        model = DiT(config, SP())
    assert cost(config).params_total == params
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == params
    assert cost(config).params_backbone == params - 1001 * config.width


@pytest.mark.parametrize(
    ("size", "patch", "giga_multiply_adds"),
    [("S", 8, 0.36), ("S", 4, 1.41), ("S", 2, 6.06), ("B", 2, 23.01), ("L", 2, 80.71), ("XL", 2, 118.64)],
)
def test_forward_flops_are_twice_the_papers_multiply_adds(size: str, patch: int, giga_multiply_adds: float) -> None:
    assert cost(paper_config(size, patch)).forward_flops / 2e9 == pytest.approx(giga_multiply_adds, rel=0.01)


def test_presets_are_the_published_sizes() -> None:
    assert len(DiTConfig.presets) == 12
    large = preset("DiT-L/4", image_size=28, channels=1, num_classes=10, qk_norm=True)
    assert large == DiTConfig(
        image_size=28, channels=1, num_classes=10, patch=4, width=1024, depth=24, heads=16, qk_norm=True
    )
    assert preset("SiT-XL/2") == preset("XL/2")
    assert preset("XL/2") == preset("DiT-XL/2", image_size=32, channels=4, num_classes=1000)


@pytest.mark.parametrize(
    ("name", "nearest"), [("DiT-XXL/2", "XL/2"), ("DiT-B/3", "B/8"), ("L-2", "L/2"), ("dit-s/3", "S/8")]
)
def test_an_unknown_preset_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"preset '{name}' is not known; wanted one of S/2, .* mean '{nearest}'"):
        preset(name)


def test_the_table_of_presets_in_the_docs_is_the_one_of_this_code() -> None:
    """If this fails, put what `models.published.preset_table()` gives into the file."""
    assert preset_table() in Path("docs/models.md").read_text(encoding="utf-8")


CONFIGS = [
    DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=16, depth=2, heads=1),
    DiTConfig(image_size=16, channels=3, num_classes=5, patch=2, width=48, depth=3, heads=4, learn_sigma=True),
    DiTConfig(
        image_size=8, channels=4, num_classes=1, patch=8, width=32, depth=1, heads=2, mlp_ratio=3, frequency_size=64
    ),
]


OPTIONS = {
    "qk_norm": [False, True],
    "positions": ["sincos", "learned", "rope"],
    "block": ["serial", "parallel"],
    "mlp": ["gelu", "swiglu"],
    "bias": [True, False],
    "learn_sigma": [False, True],
}
EVERY_OPTION = [
    DiTConfig(
        image_size=12, channels=3, num_classes=7, patch=2, width=40, depth=2, heads=2, mlp_ratio=3,
        **dict(zip(OPTIONS, values, strict=True)),
    )
    for values in itertools.product(*OPTIONS.values())
]  # fmt: skip


def name_of(config: DiTConfig) -> str:
    return " ".join(str(getattr(config, option)) for option in OPTIONS)


@pytest.mark.parametrize("config", EVERY_OPTION, ids=name_of)
def test_parameters_and_flops_are_those_counted_for_every_option(config: DiTConfig) -> None:
    with torch.device("meta"):
        model = DiT(config, SP())
    params = {name: p.numel() for name, p in model.named_parameters()}
    backbone = [n for name, n in params.items() if name not in ("positions", "y_embedder.embedding_table.weight")]
    assert cost(config).params_total == sum(params.values())
    assert cost(config).params_backbone == sum(backbone)
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 12, 12), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert counter.get_total_flops() == 2 * cost(config).forward_flops


def test_a_swiglu_costs_what_a_gelu_does() -> None:
    gelu, swiglu = preset("DiT-B/2"), preset("DiT-B/2", mlp="swiglu")
    assert swiglu.mlp_hidden == 2048
    assert cost(swiglu).forward_flops == cost(gelu).forward_flops
    assert cost(swiglu).params_total / cost(gelu).params_total == pytest.approx(1, abs=1e-3)
    assert [preset("S/2", mlp="swiglu", mlp_ratio=r).mlp_hidden for r in (1, 3, 5)] == [256, 768, 1280]
    assert dataclasses.replace(gelu, width=24, mlp="swiglu", mlp_ratio=1).mlp_hidden == 16
    assert dataclasses.replace(gelu, width=12, mlp="swiglu", mlp_ratio=1).mlp_hidden == 8


def step_bytes(config: DiTConfig, batch: int, device: str, precision: str) -> float:
    """Measured bytes a sample of one training step, in weights of the precision and without autocast, as DeepSpeed."""
    model = build(config, SP(), 0).to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(
        2, batch, config.channels, config.image_size, config.image_size, generator=generator
    ).to(device)  # fmt: skip
    t, y = torch.rand(batch, generator=generator).to(device), torch.zeros(batch, dtype=torch.long, device=device)
    objective = build_objective(RectifiedFlow())
    return saved_bytes(model, lambda: objective.loss(model, x, y, t, noise).mean()) / batch


WIDER = DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=96, depth=3, heads=6, learn_sigma=True)


@pytest.mark.parametrize("config", [*CONFIGS, WIDER, *EVERY_OPTION[::2]])
def test_activation_bytes_are_those_that_autograd_saves(config: DiTConfig) -> None:
    assert activation_bytes(config, "fp32", False) == pytest.approx(step_bytes(config, 4, "cpu", "fp32"), rel=0.02)


@pytest.mark.parametrize("options", [{}, {"positions": "rope"}, {"block": "parallel"}, {"mlp": "swiglu"}])
def test_activation_bytes_of_a_block_in_bf16(options: dict[str, Any]) -> None:
    """On the CPU too, but for queries' and keys' norms, which are several kernels there."""
    one, two = (preset("DiT-S/4", num_classes=9, depth=depth, **options) for depth in (1, 2))
    modelled = activation_bytes(two, "bf16", False) - activation_bytes(one, "bf16", False)
    measured = step_bytes(two, 2, "cpu", "bf16") - step_bytes(one, 2, "cpu", "bf16")
    assert modelled == pytest.approx(measured, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [preset("DiT-S/4"), EVERY_OPTION[0], EVERY_OPTION[-1]])
def test_activation_bytes_in_bf16_are_those_that_autograd_saves(config: DiTConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert activation_bytes(config, "bf16", False) == pytest.approx(step_bytes(config, 8, "cuda", "bf16"), rel=0.15)


@pytest.mark.parametrize("config", [CONFIGS[1], WIDER, EVERY_OPTION[-1]])
def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block(config: DiTConfig) -> None:
    model = build(config, SP(), 0)
    assert isinstance(model, DiT)
    x = torch.randn(4, config.channels, config.image_size, config.image_size)
    t, y = torch.rand(4), torch.zeros(4, dtype=torch.long)
    tokens = torch.randn(4, config.tokens, config.width, requires_grad=True)
    condition = torch.randn(4, config.width, requires_grad=True)
    block = model.blocks[0]
    rotation = model.rotation if config.positions == "rope" else None
    one_block = saved_bytes(model, lambda: block(tokens, condition, rotation).sum()) - condition.nbytes
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=True)
    between = saved_bytes(model, lambda: model(x, t, y).square().mean())
    error = x.nbytes - model(x, t, y).nbytes  # the objective drops the second set of channels
    measured = (between + one_block + error) / 4
    assert activation_bytes(config, "fp32", True) == pytest.approx(measured, rel=0.15)
    assert activation_bytes(config, "fp32", True) < activation_bytes(config, "fp32", False)


def test_bf16_saves_between_half_and_all_of_the_bytes() -> None:
    config = preset("DiT-B/2")
    share = activation_bytes(config, "bf16", False) / activation_bytes(config, "fp32", False)
    assert 0.5 < share < 0.75


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_flops_equal_counted_flops(config: DiTConfig, batch: int) -> None:
    model = DiT(config, MuP(base_width=16))
    x = torch.zeros(batch, config.channels, config.image_size, config.image_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, torch.rand(batch), torch.zeros(batch, dtype=torch.long))
    assert counter.get_total_flops() == batch * cost(config).forward_flops
    assert cost(config).training_flops == 3 * cost(config).forward_flops


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_counts_equal_the_models(config: DiTConfig) -> None:
    model = DiT(config, SP())
    assert cost(config).params_total == sum(p.numel() for p in model.parameters())
    labels = model.y_embedder.embedding_table.weight.numel()
    assert cost(config).params_backbone == cost(config).params_total - labels


def test_matmul_parameters_weigh_adaln_once_per_image() -> None:
    config = CONFIGS[0]
    model = DiT(config, SP())
    per_image = [p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ("t_emb" in n or "adaLN" in n)]
    per_token = [
        p.numel()
        for n, p in model.named_parameters()
        if p.dim() == 2 and not any(part in n for part in ("t_emb", "adaLN", "y_emb"))
    ]
    assert config.tokens == cost(config).tokens == 49
    assert cost(config).params_matmul == pytest.approx(sum(per_token) + sum(per_image) / 49, rel=1e-12)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"no cost for str; wanted one of \['DiTConfig', .*'UNetConfig', .*\]"):
        cost("dit")  # type: ignore[arg-type]
    unbounded = r"no activation bytes for str; wanted one of \['DiTConfig', .*'UNetConfig', .*\]"
    with pytest.raises(ValueError, match=unbounded):
        activation_bytes("dit", "fp32", False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=unbounded):  # which bounds it where a family says no better
        working_bytes("dit", "fp32")  # type: ignore[arg-type]
