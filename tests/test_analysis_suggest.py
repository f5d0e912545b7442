"""Which trials to run next: the variance that designs are judged by, the search, the spend, and the benchmark."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.candidates import Ladder, Measured, options
from analysis.design import Z95, surface_covariance
from analysis.fitting import fit_law
from analysis.laws import SurfaceLaw
from analysis.planted import SURFACE, Cells, CostLine, Noise, PlantedLaw
from analysis.suggest import EXPONENT_RANGE, _Design, estimated_noise, plausible_laws, prior_laws, suggest
from orchestrator.bench import suggest as benchmark
from orchestrator.cli import main

COST = CostLine(coefficient=300.0, exponent=1.0)
LAW = PlantedLaw.anchored(4e5, 3e13 / 300 / 4e5, COST)
NOISE = Noise()
TARGET = 8e15


def ladder(sizes: int = 9, budgets: int = 9, seeds: int = 1, cooldown: float = 0.0) -> Ladder:
    params = np.geomspace(4e4, 4e6, sizes)
    grid = np.geomspace(1e12, 1e15, budgets)
    return Ladder(
        params=params,
        flops_per_sample=300 * params,
        samples=grid / (300 * params[:, None]),
        num_seeds=seeds,
        cooldown=cooldown,
    )


def measured(where: Ladder, sizes: range, budgets: range) -> Measured:
    """Some sizes of a ladder at some budgets, in the first seed."""
    rows = [(size, where.samples[size, budget]) for size in sizes for budget in budgets]
    index = np.array([sizes.index(size) for size, _ in rows])
    params = where.params[[size for size, _ in rows]]
    samples = np.array([samples for _, samples in rows])
    flops = 300 * params * samples
    cells = Cells(params=params, samples=samples, flops=flops, trial=index, budget_flops=flops)
    return Measured(cells=cells, trajectories=tuple((size, 0) for size in sizes))


def draw(found: Measured, seed: int, noise: Noise = NOISE) -> np.ndarray:
    return LAW.simulate(found.cells, noise, 1, np.random.default_rng(seed))[0]


def test_designs_are_judged_by_the_variance_of_the_fit():
    where = ladder()
    known = measured(where, range(9), range(9))
    widths = _Design(where, known, [LAW], NOISE, 0.0, TARGET, "both").half_widths({})
    covariance = surface_covariance(known.cells, LAW, NOISE)
    n, d = LAW.optimum(COST, TARGET)
    for name, goal in (("params", LAW.optimum_sensitivity(COST, TARGET)), ("loss", LAW.sensitivity(n, d))):
        assert widths[name] == pytest.approx(Z95 * np.sqrt(goal @ covariance @ goal), rel=0.02)


def test_a_chosen_design_counts_as_if_it_were_measured():
    where = ladder()
    first = measured(where, range(0, 9, 2), range(0, 5))
    found = suggest(where, first, [LAW], NOISE, target_flops=TARGET, spend=2e14, misfit=0.0)
    flops = [first.cells.flops, *(np.array(run.milestones) for run in found.runs)]
    sizes = [first.cells.params, *(np.full(len(run.milestones), where.params[run.trajectory[0]]) for run in found.runs)]
    names = [first.trajectories[trial] for trial in first.cells.trial]
    names += [run.trajectory for run in found.runs for _ in run.milestones]
    order = list(dict.fromkeys(names))
    all_flops, all_sizes = np.concatenate(flops), np.concatenate(sizes)
    cells = Cells(
        params=all_sizes,
        samples=all_flops / (300 * all_sizes),
        flops=all_flops,
        trial=np.array([order.index(name) for name in names]),
        budget_flops=all_flops,
    )
    together = Measured(cells=cells, trajectories=tuple(order))
    widths = _Design(where, together, [LAW], NOISE, 0.0, TARGET, "both").half_widths({})
    assert widths == pytest.approx(dict(found.after), rel=1e-6)
    assert widths["params"] < 0.8 * found.now["params"]
    assert widths["loss"] < 0.8 * found.now["loss"]


def test_the_search_comes_near_the_best_of_all_designs():
    where, spend = ladder(sizes=4, budgets=4), 4e14
    known = measured(where, range(0, 4, 3), range(2))
    design = _Design(where, known, [LAW], NOISE, 0.0, TARGET, "both")
    offers = [[None, *(np.flatnonzero(design.owner == index))] for index in range(4)]
    best = np.inf
    for combination in itertools.product(*offers):
        chosen = {index: int(option) for index, option in enumerate(combination) if option is not None}
        if sum(design.flops[option] for option in chosen.values()) <= spend:
            best = min(best, design.value_of(chosen))
    found = design.choose(spend)
    start = design.value_of({})
    assert design.value_of(found) <= best + 0.1 * (start - best)


def test_random_designs_of_the_same_spend_are_worse():
    where, spend, rng = ladder(sizes=13, budgets=10), 3e14, np.random.default_rng(0)
    known = measured(where, range(0, 13, 4), range(4))
    design = _Design(where, known, [LAW], NOISE, 0.0, TARGET, "both")
    ours = design.value_of(design.choose(spend))
    others = []
    for _ in range(100):
        chosen: dict[int, int] = {}
        for option in rng.permutation(len(design.options)):
            owner = int(design.owner[option])
            if owner not in chosen and design.flops[option] + sum(design.flops[o] for o in chosen.values()) <= spend:
                chosen[owner] = int(option)
        others.append(design.value_of(chosen))
    assert ours < min(others)


@given(spend=st.floats(2e12, 3e15), seeds=st.integers(1, 2), cooldown=st.sampled_from([0.0, 0.2]))
@settings(max_examples=12, deadline=None)
def test_the_spend_is_never_exceeded_and_extensions_cost_what_they_add(spend, seeds, cooldown):
    where = ladder(sizes=5, budgets=6, seeds=seeds, cooldown=cooldown)
    known = measured(where, range(0, 5, 2), range(3))
    found = suggest(where, known, [LAW], NOISE, target_flops=TARGET, spend=spend)
    assert 0 < found.flops <= spend * (1 + 1e-12)
    assert len({run.trajectory for run in found.runs}) == len(found.runs)
    for run in found.runs:
        assert run.trained == known.trained.get(run.trajectory, 0.0)
        assert run.milestones[0] > run.trained
        assert list(run.milestones) == sorted(run.milestones)
        flops = np.array(run.milestones)
        price = flops[-1] - run.trained if cooldown == 0 else 0.8 * flops[-1] + 0.2 * flops.sum()
        assert run.flops == pytest.approx(price)


def test_nothing_is_offered_where_nothing_may_be_run():
    where = ladder(sizes=3, budgets=4)
    samples = where.samples.copy()
    samples[0, 2:] = np.nan
    narrow = Ladder(params=where.params, flops_per_sample=where.flops_per_sample, samples=samples)
    offered = {(option.trajectory, budget) for option in options(narrow, None) for budget in option.budgets}
    assert offered == {(0, 0), (0, 1)} | {(size, budget) for size in (1, 2) for budget in range(4)}
    found = suggest(narrow, None, [LAW], NOISE, target_flops=TARGET, spend=1e15)
    assert np.isfinite(list(found.after.values())).all()


def test_a_spend_that_buys_nothing_is_refused():
    with pytest.raises(ValueError, match=r"buys no trial: the cheapest costs 1e\+12\. Raise the spend"):
        suggest(ladder(), None, [LAW], NOISE, target_flops=TARGET, spend=1e10)


def test_what_is_asked_for_is_what_shrinks_most():
    where = ladder(sizes=13, budgets=10)
    known = measured(where, range(0, 13, 3), range(5))
    for_n, for_loss = (
        suggest(where, known, [LAW], NOISE, target_flops=TARGET, spend=2e14, quantity=quantity)
        for quantity in ("params", "loss")
    )
    assert for_n.after["params"] < for_loss.after["params"]
    assert for_loss.after["loss"] < for_n.after["loss"]


def test_a_law_that_may_not_fit_keeps_the_design_near_the_minima():
    where = ladder(sizes=13, budgets=10)

    def farthest(misfit: float) -> float:
        found = suggest(where, None, [LAW], NOISE, target_flops=TARGET, spend=5e14, misfit=misfit)
        cells = [(where.params[run.trajectory[0]], flops) for run in found.runs for flops in run.milestones]
        params, flops = (np.array(column) for column in zip(*cells, strict=True))
        least = LAW.loss(*LAW.optimum(COST, flops))
        return float(np.percentile(LAW.loss(params, flops / (300 * params)) / least, 90))

    assert farthest(0.1) < farthest(0.0)


def test_noise_is_estimated_within_and_between_trials():
    where = ladder(sizes=13, budgets=10)
    known = measured(where, range(13), range(10))
    planted = Noise(seed=0.01, measurement=0.003)
    found = [estimated_noise(LAW, known.cells, draw(known, seed, planted)) for seed in range(20)]
    assert np.median([noise.seed for noise in found]) == pytest.approx(0.01, rel=0.2)
    assert np.median([noise.measurement for noise in found]) == pytest.approx(0.003, rel=0.1)
    single = measured(where, range(2), range(1))
    alone = estimated_noise(LAW, single.cells, draw(single, 0), Noise(seed=0.02, measurement=0.001))
    assert alone.seed == pytest.approx(0.02, rel=0.3)  # too little to go by: what was expected


def test_plausible_laws_spread_as_fits_do():
    where = ladder()
    known = measured(where, range(9), range(6))
    x = np.stack([known.cells.params, known.cells.samples], axis=1)
    losses = draw(known, 1)
    fit = fit_law(SurfaceLaw(), x, losses, trials=known.cells.trial, num_resamples=0)
    laws = plausible_laws(PlantedLaw(**fit.params), known.cells, NOISE, where, 400, np.random.default_rng(2))
    covariance = surface_covariance(known.cells, PlantedLaw(**fit.params), NOISE)
    for name, place in (("alpha", 3), ("beta", 4)):
        values = [getattr(law, name) for law in laws]
        assert np.std(values) == pytest.approx(np.sqrt(covariance[place, place]), rel=0.25)
        assert np.mean(values) == pytest.approx(fit.params[name], abs=0.2 * np.std(values))
    few = measured(where, range(2), range(1))
    for law in plausible_laws(LAW, few.cells, NOISE, where, 50, np.random.default_rng(3)):
        assert EXPONENT_RANGE[0] <= law.alpha <= EXPONENT_RANGE[1]
        assert all(np.isfinite(getattr(law, name)) for name in SURFACE)


def test_prior_laws_have_their_optimum_around_the_ladder():
    where = ladder()
    flops = float(np.exp(np.log(where.flops).mean()))
    optima = [float(law.optimum(COST, flops)[0]) for law in prior_laws(where, 60, np.random.default_rng(0))]
    assert np.exp(np.median(np.log(optima))) == pytest.approx(4e5, rel=0.4)
    assert where.params[0] / 10 < min(optima) < max(optima) < 10 * where.params[-1]


def test_the_benchmarks_fit_is_that_of_the_laws():
    task, where = benchmark.Task.drawn(0), benchmark.ladder_of(9, 9)
    study = benchmark.Study(task, where, np.random.default_rng(0))
    benchmark.measure_everything(study, 0.0)
    x = np.stack([study.cells.params, study.cells.samples], axis=1)
    params = fit_law(SurfaceLaw(), x, study.losses, num_resamples=0).params
    for name in SURFACE:
        assert getattr(study.fit(), name) == pytest.approx(params[name], rel=1e-5)


def test_the_benchmark_in_small(tmp_path):
    table, picture = tmp_path / "table.json", tmp_path / "figure.png"
    arguments = ["bench", "suggest", "--laws", "2", "--repeats", "1", "--raw", str(table), "--figure", str(picture)]
    printed = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    result = json.loads(table.read_text())
    assert json.loads(printed.output) == {name: value for name, value in result.items() if name != "table"}
    assert picture.stat().st_size > 10_000
    assert result["full grid: compute"] == pytest.approx(1.0)
    for design in benchmark.DESIGNS[1:]:
        assert 0.04 < result[f"{design}: compute"] <= 0.05 * (1 + 1e-9)
        assert all(row[design]["params_error"] < 1 for row in result["table"])
    assert result["suggest: trials"] > 9
