"""Devices by name: how much they hold and how fast they train."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.configs.base import ModelConfig
from models.cost import Precision, cost
from orchestrator.planning.own_speeds import own_figures
from orchestrator.spec.trial import Stepping

MIB = 2**20
CHECKPOINTING_WORK = 4 / 3
"""Work of a step with activation checkpointing over one without: the blocks' forward pass is done twice."""
ZERO_WORK = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.8}
"""Seconds of a step at a ZeRO stage over ZeRO 1's: DiT-XL/2 at 32 images made 128 images a second at stage 1 and 70 at
stage 3 (means of two runs, docs/memory.md); between several GPUs nothing was measured."""
OFFLOAD_WORK = 2.3
"""Seconds of a step with offload over one without: DiT-L/2 at 16 images made 39 images a second and 89."""
LEAST_STEP_SECONDS: dict[tuple[Stepping, bool], tuple[float, float]] = {
    ("graph", True): (0.4e-3, 0.135e-3),
    ("graph", False): (0.6e-3, 0.3e-3),
    ("flat", True): (3.3e-3, 2.0e-3),
    ("flat", False): (3.3e-3, 2.0e-3),
    ("deepspeed", True): (0.0, 4.7e-3),
    ("deepspeed", False): (0.0, 4.7e-3),
}
"""What a step on a GPU takes at least, however narrow the model: for itself and for each block, by what takes it and
whether it is fast (`Trial.fast`). From models of widths 64 and 128 with four and six blocks (docs/training.md): a graph
is bound by its hundreds of kernels, a step without one by the host that launches them. The kernels of `models.fused`
make of width 128 with six blocks and 4,096 tokens, not compiled, a step of 1.245 ms, where this says 1.21."""
ASSUMED_UTILISATION = 0.2
"""Of a GPU's peak, in a precision in which nothing was measured on the reference."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training FLOP/s, as measured at one width and one number of tokens a micro-batch, without checkpointing."""

    precision: Precision
    width: int
    tokens: int
    flops_per_second: float
    fast: bool = False
    """Of steps that are compiled, or graphs of the kernels of `models.fused`: see `Trial.fast`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Device:
    """A GPU, or the host with CPU workers. Equal to itself only, so that it is a cheap key."""

    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    """As the driver reports it; of a CPU, the host's memory, which its workers share."""
    reserve_bytes: int
    """What a worker takes beside tensors: CUDA's context, NCCL, kernels; on a CPU, its libraries."""
    peak_bf16: float
    """Dense FLOP/s of bf16 matrix products with fp32 sums, from the vendor's data sheet; of a CPU, of one core."""
    peak_fp32: float
    """FLOP/s of fp32 without TF32, which torch does not use unless it is told to."""
    gpus_per_node: int = 8
    """As usually sold; a larger gang takes whole nodes. Of no meaning for a CPU."""
    speeds: tuple[Speed, ...] = ()
    """What was measured; of a CPU, of one core."""

    @property
    def usable_bytes(self) -> int:
        """What there is for tensors of one worker."""
        return self.memory_bytes - self.reserve_bytes

    def peak(self, precision: Precision) -> float:
        """Peak FLOP/s in a precision; of fp8 that of bf16, which MFU is a share of in both."""
        return self.peak_fp32 if precision == "fp32" else self.peak_bf16


def named(name: str) -> Device:
    """The device of this name, with what was measured on one's own (`planning.own_speeds`); "cpu" is this host.

    Raises:
        ValueError: there is none, and the nearest name is told; or the table of one's own is damaged.
    """
    own = tuple(Speed(**row) for row in own_figures(name)["speeds"])
    return _with_speeds(_built_in(name), own) if own else _built_in(name)


@functools.lru_cache(maxsize=64)
def _with_speeds(device: Device, own: tuple[Speed, ...]) -> Device:
    """One object for the same speeds: a device is equal to itself only."""
    kinds = {(speed.precision, speed.fast) for speed in own}
    rest = (speed for speed in device.speeds if (speed.precision, speed.fast) not in kinds)
    return replace(device, speeds=(*own, *rest))


def _built_in(name: str) -> Device:
    if name == "cpu":
        return host()
    if name not in GPUS:
        known = ["cpu", *GPUS]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"device {name!r} is not known; wanted one of {', '.join(known)}; did you mean {nearest!r}?")
    return GPUS[name]


@functools.cache
def host() -> Device:
    """This host. Its speeds are one core's: medians over the quickstart's trials (DiT, patch 4, 28 x 28, heads of 8,
    batch 64, fp32, torch 2.13.0) with both cores of a 2-core AMD EPYC busy."""
    measured = ((16, 8e9), (24, 12e9), (32, 16e9), (48, 22e9), (64, 27e9), (96, 34e9))
    return Device(
        name="cpu",
        kind="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        reserve_bytes=512 * MIB,
        peak_bf16=50e9,
        peak_fp32=50e9,
        speeds=tuple(Speed(precision="fp32", width=w, tokens=64 * 49, flops_per_second=rate) for w, rate in measured),
    )


def _gpu(name: str, mib: int, tera_bf16: float, tera_fp32: float, speeds: tuple[Speed, ...] = ()) -> Device:
    return Device(
        name=name,
        kind="gpu",
        memory_bytes=mib * MIB,
        reserve_bytes=1024 * MIB,
        peak_bf16=tera_bf16 * 1e12,
        peak_fp32=tera_fp32 * 1e12,
        speeds=speeds,
    )


def _measured(precision: Precision, *rows: tuple[int, int, float], fast: bool = False) -> tuple[Speed, ...]:
    """Speeds from rows of width, images a micro-batch (of 256 tokens) and TFLOP/s."""
    return tuple(
        Speed(precision=precision, width=width, tokens=256 * images, flops_per_second=1e12 * tera, fast=fast)
        for width, images, tera in rows
    )


H100_SPEEDS = (
    *_measured(
        "bf16",
        (384, 32, 13.0), (384, 128, 53.8), (384, 512, 114.5),
        (768, 32, 33.9), (768, 128, 152.8), (768, 256, 195.5),
        (1024, 16, 43.3), (1024, 64, 146.6), (1024, 128, 208.0),
        (1152, 8, 23.7), (1152, 32, 91.3), (1152, 128, 226.2),
    ),
    *_measured("fp32", (384, 32, 21.1), (384, 128, 29.7)),
    *_measured(
        "bf16",
        (128, 256, 73.4), (384, 256, 278.5), (768, 256, 417.9), (1024, 128, 454.8), (1152, 128, 427.3),
        fast=True,
    ),
)  # fmt: skip
"""On one H100 80GB HBM3, torch 2.11+cu130, DeepSpeed 0.19.8. Not fast: DiT-S/2 to XL/2 through DeepSpeed, not compiled
(bf16: ZeRO-1; fp32: ZeRO-0), means of two runs of `ditlaw bench memory`, raw figures in docs/data/memory_h100_*.json.
Fast: graphs of the kernels of `models.fused`, not compiled, S/2 the mean of two machines, raw figures in
docs/data/training_h100_kernels.json; of width 128 a pack of 16 with 4,096 tokens each, as alone it is bound by
LEAST_STEP_SECONDS at such batches, whatever its arithmetic. Compiled they were as fast to 1% at B/2 and XL/2; compiled
graphs without these kernels were 3 to 9% slower."""

GPUS: dict[str, Device] = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100-80gb", 81_559, 989.4, 66.9, H100_SPEEDS),
        _gpu("h200-141gb", 143_771, 989.4, 66.9),
        _gpu("b200-192gb", 183_359, 2250.0, 80.0),
        _gpu("a100-80gb", 81_920, 312.0, 19.5),
        _gpu("a100-40gb", 40_960, 312.0, 19.5),
        _gpu("l40s-48gb", 46_068, 362.0, 91.6),
        _gpu("a6000-48gb", 49_140, 154.8, 38.7),
        _gpu("rtx4090-24gb", 24_564, 165.2, 82.6),
    )
}
"""GPUs by name: MiB as nvidia-smi shows them, and dense peaks in TFLOP/s of bf16 and fp32 (SXM where there is one)."""
REFERENCE = "h100-80gb"
"""The GPU whose measured speeds stand in, by the ratio of peaks, for a GPU without its own."""


@functools.lru_cache(maxsize=4096)
def training_flops_per_second(
    device: Device,
    model: ModelConfig,
    precision: Precision,
    micro_batch: int,
    activation_checkpointing: bool,
    fast: bool = False,
) -> tuple[float, bool]:
    """Training FLOP/s (3 x forward, what is computed twice counted once) of one GPU, or of one core of a CPU, and
    whether they come from measurements on this very device.

    Between measured widths and tokens a micro-batch they are interpolated in logarithms, beyond them taken from the
    edge. A GPU that was not measured has the reference's share of its peak. fp8 is taken to be as fast as bf16.
    """
    work = CHECKPOINTING_WORK if activation_checkpointing else 1.0
    tokens = micro_batch * cost(model).tokens
    kind: Precision = "fp32" if precision == "fp32" else "bf16"
    own = _of_kind(device, kind, fast)
    if own:
        within = _within(own, model.width, tokens) and precision == kind and own[0].fast == fast
        return _interpolated(own, model.width, tokens) / work, within
    reference = _of_kind(GPUS[REFERENCE], kind, fast) if device.kind == "gpu" else _of_kind(device, "fp32", False)
    if not reference:
        return ASSUMED_UTILISATION * device.peak(precision) / work, False
    ratio = device.peak(precision) / GPUS[REFERENCE].peak(precision) if device.kind == "gpu" else 1.0
    return _interpolated(reference, model.width, tokens) * ratio / work, False


def _within(speeds: Sequence[Speed], width: int, tokens: int) -> bool:
    """Whether a width and a number of tokens lie among the measured ones; a quarter beyond is near enough."""
    widths = [speed.width for speed in speeds]
    nearest = min(widths, key=lambda measured: abs(math.log(measured / width)))
    sizes = [speed.tokens for speed in speeds if speed.width == nearest]
    return 0.8 * min(widths) <= width <= 1.25 * max(widths) and tokens >= 0.8 * min(sizes)


def _of_kind(device: Device, precision: Precision, fast: bool) -> tuple[Speed, ...]:
    """Speeds of fast steps where there are any and they are asked for, else of those that are not."""
    alike = [speed for speed in device.speeds if speed.precision == precision]
    found = [speed for speed in alike if speed.fast == fast]
    return tuple(found or [speed for speed in alike if not speed.fast])


def _interpolated(speeds: tuple[Speed, ...], width: int, tokens: int) -> float:
    """FLOP/s between the measured ones: first over tokens at each width, then over widths."""
    widths = sorted({speed.width for speed in speeds})
    rates = []
    for measured in widths:
        rows = sorted((speed.tokens, speed.flops_per_second) for speed in speeds if speed.width == measured)
        rates.append(_log_interpolated([x for x, _ in rows], [y for _, y in rows], tokens))
    return _log_interpolated(widths, rates, width)


def _log_interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """y at x, linear between the logarithms of neighbours; y of the edge beyond."""
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(xs, ys, strict=True)):
        if x0 <= x <= x1:
            share = math.log(x / x0) / math.log(x1 / x0)
            return y0 * (y1 / y0) ** share
    return ys[0] if x < xs[0] else ys[-1]
