"""What evaluations cost beside training, and which of them a trial can afford."""

from __future__ import annotations

from collections.abc import Iterable

from models.fid.catalog import ENCODERS
from orchestrator.spec.trial import Distance, Evaluation, Trial

IMAGES = (10_000, 5_000, 2_000, 1_000, 500)
"""Numbers of images of a distance that are chosen between."""
SHARE_OF_LARGEST = 0.05
"""Most of the training FLOPs of a trial's largest budget that a chosen number may cost."""


def sampling_passes(evaluation: Evaluation) -> float:
    """Forward passes of one generated image; with an interval of guidance, by its share of the times."""
    steps = evaluation.sampler_steps
    evaluations = {"heun": 2 * steps, "dpmpp-3m": steps + 1}.get(evaluation.sampler, steps)
    low, high = evaluation.guidance_interval or (0.0, 1.0)
    return evaluations * (1 + (high - low if evaluation.guidance != 1 else 0.0))


def distance_flops(evaluation: Evaluation, distance: Distance, forward_flops: float) -> float:
    """FLOPs of one distance at one milestone: generating the images and encoding them. The reference's features, made
    once a results folder, are not in it."""
    return distance.images * (sampling_passes(evaluation) * forward_flops + ENCODERS[distance.encoder].flops)


def distances(trial: Trial) -> tuple[int, ...]:
    """The milestones at which a trial measures a distance: those where it does not dominate."""
    distance = trial.evaluation.distance
    if distance is None:
        return ()
    cost = distance_flops(trial.evaluation, distance, trial.flops_per_sample / 3)
    limit = distance.most_of_training
    return tuple(m for m in trial.milestones if cost <= limit * trial.flops_per_sample * m)


def evaluation_work(trial: Trial) -> tuple[float, float]:
    """FLOPs of what workers share (losses at every milestone, distances where there are any), and of the images for
    people at the last, which one of them makes. Forward passes only."""
    evaluation = trial.evaluation
    forward = trial.flops_per_sample / 3
    shared = forward * evaluation.loss_images * evaluation.loss_draws * len(trial.milestones)
    if evaluation.distance is not None:
        shared += len(distances(trial)) * distance_flops(evaluation, evaluation.distance, forward)
    return shared, forward * evaluation.sample_images * sampling_passes(evaluation)


def evaluation_flops(trial: Trial) -> float:
    """FLOPs of all evaluations of a trial."""
    return sum(evaluation_work(trial))


def affordable_images(evaluation: Evaluation, distance: Distance, largest: Iterable[tuple[float, float]]) -> int:
    """The most images, of IMAGES, of which a distance costs little beside every trial's largest budget.

    `largest` has the forward FLOPs of a sample and the samples of each. Where even the fewest cost more, they are it.
    """
    budgets = list(largest)
    for images in IMAGES:
        one = Distance(encoder=distance.encoder, images=images)
        if all(
            distance_flops(evaluation, one, forward) <= SHARE_OF_LARGEST * 3 * forward * samples
            for forward, samples in budgets
        ):
            return images
    return IMAGES[-1]
