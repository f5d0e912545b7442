"""`ditlaw bench frechet`: the trace term through eigenvalues, beside scipy's square root of the product."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import scipy.linalg
import torch

from models.fid.frechet import Reference, frechet_distance
from models.fid.moments import Moments


def run(dim: int = 2048, repeats: int = 3) -> dict[str, Any]:
    """Distances of two sets of `dim` features whose spectra fall as those of Inception do, each of 3 x `dim` images.

    Returns:
        seconds of a distance (the reference's factor is there, as it is from the second evaluation on; the median of
        `repeats`), sqrtm_seconds (the published formula with scipy's sqrtm, once), their ratio, all three of CPU time
        too; relative_error of the distance; reference_seconds (the factor, once a results folder); gpu_seconds and gpu
        (the same distance on the first GPU; None without one); and what it was measured with.
    """
    generator = torch.Generator().manual_seed(0)
    one, two = (Moments.of(_features(dim, generator, shift)) for shift in (0.0, 0.02))
    reference_time, reference = _timed(lambda: Reference.of(two))
    runs = [_timed(lambda: frechet_distance(one, reference)) for _ in range(repeats)]
    sqrtm_time, wanted = _timed(lambda: _by_sqrtm(one, two))
    seconds = statistics.median(took.wall for took, _ in runs)
    cpu_seconds = statistics.median(took.cpu for took, _ in runs)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "dim": dim,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "reference_seconds": reference_time.wall,
        "sqrtm_seconds": sqrtm_time.wall,
        "sqrtm_cpu_seconds": sqrtm_time.cpu,
        "ratio": sqrtm_time.wall / seconds,
        "cpu_ratio": sqrtm_time.cpu / cpu_seconds,
        "relative_error": abs(runs[0][1] - wanted) / abs(wanted),
        "gpu_seconds": None if gpu is None else _on_gpu(one, two, repeats),
        "gpu": gpu,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
    }


@dataclass(frozen=True)
class Time:
    """Of a piece of work: seconds of the clock, and of CPU in this process, which other jobs disturb less."""

    wall: float
    cpu: float


def _on_gpu(one: Moments, two: Moments, repeats: int) -> float:
    """The median time of a distance on the first GPU, which has its moments there."""
    here, reference = one.to("cuda"), Reference.of(two.to("cuda"))
    frechet_distance(here, reference)  # libraries make their workspaces
    return statistics.median(_timed(lambda: frechet_distance(here, reference))[0].wall for _ in range(repeats))


def _features(dim: int, generator: torch.Generator, shift: float) -> torch.Tensor:
    """Correlated features with eigenvalues over four decades."""
    scale = torch.logspace(0, -2, dim, dtype=torch.float64)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return torch.randn(3 * dim, dim, generator=generator, dtype=torch.float64) * scale @ mixing + shift


def _by_sqrtm(one: Moments, two: Moments) -> float:
    """As pytorch-fid and torch-fidelity have it, in float64."""
    root = scipy.linalg.sqrtm((one.covariance @ two.covariance).numpy())
    difference = (one.mean - two.mean).numpy()
    spread = float(one.covariance.trace() + two.covariance.trace()) - 2 * float(np.trace(root).real)
    return float(difference @ difference) + spread


def _timed(work: Callable[[], Any]) -> tuple[Time, Any]:
    began, spent = time.perf_counter(), time.process_time()
    result = work()
    return Time(time.perf_counter() - began, time.process_time() - spent), result
