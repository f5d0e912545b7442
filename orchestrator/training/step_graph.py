"""A training step as a CUDA graph: one launch for the thousands of small kernels of a small model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_STEPS = 3
"""Steps before the capture: libraries make their workspaces, and a compiler its code, which a graph cannot hold."""


class StepGraph:
    """Calls a step; from the fourth call on by replaying what the GPU was told in it.

    Args:
        step: takes tensors on the GPU and returns one; it works on the same buffers every time, draws nothing, and does
            not look at values. What changes from step to step comes in as tensors.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The step's output, a copy that later steps leave alone. Inputs keep their shapes from call to call."""
        self._calls += 1
        if self._calls <= WARM_STEPS:
            return self._step(*inputs)
        if self._graph is None:
            self._inputs = [tensor.clone() for tensor in inputs]
            self._graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph):  # records, and does nothing yet
                self._output = self._step(*self._inputs)
        for held, tensor in zip(self._inputs, inputs, strict=True):
            held.copy_(tensor, non_blocking=True)
        self._graph.replay()
        assert self._output is not None
        return self._output.clone()
