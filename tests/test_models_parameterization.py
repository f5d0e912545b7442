import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.config import SP, DiTConfig, MuP, RectifiedFlow
from models.dit import DiT
from models.families import build
from models.objectives import build_objective
from models.parameterization import Role, initialise, parameter_groups, tagged_parameters


def config_of(width: int, *, zero_init: bool = True, depth: int = 2) -> DiTConfig:
    return DiTConfig(
        image_size=8,
        channels=1,
        num_classes=10,
        patch=2,
        width=width,
        depth=depth,
        heads=width // 16,
        zero_init=zero_init,
    )


def rates(model: nn.Module, parameterization: SP | MuP) -> dict[str, tuple[float, float]]:
    return {
        name: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, parameterization, 1e-3, 0.1)
        for name in group["names"]
    }


def test_mup_groups() -> None:
    """At four times the base width the hidden matrices learn at a quarter of the rate, and nothing else does."""
    model = DiT(config_of(64), MuP(base_width=16))
    got = rates(model, MuP(base_width=16))
    hidden = {"t_embedder.mlp.2.weight", "final_layer.adaLN_modulation.1.weight"}
    for i in range(2):
        hidden |= {
            f"blocks.{i}.{m}.weight" for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        }
    for name, _ in model.named_parameters():
        assert got[name] == ((2.5e-4, 0.4) if name in hidden else (1e-3, 0.1)), name
    groups = parameter_groups(model, MuP(base_width=16), 1e-3, 0.1)
    assert [group["name"] for group in groups] == ["input+output+bias", "hidden"]
    named = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(named)
    assert all(p is named[n] for g in groups for n, p in zip(g["names"], g["params"], strict=True))


def test_mup_at_its_base_width_is_one_rate_in_the_same_groups() -> None:
    model = DiT(config_of(64), MuP(base_width=64))
    groups = parameter_groups(model, MuP(base_width=64), 1e-3, 0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("input+output+bias", 1e-3, 0.1),
        ("hidden", 1e-3, 0.1),
    ]
    assert model.final_layer.multiplier == 1.0
    assert DiT(config_of(64), MuP(base_width=16)).final_layer.multiplier == 0.25


def test_sp_is_one_group() -> None:
    groups = parameter_groups(DiT(config_of(64), SP()), SP(), 1e-3, 0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.1)]


def test_initialisation_depends_on_the_seed_alone() -> None:
    config = config_of(32)
    torch.manual_seed(0)
    first = build(config, SP(), 5)
    state = torch.get_rng_state()
    torch.rand(7)
    second, other = build(config, SP(), 5), build(config, SP(), 6)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not used"
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (not a.any()), name


def std_of(model: nn.Module) -> dict[str, float]:
    return {name: p.detach().std().item() for name, p in model.named_parameters()}


def test_sp_starts_like_dit() -> None:
    model = build(config_of(256), SP(), 0)
    std = std_of(model)
    for name, fans in (("attn.qkv", 4 * 256), ("attn.proj", 2 * 256), ("mlp.fc1", 5 * 256), ("mlp.fc2", 5 * 256)):
        weight = model.get_parameter(f"blocks.0.{name}.weight")
        assert std[f"blocks.0.{name}.weight"] == pytest.approx(math.sqrt(2 / fans), rel=0.02)
        assert weight.abs().max() <= math.sqrt(6 / fans), "uniform"
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert std[name] == pytest.approx(0.02, rel=0.05)
    assert std["x_embedder.proj.weight"] == pytest.approx(math.sqrt(2 / 260), rel=0.1)
    zero = {name for name, p in model.named_parameters() if not p.any()}
    biases = {name for name in std if name.endswith(".bias")}
    assert zero == biases | {"final_layer.linear.weight"} | {n for n in std if "adaLN" in n}


@pytest.mark.parametrize("zero_init", [True, False])
def test_mup_starts_at_one_over_root_fan_in(zero_init: bool) -> None:
    model = build(config_of(256, zero_init=zero_init), MuP(base_width=64), 0)
    for name, parameter, tag in tagged_parameters(model):
        std = parameter.detach().std().item()
        if tag.role in (Role.BIAS, Role.OUTPUT) or ("adaLN" in name and zero_init):
            assert std == 0.0, name
        elif "embedding_table" in name:
            assert std == pytest.approx(0.02, rel=0.05)
        else:
            assert std == pytest.approx(parameter.shape[1] ** -0.5, rel=0.1), name


ALL_OPTIONS = {"qk_norm": True, "positions": "learned", "block": "parallel", "mlp": "swiglu", "bias": False}


def test_options_start_and_learn_by_their_roles() -> None:
    config = dataclasses.replace(config_of(64), **ALL_OPTIONS)
    model = build(config, MuP(base_width=16), 0)
    got, std = rates(model, MuP(base_width=16)), std_of(model)
    for gain in ("blocks.0.attn.q_norm.weight", "blocks.1.attn.k_norm.weight"):
        assert torch.equal(model.get_parameter(gain), torch.ones(16))
        assert got[gain] == (1e-3, 0.1)
    assert std["positions"] == pytest.approx(0.02, rel=0.1)
    assert got["positions"] == (1e-3, 0.1)
    hidden = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    assert all(got[f"blocks.0.{name}.weight"] == (2.5e-4, 0.4) for name in hidden)
    for name in hidden[:-1]:
        weight = model.get_parameter(f"blocks.0.{name}.weight")
        assert std[f"blocks.0.{name}.weight"] == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)
    assert set(std) - set(got) == set()


def test_a_parameter_without_a_role_is_named() -> None:
    model = DiT(config_of(32), SP())
    model.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="parameter extra of DiT has no tag"):
        initialise(model, model.config, SP(), 0)


def log_rms_after_training(width: int, parameterization: SP | MuP, seed: int, zero_init: bool) -> dict[str, float]:
    """Log RMS of activations after 4 Adam steps on one fixed batch."""
    model = build(config_of(width, zero_init=zero_init), parameterization, seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, parameterization, 2**-8, 0.0), betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 8, 8, generator=generator) * 0.5 + 1
    noise = torch.randn(16, 1, 8, 8, generator=generator)
    t, y = torch.rand(16, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    objective = build_objective(RectifiedFlow())
    for _ in range(4):
        optimizer.zero_grad()
        objective.loss(model, x, y, t, noise).mean().backward()
        optimizer.step()
    found: dict[str, float] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _args, out: found.__setitem__(name, out.square().mean().sqrt().log().item())

    for name, module in model.named_modules():
        if name.endswith(("embedder", "attn", "mlp", "adaLN_modulation")) or name in ("", "blocks.0", "blocks.1"):
            module.register_forward_hook(record(name or "output"))
    with torch.no_grad():
        model(objective.noised(x, noise, t), t, y)
    return found


def slopes(parameterization: SP | MuP, zero_init: bool) -> dict[str, float]:
    """Slope of log activation RMS against log width, averaged over 3 seeds."""
    widths = (32, 64, 128, 256)
    rows = [[log_rms_after_training(w, parameterization, seed, zero_init) for seed in range(3)] for w in widths]
    log_width = [math.log(w) - math.log(32 * 256) / 2 for w in widths]
    square = sum(u * u for u in log_width)
    return {
        name: sum(u * sum(run[name] for run in row) / 3 for u, row in zip(log_width, rows, strict=True)) / square
        for name in rows[0][0]
    }


@pytest.mark.parametrize("zero_init", [True, False])
def test_mup_activations_do_not_follow_the_width(zero_init: bool) -> None:
    found = slopes(MuP(base_width=32), zero_init)
    del found["y_embedder"]  # rows of a table: their scale is that of the draw
    assert {"output", "blocks.1", "blocks.0.attn", "blocks.1.mlp"} <= set(found)
    assert {name: slope for name, slope in found.items() if abs(slope) > 0.1} == {}


def test_sp_output_follows_the_width() -> None:
    assert abs(slopes(SP(), zero_init=True)["output"]) > 0.2
