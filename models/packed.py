"""Several models of one shape as one: every weight stacked, every linear map a batched product.

Small models leave most of a device idle and most of the time with the launching of operations. Of M models the
batches are laid one after the other, [M b, ...], so that everything without weights (attention, norms, non-linearities)
runs as it does for one model, with the model axis folded into the batch; only the modules with weights know of M.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import NORM_EPS, HeadNorm, LabelEmbedder, Linear
from models.parameterization import TaggedModule


@torch.library.custom_op("ditlaw::batched_product", mutates_args=())
def batched_product(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    """a b for matrices [M, ., .], either of them transposed, as one operation that the compiler does not look into.

    Given torch.bmm it writes what comes before twice, once transposed, and the gradient of the weight comes out
    transposed, to be copied into place: a fifth of a pack's step.
    """
    return torch.bmm(a.transpose(1, 2) if transpose_a else a, b.transpose(1, 2) if transpose_b else b)


@batched_product.register_fake
def _batched_product_shape(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    return a.new_empty(len(a), a.shape[2 if transpose_a else 1], b.shape[1 if transpose_b else 2])


def _keep_factors(ctx: Any, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
    a, b, *transposed = inputs
    assert transposed == [False, True], "the forward product is of rows and a weight [M, out, in]"
    ctx.save_for_backward(a, b)


def _gradients_of_product(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    rows, weight = ctx.saved_tensors
    return batched_product(grad, weight, False, False), batched_product(grad, rows, True, False), None, None


batched_product.register_autograd(_gradients_of_product, setup_context=_keep_factors)


def _apart(x: Tensor) -> bool:
    """Whether products go through `batched_product`.

    On a GPU also where nothing is compiled, as torch.bmm's gradients of weights lie transposed there too, and a pack
    would copy its gradients one by one.
    """
    return torch.compiler.is_compiling() or x.is_cuda


class PackedLinear(nn.Module):
    """M linear maps: `weight` [M, out, in], `bias` [M, out]."""

    def __init__(self, maps: Sequence[Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in maps]))
        self.bias = None
        if maps[0].bias is not None:
            self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in maps]))

    def forward(self, x: Float[Tensor, "mb *rest i"], multiplier: float | Tensor = 1.0) -> Float[Tensor, "mb *rest o"]:
        """`multiplier` [M, 1, 1] where the models' differ."""
        weight: Tensor = self.weight
        if isinstance(multiplier, Tensor):
            weight = weight * multiplier.to(weight.dtype)
        elif multiplier != 1.0:
            weight = weight * multiplier
        if self.bias is None:
            return self._rows(x, weight)
        if _apart(x):
            out = self._rows(x, weight)
            return (out.view(len(weight), -1, out.shape[-1]) + self.bias[:, None]).view(out.shape)
        rows = x.reshape(len(weight), -1, x.shape[-1])  # [M, b ..., in]
        out = torch.baddbmm(self.bias[:, None], rows, weight.transpose(1, 2))
        return out.view(*x.shape[:-1], out.shape[-1])

    def product(self, x: Float[Tensor, "mb *rest i"], add_bias: bool = False) -> Float[Tensor, "mb *rest o"]:
        """W x. A bias is not added: that would be another pass over what comes out."""
        assert not add_bias, "of packed maps whoever reads the product adds the bias"
        return self._rows(x, self.weight)

    def _rows(self, x: Tensor, weight: Tensor) -> Tensor:
        rows = x.reshape(len(weight), -1, x.shape[-1])
        by = weight.transpose(1, 2)
        out = batched_product(rows, weight, False, True) if _apart(x) else torch.bmm(rows, by)
        return out.view(*x.shape[:-1], out.shape[-1])


class PackedTable(nn.Module):
    """M tables of labels: `weight` [M, classes + 1, width]."""

    def __init__(self, tables: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([table.weight.detach() for table in tables]))

    def forward(self, y: Int[Tensor, " mb"]) -> Float[Tensor, "mb d"]:
        num, rows, width = self.weight.shape
        first = torch.arange(num, device=y.device)[:, None] * rows
        return F.embedding((y.view(num, -1) + first).view(-1), self.weight.reshape(num * rows, width))


class PackedHeadNorm(nn.Module):
    """M RMS norms of heads: `weight` [M, head size]."""

    def __init__(self, norms: Sequence[HeadNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([norm.weight.detach() for norm in norms]))

    def forward(self, x: Float[Tensor, "mb n heads d"]) -> Float[Tensor, "mb n heads d"]:
        normed = F.rms_norm(x, self.weight.shape[1:], None, NORM_EPS)
        gains = self.weight[:, None, None, None]
        return (normed.view(len(self.weight), -1, *x.shape[1:]) * gains).view(x.shape)


def pack(models: Sequence[TaggedModule]) -> TaggedModule:
    """The models as one, on batches [M b, ...]: model m has rows m b to (m + 1) b.

    The names of its parameters are theirs; each is a copy of theirs with a first axis of M. Models may differ in
    weights and in the multiplier of their readout.

    Raises:
        ValueError: the models are of different shapes, of a family that cannot be packed, or differ in the multiplier
            of their residual branches.
    """
    first = models[0]
    if any(model.config != first.config for model in models):
        raise ValueError("models of different configurations; wanted models of one shape to pack")
    if not first.config.packable:
        raise ValueError(
            f"{first.config.family} with {first.config} cannot be packed; wanted one that can: see packable"
        )
    branches = [[module.branch for module in model.modules() if hasattr(module, "branch")] for model in models]
    if any(one != branches[0] for one in branches):
        raise ValueError("models differ in the multiplier of their residual branches; wanted one for all")
    packed = copy.deepcopy(first)
    for name, module in first.named_modules():
        mates = [model.get_submodule(name) for model in models]
        parent, _, child = name.rpartition(".")
        if isinstance(module, Linear):
            setattr(packed.get_submodule(parent), child, PackedLinear(mates))  # type: ignore[arg-type]
        elif isinstance(module, LabelEmbedder):
            tables = [mate.embedding_table for mate in mates]
            packed.get_submodule(name).embedding_table = PackedTable(tables)  # type: ignore[arg-type]
        elif isinstance(module, HeadNorm):
            setattr(packed.get_submodule(parent), child, PackedHeadNorm(mates))  # type: ignore[arg-type]
        elif hasattr(module, "multiplier"):
            multipliers = [mate.multiplier for mate in mates]
            if len(set(multipliers)) > 1:
                stacked = torch.tensor(multipliers)[:, None, None]
                del packed.get_submodule(name).multiplier
                packed.get_submodule(name).register_buffer("multiplier", stacked, persistent=False)
    for name, _ in first.named_parameters(recurse=False):
        stacked = torch.stack([getattr(model, name).detach() for model in models])
        setattr(packed, name, nn.Parameter(stacked))
    shapes = [list(parameter.shape[1:]) for parameter in packed.parameters()]
    assert shapes == [list(parameter.shape) for parameter in first.parameters()], "a module with weights is not packed"
    return packed
