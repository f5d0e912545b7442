"""`ditlaw bench fit`: time of a surface fit and its bootstrap, beside scipy with the same recipe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

from analysis.fitting import fit_law
from analysis.laws import Array, SurfaceLaw
from analysis.solver import num_cores

NUM_POINTS = 240
NUM_REFITS = 4000
NUM_ROWS = 10_000
SURFACE = {"E": 1.817, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367}


def planted(num_points: int = NUM_POINTS) -> tuple[Array, Array]:
    """A table like Chinchilla's: budgets of 6e18 to 3e21 FLOPs (C = 6 N D), sizes of 40M to 16B, noise of 1%."""
    rng = np.random.default_rng(0)
    params = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), num_points))
    flops = np.exp(rng.uniform(np.log(6e18), np.log(3e21), num_points))
    x = np.stack([params, flops / (6 * params)], axis=1)
    return x, SurfaceLaw().predict(SURFACE, tuple(x.T)) * np.exp(0.01 * rng.standard_t(4, num_points))


def run(repeats: int, baseline_refits: int) -> dict[str, Any]:
    """The figures, one flat object.

    Returns:
        surface_fit_ms: one Huber surface fit of 240 points, from 12 starts; the median of `repeats`.
        bootstrap_4000_s: 4000 refits of resampled pairs, each to its optimum, with the fit.
        baseline_bootstrap_s: the same by scipy's BFGS on the log-sum-exp objective with its gradient, one start each,
            from `baseline_refits` refits.
        table_10000_s: `fit --law surface` of a table of 10,000 rows with all its figures.
        The same with `cpu`: of the processor, which a shared machine delays less.
    """
    x, y = planted()
    fit, fit_cpu = _median(lambda: fit_law(SurfaceLaw(), x, y, num_resamples=0, identify=False), repeats)
    bootstrap, bootstrap_cpu = _median(
        lambda: fit_law(SurfaceLaw(), x, y, num_resamples=NUM_REFITS, interval="pairs", identify=False),
        min(repeats, 3),
    )
    baseline, baseline_cpu = _median(lambda: _scipy_bootstrap(x, y, baseline_refits), 1)
    table, table_cpu = _median(_table, 1)
    share = NUM_REFITS / baseline_refits
    return {
        "points": NUM_POINTS,
        "cores": num_cores(),
        "surface_fit_ms": fit * 1e3,
        "bootstrap_4000_s": bootstrap,
        "baseline_bootstrap_s": baseline * share,
        "table_10000_s": table,
        "surface_fit_cpu_ms": fit_cpu * 1e3,
        "bootstrap_4000_cpu_s": bootstrap_cpu,
        "baseline_bootstrap_cpu_s": baseline_cpu * share,
        "table_10000_cpu_s": table_cpu,
    }


def _median(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of a call, by the clock and of the processor, all threads together."""
    seconds, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return statistics.median(seconds), statistics.median(processor)


def _scipy_bootstrap(x: Array, y: Array, num_refits: int) -> None:
    """Refits as in Besiroglu et al. 2024, arXiv 2404.10102: BFGS from the estimate, on the sum of Huber(1e-3)."""
    log_x, log_y = np.log(x), np.log(y)
    rng = np.random.default_rng(0)
    start = np.array([np.log(SURFACE["E"]), np.log(SURFACE["A"]), np.log(SURFACE["B"]), 0.347, 0.367])
    for _ in range(num_refits):
        rows = rng.integers(len(y), size=len(y))
        minimize(_objective, start, args=(log_x[rows], log_y[rows]), jac=True, method="BFGS")


def _objective(theta: Array, log_x: Array, log_y: Array, delta: float = 1e-3) -> tuple[float, Array]:
    terms = np.stack([np.full(len(log_y), theta[0]), *(theta[1:3] - theta[3:] * log_x).T])
    fitted = logsumexp(terms, axis=0)
    residual = log_y - fitted
    psi = np.clip(residual, -delta, delta)
    share = np.exp(terms - fitted)
    slopes = [share[0], share[1], share[2], -share[1] * log_x[:, 0], -share[2] * log_x[:, 1]]
    value = float(np.sum(psi * (residual - 0.5 * psi)))
    return value, -np.array([psi @ slope for slope in slopes])


def _table() -> None:
    """From a frame of 10,000 rows to its fit and figures."""
    from analysis import fit_surface, load

    x, y = planted(NUM_ROWS)
    frame = pd.DataFrame({"params": x[:, 0], "samples": x[:, 1], "flops": 6 * x.prod(axis=1), "loss": y})
    fit_surface(load(frame), target_flops=1e23).figures()
