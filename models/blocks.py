"""Building blocks shared by the transformer families.

Written for few operations: small models on a CPU are bound by the number of operations, not by arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.configs.base import ModelConfig

NORM_EPS = 1e-6

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each [b, n, heads, head_dim]."""


class Linear(nn.Linear):
    """A linear map that starts at zero and draws nothing from the global generator.

    `models.parameterization.initialise` is the only place that draws weights.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*rest i"], multiplier: float = 1.0) -> Float[Tensor, "*rest o"]:
        """W x `multiplier` + b. The multiplier is of the matrix product, not of the bias, which has no width to make up
        for; it goes to the weight, by far the smaller factor."""
        weight = self.weight if multiplier == 1.0 else self.weight * multiplier
        return F.linear(x, weight, self.bias)

    def product(self, x: Float[Tensor, "*rest i"], add_bias: bool = False) -> Float[Tensor, "*rest o"]:
        """W x; with `add_bias` the bias is added as a constant, whose gradient somebody else works out."""
        bias = self.bias.detach() if add_bias and self.bias is not None else None
        return F.linear(x, self.weight, bias)


class Conv(nn.Conv2d):
    """A square convolution that keeps the resolution (at stride 1); starts at zero, as `Linear`."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride=stride, padding=side // 2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b i h w"], multiplier: float = 1.0) -> Float[Tensor, "b o h2 w2"]:
        """The multiplier is of the product, not of the bias; see `Linear`."""
        weight = self.weight if multiplier == 1.0 else self.weight * multiplier
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def modulated_norm(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """adaLN: LayerNorm(x) (1 + scale) + shift, the norm without parameters of its own (DiT, section 3.2)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def placed(x: Float[Tensor, "b n d"], positions: Float[Tensor, "*models n d"]) -> Float[Tensor, "b n d"]:
    """Tokens plus positions; of several models in one batch (`models.packed`) each has its own."""
    if positions.dim() == 2:
        return x + positions
    return (x.unflatten(0, (len(positions), -1)) + positions[:, None]).flatten(0, 1)


def positions_2d(side: int, width: int) -> Float[Tensor, "n d"]:
    """Fixed 2-D sin-cos positions of a `side` x `side` grid in row-major order, as DiT takes them from MAE.

    The first half of the features encodes the column, the second half the row; each is sines, then cosines, with
    frequencies 10000^(-i / (width / 4)).
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column = axis[None, :, :].expand(side, side, -1)
    row = axis[:, None, :].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).reshape(side * side, width).float()


def rotations_2d(side: int, head_dim: int) -> Float[Tensor, "2 n half"]:
    """Cosines and sines that rotate the pairs of a head by the position in a `side` x `side` grid, row-major.

    Axial rotary positions (Su et al. 2021, arXiv 2104.09864, equation 15, along each axis): of the `head_dim` / 2 pairs
    the first half turns by the column, the second by the row, with frequencies 10000^(-i / (head_dim / 4)).
    """
    omega = 10000.0 ** (-torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim // 4))
    axis = torch.arange(side, dtype=torch.float64)[:, None] * omega
    column = axis[None, :, :].expand(side, side, -1)
    row = axis[:, None, :].expand(side, side, -1)
    angle = torch.cat([column, row], dim=-1).reshape(side * side, head_dim // 2)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotated(x: Float[Tensor, "b n heads d"], rotation: Float[Tensor, "2 n half"]) -> Float[Tensor, "b n heads d"]:
    """Every pair (x_i, x_{i + d/2}) turned by its angle, in the precision of the angles and then that of x."""
    cos, sin = rotation[:, :, None, :].unbind(0)  # [n, 1, half]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map.

    A matrix product, since a convolution with stride = kernel size is several times slower on a CPU. The weight is the
    convolution's, reshaped: [width, channels, patch, patch] -> [width, channels * patch * patch].
    """

    def __init__(self, *, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = Linear(channels * patch**2, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch))


def time_features(t: Float[Tensor, " b"], size: int) -> Float[Tensor, "b f"]:
    """Cosines, then sines, of 1000 t 10000^(-i / half). float32 always: bfloat16 cannot tell 999 from 1000.

    Time is in [0, 1]; it is multiplied by 1000, so that the frequencies see the range that DiT was designed for.
    """
    half = size // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = torch.outer(1000.0 * t.float(), torch.exp(index * (-math.log(10000.0) / half)))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the time and a two-layer MLP."""

    def __init__(self, *, width: int, frequency_size: int) -> None:
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(Linear(frequency_size, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        precision = next(self.mlp.parameters()).dtype
        return self.mlp(time_features(t, self.frequency_size).to(precision))


class LabelEmbedder(nn.Module):
    """A table of labels; row `num_classes` is the null class of guidance."""

    def __init__(self, *, num_classes: int, width: int) -> None:
        super().__init__()
        # The weight is given, so that nn.Embedding draws nothing from the global generator.
        self.embedding_table = nn.Embedding(
            num_classes + 1, width, _weight=torch.zeros(num_classes + 1, width), _freeze=False
        )

    def forward(self, y: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.embedding_table(y)


class HeadNorm(nn.Module):
    """RMS norm over one head with a learned gain, which the heads share (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Float[Tensor, "b n heads d"]) -> Float[Tensor, "b n heads d"]:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


def attend(
    q: Float[Tensor, "b n heads d"], k: Float[Tensor, "b m heads d"], v: Float[Tensor, "b m heads d"]
) -> Float[Tensor, "b n width"]:
    """Softmax attention with logits scaled by 1 / sqrt(head_dim), heads joined."""
    attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return attended.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention.

    With `qk_norm` queries and keys are normalised by head; with `rotation` (see `rotations_2d`) they are then turned.
    Blocks of several streams take `split`, attend over all of them, and give each its own `proj` (absent without
    `project`, of a stream that nothing reads any more).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias and qkv_bias)
        self.proj = Linear(width, width, bias=bias) if project else nn.Identity()
        self.q_norm = HeadNorm(width // heads) if qk_norm else None
        self.k_norm = HeadNorm(width // heads) if qk_norm else None

    def split(self, x: Float[Tensor, "b n d"], rotation: Float[Tensor, "2 n half"] | None = None) -> Heads:
        """Queries, keys and values [b, n, heads, head_dim]."""
        b, n, d = x.shape
        # Split before transposing: the gradient of the split is then already laid out as the qkv map wants it.
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Float[Tensor, "2 n half"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.proj(attend(*self.split(x, rotation)))


def attend_jointly(first: Heads, second: Heads) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
    """Attention of two streams over both of them (Esser et al. 2024, arXiv 2403.03206, figure 2b)."""
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
    n = first[0].shape[1]
    both = attend(q, k, v)
    return both[:, :n], both[:, n:]


class CrossAttention(nn.Module):
    """Attention of one stream's queries over another's keys and values."""

    def __init__(self, *, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.q_norm = HeadNorm(width // heads) if qk_norm else None
        self.k_norm = HeadNorm(width // heads) if qk_norm else None

    def forward(self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(attend(q, k, v))


class _SigmoidGelu(torch.autograd.Function):
    """tanh-GELU through a sigmoid: gelu(x) = x s, s = sigmoid(u), u = 2 sqrt(2/pi) (x + 0.044715 x^3).

    Both derivatives come from one sigmoid, and the backward pass is one product: d gelu / dx = s + s (1 - s) x u'
    with x s (1 - s) = s (x - gelu).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        linear = x.new_tensor(2.0 * math.sqrt(2.0 / math.pi))
        cubic = 0.044715 * 2.0 * math.sqrt(2.0 / math.pi)
        square = x * x
        s = torch.add(linear, square, alpha=cubic).mul_(x).sigmoid_()
        out = x * s
        slope = torch.add(linear, square, alpha=3.0 * cubic, out=square).mul_(x - out)
        ctx.save_for_backward(torch.addcmul(s, s, slope, out=slope))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return grad * derivative


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    torch's kernel spends a fifth of a small model's training step on the CPU, most of it in two tanh; there the same
    function is written with one sigmoid, which takes half the time.
    """
    eager = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if eager and x.device.type == "cpu" and x.requires_grad and x.dtype == torch.float32:
        return _SigmoidGelu.apply(x)
    return F.gelu(x, approximate="tanh")


class Mlp(nn.Module):
    """Two linear maps around a tanh-GELU."""

    def __init__(self, *, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, bias=bias)
        self.fc2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(gelu_tanh(self.fc1(x)))


class SwiGlu(nn.Module):
    """fc2(silu(a) b) with a, b the halves of fc1 x (Shazeer 2020, arXiv 2002.05202, equation 6)."""

    def __init__(self, *, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(width, 2 * hidden, bias=bias)
        self.fc2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


def check_shape(x: Tensor, config: ModelConfig) -> None:
    """Refuse samples of another shape than the configuration's."""
    if x.shape[1:] != config.shape:
        raise ValueError(f"images have shape {list(x.shape)}; wanted [b, {', '.join(map(str, config.shape))}]")


def modulation(width: int, num_vectors: int) -> nn.Sequential:
    """The map from the condition to adaLN vectors. The non-linearity is the same for every block and is applied once,
    to the condition; index 1 keeps the names of DiT's checkpoints."""
    return nn.Sequential(nn.Identity(), Linear(width, num_vectors * width))


def vectors(module: nn.Module, condition: Float[Tensor, "b d"], num: int) -> tuple[Tensor, ...]:
    """The `num` vectors [b, 1, d] that a `modulation` gives."""
    return module(condition).unflatten(-1, (num, 1, -1)).unbind(1)


class FinalLayer(nn.Module):
    """adaLN and the readout of every token."""

    def __init__(self, *, width: int, outputs: int, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.linear = Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n o"]:
        shift, scale = vectors(self.adaLN_modulation, condition, 2)
        return self.linear(self.modulated(x, shift, scale), self.multiplier)

    def modulated(
        self, x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
    ) -> Float[Tensor, "b n d"]:
        """The normed and modulated stream."""
        return modulated_norm(x, shift, scale)


def unpatched(x: Float[Tensor, "b n o"], side: int, patch: int) -> Float[Tensor, "b c h w"]:
    """Images of the tokens' patches, `side` x `side` of them in row-major order."""
    return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch, q=patch)
