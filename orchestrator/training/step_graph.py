"""A training step as a CUDA graph: one launch for the thousands of small kernels of a small model.

Steps of a gang have NCCL's collectives in them, which a graph can hold (NCCL's user guide, "Using NCCL with CUDA
Graphs"). What that asks for: every worker captures at the same step and replays in the same order; the communicator and
its connections are there before; other threads, as the one by which torch watches over collectives, may go on in the
meantime; and graphs go before the communicator does, which from NCCL 2.26 on waits for them without end. Torch does not
watch over what a graph replays: where a worker is lost, the others stand still until their gang is found to be hung.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM_STEPS = 3
"""Steps before the capture: libraries make their workspaces, a compiler its code and NCCL its connections, which a
graph cannot hold."""


Output = TypeVar("Output", Tensor, tuple[Tensor, Tensor])


class StepGraph(Generic[Output]):
    """Calls a step; from the fourth call on by replaying what the GPU was told in it.

    Args:
        step: takes tensors on the GPU and returns one or two; it works on the same buffers every time, draws nothing,
            and does not look at values. What changes from step to step comes in as tensors.
        with_others: it is a step of a gang, with collectives.
    """

    def __init__(self, step: Callable[..., Output], with_others: bool = False) -> None:
        self._step: Callable[..., Output] = step
        self._with_others = with_others
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Output | None = None

    def __call__(self, *inputs: Tensor) -> Output:
        """The step's output, a copy that later steps leave alone. Inputs keep their shapes from call to call."""
        self._calls += 1
        if self._calls <= WARM_STEPS:
            return self._aside(*inputs) if self._with_others else self._step(*inputs)
        if self._graph is None:
            self._inputs = [tensor.clone() for tensor in inputs]
            self._graph = self._capture()
        for held, tensor in zip(self._inputs, inputs, strict=True):
            held.copy_(tensor, non_blocking=True)
        self._graph.replay()
        assert self._output is not None
        return _copied(self._output)

    def release(self) -> None:
        """Let go of the graph and of all that it holds, at once."""
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._output, self._inputs = None, None, []

    def _aside(self, *inputs: Tensor) -> Output:
        """A step on another stream, as its capture will be: nothing that is made in it is to be of the usual one."""
        usual = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            output = self._step(*inputs)
        usual.wait_stream(self._stream)
        return output

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the step, and do nothing yet."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        if self._with_others:
            torch.distributed.barrier(device_ids=[torch.cuda.current_device()])
            torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self._step(*self._inputs)
        except RuntimeError as error:
            error.add_note("The step was being captured as a CUDA graph; compute.graphs: uncaptured takes it without.")
            raise
        return graph


def _copied(output: Output) -> Output:
    if isinstance(output, Tensor):
        return output.clone()
    first, second = output
    return first.clone(), second.clone()
