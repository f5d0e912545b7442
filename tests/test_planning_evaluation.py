"""Distances in plans: as many images as the largest budgets afford, and none where they would dominate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.cost import inference_bytes
from models.fid.catalog import ENCODERS
from orchestrator.planning.cautions import cautions
from orchestrator.planning.devices import GPUS, training_flops_per_second
from orchestrator.planning.evaluation import GENERATED, evaluation_seconds, generation_bytes_of
from orchestrator.planning.placement import trial_memory
from orchestrator.planning.plan import Plan, make
from orchestrator.spec.evaluation_cost import (
    affordable_images,
    distance_flops,
    distances,
    evaluation_flops,
    evaluation_work,
)
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
    assert small.evaluation.distance == Distance(encoder="fmnist-cnn", images=100)
    assert (small.evaluation.sampler, small.evaluation.sampler_steps) == ("dpmpp-2m", 10)
    assert distances(small) == small.milestones
    assert distances(large) == large.milestones[1:]
    for trial in plan.trials:
        forward = trial.flops_per_sample / 3
        each = 100 * (10 * forward + 7.5e6)
        assert distance_flops(trial.evaluation, trial.evaluation.distance, forward) == pytest.approx(each)
        assert all(each <= trial.flops_per_sample * milestone / 2 for milestone in distances(trial))
        work = evaluation_work(trial)
        assert work.losses == pytest.approx(forward * trial.evaluation.loss_images * len(trial.milestones))
        assert work.generating + work.encoding == pytest.approx(each * len(distances(trial)))
        assert work.pictures == 0
        assert evaluation_flops(trial) == work.total
    found = {trial["trial_id"]: trial["distances"] for trial in plan.as_json()["trials"]}
    assert found[large.trial_id] == list(large.milestones[1:])


def test_large_budgets_afford_more_images(tmp_path):
    (trial, *_) = planned(tmp_path, "distance: {encoder: fmnist-cnn}").trials
    evaluation, distance = trial.evaluation, trial.evaluation.distance
    budgets = (1e3, 2e4, 5e4, 1e5, 3e5, 1e6)
    chosen = [affordable_images(evaluation, distance, [(1e9, samples)]) for samples in budgets]
    assert chosen == [100, 250, 500, 1000, 2000, 10_000]
    # All sizes together: the small one's long training pays for the large one's.
    assert affordable_images(evaluation, distance, [(1e9, 1e6), (1e9, 1e5)]) == 5000
    inception = dataclasses.replace(distance, encoder="inception")
    assert affordable_images(evaluation, inception, [(1e9, 1e3)]) == 5000  # more than its 2,048 features


def test_the_quickstarts_distances_cost_little():
    plan = make(Path("sweeps/quickstart.yaml"))
    largest = sum(trial.flops_per_sample * trial.milestones[-1] for trial in plan.trials)
    each = sum(distance_flops(t.evaluation, t.evaluation.distance, t.flops_per_sample / 3) for t in plan.trials)
    assert each <= 0.05 * largest
    assert plan.flops_evaluation < 0.25 * plan.flops_planned


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


def test_passes_are_those_that_training_makes():
    from orchestrator.training.sampling import BATCH

    assert {"cpu": BATCH["cpu"], "gpu": BATCH["cuda"]} == GENERATED


def test_memory_holds_the_largest_pass_of_an_evaluation(tmp_path):
    """1,024 images at a time on a GPU, twice as many with guidance; an encoder that needs more counts instead."""
    loss_alone = planned(tmp_path, "sample_images: 0").trials[-1]
    assert generation_bytes_of(loss_alone, on_gpu=True) == 0
    grid = planned(tmp_path, "sample_images: 40").trials[-1]
    walk, own = 6 * 4 * 28 * 28, inference_bytes(grid.model, "bf16")
    assert generation_bytes_of(grid, on_gpu=False) == 40 * (walk + inference_bytes(grid.model, "fp32"))
    whole = dataclasses.replace(grid, compiled=True)
    assert generation_bytes_of(whole, on_gpu=True) == 1024 * (walk + own)
    guided = planned(tmp_path, "guidance: 2, distance: {encoder: fmnist-cnn, images: 500}").trials[-1]
    weights = ENCODERS["fmnist-cnn"].weight_bytes
    assert generation_bytes_of(guided, on_gpu=True) == weights + 1024 * (walk + 2 * own)
    inception = planned(tmp_path, "distance: {encoder: inception, images: 5000}").trials[-1]
    memory, facts = trial_memory(inception, on_gpu=True), ENCODERS["inception"]
    assert memory.evaluation == facts.weight_bytes + facts.batch * facts.image_bytes
    assert memory.total == memory.held + memory.evaluation


def test_images_are_generated_at_the_speed_of_bf16_on_a_gpu(tmp_path):
    without = planned(tmp_path, "sample_images: 0").trials[-1]
    with_one = planned(tmp_path, "sample_images: 0, distance: {encoder: fmnist-cnn, images: 500}").trials[-1]
    h100 = GPUS["h100-80gb"]
    seconds = evaluation_seconds(with_one, h100) - evaluation_seconds(without, h100)
    work = evaluation_work(with_one)
    assert work.generating > 0
    bf16, _ = training_flops_per_second(h100, with_one.model, "bf16", 1024, False)
    fp32, _ = training_flops_per_second(h100, with_one.model, "fp32", 256, False)
    assert seconds == pytest.approx(work.generating / bf16 + work.encoding / fp32)
