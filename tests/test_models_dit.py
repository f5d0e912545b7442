"""The DiT against a plain re-statement of the paper's forward pass, and a golden loss trace."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks import gelu_tanh, rotated, rotations_2d, time_features
from models.config import SP, DiTConfig, MuP, RectifiedFlow
from models.dit import DiT
from models.families import build
from models.objectives import build_objective
from models.parameterization import parameter_groups

SMALL = DiTConfig(image_size=12, channels=2, num_classes=5, patch=3, width=24, depth=2, heads=3, learn_sigma=True)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter non-zero, so that nothing is hidden behind a zero gate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def plain_positions(side: int, width: int) -> Tensor:
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                n = row * side + column
                table[n, i] = math.sin(column * frequency)
                table[n, quarter + i] = math.cos(column * frequency)
                table[n, 2 * quarter + i] = math.sin(row * frequency)
                table[n, 3 * quarter + i] = math.cos(row * frequency)
    return table


def plain_rotation(x: Tensor) -> Tensor:
    """[b, n, d]: the pairs (i, i + d/2) as complex numbers, turned by column (first half of them) or row."""
    side, pairs = math.isqrt(x.shape[1]), x.shape[-1] // 2
    turned = torch.complex(x[..., :pairs], x[..., pairs:]).clone()
    for n in range(x.shape[1]):
        for i in range(pairs):
            place = n % side if i < pairs // 2 else n // side
            angle = place / 10000 ** ((i % (pairs // 2)) / (pairs // 2))
            turned[:, n, i] *= complex(math.cos(angle), math.sin(angle))
    return torch.cat([turned.real, turned.imag], -1)


def plain_dit(config: DiTConfig, w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, readout: float) -> Tensor:
    """DiT in float64, one operation after the other, by the published checkpoints' parameter names."""
    w = {name: value.detach().double() for name, value in w.items()}
    x, t = x.double(), t.double()

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def norm(value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def modulate(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return value * (1 + scale[:, None]) + shift[:, None]

    p, width, heads = config.patch, config.width, config.heads
    kernel = w["x_embedder.proj.weight"].view(width, config.channels, p, p)
    h = F.conv2d(x, kernel, w["x_embedder.proj.bias"], stride=p).flatten(2).transpose(1, 2)
    if config.positions != "rope":
        h = h + (plain_positions(config.image_size // p, width) if config.positions == "sincos" else w["positions"])

    half = config.frequency_size // 2
    frequencies = torch.tensor([math.exp(-math.log(10000) * i / half) for i in range(half)], dtype=torch.float64)
    angle = (1000 * t)[:, None] * frequencies
    features = torch.cat([angle.cos(), angle.sin()], -1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", features)))
    c = c + w["y_embedder.embedding_table.weight"][y]

    def attention(block: str, a: Tensor) -> Tensor:
        q, k, v = linear(f"{block}.attn.qkv", a).chunk(3, dim=-1)
        outs = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            q_head, k_head = q[..., part], k[..., part]
            if config.qk_norm:
                q_head = w[f"{block}.attn.q_norm.weight"] * q_head / (q_head.square().mean(-1, True) + 1e-6).sqrt()
                k_head = w[f"{block}.attn.k_norm.weight"] * k_head / (k_head.square().mean(-1, True) + 1e-6).sqrt()
            if config.positions == "rope":
                q_head, k_head = plain_rotation(q_head), plain_rotation(k_head)
            logits = q_head @ k_head.transpose(1, 2) / math.sqrt(width // heads)
            outs.append(logits.softmax(-1) @ v[..., part])
        return linear(f"{block}.attn.proj", torch.cat(outs, -1))

    def mlp(block: str, a: Tensor) -> Tensor:
        a = linear(f"{block}.mlp.fc1", a)
        if config.mlp == "swiglu":
            gate, value = a.chunk(2, dim=-1)
            return linear(f"{block}.mlp.fc2", gate * torch.sigmoid(gate) * value)
        a = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        return linear(f"{block}.mlp.fc2", a)

    for i in range(config.depth):
        block = f"blocks.{i}"
        vectors = linear(f"{block}.adaLN_modulation.1", F.silu(c))
        if config.block == "parallel":
            shift, scale, gate = vectors.chunk(3, dim=1)
            a = modulate(norm(h), shift, scale)
            h = h + gate[:, None] * (attention(block, a) + mlp(block, a))
            continue
        vectors = vectors.chunk(6, dim=1)
        h = h + vectors[2][:, None] * attention(block, modulate(norm(h), vectors[0], vectors[1]))
        h = h + vectors[5][:, None] * mlp(block, modulate(norm(h), vectors[3], vectors[4]))

    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    h = modulate(norm(h), shift, scale) @ w["final_layer.linear.weight"].T * readout + w["final_layer.linear.bias"]
    side, channels = config.image_size // p, config.out_channels
    h = h.reshape(-1, side, side, p, p, channels)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(-1, channels, config.image_size, config.image_size)


@pytest.mark.parametrize(("parameterization", "readout"), [(SP(), 1.0), (MuP(base_width=8), 1 / 3)])
@pytest.mark.parametrize("training", [True, False])
def test_forward_equals_the_plain_statement(parameterization: SP | MuP, readout: float, training: bool) -> None:
    model = randomised(DiT(SMALL, parameterization))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, 12, 12, generator=generator)
    t, y = torch.tensor([0.0, 0.3, 0.71, 1.0]), torch.tensor([0, 4, 5, 2])
    with torch.set_grad_enabled(training):
        got = model(x, t, y)
    wanted = plain_dit(SMALL, dict(model.named_parameters()), x, t, y, readout)
    assert got.shape == (4, 4, 12, 12)
    assert wanted.std() > 0.05
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


OPTIONS = [
    {"qk_norm": True},
    {"positions": "learned"},
    {"positions": "rope"},
    {"block": "parallel"},
    {"mlp": "swiglu"},
    {"bias": False},
    {"qk_norm": True, "positions": "rope", "block": "parallel", "mlp": "swiglu", "bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("parameterization", "readout"), [(SP(), 1.0), (MuP(base_width=8), 1 / 3)])
def test_options_equal_the_plain_statement(
    options: dict[str, object], parameterization: SP | MuP, readout: float
) -> None:
    config = dataclasses.replace(SMALL, **options)
    model = randomised(DiT(config, parameterization))
    x = torch.randn(4, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([0.0, 0.3, 0.71, 1.0]), torch.tensor([0, 4, 5, 2])
    got = model(x, t, y)
    wanted = plain_dit(config, dict(model.named_parameters()), x, t, y, readout)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    default = plain_dit(SMALL, dict(randomised(DiT(SMALL, parameterization)).named_parameters()), x, t, y, readout)
    assert (wanted - default).abs().max() > 1e-2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_of_every_option_is_trained(options: dict[str, object]) -> None:
    model = randomised(DiT(dataclasses.replace(SMALL, **options), SP()))
    model(torch.randn(4, 2, 12, 12), torch.rand(4), torch.tensor([0, 4, 5, 2])).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rotated_queries_and_keys_see_differences_of_positions_only() -> None:
    rotation = rotations_2d(6, 16)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator).view(2, 1, 1, 1, 16).expand(2, 1, 36, 1, 16).unbind(0)
    logits = (rotated(q, rotation)[0, :, 0] @ rotated(k, rotation)[0, :, 0].T).view(6, 6, 6, 6)
    torch.testing.assert_close(logits[:-1, :, :-1, :], logits[1:, :, 1:, :], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[:, :-2, :, :-2], logits[:, 2:, :, 2:], atol=1e-5, rtol=1e-5)
    assert (logits[0, 0, 0] - logits[0, 0, 0, 0]).abs().max() > 0.1, "columns differ"
    assert (logits[0, 0, :, 0] - logits[0, 0, 0, 0]).abs().max() > 0.1, "rows differ"
    assert (logits[0, 0, 1, 0] - logits[0, 0, 0, 1]).abs() > 0.1, "an axis has its own pairs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"positions": "rope", "heads": 4},
            "heads of size 6 cannot be rotated in 2-D: two axes of pairs need a multiple",
        ),
        ({"positions": "alibi"}, "positions is 'alibi'; wanted one of sincos, learned, rope"),
        ({"block": "Parallel"}, "block is 'Parallel'; wanted one of serial, parallel"),
        ({"mlp": "relu"}, "mlp is 'relu'; wanted one of gelu, swiglu"),
        ({"width": 27}, "width 27 is not divisible by 4, which 2-D sin-cos positions need"),
    ],
)
def test_options_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
    assert dataclasses.replace(SMALL, width=27, positions="learned").width == 27


def test_gradients_equal_the_plain_statement() -> None:
    """The slope along a random direction against central differences of the float64 statement."""
    model = randomised(DiT(SMALL, SP()))
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn(4, 2, 12, 12, generator=generator), torch.rand(4, generator=generator)
    y = torch.tensor([0, 4, 5, 2])
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(model(x, t, y).square().mean(), parameters)
    copies = [p.detach().double() for p in parameters]

    def plain_loss(*weights: Tensor) -> Tensor:
        return plain_dit(SMALL, dict(zip(names, weights, strict=True)), x, t, y, 1.0).square().mean()

    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in copies]
    step = 1e-5
    ahead = plain_loss(*[p + step * d for p, d in zip(copies, direction, strict=True)])
    behind = plain_loss(*[p - step * d for p, d in zip(copies, direction, strict=True)])
    slope = sum((g.double() * d).sum() for g, d in zip(got, direction, strict=True))
    assert float(slope) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-4)


def test_gelu_and_its_derivative_equal_torchs_in_float64() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    weight = torch.cos(exact.detach())
    out, wanted = gelu_tanh(x), F.gelu(exact, approximate="tanh")
    out.backward(weight.float())
    wanted.backward(weight)
    torch.testing.assert_close(out.double(), wanted, atol=5e-7, rtol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-6, rtol=1e-6)


def test_the_published_checkpoints_names_are_kept() -> None:
    names = {name for name, _ in DiT(SMALL, SP()).named_parameters()}
    modules = {"x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear"}
    modules |= {"final_layer.adaLN_modulation.1"}
    for i in range(SMALL.depth):
        modules |= {f"blocks.{i}.{m}" for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")}
    wanted = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert names == wanted | {"y_embedder.embedding_table.weight"}
    assert set(DiT(SMALL, SP()).state_dict()) == names, "positions are not saved"


def test_bfloat16_model_keeps_its_timestep_features() -> None:
    model = randomised(DiT(SMALL, SP()))
    x, y, t = torch.randn(2, 2, 12, 12), torch.tensor([0, 1]), torch.tensor([0.999, 0.998])
    given: list[Tensor] = []
    model.t_embedder.mlp.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert model.bfloat16()(x, t, y).dtype == torch.bfloat16
    assert torch.equal(given[0], time_features(t, model.config.frequency_size).bfloat16())
    assert not torch.equal(given[0][0], given[0][1])


def test_golden_loss_trace() -> None:
    """Numbers of this implementation, kept so that a change in what is trained does not go unnoticed."""
    config = DiTConfig(image_size=8, channels=1, num_classes=4, patch=2, width=32, depth=2, heads=2)
    parameterization = MuP(base_width=16)
    model = build(config, parameterization, 3)
    optimizer = torch.optim.AdamW(parameter_groups(model, parameterization, 3e-3, 0.01), betas=(0.9, 0.99))
    objective = build_objective(RectifiedFlow())
    generator = torch.Generator().manual_seed(7)
    losses = []
    for _ in range(20):
        y = torch.randint(0, 5, (16,), generator=generator)
        x = torch.randn(16, 1, 8, 8, generator=generator) * 0.3 + y.view(-1, 1, 1, 1) - 2
        t = objective.draw_t(torch.rand(16, generator=generator))
        loss = objective.loss(model, x, y, t, torch.randn(x.shape, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = [
    2.314836,
    2.439128,
    3.565677,
    2.277696,
    3.207724,
    3.273674,
    2.683489,
    2.944052,
    2.503923,
    2.556609,
    2.165814,
    2.368415,
    2.191553,
    1.995958,
    2.219793,
    1.987186,
    1.471928,
    1.679514,
    1.645680,
    1.632108,
]


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "positions": "rope"}, {"positions": "learned"}])
def test_bf16_parameters_with_fp32_buffers_give_the_fp32_prediction(options: dict[str, object]) -> None:
    """As DeepSpeed leaves a model: parameters cast, buffers not, and no autocast around it."""
    config = DiTConfig(image_size=8, channels=1, num_classes=3, patch=2, width=32, depth=2, heads=2, **options)
    model = build(config, SP(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x, t, y = (
        torch.randn(4, 1, 8, 8, generator=generator),
        torch.rand(4, generator=generator),
        torch.tensor([0, 1, 2, 3]),
    )
    whole = model(x, t, y).detach()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    half = model(x, t, y)
    assert half.dtype == torch.bfloat16
    assert float((half.detach().float() - whole).norm() / whole.norm()) < 0.03
    half.float().square().mean().backward()


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 2, 6, 24), (2, 1, 12, 12)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = build(SMALL, SP(), seed=0)
    with pytest.raises(ValueError, match=r"images have shape \[2, .*wanted \[b, 2, 12, 12\]"):
        model(torch.zeros(shape), torch.zeros(2), torch.zeros(2, dtype=torch.int64))


def test_per_sample_gradients_can_be_taken() -> None:
    model = randomised(build(SMALL, SP(), seed=0))
    parameters = dict(model.named_parameters())
    x, t, y = torch.randn(1, 2, 12, 12), torch.tensor([0.3]), torch.tensor([1])

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x, t, y)).square().mean()

    functional = torch.func.grad(loss)(parameters)
    plain = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for ours, theirs in zip(functional.values(), plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
