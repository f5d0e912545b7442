"""Distances in plans: as many images as the largest budgets afford, and none where they would dominate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.planning.cautions import cautions
from orchestrator.planning.plan import Plan, make
from orchestrator.spec.evaluation_cost import affordable_images, distance_flops, distances, evaluation_work
from orchestrator.spec.source import SpecError
from orchestrator.spec.trial import Distance

SPEC = """\
name: small
dataset: fashion-mnist
models: {{patch: 4, head_dim: 8, sizes: [{{name: w16, width: 16, depth: 2}}, {{name: w96, width: 96, depth: 2}}]}}
arms: {{mup: {{parameterization: {{name: mup, base_width: 32}}}}}}
training: {{batch_size: 64, learning_rate: 1e-2}}
budgets: {{flops: [2.5e10, 1e11, 4e11]}}
evaluation: {{{evaluation}}}
"""


def planned(tmp_path: Path, evaluation: str) -> Plan:
    path = tmp_path / "small.yaml"
    path.write_text(SPEC.format(evaluation=evaluation))
    return make(path)


def test_a_distance_is_measured_where_it_does_not_dominate(tmp_path):
    plan = planned(tmp_path, "sample_images: 0, distance: {encoder: fmnist-cnn, images: auto}")
    small, large = sorted(plan.trials, key=lambda trial: trial.params_total)
    assert small.evaluation.distance == Distance(encoder="fmnist-cnn", images=500)
    assert (small.evaluation.sampler, small.evaluation.sampler_steps) == ("dpmpp-2m", 10)
    assert distances(small) == small.milestones
    assert distances(large) == large.milestones[-1:]
    for trial in plan.trials:
        forward = trial.flops_per_sample / 3
        each = 500 * (10 * forward + 7.5e6)
        assert distance_flops(trial.evaluation, trial.evaluation.distance, forward) == pytest.approx(each)
        assert all(each <= trial.flops_per_sample * milestone / 2 for milestone in distances(trial))
        shared, images = evaluation_work(trial)
        losses = forward * trial.evaluation.loss_images * len(trial.milestones)
        assert shared == pytest.approx(losses + each * len(distances(trial)))
        assert images == 0
    found = {trial["trial_id"]: trial["distances"] for trial in plan.as_json()["trials"]}
    assert found[large.trial_id] == list(large.milestones[-1:])


def test_large_budgets_afford_more_images(tmp_path):
    (trial, *_) = planned(tmp_path, "distance: {encoder: fmnist-cnn}").trials
    evaluation, distance = trial.evaluation, trial.evaluation.distance
    chosen = [affordable_images(evaluation, distance, [(1e9, samples)]) for samples in (1e3, 1e5, 3e5, 1e6)]
    assert chosen == [500, 1000, 2000, 10_000]
    assert affordable_images(evaluation, distance, [(1e9, 1e6), (1e9, 1e5)]) == 1000


def test_a_distance_makes_another_measurement_and_none_leaves_identities_alone(tmp_path):
    without = planned(tmp_path, "sampler: dpmpp-2m, sampler_steps: 10").trials[0]
    with_one = planned(tmp_path, "distance: {encoder: fmnist-cnn, images: 500}").trials[0]
    assert without.trial_id != with_one.trial_id
    assert without.evaluation == dataclasses.replace(with_one.evaluation, distance=None)


def test_fewer_images_than_features_are_warned_about(tmp_path):
    plan = planned(tmp_path, "distance: {encoder: inception, images: 1000}")
    assert any("1,000 images are fewer than inception's 2,048 features" in text for text in cautions(plan))
    assert not any("features" in text for text in cautions(planned(tmp_path, "distance: {encoder: fmnist-cnn}")))


def test_what_no_distance_can_be_is_refused(tmp_path):
    with pytest.raises(SpecError) as caught:
        planned(tmp_path, "distance: {encoder: vgg, images: 5, most_of_training: 0}")
    text = str(caught.value)
    for where in ("evaluation.distance.encoder", "evaluation.distance.images", "evaluation.distance.most_of_training"):
        assert where in text
