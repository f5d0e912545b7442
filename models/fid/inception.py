"""Inception-v3 as the graph of 2015-12-05 has it: the encoder of FID (Heusel et al. 2017, arXiv 1706.08500).

It differs from the network that is usually called Inception-v3 in what TensorFlow's average pool counts (no padding),
in the last block's pool (the largest value, not the mean), in its 1008 logits and in its resize. Names of weights are
those of the published conversions, so that their files load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299
Pool = Literal["mean", "max", "max, halved"]
Step = str | tuple[str, ...]
"""A convolution by its name, or several of them side by side on the same input."""
Kernel = tuple[int, int]


class Convolution(nn.Module):
    """Convolution without bias, normalisation with epsilon 1e-3, ReLU."""

    def __init__(self, before: int, after: int, kernel: Kernel, stride: int = 1, padding: Kernel = (0, 0)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, their channels one after the other; the pooled branch comes last.

    Args:
        convolutions: name -> (channels before, after, kernel, stride); those of stride 1 keep the picture's size.
        branches: the steps of each branch.
        pool: what the last branch begins with.
        pool_convolution: what follows it; None leaves it at that.
    """

    def __init__(
        self,
        convolutions: Mapping[str, tuple[int, int, Kernel, int]],
        branches: Sequence[Sequence[Step]],
        pool: Pool,
        pool_convolution: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, (before, after, kernel, stride) in convolutions.items():
            padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
            self.add_module(name, Convolution(before, after, kernel, stride, padding))
        self.branches, self.pool = branches, pool
        self.branch_pool = Convolution(*pool_convolution, (1, 1)) if pool_convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                names = (step,) if isinstance(step, str) else step
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            outputs.append(y)
        return torch.cat([*outputs, self.branch_pool(_pooled(x, self.pool))], dim=1)


def _pooled(x: Tensor, pool: Pool) -> Tensor:
    if pool == "mean":  # TensorFlow's average leaves the padding out
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return F.max_pool2d(x, 3, stride=1, padding=1) if pool == "max" else F.max_pool2d(x, 3, stride=2)


def _block_a(before: int, pooled: int) -> Block:
    convolutions = {
        "branch1x1": (before, 64, (1, 1), 1),
        "branch5x5_1": (before, 48, (1, 1), 1),
        "branch5x5_2": (48, 64, (5, 5), 1),
        "branch3x3dbl_1": (before, 64, (1, 1), 1),
        "branch3x3dbl_2": (64, 96, (3, 3), 1),
        "branch3x3dbl_3": (96, 96, (3, 3), 1),
    }
    branches = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)]]
    return Block(convolutions, branches, "mean", (before, pooled))


def _block_b(before: int) -> Block:
    convolutions = {
        "branch3x3": (before, 384, (3, 3), 2),
        "branch3x3dbl_1": (before, 64, (1, 1), 1),
        "branch3x3dbl_2": (64, 96, (3, 3), 1),
        "branch3x3dbl_3": (96, 96, (3, 3), 2),
    }
    return Block(convolutions, [["branch3x3"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)]], "max, halved")


def _block_c(before: int, inner: int) -> Block:
    convolutions = {
        "branch1x1": (before, 192, (1, 1), 1),
        "branch7x7_1": (before, inner, (1, 1), 1),
        "branch7x7_2": (inner, inner, (1, 7), 1),
        "branch7x7_3": (inner, 192, (7, 1), 1),
        "branch7x7dbl_1": (before, inner, (1, 1), 1),
        "branch7x7dbl_2": (inner, inner, (7, 1), 1),
        "branch7x7dbl_3": (inner, inner, (1, 7), 1),
        "branch7x7dbl_4": (inner, inner, (7, 1), 1),
        "branch7x7dbl_5": (inner, 192, (1, 7), 1),
    }
    branches = [
        ["branch1x1"],
        [f"branch7x7_{i}" for i in (1, 2, 3)],
        [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
    ]
    return Block(convolutions, branches, "mean", (before, 192))


def _block_d(before: int) -> Block:
    convolutions = {
        "branch3x3_1": (before, 192, (1, 1), 1),
        "branch3x3_2": (192, 320, (3, 3), 2),
        "branch7x7x3_1": (before, 192, (1, 1), 1),
        "branch7x7x3_2": (192, 192, (1, 7), 1),
        "branch7x7x3_3": (192, 192, (7, 1), 1),
        "branch7x7x3_4": (192, 192, (3, 3), 2),
    }
    branches = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]]
    return Block(convolutions, branches, "max, halved")


def _block_e(before: int, pool: Pool) -> Block:
    convolutions = {
        "branch1x1": (before, 320, (1, 1), 1),
        "branch3x3_1": (before, 384, (1, 1), 1),
        "branch3x3_2a": (384, 384, (1, 3), 1),
        "branch3x3_2b": (384, 384, (3, 1), 1),
        "branch3x3dbl_1": (before, 448, (1, 1), 1),
        "branch3x3dbl_2": (448, 384, (3, 3), 1),
        "branch3x3dbl_3a": (384, 384, (1, 3), 1),
        "branch3x3dbl_3b": (384, 384, (3, 1), 1),
    }
    branches: list[list[Step]] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
    ]
    return Block(convolutions, branches, pool, (before, 192))


class Inception(nn.Module):
    """Bytes [n, 3, h, w] -> the 2048 features of the last pool."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3))
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "mean")
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = (resize_tensorflow_1(images.to(self.fc.weight.dtype), SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


def resize_tensorflow_1(x: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Bilinear as TensorFlow 1's resize_bilinear with align_corners=False: output pixel i looks at i * (old / new).

    No half pixel is added and nothing is smoothed, which shifts and aliases; FID is defined with it.
    """
    for dim in (2, 3):
        old = x.shape[dim]
        at = torch.arange(size, device=x.device, dtype=x.dtype) * (old / size)
        low = at.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        share = (at - low).view([-1 if d == dim else 1 for d in range(4)])
        below, above = x.index_select(dim, low), x.index_select(dim, high)
        x = below + (above - below) * share
    return x
