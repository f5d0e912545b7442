"""What the kernels of `models.fused_kernels` and `models.attention_kernel` compute, in torch's own operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks import NORM_EPS


def _by_image(vector: Tensor, b: int) -> Tensor:
    """[M, d] -> [b, d]: what each image has of its model's."""
    return vector.repeat_interleave(b // len(vector), 0)


def _by_model(sums: Tensor, bias: Tensor) -> Tensor:
    """[b, d] -> [M, d]: what the images of each model sum up to."""
    return sums.view(len(bias), -1, sums.shape[-1]).sum(1).to(bias.dtype)


def boundary(x, y, bias, gate, shift, scale):
    x2 = x if y is None else (x.float() + gate.float() * _with_bias(y, bias)).to(x.dtype)
    var, mean = torch.var_mean(x2.float(), dim=-1, correction=0)
    rstd = (var + NORM_EPS).rsqrt()
    h = shift + (x2.float() - mean[..., None]) * rstd[..., None] * (1 + scale.float())
    return x2, h.to(x.dtype), mean, rstd


def boundary_backward(dh, dx2, x2, y, bias, mean, rstd, gate, scale):
    hat = (x2.float() - mean[..., None]) * rstd[..., None]
    a = dh.float() * (1 + scale.float())
    out = rstd[..., None] * (a - a.mean(-1, keepdim=True) - hat * (a * hat).mean(-1, keepdim=True))
    kinds, dy, dbias = [dh.float(), dh.float() * hat], x2.new_empty(0), x2.new_empty(0)
    if y is not None:
        out = out + dx2.float()
        kinds.append(out * _with_bias(y, bias))
        dy = (out * gate).to(y.dtype)
        if bias is not None:
            dbias = _by_model((out * gate).sum(1), bias)
    vectors = torch.stack([one.sum(1) for one in kinds], dim=1)
    return out.to(x2.dtype), dy, vectors.to(scale.dtype), dbias


def _with_bias(x, bias):
    return x.float() if bias is None else x.float() + _by_image(bias, len(x))[:, None].float()


def gelu(x, bias):
    wide = _with_bias(x, bias)
    return F.gelu(wide, approximate="tanh").to(x.dtype)


def gelu_backward(dout, x, bias, summed):
    wide = _with_bias(x, bias)
    dx = torch.ops.aten.gelu_backward(dout.float(), wide, approximate="tanh")
    if summed is None:
        return dx.to(x.dtype), x.new_empty(0)
    return dx.to(x.dtype), _by_model(dx.sum(1) if dx.dim() == 3 else dx, summed)


def gelu_product(x, weight, bias):
    before = F.linear(x, weight, bias)
    return F.gelu(before, approximate="tanh"), before


def _heads(qkv, extras):
    """Queries, keys and values [b, heads, n, d] in float32 as they come from the map, and as they attend."""
    bias, q_gain, k_gain = extras
    b, _, _, h, d = qkv.shape
    wide = qkv.float() if bias is None else qkv.float() + _by_image(bias.float(), b).view(b, 1, 3, h, d)
    raw = [one.transpose(1, 2) for one in wide.to(qkv.dtype).float().unbind(2)]
    if q_gain is None:
        return raw, raw
    normed = [
        F.rms_norm(one, (d,), None, NORM_EPS) * _by_image(gain.float(), b)[:, None, None]
        for one, gain in zip(raw, (q_gain, k_gain), strict=False)
    ]
    return raw, [*normed, raw[2]]


def attention(qkv, extras):
    _, (q, k, v) = _heads(qkv, extras)
    logits = q @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    o = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return o.to(qkv.dtype), logits.logsumexp(-1)


def attention_backward(qkv, extras, o, lse, do, summed):
    b, n, _, h, d = qkv.shape
    raw, (q, k, v) = _heads(qkv, extras)
    grad, out = (one.float().view(b, n, h, d).transpose(1, 2) for one in (do, o))
    p = (q @ k.transpose(-1, -2) * d**-0.5 - lse[..., None]).exp()
    ds = p * (grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)) * d**-0.5
    gradients = [ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ grad]
    dgain = torch.zeros(b, h, 2, d, device=qkv.device)
    dbias, gains = qkv.new_empty(0), qkv.new_empty(0)
    if extras[1] is not None:
        for place in (0, 1):
            r = (raw[place].square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
            hat, gain = raw[place] * r, _by_image(extras[1 + place].float(), b)[:, None, None]
            dgain[:, :, place] = (gradients[place] * hat).sum(2)
            along = gradients[place] * gain
            gradients[place] = r * (along - hat * (along * hat).mean(-1, keepdim=True))
        gains = dgain.view(len(extras[1]), -1, 2, d).sum(1).to(extras[1].dtype)
    dqkv = torch.stack([one.transpose(1, 2) for one in gradients], dim=2)  # [b, n, 3, h, d]
    if summed is not None:
        dbias = _by_model(dqkv.sum(1).flatten(1), summed)
    return dqkv.to(qkv.dtype), dbias, gains
