import dataclasses
import math

import pytest
import torch
from torch import nn

from models.config import SP, CompleteP, DiTConfig, MuP, Parameterization
from models.dit import DiT
from models.families import build
from models.parameterization import Role, TaggedModule, initialise, parameter_groups, tagged_parameters


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


COMPLETEP = CompleteP(base_width=16, base_depth=2)


def settings(model: TaggedModule, parameterization: Parameterization) -> dict[str, tuple[float, float, float]]:
    return {
        name: (group["lr"], group["weight_decay"], group["eps"])
        for group in parameter_groups(model, parameterization, 1e-3, 0.1, 1e-6)
        for name in group["names"]
    }


@pytest.mark.parametrize(("width", "depth"), [(16, 2), (64, 2), (16, 8), (64, 8)])
def test_completep_groups(width: int, depth: int) -> None:
    """Width as µP; depth reaches the branches' multiplier and epsilon, and no learning rate or weight decay."""
    m, deeper = width / 16, depth / 2
    model = DiT(config_of(width, depth=depth), COMPLETEP)
    for name, (rate, decay, eps) in settings(model, COMPLETEP).items():
        hidden = name.endswith("weight") and (
            name.startswith("blocks.") or "mlp.2" in name or "final_layer.ada" in name
        )
        assert (rate, decay) == ((1e-3 / m, 0.1 * m) if hidden else (1e-3, 0.1)), name
        inside = name.startswith("blocks.")
        assert eps == pytest.approx(1e-6 / m / (deeper if inside else 1), rel=1e-12), name
    assert {block.branch for block in model.blocks} == {1 / deeper}
    assert model.final_layer.multiplier == 1 / m
    groups = parameter_groups(model, COMPLETEP, 1e-3, 0.1, 1e-6)
    assert [group["name"] for group in groups] == ["input+output+bias", "hidden", "hidden-branch", "bias-branch"]


def test_the_epsilon_of_mup_follows_its_gradients_and_that_of_sp_stays() -> None:
    model = DiT(config_of(64), MuP(base_width=16))
    assert {eps for _, _, eps in settings(model, MuP(base_width=16)).values()} == {2.5e-7}
    assert {eps for _, _, eps in settings(model, MuP(base_width=64)).values()} == {1e-6}
    assert {eps for _, _, eps in settings(model, SP()).values()} == {1e-6}


def test_at_its_bases_completep_is_mup_and_both_have_the_settings_of_sp() -> None:
    config = config_of(64, zero_init=False)
    mup, completep = MuP(base_width=64), CompleteP(base_width=64, base_depth=2)
    first, second = build(config, mup, 3), build(config, completep, 3)
    assert settings(first, mup) == settings(second, completep) == settings(DiT(config, SP()), SP())
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
            a.add_(0.1), b.add_(0.1)  # the readout starts at zero
        inputs = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([1, 2])
        assert torch.equal(first(*inputs), second(*inputs))


def test_a_branch_is_divided_by_the_depth() -> None:
    """With every gate open, the residual stream moves 1/4 as far a block at four times the base depth."""
    config = config_of(32, zero_init=False, depth=4)
    mup, completep = build(config, MuP(base_width=32), 3), build(config, CompleteP(base_width=32, base_depth=1), 3)
    x, condition = torch.randn(2, 16, 32), torch.randn(2, 32)
    with torch.no_grad():
        # The MLP looks at what attention has added, so attention alone is compared.
        for model in (mup, completep):
            model.blocks[0].mlp.fc2.weight.zero_()
        moved, moved_less = mup.blocks[0](x, condition) - x, completep.blocks[0](x, condition) - x
    torch.testing.assert_close(moved_less, moved / 4, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("base_width", "base_depth", "name"), [(0, 2, "base_width"), (8, 0, "base_depth")])
def test_bases_below_one_are_refused(base_width: int, base_depth: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; wanted at least 1"):
        CompleteP(base_width=base_width, base_depth=base_depth)


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
