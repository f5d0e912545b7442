"""A DiT's blocks on a GPU, with everything between their matrix products in few passes over memory.

The same arithmetic as the blocks' own, in another order of rounding: maps multiply without their biases, and what reads
a product adds the bias on the way, so that its gradient is a sum made where the gradient is written. A step is then its
products and some ten kernels a block without any compiling; where it is compiled, too, these passes are fewer and
shorter than the compiler's. docs/training.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models import cublaslt
from models.blocks import Attention, FinalLayer, HeadNorm, Linear, attend, vectors
from models.packed import PackedLinear

Map = Linear | PackedLinear
"""A linear map of one model or of several."""
MOST_TOKENS = 256
MOST_HEAD_DIM = 64
"""What one program of attention's backward pass keeps of keys, values and their gradients fits its registers."""
ROOMY = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Capabilities of GPUs with the 150 kB of shared memory that its backward pass over long sequences takes: A100 to B300,
of which it has run on the H100."""
TORCH_FROM = 65
"""Tokens from which torch's forward attention is faster than one program a head."""
CUDNN_CAPABILITY = (9, 0)
"""GPUs from which on cuDNN's attention is the fastest."""


# Boundaries.


@torch.library.custom_op("ditlaw::boundary", mutates_args=())
def _boundary(
    x: Tensor, y: Tensor, bias: Tensor | None, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from models import fused_kernels

    return fused_kernels.boundary(x.contiguous(), y.contiguous(), bias, gate, shift, scale)


@_boundary.register_fake
def _boundary_shapes(
    x: Tensor, y: Tensor, bias: Tensor | None, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_rows = x.new_empty(x.shape[:2], dtype=torch.float32)
    return one, torch.empty_like(one), of_rows, torch.empty_like(of_rows)


@torch.library.custom_op("ditlaw::boundary_backward", mutates_args=())
def _boundary_backward(
    dh: Tensor, dx2: Tensor, x2: Tensor, y: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor, gate: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from models import fused_kernels

    return fused_kernels.boundary_backward(
        dh.contiguous(), dx2.contiguous(), x2, y.contiguous(), bias, mean, rstd, gate, scale
    )


@_boundary_backward.register_fake
def _boundary_backward_shapes(
    dh: Tensor, dx2: Tensor, x2: Tensor, y: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor, gate: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    one = torch.empty_like(x2)
    return one, torch.empty_like(one), gate.new_empty(len(gate), 3, gate.shape[-1]), _like_bias(bias, x2)


def _keep_boundary(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, bias, gate, _, scale = inputs
    x2, _, mean, rstd = output
    ctx.save_for_backward(x2, y, bias, mean, rstd, gate, scale)
    ctx.set_materialize_grads(False)


def _gradients_of_boundary(
    ctx: Any, dx2: Tensor | None, dh: Tensor | None, _mean: None, _rstd: None
) -> tuple[Tensor | None, ...]:
    x2, y, bias, mean, rstd, gate, scale = ctx.saved_tensors
    dx2, dh = (
        torch.zeros_like(x2) if one is None else one for one in (dx2, dh)
    )  # after the last block nothing reads x2
    dx, dy, dvectors, dbias = _boundary_backward(dh, dx2, x2, y, bias, mean, rstd, gate, scale)
    dshift, dscale, dgate = dvectors.unsqueeze(2).unbind(1)
    return dx, dy, None if bias is None else dbias, dgate, dshift, dscale


_boundary.register_autograd(_gradients_of_boundary, setup_context=_keep_boundary)


def boundary(
    x: Float[Tensor, "b n d"],
    y: Float[Tensor, "b n d"],
    bias: Float[Tensor, "models d"] | None,
    gate: Float[Tensor, "b 1 d"],
    shift: Float[Tensor, "b 1 d"],
    scale: Float[Tensor, "b 1 d"],
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """x + gate (y + bias) and its modulated norm: the end of one branch and the beginning of the next."""
    x2, h, _, _ = _boundary(x, y, bias, gate, shift, scale)
    return x2, h


@torch.library.custom_op("ditlaw::modulated_norm", mutates_args=())
def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from models import fused_kernels

    return fused_kernels.boundary(x.contiguous(), None, None, None, shift, scale)[1:]


@_modulated_norm.register_fake
def _modulated_norm_shapes(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_rows = x.new_empty(x.shape[:2], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), of_rows, torch.empty_like(of_rows)


@torch.library.custom_op("ditlaw::modulated_norm_backward", mutates_args=())
def _modulated_norm_backward(dh: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    from models import fused_kernels

    dx, _, vectors, _ = fused_kernels.boundary_backward(
        dh.contiguous(), None, x.contiguous(), None, None, mean, rstd, None, scale
    )
    return dx, vectors


@_modulated_norm_backward.register_fake
def _modulated_norm_backward_shapes(
    dh: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, scale.new_empty(len(scale), 2, scale.shape[-1])


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, scale = inputs
    ctx.save_for_backward(x, *output[1:], scale)
    ctx.set_materialize_grads(False)


def _gradients_of_norm(ctx: Any, dh: Tensor, _mean: None, _rstd: None) -> tuple[Tensor, ...]:
    dx, dvectors = _modulated_norm_backward(dh, *ctx.saved_tensors)
    return dx, *dvectors.unsqueeze(2).unbind(1)


_modulated_norm.register_autograd(_gradients_of_norm, setup_context=_keep_norm)


# GELU.


@torch.library.custom_op("ditlaw::gelu", mutates_args=())
def _gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    from models import fused_kernels

    return fused_kernels.gelu(x.contiguous(), bias)


@_gelu.register_fake
def _gelu_shape(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("ditlaw::gelu_backward", mutates_args=())
def _gelu_backward(dout: Tensor, x: Tensor, bias: Tensor | None, added: bool) -> tuple[Tensor, Tensor]:
    """`added`: the bias is in x already, and only its gradient is asked for."""
    from models import fused_kernels

    return fused_kernels.gelu_backward(dout.contiguous(), x.contiguous(), None if added else bias, bias)


@_gelu_backward.register_fake
def _gelu_backward_shapes(dout: Tensor, x: Tensor, bias: Tensor | None, added: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), _like_bias(bias, x)


def _keep_hidden(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients_of_gelu(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _gelu_backward(dout, x, bias, False)
    return dx, None if bias is None else dbias


_gelu.register_autograd(_gradients_of_gelu, setup_context=_keep_hidden)


def gelu(x: Float[Tensor, "b n d"], bias: Float[Tensor, "models d"] | None) -> Float[Tensor, "b n d"]:
    """tanh-GELU of x + bias."""
    out: Tensor = _gelu(x, bias)
    return out


@torch.library.custom_op("ditlaw::gelu_product", mutates_args=())
def _gelu_product(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return cublaslt.gelu_product(x.contiguous(), weight.contiguous(), bias)


@_gelu_product.register_fake
def _gelu_product_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(weight)), x.new_empty(len(x), len(weight))


def _keep_product(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _gradients_of_product(ctx: Any, dout: Tensor, _before: None) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, before = ctx.saved_tensors
    grad, dbias = _gelu_backward(dout, before, bias[None], True)
    return grad @ weight, grad.t() @ x, dbias[0]


_gelu_product.register_autograd(_gradients_of_product, setup_context=_keep_product)


def hidden(fc1: Map, h: Float[Tensor, "b n d"]) -> Float[Tensor, "b n hidden"]:
    """gelu(W h + b) of the first map of an MLP."""
    if type(fc1) is not Linear or fc1.bias is None or not cublaslt.takes(*fc1.weight.shape):
        return gelu(fc1.product(h), _bias(fc1))
    out: Tensor = _gelu_product(h.flatten(0, 1), fc1.weight, fc1.bias)[0]
    return out.view(*h.shape[:2], -1)


# Attention.


@torch.library.custom_op("ditlaw::attention", mutates_args=())
def _attention(
    qkv: Tensor, bias: Tensor | None, q_gain: Tensor | None, k_gain: Tensor | None, added: bool
) -> tuple[Tensor, Tensor]:
    """`added`: the bias is in qkv already, and only its gradient is asked for."""
    from models import attention_kernel

    extras = attention_kernel.Extras(None if added else bias, q_gain, k_gain)
    if qkv.shape[1] >= TORCH_FROM and all(extra is None for extra in extras):
        return _torch_attention(qkv)
    return attention_kernel.attention(qkv.contiguous(), extras)


def _torch_attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels that torch's attention chooses from, which give the logarithm of the softmax's sum as well."""
    q, k, v = (one.transpose(1, 2) for one in qkv.unbind(2))
    if torch.cuda.get_device_capability(qkv.device) >= CUDNN_CAPABILITY:
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out.transpose(1, 2).flatten(2).contiguous(), lse.view(*q.shape[:3]).contiguous()


@_attention.register_fake
def _attention_shapes(
    qkv: Tensor, bias: Tensor | None, q_gain: Tensor | None, k_gain: Tensor | None, added: bool
) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d), qkv.new_empty(b, h, n, dtype=torch.float32)


@torch.library.custom_op("ditlaw::attention_backward", mutates_args=())
def _attention_backward(
    qkv: Tensor, bias: Tensor | None, q_gain: Tensor | None, k_gain: Tensor | None, added: bool, o: Tensor, lse: Tensor,
    do: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from models import attention_kernel

    extras = attention_kernel.Extras(None if added else bias, q_gain, k_gain)
    return attention_kernel.attention_backward(qkv.contiguous(), extras, o, lse, do.contiguous(), bias)


@_attention_backward.register_fake
def _attention_backward_shapes(
    qkv: Tensor, bias: Tensor | None, q_gain: Tensor | None, k_gain: Tensor | None, added: bool, o: Tensor, lse: Tensor,
    do: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d = qkv.shape[-1]
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    gains = qkv.new_empty(0) if q_gain is None else q_gain.new_empty(len(q_gain), 2, d)
    return dqkv, _like_bias(bias, qkv), gains


def _keep_heads(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.added = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _gradients_of_attention(ctx: Any, do: Tensor, _lse: None) -> tuple[Tensor | None, ...]:
    qkv, bias, q_gain, k_gain, o, lse = ctx.saved_tensors
    dqkv, dbias, dgain = _attention_backward(qkv, bias, q_gain, k_gain, ctx.added, o, lse, do)
    gains = (None, None) if q_gain is None else dgain.unbind(1)
    return dqkv, None if bias is None else dbias, *gains, None


_attention.register_autograd(_gradients_of_attention, setup_context=_keep_heads)


def _like_bias(bias: Tensor | None, x: Tensor) -> Tensor:
    """A bias's gradient, empty where there is no bias."""
    return x.new_empty(0) if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)


# The blocks.


def _bias(module: Map) -> Tensor | None:
    """[M, d], of one model with M = 1."""
    bias = module.bias
    return bias if bias is None or bias.dim() == 2 else bias[None]


def _gain(norm: HeadNorm | None) -> Tensor | None:
    """[M, head_dim]."""
    if norm is None:
        return None
    gain = norm.weight
    return gain if gain.dim() == 2 else gain[None]


def _has_room(gpu: int) -> bool:
    """Whether a program of attention's backward pass has room for what it reads ahead of long sequences."""
    return torch.cuda.get_device_capability(gpu) in ROOMY


# What torch.compiler.assume_constant_result does, which imports the compiler into every worker to do it.
_has_room._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attended(module: Attention, h: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """What the heads give, joined: the module without its last map."""
    b, n, w = h.shape
    head = w // module.heads
    if n > MOST_TOKENS or head > MOST_HEAD_DIM or head % 8 or (n >= TORCH_FROM and not _has_room(h.device.index or 0)):
        return attend(*module.split(h))
    # One model's product adds its bias for nothing, and torch's own attention wants it in place.
    added = n >= TORCH_FROM and module.q_norm is None and not isinstance(module.qkv, PackedLinear)
    qkv = module.qkv.product(h, add_bias=added).view(b, n, 3, module.heads, head)
    out: Tensor = _attention(qkv, _bias(module.qkv), _gain(module.q_norm), _gain(module.k_norm), added)[0]
    return out


def through_blocks(
    blocks: Iterable[Any], final: FinalLayer, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]
) -> Float[Tensor, "b n d"]:
    """The normed and modulated stream that the readout takes, from the tokens that the first block takes.

    `blocks` are `models.dit.DiTBlock`s with GELUs and without rotation, of one model or of packed ones.
    """
    blocks = list(blocks)
    every = [vectors(block.adaLN_modulation, condition, 6) for block in blocks]
    every.append(vectors(final.adaLN_modulation, condition, 2))
    h: Tensor = _modulated_norm(x, *every[0][:2])[0]
    for number, block in enumerate(blocks):
        _, _, gate, shift, scale, gate_mlp = every[number]
        if block.branch != 1:
            gate, gate_mlp = gate * block.branch, gate_mlp * block.branch
        attn, mlp = block.attn, block.mlp
        x, h = boundary(x, attn.proj.product(attended(attn, h)), _bias(attn.proj), gate, shift, scale)
        x, h = boundary(x, mlp.fc2.product(hidden(mlp.fc1, h)), _bias(mlp.fc2), gate_mlp, *every[number + 1][:2])
    return h
