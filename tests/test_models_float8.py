"""Linear maps in fp8: rounded as said, gradients of weights in full, and trainings that follow the float32 ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.blocks import Linear
from models.config import SP, RectifiedFlow
from models.configs.dit import DiTConfig
from models.families import build
from models.float8 import FLOAT8, Float8Linear, product, rowwise, use_float8
from models.objectives import build_objective

CONFIG = DiTConfig(image_size=8, channels=2, num_classes=3, patch=2, width=32, depth=2, heads=2, zero_init=False)


def test_each_row_is_rounded_at_its_own_scale():
    """e4m3 keeps 4 significant bits: a relative error of at most 1/16, whatever the size of a row; zeros stay zeros."""
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 6, 6)[:, None]
    x[3] = 0.0
    rounded, scale = rowwise(x)
    assert (rounded.dtype, scale.shape) == (FLOAT8, (6, 1))
    error = (rounded.float() * scale - x).abs()
    assert (error <= x.abs() / 16 + scale * 2**-10).all()
    assert rowwise(x.t())[0].is_contiguous()


def test_a_product_is_that_of_the_rounded_factors():
    a, b = torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(0))
    (one, scale), (other, other_scale) = rowwise(a), rowwise(b)
    expected = (one.double() * scale) @ (other.double() * other_scale).t()
    torch.testing.assert_close(product(a, b).double(), expected, rtol=1e-5, atol=1e-5)
    assert 0.005 < (product(a, b) - a @ b.t()).norm() / (a @ b.t()).norm() < 0.06


def test_gradients_of_weights_and_biases_are_those_of_the_plain_map():
    """Only the input's gradient goes through fp8."""
    generator = torch.Generator().manual_seed(0)
    plain = Linear(32, 48)
    torch.nn.init.normal_(plain.weight, generator=generator)
    x = torch.randn(4, 5, 32, generator=generator)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    out = F.linear(inputs[0], plain.weight, plain.bias)
    seed = torch.randn(out.shape, generator=generator)
    expected = torch.autograd.grad(out, [inputs[0], plain.weight, plain.bias], seed)
    plain.__class__ = Float8Linear
    found = torch.autograd.grad(plain(inputs[1]), [inputs[1], plain.weight, plain.bias], seed)
    torch.testing.assert_close(found[1:], expected[1:])
    assert 0 < (found[0] - expected[0]).norm() / expected[0].norm() < 0.06


def test_attention_and_mlp_of_blocks_are_in_fp8_and_keep_their_names():
    model = build(CONFIG, SP(), 0)
    names = [name for name, _ in model.named_parameters()]
    use_float8(model)
    maps = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert maps == {f"blocks.{block}.{name}" for block in (0, 1) for name in ("attn.qkv", "mlp.fc1", "mlp.fc2")}
    assert [name for name, _ in model.named_parameters()] == names


def test_a_model_without_such_maps_is_refused():
    config = dataclasses.replace(CONFIG, width=24)
    with pytest.raises(ValueError, match="no linear map of DiT's blocks can multiply in fp8"):
        use_float8(build(config, SP(), 0))


def test_a_training_in_fp8_follows_that_in_float32():
    """New noise in every step: over the last 20 of 80 steps the mean losses are within 2% of each other."""
    objective = build_objective(RectifiedFlow())
    losses: dict[str, list[float]] = {}
    for kind in ("fp32", "fp8"):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 2, 1, 1, generator=generator).expand(16, 2, 8, 8)
        model = build(CONFIG, SP(), 0)
        if kind == "fp8":
            use_float8(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses[kind] = []
        for _ in range(80):
            noise, t = torch.randn(images.shape, generator=generator), torch.rand(16, generator=generator)
            loss = objective.loss(model, images, torch.arange(16) % 3, t, noise).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kind].append(float(loss.detach()))
    ends = {kind: sum(values[-20:]) / 20 for kind, values in losses.items()}
    assert ends["fp32"] < 0.6 * losses["fp32"][0]
    assert ends["fp8"] == pytest.approx(ends["fp32"], rel=0.02)
    assert losses["fp8"] != losses["fp32"]
