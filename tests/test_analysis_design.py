"""Expected intervals: against brute-force fits of planted tables, and against what a bootstrap would report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import design, valleys
from analysis.allocation import CostRelation, surface_optimum
from analysis.design import expected_intervals, surface_covariance
from analysis.fitting import fit_law
from analysis.isoflop import fit_isoflop
from analysis.laws import SurfaceLaw
from analysis.planted import SURFACE, Cells, CostLine, Noise, PlantedLaw
from analysis.solver import Problem, polish
from orchestrator.expectations import expectations
from orchestrator.planning.plan import make

COST = CostLine(coefficient=300.0, exponent=1.0)
TARGET = 8e15


def grid(sizes: int = 9, budgets: int = 9, seeds: int = 1, params: tuple[float, float] = (4e4, 4e6)) -> Cells:
    """Sizes x budgets x seeds over three decades of FLOPs, one trajectory a size and seed."""
    size, budget, seed = (
        axis.ravel() for axis in np.meshgrid(range(sizes), range(budgets), range(seeds), indexing="ij")
    )
    n, flops = np.geomspace(*params, sizes)[size], np.geomspace(1e12, 1e15, budgets)[budget]
    samples = flops / (COST.coefficient * n)
    return Cells(params=n, samples=samples, flops=flops, trial=size * seeds + seed, budget_flops=flops)


def frame(cells: Cells, losses: np.ndarray) -> pd.DataFrame:
    columns = {name: getattr(cells, name) for name in ("params", "samples", "flops", "budget_flops")}
    return pd.DataFrame({**columns, "trial_id": cells.trial.astype(str), "loss": losses})


def fitted_surfaces(cells: Cells, law: PlantedLaw, losses: np.ndarray) -> list[PlantedLaw]:
    """The Huber fit of every table, started at the truth."""
    form, log_x = SurfaceLaw(), np.log(np.stack([cells.params, cells.samples], axis=1))
    mean = log_x.mean(axis=0)
    theta = np.array([np.log(law.E), np.log(law.A), np.log(law.B), law.alpha, law.beta])
    centred = form.shift(theta, -mean, 0.0)
    low, high = form.bounds(np.log(losses))
    problem = Problem(
        law=form,
        log_x=log_x - mean,
        log_y=np.log(losses),
        weights=np.ones((1, len(cells))),
        low=low,
        high=high,
    )
    solved, _ = polish(problem, np.repeat(centred[None], len(losses), axis=0))
    params = form.to_params(form.shift(solved, mean, 0.0))
    return [PlantedLaw(**{name: float(params[name][i]) for name in SURFACE}) for i in range(len(losses))]


@pytest.mark.parametrize("noise", [Noise(), Noise(seed=0.0, measurement=0.006)], ids=["both", "measurement"])
def test_intervals_are_those_of_brute_force(noise):
    cells = grid(sizes=7, budgets=6)
    law = PlantedLaw.around(cells)
    expected = {(e.method, e.name): e for e in expected_intervals(cells, law, noise, TARGET)}
    losses = law.simulate(cells, noise, 80, np.random.default_rng(1))
    minima = [fit_isoflop(frame(cells, row), num_resamples=0) for row in losses[:50]]
    surfaces = fitted_surfaces(cells, law, losses)
    drawn = {
        ("isoflop", "N_exponent"): [fit.params["N_exponent"] for fit in minima],
        ("isoflop", "params"): np.log([float(fit.optimum("N", TARGET)) for fit in minima]),
        ("isoflop", "samples"): np.log([float(fit.optimum("D", TARGET)) for fit in minima]),
        ("surface", "alpha"): [fit.alpha for fit in surfaces],
        ("surface", "beta"): [fit.beta for fit in surfaces],
        ("surface", "N_exponent"): [fit.exponents(COST)[0] for fit in surfaces],
        ("surface", "params"): np.log([fit.optimum(COST, TARGET)[0] for fit in surfaces]),
        ("surface", "loss"): np.log([fit.loss(*fit.optimum(COST, TARGET)) for fit in surfaces]),
    }
    for key, values in drawn.items():
        logged = key[1] in ("params", "samples", "loss")
        got = np.array([expected[key].low, expected[key].high])
        width = float(np.diff(np.log(got) if logged else got)[0])
        assert width == pytest.approx(2 * 1.96 * np.std(values), rel=0.3), key
        centre = float(np.mean(np.log(got) if logged else got))
        assert abs(centre - np.mean(values)) < 0.2 * width, key


def test_a_bootstrapped_fit_reports_about_as_much():
    cells, noise = grid(), Noise()
    law = PlantedLaw.around(cells)
    expected = {(e.method, e.name): e.high - e.low for e in expected_intervals(cells, law, noise)}
    widths = []
    for losses in law.simulate(cells, noise, 3, np.random.default_rng(2)):
        low, high = fit_isoflop(frame(cells, losses), num_resamples=200).ci95["N_exponent"]
        x = np.stack([cells.params, cells.samples], axis=1)
        band = fit_law(SurfaceLaw(), x, losses, trials=cells.trial, num_resamples=100).ci95
        widths.append((high - low, *(band[name][1] - band[name][0] for name in ("alpha", "beta"))))
    keys = [("isoflop", "N_exponent"), ("surface", "alpha"), ("surface", "beta")]
    for key, reported in zip(keys, np.median(widths, axis=0), strict=True):
        assert 1 / 1.6 < reported / expected[key] < 1.6, key


def test_the_parabolas_follow_the_rules_of_the_fit():
    assert (design.MIN_SIZES, design.NEAR, design.MIN_NEAR) == (valleys.MIN_SIZES, valleys.NEAR, valleys.MIN_NEAR)


@given(
    alpha=st.floats(0.2, 0.8), beta=st.floats(0.2, 0.8), exponent=st.floats(0.7, 1.2), share=st.floats(0.1, 0.9),
    flops=st.floats(1e10, 1e20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_derivatives_and_optima_of_a_planted_law(alpha, beta, exponent, share, flops):
    cost = CostLine(coefficient=50.0, exponent=exponent)
    law = PlantedLaw.anchored(1e6, 1e7, cost, alpha=alpha, beta=beta, floor_share=share, loss=2.0)
    assert float(law.loss(1e6, 1e7)) == pytest.approx(2.0)
    n, d = law.optimum(cost, 50.0 * 1e6**exponent * 1e7)
    assert (float(n), float(d)) == (pytest.approx(1e6), pytest.approx(1e7))
    relation = CostRelation(coefficient=50.0, params_exponent=exponent, spread=0.0)
    optimum = surface_optimum({name: getattr(law, name) for name in SURFACE}, relation, flops)
    assert float(law.optimum(cost, flops)[0]) == pytest.approx(float(optimum["params"]), rel=1e-9)
    assert law.exponents(cost)[0] == pytest.approx(float(optimum["N_exponent"]))

    theta = np.array([np.log(law.E), np.log(law.A), np.log(law.B), alpha, beta])

    def at(step: np.ndarray) -> np.ndarray:
        moved = theta + step
        other = PlantedLaw(**dict(zip(SURFACE, (*np.exp(moved[:3]), *moved[3:]), strict=True)))
        best = other.optimum(cost, flops)
        return np.array([np.log(best[0]), np.log(other.loss(*best)), other.exponents(cost)[0]])

    steps = 1e-5 * np.eye(5)
    numeric = np.stack([(at(step) - at(-step)) / 2e-5 for step in steps], axis=1)
    analytic = [law.optimum_sensitivity(cost, flops), law.sensitivity(*law.optimum(cost, flops))]
    np.testing.assert_allclose([*analytic, law.exponent_sensitivity(cost)], numeric, rtol=1e-4, atol=1e-6)


def test_huber_noise_is_the_noise_itself_where_nothing_is_clipped_and_the_medians_where_everything_is():
    noise = Noise(seed=3e-3, measurement=4e-3)
    plain = noise.of_huber(1.0)
    assert (plain.seed, plain.measurement) == (pytest.approx(3e-3, rel=1e-3), pytest.approx(4e-3, rel=1e-3))
    clipped = noise.of_huber(1e-7)  # least absolute deviations: sign(z) correlates as (2 / pi) arcsin(rho)
    assert clipped.seed**2 == pytest.approx(25e-6 * np.arcsin(9 / 25), rel=1e-2)
    assert clipped.seed**2 + clipped.measurement**2 == pytest.approx(25e-6 * np.pi / 2, rel=1e-2)


def test_more_seeds_and_less_noise_narrow_the_intervals():
    law = PlantedLaw.around(grid())
    one, four = (expected_intervals(grid(seeds=seeds), law, Noise()) for seeds in (1, 4))
    for few, many in zip(one, four, strict=True):
        assert many.half_width == pytest.approx(few.half_width / 2, rel=0.15)
    loud, quiet = (surface_covariance(grid(), law, Noise(seed=s, measurement=s)) for s in (0.02, 0.01))
    np.testing.assert_allclose(loud, 4 * quiet, rtol=0.05)


def test_what_a_plan_cannot_tell_is_said_with_its_reason():
    law = PlantedLaw.around(grid())

    def reasons(cells: Cells, noise: Noise | None = None) -> dict[str, str | None]:
        found = expected_intervals(cells, law, noise or Noise(), TARGET)
        assert all((e.low is None) == (e.outcome == "not_identified") for e in found)
        return {e.method: e.reason for e in found}

    two_sizes = reasons(grid(sizes=2))
    assert two_sizes["isoflop"] == "isoFLOP minima need 2 budgets with at least 3 sizes each; the plan has 0 of them"
    assert two_sizes["surface"] == "a surface needs 3 different params; the plan has 2"
    assert "has 1 of them" in reasons(grid(budgets=1))["isoflop"]
    far = reasons(grid(params=(4e7, 4e9)))
    assert far["isoflop"] == "the sizes bracket the expected minimum at 0 of 9 budgets; a law needs 2"
    loud = reasons(grid(), Noise(seed=0.5, measurement=0.5))
    assert "could as well be 0" in loud["surface"]
    samples = grid()
    unnamed = Cells(**{**vars(samples), "budget_flops": np.full(len(samples), np.nan)})
    assert "the plan has 0 of them" in reasons(unnamed)["isoflop"]
    assert reasons(unnamed)["surface"] is None


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="wanted seed or measurement above 0"):
        Noise(seed=0.0, measurement=0.0)
    with pytest.raises(ValueError, match=r"alpha of a planted law is -0\.3"):
        PlantedLaw(E=1.0, A=1.0, B=1.0, alpha=-0.3)
    with pytest.raises(ValueError, match="wanted one entry a cell"):
        Cells(**{**vars(grid()), "params": np.ones(3)})


def test_ten_thousand_cells_take_less_than_half_a_second_and_nothing_heavy():
    light = (
        "import sys, json; import analysis.design; print(json.dumps(sorted({'pandas', 'scipy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    cells = grid(sizes=100, budgets=100)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        expected_intervals(cells, PlantedLaw.around(cells), Noise(), TARGET)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.5  # 0.2 s where the machine is not shared


def test_a_plan_says_what_it_will_tell(tmp_path: Path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        """
name: expectation
models: {patch: 4, head_dim: 8, sizes: {rule: width, widths: [16, 24, 32, 48, 64], depth: 2}}
arms: {mup: {parameterization: {name: mup, base_width: 32}}, cooled: {training: {schedule: {name: wsd}}}}
training: {batch_size: 64}
axes: {learning_rate: [1e-3, 2e-3, 4e-3]}
seeds: [0, 1]
budgets: {flops: {from: 2.5e10, to: 4e11, factor: 2}}
expect: {seed_noise: 0.01, target_flops: 1e13}
"""
    )
    plan = make(spec)
    found = expectations(plan)
    assert list(found) == ["mup", "cooled"]
    by_name = {(e.method, e.name): e for e in found["mup"]}
    assert by_name["isoflop", "N_exponent"].outcome == "expected"
    assert by_name["isoflop", "N_exponent"].low < by_name["isoflop", "N_exponent"].high
    assert by_name["surface", "params"].truth > 0
