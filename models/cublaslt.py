"""One product of cuBLASLt that torch does not offer: gelu(x W^T + b) that keeps what goes into the GELU.

The GELU then costs the writing of a second output and reads nothing. Called through ctypes from the library that torch
itself has loaded; constants and signatures are those of cuBLAS's documentation ("Using the cuBLASLt API", CUDA 12 and
13). Its epilogues for the derivative and for sums over rows were measured too, and are slower than what they replace.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BF16, _F32, _COMPUTE_32F = 14, 0, 68
_TRANSA, _EPILOGUE, _BIAS_POINTER, _AUX_POINTER, _AUX_LD = 3, 7, 8, 11, 12
_GELU_AUX_BIAS = 32 | 128 | 4
_MAX_WORKSPACE, _MIN_ALIGNMENT = 1, (5, 6, 7, 8)
_ALIGNMENT = 16
"""Bytes. Weights are parts of flat buffers, which begin at such multiples (`orchestrator.training.flat`)."""
_MULTIPLE = 8
"""Of numbers in a row, which rows of such an alignment have."""
_WORKSPACE = 32 * 2**20
"""Bytes; what cuBLAS itself takes on an H100."""


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


def takes(outputs: int, inputs: int) -> bool:
    """Whether a weight [outputs, inputs] is one that cuBLASLt can multiply with a GELU."""
    return outputs % _MULTIPLE == 0 and inputs % _MULTIPLE == 0


def gelu_product(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x W^T + b) and x W^T + b [rows, out], both bfloat16; by torch where there is no cuBLASLt for it.

    Args:
        x: [rows, in], contiguous, bfloat16 on a GPU, as the others.
        weight: [out, in], contiguous.
        bias: [out].

    Raises:
        RuntimeError: cuBLASLt refuses what it has chosen itself.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    product = None if _library() is None else _product(rows, inputs, outputs, x.device)
    if product is None:
        before = F.linear(x, weight, bias)
        return F.gelu(before, approximate="tanh"), before
    out, before = x.new_empty(rows, outputs), x.new_empty(rows, outputs)
    product(x, weight, bias, out, before)
    return out, before


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The one that torch has loaded; None where torch is without CUDA."""
    if torch.version.cuda is None:
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except OSError:
        return None


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name} gave status {status}; wanted 0. Set compute.precision: fp32 to do without it.")


@functools.cache
def _handle(device: torch.device) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(handle))
    return handle


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)


@functools.cache
def _product(rows: int, inputs: int, outputs: int, device: torch.device) -> _Product | None:
    """None where cuBLASLt has no algorithm for the shape."""
    try:
        return _Product(rows, inputs, outputs, device)
    except RuntimeError:
        return None


class _Product:
    """The product of one shape. cuBLASLt's matrices are column-major: ours transposed, and their product reversed."""

    def __init__(self, rows: int, inputs: int, outputs: int, device: torch.device) -> None:
        self._device, self._description = device, c_void_p()
        _call("cublasLtMatmulDescCreate", byref(self._description), c_int(_COMPUTE_32F), c_int(_F32))
        self._set(_TRANSA, c_int32(1))
        self._set(_EPILOGUE, c_uint32(_GELU_AUX_BIAS))
        self._set(_AUX_LD, c_int64(outputs))
        self._weight = _layout(inputs, outputs)
        self._x = _layout(inputs, rows)
        self._out = _layout(outputs, rows)
        self._algorithm = self._first_choice()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, before: Tensor) -> None:
        self._set(_BIAS_POINTER, c_void_p(bias.data_ptr()))
        self._set(_AUX_POINTER, c_void_p(before.data_ptr()))
        one, zero = c_float(1.0), c_float(0.0)
        weight_at, x_at, out_at = (c_void_p(tensor.data_ptr()) for tensor in (weight, x, out))
        _call(
            "cublasLtMatmul", _handle(self._device), self._description,
            byref(one), weight_at, self._weight, x_at, self._x, byref(zero), out_at, self._out, out_at, self._out,
            byref(self._algorithm), c_void_p(_workspace(self._device).data_ptr()), c_size_t(_WORKSPACE),
            c_void_p(torch.cuda.current_stream(self._device).cuda_stream),
        )  # fmt: skip

    def _set(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        _call("cublasLtMatmulDescSetAttribute", self._description, c_int(attribute), byref(value), size)

    def _first_choice(self) -> _Algorithm:
        """What cuBLASLt's heuristics think fastest: not timed, so that a trial's numbers are the same every time."""
        preference, found, number = c_void_p(), (_Heuristic * 1)(), c_int(0)
        _call("cublasLtMatmulPreferenceCreate", byref(preference))
        limits = [(_MAX_WORKSPACE, c_size_t(_WORKSPACE)), *((one, c_uint32(_ALIGNMENT)) for one in _MIN_ALIGNMENT)]
        for attribute, value in limits:
            size = c_size_t(ctypes.sizeof(value))
            _call("cublasLtMatmulPreferenceSetAttribute", preference, c_int(attribute), byref(value), size)
        _call(
            "cublasLtMatmulAlgoGetHeuristic", _handle(self._device), self._description,
            self._weight, self._x, self._out, self._out, preference, c_int(1), found, byref(number),
        )  # fmt: skip
        _call("cublasLtMatmulPreferenceDestroy", preference)
        if not number.value or found[0].state:
            raise RuntimeError("cuBLASLt has no algorithm for this product with a GELU")
        return found[0].algorithm


def _layout(rows: int, columns: int) -> c_void_p:
    """A column-major matrix without gaps."""
    layout = c_void_p()
    _call("cublasLtMatrixLayoutCreate", byref(layout), c_int(_BF16), c_uint64(rows), c_uint64(columns), c_int64(rows))
    return layout
