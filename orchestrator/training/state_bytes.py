"""Tensors as the bytes of a safetensors file, made while other threads go on.

The library's own `save` holds Python's lock while it copies, a second for a gigabyte: training in another thread, which
a checkpoint in the background is not to disturb, would stand still for it. Here torch copies, which lets go of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
"""Of what states hold, by the format's names: https://github.com/huggingface/safetensors#format."""
_ALIGNMENT = 8


def state_bytes(tensors: Mapping[str, Tensor]) -> memoryview:
    """A safetensors file that `safetensors.torch.load` gives back as these tensors.

    Args:
        tensors: on the CPU, of any shape.

    Raises:
        TypeError: a tensor is of a type that no state has.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # so that each one is aligned
    ends = list(itertools.accumulate((tensor.nbytes for _, tensor in ordered), initial=0))
    entries = {
        name: {"dtype": _dtype(name, tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
        for (name, tensor), (start, end) in zip(ordered, itertools.pairwise(ends), strict=True)
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    file = torch.empty(_ALIGNMENT + len(header) + ends[-1], dtype=torch.uint8)
    view = file.numpy().data
    view[: _ALIGNMENT + len(header)] = len(header).to_bytes(_ALIGNMENT, "little") + header
    data = file[_ALIGNMENT + len(header) :]
    for (_, tensor), (start, end) in zip(ordered, itertools.pairwise(ends), strict=True):
        if end > start:
            data[start:end].copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
    return view


def _dtype(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"tensor {name} of a checkpoint is {tensor.dtype}; wanted one of {', '.join(map(str, DTYPES))}")
    return DTYPES[tensor.dtype]
