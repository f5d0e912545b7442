"""`ditlaw bench frechet`: the trace term through eigenvalues, beside scipy's square root of the product."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
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
        seconds (of a distance; the reference's root is there, as it is from the second evaluation on; the median of
        `repeats`), reference_seconds (the root, once a results folder), sqrtm_seconds (the published formula with
        scipy's sqrtm, once), ratio, relative_error (of the distance), and what it was measured with.
    """
    generator = torch.Generator().manual_seed(0)
    one, two = (Moments.of(_features(dim, generator, shift)) for shift in (0.0, 0.02))
    reference_seconds, reference = _timed(lambda: Reference.of(two))
    runs = [_timed(lambda: frechet_distance(one, reference)) for _ in range(repeats)]
    seconds = statistics.median(elapsed for elapsed, _ in runs)
    sqrtm_seconds, wanted = _timed(lambda: _by_sqrtm(one, two))
    return {
        "dim": dim,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "sqrtm_seconds": sqrtm_seconds,
        "ratio": sqrtm_seconds / seconds,
        "relative_error": abs(runs[0][1] - wanted) / abs(wanted),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
    }


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


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
