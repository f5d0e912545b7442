"""Linear maps that multiply in 8-bit floating point, about twice as fast as bfloat16 on GPUs that have it.

Forward products and the gradients of inputs are of e4m3 numbers (Micikevicius et al. 2022, arXiv 2209.05433), every row
of either factor scaled by its own largest entry; gradients of weights, in which small errors add up over training, are
of bfloat16. There is no state: scales are of the very numbers that they scale, so a resumed training does what it would
have done. The recipe is the one that torchao calls rowwise_with_gw_hp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import Linear

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_SCALE = 1e-30
"""Rows of zeros have a scale too."""
MAPS = (".attn.qkv", ".mlp.fc1", ".mlp.fc2")
"""Ends of the names of the maps that multiply in fp8."""
MULTIPLE = 16
"""What fp8 units want both sizes of a weight to be a multiple of."""


@torch.library.custom_op("ditlaw::rowwise", mutates_args=())
def rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, k] as e4m3, contiguous as fp8 units want them, and what each is to be multiplied by [n, 1].

    One operation that the compiler does not look into: fused with what comes before, it worked out every row twice, and
    an XL's step in fp8 took as long as in bf16.
    """
    if x.device.type == "cuda":
        from models import float8_kernel

        return float8_kernel.rowwise(x.contiguous(), LARGEST, SMALLEST_SCALE)
    scale = (x.abs().amax(1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FLOAT8).contiguous(), scale


@rowwise.register_fake
def _rowwise_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.Size(x.shape)
    return torch.empty(shape, dtype=FLOAT8, device=x.device), x.new_empty(shape[0], 1, dtype=torch.float32)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [n, k] times b [m, k] transposed, both through e4m3 row by row, in the precision of a.

    On a GPU by its fp8 units, elsewhere by float32 products of the same rounded numbers.
    """
    (one, scale), (other, other_scale) = rowwise(a), rowwise(b)
    if a.device.type == "cuda":
        return torch._scaled_mm(
            one, other.t(), scale_a=scale, scale_b=other_scale.t(), bias=bias, out_dtype=a.dtype, use_fast_accum=True
        )
    out = ((one.float() * scale) @ (other.float() * other_scale).t()).to(a.dtype)
    return out if bias is None else out + bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        return product(grad, weight.t()), grad.t() @ x, grad.sum(0) if ctx.needs_input_grad[2] else None


class Float8Linear(Linear):
    """A linear map of bfloat16 numbers whose products are of e4m3 numbers."""

    def forward(self, x: Tensor, multiplier: float = 1.0) -> Tensor:
        weight = self.weight if multiplier == 1.0 else self.weight * multiplier
        return self._rows(x, weight, self.bias)

    def product(self, x: Tensor, add_bias: bool = False) -> Tensor:
        """As `Linear`'s."""
        return self._rows(x, self.weight, self.bias.detach() if add_bias and self.bias is not None else None)

    def _rows(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
        return rows.view(*x.shape[:-1], -1)


def use_float8(model: nn.Module) -> nn.Module:
    """Let the largest linear maps of a transformer's blocks multiply in fp8: those to queries, keys and values and the
    MLP's, four fifths of the work of products.

    Parameters stay what they are, under their names. What runs once an image or touches the ends (adaLN, embeddings,
    readout) stays as it is, and so do attention's output, so small that rounding costs what fp8 saves, and maps whose
    sizes fp8 units cannot take.

    Raises:
        ValueError: there is no such map.
    """
    found = [
        module
        for name, module in model.named_modules()
        if type(module) is Linear and name.endswith(MAPS)
        if not any(size % MULTIPLE for size in module.weight.shape)
    ]
    if not found:
        raise ValueError(
            f"no linear map of {type(model).__name__}'s blocks can multiply in fp8; wanted maps whose sizes "
            f"are multiples of {MULTIPLE}. Set compute.precision to bf16, or choose another width."
        )
    for module in found:
        module.__class__ = Float8Linear
    return model
