"""The blocks of a DiT with everything between products in few passes: on a CPU what surrounds the kernels, whose
arithmetic is then torch's; on a GPU the kernels."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import fused_reference
import pytest
import torch
from torch import Tensor

import models
from models import cublaslt, fused
from models.config import SP, CompleteP, MuP
from models.configs.dit import DiTConfig
from models.dit import DiT
from models.families import build
from models.objectives import RectifiedFlow
from models.packed import batched_product, pack

MODEL = DiTConfig(image_size=8, channels=3, num_classes=10, patch=2, width=32, depth=3, heads=2)
LOSS = RectifiedFlow().loss
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def in_torch(monkeypatch):
    """The kernels' arithmetic in torch's operations, for a CPU."""
    for name in ("fused_kernels", "attention_kernel"):
        monkeypatch.setitem(sys.modules, f"models.{name}", fused_reference)
        monkeypatch.setattr(models, name, fused_reference, raising=False)
    monkeypatch.setattr(fused_reference, "Extras", lambda *extras: extras, raising=False)


def shaken(config: DiTConfig, parameterization=None, seed: int = 0) -> DiT:
    """A model none of whose parameters is zero: gates and readouts start there."""
    model = build(config, parameterization or SP(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(b: int, config: DiTConfig, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    x, noise = torch.randn(2, b, *config.shape, generator=generator).unbind(0)
    t, y = torch.rand(b, generator=generator), torch.randint(0, 11, (b,), generator=generator)
    return [one.to(device) for one in (x, y, t, noise)]


def traced(model: DiT, inputs: Sequence[Tensor], loss: Callable[..., Tensor] = LOSS) -> list[Tensor]:
    """The losses of a batch and the gradients of their sum."""
    losses = loss(model, *inputs)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), list(model.parameters()))]


@pytest.fixture
def anywhere(monkeypatch):
    """`fused` models take the fused blocks in any precision on any device."""
    monkeypatch.setattr(DiT, "_fusable", lambda self, x: self.fused)


@pytest.mark.parametrize("libraries", [False, True])
@pytest.mark.parametrize(
    ("changes", "parameterization"),
    [
        ({}, SP()),
        ({"qk_norm": True}, MuP(base_width=16)),
        ({"bias": False}, CompleteP(base_width=16, base_depth=1)),
        ({"depth": 1, "positions": "learned"}, SP()),
    ],
)
def test_fused_blocks_are_the_blocks(changes, parameterization, libraries, in_torch, anywhere, monkeypatch):
    if libraries:  # attention's forward pass by torch, GELU by cuBLASLt
        monkeypatch.setattr(fused, "TORCH_FROM", 1)
        monkeypatch.setattr(fused, "_has_room", lambda gpu: True)
        monkeypatch.setattr(fused, "_torch_attention", lambda qkv: fused_reference.attention(qkv, (None, None, None)))
    else:
        monkeypatch.setattr(cublaslt, "takes", lambda *sizes: False)
    config = dataclasses.replace(MODEL, **changes)
    model, inputs = shaken(config, parameterization), batch(6, config)
    expected = traced(model, inputs)
    model.fused = True
    found = traced(model, inputs)
    for name, one, other in zip(["loss", *dict(model.named_parameters())], found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm(), name


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"bias": False}])
def test_fused_blocks_of_a_pack_are_those_of_its_members(changes, in_torch, anywhere):
    config = dataclasses.replace(MODEL, **changes)
    members, inputs = [shaken(config, seed=seed) for seed in range(3)], batch(12, config)
    alone = [traced(model, [one[4 * row : 4 * row + 4] for one in inputs]) for row, model in enumerate(members)]
    packed = pack(members)
    packed.fused = True
    losses, *gradients = traced(packed, inputs)
    for row, (loss, *own) in enumerate(alone):
        torch.testing.assert_close(losses.view(3, 4)[row], loss)
        for name, one, other in zip(dict(packed.named_parameters()), gradients, own, strict=True):
            assert (one[row] - other).norm() <= 1e-5 * other.norm(), name


@pytest.mark.parametrize(
    "changes",
    [{"mlp": "swiglu"}, {"block": "parallel"}, {"positions": "rope"}],
    ids=lambda changes: next(iter(changes)),
)
def test_blocks_of_other_kinds_stay_what_they_are(changes):
    model = build(dataclasses.replace(MODEL, **changes), SP(), 0)
    model.fused = True
    assert not model._fusable(_OnGpu())
    assert not model.config.fusable


def test_a_configuration_made_from_another_is_not_taken_to_have_its_blocks():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(DiTConfig):
        """Of a family with blocks of its own."""

    fields = {field.name: getattr(MODEL, field.name) for field in dataclasses.fields(MODEL)}
    assert MODEL.fusable
    assert not Other(**fields).fusable


class _OnGpu:
    is_cuda, dtype = True, torch.bfloat16


def test_fused_blocks_are_for_bfloat16_on_a_gpu():
    model = build(MODEL, SP(), 0)
    assert not model._fusable(_OnGpu())
    model.fused = True
    assert model._fusable(_OnGpu())
    assert not model._fusable(torch.zeros(1, dtype=torch.bfloat16))


def test_operations_keep_what_they_promise_to_the_compiler(in_torch):
    x, y, vectors = torch.randn(4, 6, 8), torch.randn(4, 6, 8), torch.randn(4, 6, 1, 8)
    bias, gains = torch.randn(2, 8), torch.randn(2, 2, 4)
    gate, shift, scale = vectors.unbind(1)[:3]
    qkv, wide = torch.randn(4, 6, 3, 2, 4), torch.randn(2, 24)
    calls: list[tuple[Callable[..., object], list[object]]] = [
        (fused._boundary, [x, y, bias, gate, shift, scale]),
        (fused._boundary, [x, y, None, gate, shift, scale]),
        (fused._modulated_norm, [x, shift, scale]),
        (fused._gelu, [x, bias]),
        (fused._gelu, [x, None]),
        (fused._attention, [qkv, wide, *gains, False]),
        (fused._attention, [qkv, wide, None, None, True]),
        (fused._attention, [qkv, None, None, None, False]),
    ]
    for operation, arguments in calls:
        leaves = [one.clone().requires_grad_() if isinstance(one, Tensor) else one for one in arguments]
        torch.library.opcheck(
            operation, leaves, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static")
        )


def test_a_shape_without_an_algorithm_is_multiplied_by_torch(monkeypatch):
    monkeypatch.setattr(cublaslt, "_product", lambda *shape: None)
    x, weight, bias = torch.randn(5, 8), torch.randn(16, 8), torch.randn(16)
    for found, expected in zip(
        cublaslt.gelu_product(x, weight, bias), fused_reference.gelu_product(x, weight, bias), strict=True
    ):
        assert torch.equal(found, expected)


# On a GPU.


def close(found: Tensor, expected: Tensor, tolerance: float = 6e-3) -> None:
    """Equal to bfloat16's rounding, in norm."""
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).norm() <= tolerance * expected.float().norm()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


class TestKernels:
    pytestmark = gpu

    @pytest.mark.parametrize(
        ("b", "n", "d", "num_models"), [(4, 64, 128, 2), (2, 256, 768, 1), (6, 49, 72, 3), (2, 100, 1152, 1)]
    )
    def test_boundary(self, b, n, d, num_models):
        from models import fused_kernels

        x, y, dx2, dh = (random(b, n, d) for _ in range(4))
        bias, vectors = random(num_models, d), random(b, 6, 1, d)
        gate, shift, scale = vectors.unbind(1)[2:5]
        for branch, given, by in ((y, bias, gate), (y, None, gate), (None, None, None)):
            found = fused_kernels.boundary(x, branch, given, by, shift, scale)
            expected = fused_reference.boundary(x, branch, given, by, shift, scale)
            for one, other in zip(found, expected, strict=True):
                close(one, other)
            back = [dh, dx2, expected[0], branch, given, *expected[2:], by, scale]
            gradients, others = fused_kernels.boundary_backward(*back), fused_reference.boundary_backward(*back)
            for one, other in zip(gradients, others, strict=True):
                close(one, other)

    @pytest.mark.parametrize(("b", "n", "d", "num_models"), [(4, 64, 512, 2), (2, 256, 3072, 1), (3, 49, 288, 3)])
    def test_gelu(self, b, n, d, num_models):
        from models import fused_kernels

        x, dout, bias = random(b, n, d), random(b, n, d), random(num_models, d)
        for given in (bias, None):
            close(fused_kernels.gelu(x, given), fused_reference.gelu(x, given))
            for summed in (bias, None) if given is None else (bias,):
                back = [dout, x, given, summed]
                found, expected = (one.gelu_backward(*back) for one in (fused_kernels, fused_reference))
                for one, other in zip(found, expected, strict=True):
                    close(one, other)

    @pytest.mark.parametrize(("rows", "inputs", "outputs"), [(300, 72, 288), (4096, 768, 3072)])
    def test_gelu_product(self, rows, inputs, outputs):
        x, weight, bias = random(rows, inputs), random(outputs, inputs) * inputs**-0.5, random(outputs)
        assert cublaslt.takes(outputs, inputs)
        for one, other in zip(
            cublaslt.gelu_product(x, weight, bias), fused_reference.gelu_product(x, weight, bias), strict=True
        ):
            close(one, other)

    @pytest.mark.parametrize(
        ("b", "n", "h", "d", "num_models"),
        [(4, 64, 2, 16, 2), (2, 256, 3, 64, 1), (3, 49, 2, 32, 3), (2, 100, 2, 24, 1)],
    )
    @pytest.mark.parametrize("normed", [False, True])
    def test_attention(self, b, n, h, d, num_models, normed):
        from models import attention_kernel

        qkv, do, bias = random(b, n, 3, h, d), random(b, n, h * d), random(num_models, 3 * h * d)
        gains = (random(num_models, d), random(num_models, d)) if normed else (None, None)
        for given in (bias, None):
            extras = attention_kernel.Extras(given, *gains)
            o, lse = attention_kernel.attention(qkv, extras)
            expected, expected_lse = fused_reference.attention(qkv, extras)
            close(o, expected)
            torch.testing.assert_close(lse, expected_lse, rtol=1e-2, atol=2e-2)
            for summed in (bias, None) if given is None else (bias,):
                back = [qkv, extras, expected, expected_lse, do, summed]
                found, others = attention_kernel.attention_backward(*back), fused_reference.attention_backward(*back)
                for one, other in zip(found, others, strict=True):
                    close(
                        one, other, 2e-2
                    )  # queries and keys are rounded after their norms, weights before they multiply

    def test_torch_gives_the_sums_that_the_backward_pass_wants(self):
        qkv = random(2, 256, 3, 3, 64)
        o, lse = fused._torch_attention(qkv)
        expected, expected_lse = fused_reference.attention(qkv, (None, None, None))
        close(o, expected)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-2, atol=2e-2)
        assert o.is_contiguous()
        assert lse.is_contiguous()

    @pytest.mark.parametrize("rows", [96, 4096, 4100])
    def test_gradients_of_packed_weights(self, rows):
        grad, x = random(4, rows, 256), random(4, rows, 128)
        found = batched_product(grad, x, True, False)
        close(found, torch.bmm(grad.float().transpose(1, 2), x.float()), 3e-3)


class TestModels:
    pytestmark = gpu

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize(
        "changes",
        [{}, {"qk_norm": True, "bias": False}, {"image_size": 32, "width": 128}],
        ids=["plain", "normed", "256 tokens"],
    )
    def test_a_fused_model_is_as_near_to_float32_as_the_plain_one(self, changes, compiled):
        config = dataclasses.replace(MODEL, **changes)
        model, inputs = shaken(config).cuda(), batch(6, config, "cuda")
        exact = traced(model, inputs)
        model = model.bfloat16()
        plain = traced(model, inputs)
        model.fused = True
        found = traced(model, inputs, torch.compile(LOSS) if compiled else LOSS)
        for name, one, other, truth in zip(["loss", *dict(model.named_parameters())], found, plain, exact, strict=True):
            error, usual = (float((got.float() - truth).norm() / truth.norm()) for got in (one, other))
            assert error <= 1.5 * usual + 2e-3, name
