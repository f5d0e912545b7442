"""The loader against a plain statement of the published forward pass, in the published layout."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.config import SP, CompleteP, DiTConfig, MuP, preset
from models.dit import DiT
from models.families import build
from models.state_dict import (
    DiTNoise,
    SiTVelocity,
    config_of,
    from_published,
    load_file,
    time_of_dit,
    time_of_sit,
    to_published,
)

CONFIG = DiTConfig(image_size=8, channels=3, num_classes=6, patch=2, width=24, depth=2, heads=3, learn_sigma=True)


def published_positions(side: int, width: int) -> Tensor:
    """[1, side * side, width]: per token (row, column), sines and cosines of the column, then of the row."""
    rows = []
    for row in range(side):
        for column in range(side):
            features = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (width // 4)) for i in range(width // 4)]
                features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(features)
    return torch.tensor(rows, dtype=torch.float32)[None]


def published_state(config: DiTConfig) -> dict[str, Tensor]:
    """Random weights with the names and shapes of facebookresearch/DiT, written out by hand."""
    d, c, p = config.width, config.channels, config.patch
    shapes = {"x_embedder.proj": (d, c, p, p), "t_embedder.mlp.0": (d, config.frequency_size)}
    shapes |= {"t_embedder.mlp.2": (d, d)}
    for i in range(config.depth):
        shapes |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        shapes |= {f"blocks.{i}.mlp.fc1": (4 * d, d), f"blocks.{i}.mlp.fc2": (d, 4 * d)}
        shapes |= {f"blocks.{i}.adaLN_modulation.1": (6 * d, d)}
    shapes |= {"final_layer.linear": (p * p * config.out_channels, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    state = {"pos_embed": published_positions(config.image_size // p, d)}
    state["y_embedder.embedding_table.weight"] = draw(config.num_classes + 1, d)
    for name, shape in shapes.items():
        state |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return state


def published_forward(state: dict[str, Tensor], heads: int, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The published DiT and SiT in float64: `t` goes as it is into sinusoids, whose angles are of float32 as there."""
    w = {name: value.double() for name, value in state.items()}
    x = x.double()
    d, _, p, _ = w["x_embedder.proj.weight"].shape

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulate(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(value, (d,), eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=p)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    half = w["t_embedder.mlp.0.weight"].shape[1] // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies[None]
    features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).double()
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", features)))
    condition = condition + w["y_embedder.embedding_table.weight"][y]
    for i in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))):
        block = f"blocks.{i}"
        six = linear(f"{block}.adaLN_modulation.1", F.silu(condition)).chunk(6, dim=1)
        qkv = linear(f"{block}.attn.qkv", modulate(h, six[0], six[1]))
        q, k, v = qkv.reshape(len(x), -1, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // heads) ** -0.5).softmax(dim=-1)
        attended = (weights @ v).transpose(1, 2).reshape(len(x), -1, d)
        h = h + six[2].unsqueeze(1) * linear(f"{block}.attn.proj", attended)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", modulate(h, six[3], six[4])), approximate="tanh")
        h = h + six[5].unsqueeze(1) * linear(f"{block}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(condition)).chunk(2, dim=1)
    h = linear("final_layer.linear", modulate(h, shift, scale))
    side = x.shape[-1] // p
    h = h.reshape(len(x), side, side, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, side * p, side * p)


def loaded(state: dict[str, Tensor], config: DiTConfig) -> DiT:
    model = DiT(config, SP())
    model.load_state_dict(from_published(state, config))
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 5, 6, 2])


def test_a_dits_outputs_are_the_published_ones() -> None:
    state, (x, y) = published_state(CONFIG), batch()
    timesteps = torch.tensor([0, 1, 511, 999])
    got = loaded(state, CONFIG)(x, time_of_dit(timesteps), y)
    wanted = published_forward(state, CONFIG.heads, x, timesteps, y)
    assert wanted.std() > 0.1
    assert (wanted[0] - published_forward(state, CONFIG.heads, x, timesteps + 300, y)[0]).abs().max() > 1e-2
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_sits_outputs_are_the_published_ones_and_its_velocity_is_turned() -> None:
    state, (x, y) = published_state(CONFIG), batch()
    t = torch.tensor([0.0, 0.25, 0.6, 1.0])
    model = loaded(state, CONFIG)
    wanted = published_forward(state, CONFIG.heads, x, t, y)
    torch.testing.assert_close(model(x, time_of_sit(t), y).double(), wanted, atol=1e-5, rtol=1e-5)
    ours = SiTVelocity(model)(x, 1 - t, y)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours.double(), -wanted[:, :3], atol=1e-5, rtol=1e-5)


def test_every_timestep_keeps_its_place() -> None:
    timesteps = torch.arange(1000)
    assert (1000.0 * time_of_dit(timesteps) - timesteps).abs().max() <= 999 * 2**-23


def test_both_directions_undo_each_other() -> None:
    state = published_state(CONFIG)
    again = to_published(loaded(state, CONFIG))
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name]) for name in state if name != "pos_embed")
    torch.testing.assert_close(again["pos_embed"], state["pos_embed"], atol=1e-6, rtol=0)
    model = build(CONFIG, SP(), 3)
    assert isinstance(model, DiT)
    ours = from_published(to_published(model), CONFIG)
    assert list(ours) == list(model.state_dict())
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


OPTIONS = [
    {"qk_norm": True, "positions": "rope", "image_size": 8},
    {"positions": "learned"},
    {"block": "parallel", "mlp": "swiglu", "bias": False, "learn_sigma": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_models_with_options_round_trip_and_are_recognised(options: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, **options)
    model = build(config, SP(), 3)
    assert isinstance(model, DiT)
    state = to_published(model)
    told = {"positions": config.positions} | {k: v for k, v in options.items() if k == "image_size"}
    assert config_of(state, heads=3, **told) == config
    ours = from_published(state, config)
    assert set(ours) == set(model.state_dict())
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


def test_a_readout_multiplier_is_folded_into_the_weight() -> None:
    model = DiT(CONFIG, MuP(base_width=8))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    x, y = batch()
    t = torch.tensor([0.1, 0.2, 0.5, 0.9])
    wanted = model(x, t, y)
    torch.testing.assert_close(loaded(to_published(model), CONFIG)(x, t, y), wanted, atol=1e-6, rtol=1e-5)


def test_the_configuration_is_read_from_shapes() -> None:
    state = published_state(CONFIG)
    assert config_of(state, heads=3) == CONFIG
    assert config_of(state, image_size=16, heads=3).image_size == 16
    with pytest.raises(ValueError, match=r"width 24 and depth 2 are of no published size.*give heads"):
        config_of(state)
    small = preset("DiT-S/4", learn_sigma=True)
    with torch.device("meta"):
        assert config_of(to_published(DiT(small, SP()))) == small
    with pytest.raises(ValueError, match=r"has no pos_embed .* give image_size"):
        config_of({name: value for name, value in state.items() if name != "pos_embed"}, heads=3)
    with pytest.raises(ValueError, match=r"no x_embedder.proj.weight, .*; wanted that of a DiT or SiT, got conv_in"):
        config_of({"conv_in": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"x_embedder.proj.weight \[24, 12\]; wanted .* the convolution's"):
        config_of(state | {"x_embedder.proj.weight": torch.zeros(24, 12)})


def test_everything_that_is_wrong_is_told_at_once() -> None:
    state = published_state(CONFIG)
    del state["t_embedder.mlp.2.bias"]
    state["blocks.2.attn.qkv.bias"] = torch.zeros(72)
    state["final_layer.linear.weight"] = torch.zeros(12, 24)
    state["pos_embed"] = state["pos_embed"].flip(1)
    with pytest.raises(ValueError, match="the state dict is not of this model") as refused:
        from_published(state, CONFIG)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert lines[1:4] == [
        "missing t_embedder.mlp.2.bias [24]",
        "unexpected blocks.2.attn.qkv.bias [72]",
        "final_layer.linear.weight has shape [12, 24]; wanted [24, 24]",
    ]
    assert lines[4].startswith("pos_embed differs by up to")
    assert lines[5].startswith("Take the configuration from config_of")
    assert len(lines) == 6


def test_positions_rounded_to_half_precision_are_the_same_positions() -> None:
    state = {name: value.bfloat16() for name, value in published_state(CONFIG).items()}
    assert from_published(state, CONFIG)["final_layer.linear.weight"].dtype == torch.bfloat16


class Sneaky:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path, ("run",))


def test_files_are_read_without_running_code(tmp_path: Path) -> None:
    state = published_state(CONFIG)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    other = {name: value + 1 for name, value in state.items()}
    wrapped = {"model": other, "ema": state, "opt": {"step": 3}, "args": argparse.Namespace(model="DiT-XL/2")}
    torch.save(wrapped, tmp_path / "training.pt")
    torch.save({"model": state}, tmp_path / "model.pt")
    for name in ("a.safetensors", "plain.pt", "training.pt", "model.pt"):
        got = load_file(tmp_path / name)
        assert got.keys() == state.keys()
        assert all(torch.equal(got[key], state[key]) for key in state), name
    torch.save({"weights": Sneaky()}, tmp_path / "sneaky.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("sneaky.pt", "text.pt", "text.safetensors"):
        with pytest.raises(ValueError, match="is not a checkpoint that can be read safely"):
            load_file(tmp_path / name)
    torch.save({"step": 3}, tmp_path / "step.pt")
    with pytest.raises(ValueError, match=r"step.pt holds step; wanted names and tensors"):
        load_file(tmp_path / "step.pt")


@pytest.mark.parametrize("block", ["serial", "parallel"])
def test_branch_multipliers_are_folded_into_the_gates(block: str) -> None:
    config = dataclasses.replace(CONFIG, block=block)
    model = DiT(config, CompleteP(base_width=8, base_depth=config.depth * 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    plain = DiT(config, SP())
    plain.load_state_dict(from_published(to_published(model), config))
    x = torch.randn(2, config.channels, config.image_size, config.image_size, generator=generator)
    t, y = torch.tensor([0.2, 0.9]), torch.tensor([0, 1])
    assert model.blocks[0].branch == 4.0
    assert torch.allclose(model(x, t, y), plain(x, t, y), atol=1e-5)
    assert not torch.allclose(DiT(config, SP())(x, t, y), plain(x, t, y))


def test_a_dit_serves_our_ddpm_at_its_own_timesteps() -> None:
    model = DiT(CONFIG, SP())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, CONFIG.channels, CONFIG.image_size, CONFIG.image_size, generator=generator)
    steps, y = torch.tensor([1, 500, 1000]), torch.tensor([0, 1, 2])
    assert torch.allclose(DiTNoise(model)(x, steps / 1000, y), model(x, time_of_dit(steps - 1), y), atol=1e-5)


def test_matrices_of_impossible_shape_are_all_named() -> None:
    state = to_published(DiT(CONFIG, SP()))
    state["t_embedder.mlp.0.weight"] = torch.zeros(7)
    state["blocks.0.mlp.fc2.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"t_embedder.mlp.0.weight \[7\], blocks.0.mlp.fc2.weight \[3\]"):
        config_of(state, heads=3)
