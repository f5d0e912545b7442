"""The fit benchmark: one flat object, the planted table, and scipy's objective with the same optimum."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.fitting import fit_law
from analysis.laws import SurfaceLaw
from orchestrator.bench import fit as benchmark


def test_the_baseline_minimises_the_same_objective() -> None:
    x, y = benchmark.planted(60)
    found = fit_law(SurfaceLaw(), x, y, num_resamples=0)
    theta = SurfaceLaw().to_theta(found.params)
    value, gradient = benchmark._objective(theta, np.log(x), np.log(y))
    assert value == pytest.approx(found.objective, rel=1e-9)
    assert np.abs(gradient).max() < 1e-6
    step = 1e-6 * np.eye(5)
    ahead = [benchmark._objective(theta + 0.01 + s, np.log(x), np.log(y))[0] for s in step]
    behind = [benchmark._objective(theta + 0.01 - s, np.log(x), np.log(y))[0] for s in step]
    slope = benchmark._objective(theta + 0.01, np.log(x), np.log(y))[1]
    np.testing.assert_allclose((np.array(ahead) - behind) / 2e-6, slope, rtol=1e-3, atol=1e-6)


def test_the_figures_are_one_flat_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "NUM_REFITS", 60)
    monkeypatch.setattr(benchmark, "NUM_ROWS", 60)
    figures = benchmark.run(1, 1)
    assert {"surface_fit_ms", "bootstrap_4000_s", "baseline_bootstrap_s"} <= set(figures)
    assert all(isinstance(value, int | float) and value > 0 for value in figures.values())
