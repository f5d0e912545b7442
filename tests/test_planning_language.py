"""The sweep language: ladders, axes, constraints, batch rules, kinds of budgets, includes, cooldowns."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml

from orchestrator.expectations import expected_json
from orchestrator.planning.plan import Plan, make
from orchestrator.spec.source import SpecError, read
from orchestrator.spec.values import spread

BASE = {
    "name": "small",
    "models": {"patch": 7, "head_dim": 8, "sizes": [{"name": "a", "width": 16, "depth": 1}]},
    "arms": {"sp": {"parameterization": "sp"}},
    "training": {"batch_size": 32},
    "budgets": {"flops": [1e9, 2e9]},
}


@pytest.fixture
def plan(tmp_path):
    def make_plan(**changes) -> Plan:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
        return make(path)

    return make_plan


@pytest.fixture
def refused(plan):
    def problems(**changes) -> str:
        with pytest.raises(SpecError) as found:
            plan(**changes)
        return str(found.value)

    return problems


def sizes(**rule) -> dict:
    return {"patch": 7, "head_dim": 8, "sizes": rule}


def shapes(plan: Plan) -> dict[str, tuple[int, int]]:
    return {trial.size: (trial.model.width, trial.model.depth) for trial in plan.trials}


# Values.


def test_rules_give_the_values_they_describe():
    assert spread({"from": 1e-4, "to": 1e-2, "count": 3}) == [1e-4, 1e-3, 1e-2]
    assert spread({"from": 0, "to": 0.3, "count": 4, "scale": "linear"}) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert spread({"from": 1, "to": 9, "factor": 2}) == [1, 2, 4, 8]
    assert spread({"from": 1, "to": 8, "factor": 2}) == [1, 2, 4, 8]
    assert spread({"around": 8, "factor": 2, "each_side": 2}) == [2, 4, 8, 16, 32]
    assert spread(3) == [3]
    assert spread([1, "x"]) == [1, "x"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"from": 1, "to": 2}, "wanted {from, to, count}"),
        ({"from": 2, "to": 1, "count": 3}, "wanted 0 < from < to"),
        ({"from": 0, "to": 1, "count": 3}, "wanted 0 < from < to"),
        ({"from": 1, "to": 2, "count": 1}, "count is 1; wanted a whole number of at least 2"),
        ({"from": 1, "to": 2, "factor": 1}, "factor is 1; wanted more than 1"),
        ({"around": 1, "factor": 2, "each_side": 1e9}, "gives 1,000,000,000 values"),
        ({"from": 1, "to": 1e300, "factor": 1.0000001}, "values; wanted at most"),
        ({"from": 1, "to": "inf", "count": 3}, "to is 'inf'; wanted a finite number"),
        ({"from": True, "to": 2, "count": 3}, "from is True; wanted a finite number"),
        ({"from": 1, "to": 2, "count": 3, "scale": "cubic"}, "scale is 'cubic'; wanted log or linear"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        spread(rule)


# Ladders.


def test_width_and_depth_ladders(plan):
    wide = plan(models=sizes(rule="width", widths={"from": 16, "to": 64, "count": 3}, depth=2))
    assert {t.size: (t.model.width, t.model.depth) for t in wide.trials} == {
        "w16": (16, 2),
        "w32": (32, 2),
        "w64": (64, 2),
    }
    deep = plan(models=sizes(rule="depth", depths=[1, 2, 4], width=16))
    assert {t.size: (t.model.width, t.model.depth) for t in deep.trials} == {
        "d1": (16, 1),
        "d2": (16, 2),
        "d4": (16, 4),
    }


def test_widths_of_a_rule_are_rounded_and_listed_ones_are_not(plan, refused):
    rounded = plan(models=sizes(rule="width", widths={"from": 10, "to": 60, "count": 4}, depth=1))
    assert all(trial.model.width % 8 == 0 for trial in rounded.trials)
    assert "got width 20, which heads of size 8 do not divide" in refused(
        models=sizes(rule="width", widths=[16, 20], depth=1)
    )


def test_an_aspect_ladder_hits_its_parameters(plan):
    wanted = [1e5, 1e6, 1e7]
    found = plan(models=sizes(rule="aspect", aspect=32, params=wanted), budgets={"flops": [1e12]})
    for params, trial in zip(wanted, sorted(found.trials, key=lambda trial: trial.params_backbone), strict=True):
        assert trial.params_backbone == pytest.approx(params, rel=0.25)
        assert trial.model.depth == max(1, round(trial.model.width / 32))
    by_width = plan(models=sizes(rule="aspect", aspect=16, widths=[16, 64]), budgets={"flops": [1e12]})
    assert {trial.size for trial in by_width.trials} == {"w16d1", "w64d4"}


def isoflop(**changes) -> dict:
    expected = {"params": 1e5, "flops": 1e12, "exponent": 0.5}
    return sizes(**{"rule": "isoflop", "depth": 2, "per_budget": 5, "ratio": 1.6, "expected": expected, **changes})


def test_isoflop_sizes_lie_around_the_expected_optimum_of_each_budget(plan):
    budgets = [1e11, 4e11, 1.6e12]
    found = plan(models=isoflop(), budgets={"flops": budgets})
    by_budget = {budget: [] for budget in budgets}
    for trial in found.trials:
        for budget in trial.budgets:
            by_budget[budget].append(trial.params_backbone)
    for budget, params in by_budget.items():
        optimum = 1e5 * (budget / 1e12) ** 0.5
        assert len(params) == 5
        assert min(params) < optimum < max(params)
        assert abs(sum(math.log(p / optimum) for p in params) / 5) < math.log(1.6)
    assert len(found.trials) < found.num_cells, "budgets share sizes"
    # One more budget leaves every trajectory as it was.
    more = plan(models=isoflop(), budgets={"flops": [*budgets, 6.4e12]})
    assert {t.trial_id for t in found.trials} <= {t.trial_id for t in more.trials}


def test_a_follow_up_takes_the_optimum_from_a_fit(plan, refused, tmp_path):
    fit = {"law": "isoflop", "params": {"N_exponent": 0.5, "N_coefficient": 0.1, "D_exponent": 0.5}}
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    by_file = plan(models=isoflop(expected={"allocation": "fit.json"}))
    by_hand = plan(models=isoflop(expected={"params": 0.1 * 1e9**0.5, "flops": 1e9}))
    assert {t.trial_id for t in by_file.trials} == {t.trial_id for t in by_hand.trials}
    assert "allocation: cannot be used (FileNotFoundError" in refused(
        models=isoflop(expected={"allocation": "no.json"})
    )
    (tmp_path / "fit.json").write_text("{}")
    assert "cannot be used (KeyError" in refused(models=isoflop(expected={"allocation": "fit.json"}))


def test_isoflop_sizes_want_budgets_in_flops(refused):
    assert "chooses sizes by FLOPs" in refused(models=isoflop(), budgets={"samples": [3200]})
    assert "a rule among width, depth, aspect, isoflop" in refused(models=sizes(rule="height"))
    assert "needs `head_dim`" in refused(models={"patch": 7, "sizes": {"rule": "width", "widths": [16], "depth": 1}})


# Axes.


def test_any_hyperparameter_is_an_axis(plan):
    found = plan(
        axes={"weight_decay": [0, 0.1], "models.qk_norm": [True, False], "training.ema.relative_std": [0.05, 0.1]},
        arms={"mup": {"parameterization": {"name": "mup", "base_width": 16}}},
    )
    assert len(found.trials) == 8
    assert {t.optimizer.weight_decay for t in found.trials} == {0.0, 0.1}
    assert {t.model.qk_norm for t in found.trials} == {True, False}
    assert {t.ema.relative_std for t in found.trials} == {0.05, 0.1}
    assert "mup weight_decay=0.1 qk_norm=true relative_std=0.05" in {t.arm for t in found.trials}
    assert len({t.trial_id for t in found.trials}) == 8


def test_arms_have_their_own_axes_options_and_objectives(plan):
    found = plan(
        axes={"learning_rate": {"around": 1e-2, "factor": 2, "each_side": 1}},
        arms={
            "plain": {},
            "fast": {"axes": {"learning_rate": [0.5]}},
            "norm": {"models": {"qk_norm": True}, "training": {"weight_decay": 0.1}, "learning_rate": 1e-3},
            "edm": {"objective": "edm", "axes": {"objective.sigma_data": [0.25]}},
        },
    )
    rates = Counter((t.arm, t.optimizer.learning_rate) for t in found.trials)
    assert rates == Counter(
        {("plain", r): 1 for r in (5e-3, 1e-2, 2e-2)}
        | {("fast", 0.5): 1}
        | {("norm", r): 1 for r in (5e-3, 1e-2, 2e-2)}
        | {("edm sigma_data=0.25", r): 1 for r in (5e-3, 1e-2, 2e-2)}
    )
    assert {t.model.qk_norm for t in found.trials if t.arm == "norm"} == {True}
    assert {t.objective.name for t in found.trials if t.arm.startswith("edm")} == {"edm"}
    assert found.arms == ["plain", "fast", "norm", "edm sigma_data=0.25"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"wieght_decay": [0]}, "axes.wieght_decay: is not an axis; wanted a hyperparameter of training, models"),
        ({"wieght_decay": [0]}, "did you mean 'weight_decay'?"),
        ({"compute.precision": ["fp32", "bf16"]}, "mixing it would bend the law"),
        ({"weight_decay": [-1]}, "axes.weight_decay: training.weight_decay: got -1; wanted greater than or equal to 0"),
        ({"qk_norm": ["maybe"]}, "axes.qk_norm: models.qk_norm: got 'maybe'; wanted a valid boolean"),
        ({"cooldown": [0.1], "objective.name": ["edm"]}, "axes.objective.name: is not an axis"),
        ({"weight_decay": []}, "axes.weight_decay: is empty; wanted at least one"),
        ({"width": [8]}, "is not an axis"),
    ],
)
def test_axes_that_cannot_be_are_refused(refused, axes, message):
    assert message in refused(axes=axes)


def test_overrides_of_an_arm_are_checked_where_they_stand(refused):
    message = refused(arms={"a": {"models": {"qknorm": True}}, "b": {"training": {"batchsize": 3}}})
    assert "arms.a.models.qknorm: is not a key here" in message
    assert "arms.b.training.batchsize: is not a key here" in message


# Constraints.


def test_constraints_leave_cells_out(plan):
    found = plan(
        models=sizes(rule="width", widths=[16, 32, 64], depth=1),
        axes={"learning_rate": [1e-3, 1e-2, 1e-1]},
        constraints=["learning_rate * width <= 0.7", "flops < 1.5e9 or width in (32, 64)"],
    )
    cells = {(t.model.width, t.optimizer.learning_rate, round(b / 1e9)) for t in found.trials for b in t.budgets}
    assert cells == {
        (w, r, b) for w in (16, 32, 64) for r in (1e-3, 1e-2, 1e-1) for b in (1, 2)
        if w * r <= 0.7 and (b == 1 or w > 16)
    }  # fmt: skip


def test_what_a_constraint_leaves_out_is_no_problem(plan, refused):
    models, budgets = sizes(rule="width", widths=[16, 256], depth=1), {"flops": [1e8, 1e10]}
    assert "less than one step of size w256" in refused(models=models, budgets=budgets)
    found = plan(models=models, budgets=budgets, constraints=["steps >= 1"])
    assert {(t.size, t.budgets) for t in found.trials} == {("w16", (1e8, 1e10)), ("w256", (1e10,))}


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (["width > 16", "width < 8"], "leave none of 2 cells: 'width > 16' alone leaves 0; 'width < 8' alone leaves 0"),
        (["wdth > 16"], "names 'wdth'; wanted one of arm, batch_size"),
        (["wdth > 16"], "did you mean 'width'?"),
        (["width >"], "constraints[0]: got 'width >'; wanted a condition"),
        (["__import__('os')"], "is not understood"),
        (["arm.name == 'sp'"], "is not understood"),
        (["[x for x in (1, 2)]"], "is not understood"),
        (["width < 'a'"], "cannot be worked out"),
        (["1 / (width - 16) > 0"], "division by zero"),
        (["9.0 ** 9.0 ** 9.0 ** 9.0 > 1"], "cannot be worked out"),
        (["(" * 300 + "1" + ")" * 300], "constraints[0]"),
        (["width > 0" + " " * 2000], "characters; wanted at most"),
    ],
)
def test_constraints_that_cannot_be_are_refused(refused, constraints, message):
    assert message in refused(constraints=constraints)


def test_a_constraint_that_leaves_nothing_does_not_hide_behind_an_axis(refused):
    message = refused(axes={"training.weight_dcay": [0.1]}, constraints=["width > 99"])
    assert "did you mean 'training.weight_decay'?" in message
    assert "leave none of " in message


@pytest.mark.parametrize(
    ("seeds", "wanted"), [({"count": 3}, {0, 1, 2}), ({"from": 4, "to": 6}, {4, 5, 6}), ([7, 2], {2, 7})]
)
def test_seeds_are_a_list_or_a_rule(plan, seeds, wanted):
    assert {trial.seed for trial in plan(seeds=seeds).trials} == wanted


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (3, "got 3; wanted a list, as [3] for this one seed, or {count: 3}"),
        ({"from": 2, "to": 1}, "got from 2 to 1; wanted from <= to"),
        ({"from": 0, "to": 1.5}, "to is 1.5; wanted a whole number of at least 0"),
        ({"from": 0, "to": 10**9}, "gives 1,000,000,001 values; wanted at most 100,000"),
        ({"cuont": 2}, "got a rule of cuont; wanted {from, to} or {count}"),
        ({"from": 2**70, "to": 2**70}, "less than 9223372036854775808"),
        (True, "wanted no true or false here"),
    ],
)
def test_seeds_that_cannot_be_are_refused(refused, seeds, message):
    assert message in refused(seeds=seeds)


# Batches and budgets.


def test_batch_sizes_by_rule(plan):
    rule = {"rule": "power", "of": "flops", "coefficient": 64 / 1e9**0.5, "exponent": 0.5, "multiple_of": 16}
    found = plan(training={"batch_size": rule}, budgets={"flops": [1e9, 1.02e9, 4e9]})
    batches = {budget: t.batch_size for t in found.trials for budget in t.budgets}
    assert batches == {1e9: 64, 1.02e9: 64, 4e9: 128}
    assert len(found.trials) == 2, "budgets with one batch size share a trajectory"
    bounded = plan(training={"batch_size": {**rule, "at_most": 96, "at_least": 80}})
    assert {t.batch_size for t in bounded.trials} == {80, 96}
    by_samples = {**rule, "of": "samples", "coefficient": 1, "exponent": 0.5, "multiple_of": 1}
    (trial,) = plan(training={"batch_size": by_samples}, budgets={"samples": [10_000]}).trials
    assert (trial.batch_size, trial.milestones) == (100, (10_000,))


def test_budgets_in_tokens_a_parameter_and_in_gpu_hours(plan, refused):
    (trial,) = plan(budgets={"tokens_per_param": [5, 20]}).trials
    for ratio, samples in zip((5, 20), trial.milestones, strict=True):
        assert samples * 16 / trial.params_backbone == pytest.approx(ratio, abs=32 * 16 / trial.params_backbone)
    hours = plan(
        budgets={"gpu_hours": [1, 2], "device": "h100-80gb"},
        models={**BASE["models"], "sizes": [{"name": "x", "preset": "XL/4"}]},
        compute={"precision": "bf16"},
    )
    flops = [budget for trial in hours.trials for budget in trial.budgets]
    assert flops[1] == pytest.approx(2 * flops[0])
    assert 1e17 < flops[0] / 3.6 < 1e18
    assert "are of no device" in refused(budgets={"gpu_hours": [1]})
    assert "wanted exactly one of flops, samples, tokens_per_param, gpu_hours" in refused(budgets={})


def test_sizes_may_have_budgets_of_their_own(plan, refused):
    models = sizes(rule="width", widths=[16, 32, 64], depth=1)
    found = plan(models=models, budgets={"flops": {"w16": [1e9], "w64": {"from": 1e9, "to": 4e9, "factor": 2}}})
    assert {t.size: t.budgets for t in found.trials} == {"w16": (1e9,), "w64": (1e9, 2e9, 4e9)}
    message = refused(models=models, budgets={"flops": {"w17": [1e9]}})
    assert "budgets.flops.w17: is not a size; wanted one of w16, w32, w64; did you mean" in message


def test_epochs_are_limited(plan, refused):
    message = refused(budgets={"samples": [60_000 * 1001]})
    assert "1,001 passes over the 60,000 images of fashion-mnist" in message
    assert plan(budgets={"samples": [60_000 * 1001], "max_epochs": 2000}).num_cells == 1
    assert "wanted at most 1." in refused(budgets={"samples": [60_033], "max_epochs": 1})


# Cooldowns.


@pytest.mark.parametrize(("ratio", "count", "constant", "cooled"), [(2.0, 6, 1.968, 1.79), (2**0.5, 10, 3.30, 2.68)])
def test_sharing_saves_what_it_should(plan, ratio, count, constant, cooled):
    budgets = {"flops": [1e11 * ratio**power for power in range(count)]}
    one = plan(budgets=budgets)
    assert (len(one.trials), one.num_cells) == (1, count)
    assert one.flops_separate / one.flops_planned == pytest.approx(constant, abs=0.01)
    two = plan(budgets=budgets, training={"batch_size": 32, "schedule": {"name": "wsd", "cooldown": 0.1}})
    assert (len(two.trials), two.num_cells) == (count + 1, count)
    assert two.flops_separate == pytest.approx(one.flops_separate)
    assert two.flops_separate / two.flops_planned == pytest.approx(cooled, abs=0.01)


def test_a_constant_arm_is_the_trunk_of_a_cooled_one(plan):
    found = plan(arms={"wsd": {"training": {"schedule": "wsd"}}, "constant": {}})
    trunk = next(trial for trial in found.trials if trial.branch_points)
    assert (trunk.arm, len(trunk.milestones), len(trunk.branch_points)) == ("constant", 2, 2)
    assert {trial.trunk for trial in found.trials} == {None, trunk.trial_id}
    assert len(found.trials) == 3


def test_a_trunk_comes_before_its_cooldowns_and_no_plan_beats_its_bound(plan):
    found = plan(
        models=sizes(rule="width", widths=[16, 32, 64], depth=1),
        training={"batch_size": 32, "schedule": "wsd"},
        compute={"gangs": 2},
    )
    assert found.makespan_bound_hours <= found.makespan_hours <= 2 * found.makespan_bound_hours
    order = {trial.trial_id: rank for rank, trial in enumerate(found.trials)}
    assert all(order[trial.trunk] < order[trial.trial_id] for trial in found.trials if trial.trunk)
    one, two, many = found.makespans_on([1, 2, 100])
    assert one > two >= many


def test_a_cooldown_needs_room(refused):
    message = refused(training={"batch_size": 32, "warmup_samples": 10**6, "schedule": "wsd"})
    assert "no step is left between a warmup of 1000000 samples and a cooldown of 20%" in message
    assert "wanted constant or {name: wsd" in refused(training={"schedule": "cosine"})


# Includes.


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "main.yaml"


def test_an_included_spec_is_the_ground(tmp_path):
    path = write(
        tmp_path,
        base=yaml.safe_dump({**BASE, "name": "base", "objective": {"name": "edm", "sigma_data": 0.3}}),
        main="include: base.yaml\nname: main\ntraining: {learning_rate: 2e-3}\nobjective: ddpm\n"
        "arms: {sp: null, mup: {parameterization: {name: mup, base_width: 8}}}\nbudgets: {samples: [320]}\n",
    )
    (trial,) = make(path).trials
    assert (trial.sweep, trial.arm, trial.batch_size, trial.optimizer.learning_rate) == ("main", "mup", 32, 2e-3)
    assert (trial.objective.name, trial.milestones) == ("ddpm", (320,))
    whole = tmp_path / "whole.yaml"
    whole.write_text(read(path).text)
    assert [t.trial_id for t in make(whole).trials] == [trial.trial_id]


def test_problems_name_the_file_and_line_they_come_from(tmp_path):
    path = write(
        tmp_path,
        base=yaml.safe_dump({**BASE, "seeds": ["x"]}, sort_keys=False),
        main="include: [base.yaml]\ntraining: {batch_size: -1}\n",
    )
    with pytest.raises(SpecError) as found:
        make(path)
    assert f"{path}:2: training.batch_size: got -1" in str(found.value)
    line = 1 + (tmp_path / "base.yaml").read_text().splitlines().index("- x")
    assert f"{tmp_path / 'base.yaml'}:{line}: seeds[0]: got 'x'" in str(found.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"main": "include: main.yaml"}, "main.yaml:1: include: is a circle of files that include each other"),
        ({"main": "include: [a.yaml]", "a": "include: b.yaml", "b": "x: 1\ninclude: a.yaml"}, "b.yaml:2: include: is"),
        ({"main": "include: absent.yaml"}, "there is no file"),
        ({"main": "include: [3]"}, "include[0]: got 3; wanted the path of a YAML file"),
        ({"main": "include: a.yaml", "a": "[1, 2]"}, "a.yaml:1: holds list; wanted a mapping"),
    ],
)  # fmt: skip
def test_includes_that_cannot_be_are_refused(tmp_path, files, message):
    with pytest.raises(SpecError) as found:
        make(write(tmp_path, **files))
    assert message in str(found.value)


# All problems at once.


def test_problems_of_the_language_and_of_the_grid_are_told_together(refused):
    message = refused(
        models=sizes(rule="width", widths=[16, 20], depth=1),
        training={"batch_size": 32, "betas": [2, 0.9]},
        constraints=["wdth > 3"],
        axes={"wieght_decay": [0]},
    )
    for part in ("got width 20", "training.betas[0]: got 2", "names 'wdth'", "wieght_decay: is not an axis"):
        assert part in message


def test_grids_of_too_many_cells_are_refused_at_once(refused):
    rates = {"from": 1e-6, "to": 1, "count": 50_000}
    message = refused(axes={"learning_rate": rates, "weight_decay": {"from": 1e-6, "to": 1, "count": 50_000}})
    assert "asks for 2,500,000,000 cells or more; wanted at most 1,000,000" in message
    assert "cells or more; wanted at most" in refused(
        seeds=list(range(1000)), axes={"learning_rate": {**rates, "count": 1000}}
    )


# Devices.

GPU = {"device": "h100-80gb", "gpus_per_worker": 1, "precision": "bf16"}


def of_width(*widths: int) -> dict:
    return {"patch": 2, "head_dim": 64, "sizes": {"rule": "width", "widths": list(widths), "depth": 24}}


def test_the_smallest_gang_and_one_stage_for_all(plan):
    budgets = {"flops": [1e18]}
    alone = plan(models=of_width(256), budgets=budgets, training={"batch_size": 256}, compute=GPU)
    (small,) = alone.trials
    assert (small.num_workers, small.zero_stage, small.activation_checkpointing, small.offload) == (1, 1, False, False)
    both = plan(
        models=of_width(256, 3072),
        budgets=budgets,
        training={"batch_size": 256},
        compute={**GPU, "workers": "auto", "activation_checkpointing": False},
    )
    stages = {trial.zero_stage for trial in both.trials}
    assert len(stages) == 1, "mixing stages would bend the law"
    workers = {trial.size: trial.num_workers for trial in both.trials}
    assert workers["w256"] == 1 < workers["w3072"]
    for trial in both.trials:
        assert trial.batch_size % (trial.num_workers * (trial.micro_batch or 1)) == 0
        assert trial.micro_steps == trial.batch_size // (trial.num_workers * trial.micro_batch)


def test_a_model_that_fits_no_device_is_refused_with_what_would_help(refused):
    message = refused(models=of_width(16384), budgets={"flops": [1e20]}, compute=GPU)
    assert "compute: " in message
    assert "size w16384 needs" in message
    assert "GiB at least" in message
    assert "Remedy: " in message


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"device": "h10"}, "device 'h10' is not known; wanted one of cpu, h100-80gb"),
        ({"device": "h100-80gb"}, "got h100-80gb and gpus_per_worker 0; wanted gpus_per_worker of 1, or a fraction"),
        ({"device": "cpu", "gpus_per_worker": 1}, "got cpu and gpus_per_worker 1; wanted gpus_per_worker of 0"),
        ({"workers": "auto"}, "workers auto needs to know the memory: wanted a device"),
        ({"micro_batch": 5}, "32 samples a worker, which micro-batches of 5 do not divide"),
        ({**GPU, "micro_batch": 5}, "which micro-batches of 5 do not divide"),
    ],
)
def test_devices_that_cannot_be_are_refused(refused, compute, message):
    assert message in refused(compute=compute)


def test_a_plan_says_what_it_expects_to_learn(plan):
    found = plan(models=sizes(rule="width", widths=[8, 16, 24, 32, 48, 64], depth=1),
                 budgets={"flops": {"from": 1e9, "to": 1.6e10, "factor": 2}})  # fmt: skip
    told = {(row["method"], row["name"]): row for row in expected_json(found)}
    for method in ("isoflop", "surface"):
        row = told[method, "N_exponent"]
        assert row["outcome"] == "expected"
        assert row["low"] < row["truth"] < row["high"]
    quiet = {"seed_noise": 1e-4, "measurement_noise": 1e-4}
    again = plan(models=found.sweep.models.model_dump(exclude_unset=True),
                 budgets={"flops": {"from": 1e9, "to": 1.6e10, "factor": 2}}, expect=quiet)  # fmt: skip
    narrow = {(row["method"], row["name"]): row for row in expected_json(again)}["surface", "N_exponent"]
    wide = told["surface", "N_exponent"]
    assert narrow["high"] - narrow["low"] < 0.1 * (wide["high"] - wide["low"])
    one = expected_json(plan())
    assert {row["outcome"] for row in one} == {"not_identified"}
    assert all(row["reason"] for row in one)
