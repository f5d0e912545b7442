"""What evaluations cost beside training, and which of them a trial can afford."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from models.fid.catalog import ENCODERS
from orchestrator.spec.trial import Distance, Evaluation, Trial

IMAGES = (10_000, 5_000, 2_000, 1_000, 500, 250, 100)
"""Numbers of images of a distance that are chosen between; docs/evaluation.md says what is known of each."""
SHARE_OF_LARGEST = 0.05
"""Most of the training FLOPs of the largest budgets that a chosen number may cost."""


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


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of all evaluations of a trial, forward passes only."""

    losses: float
    """At every milestone."""
    generating: float
    """Images of the distances."""
    encoding: float
    """Of those images."""
    pictures: float
    """Images for people at the last milestone."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.losses + self.generating + self.encoding + self.pictures


def evaluation_work(trial: Trial) -> Work:
    """What the evaluations of a trial are made of."""
    evaluation, distance = trial.evaluation, trial.evaluation.distance
    forward = trial.flops_per_sample / 3
    generated = len(distances(trial)) * distance.images if distance else 0
    image = forward * sampling_passes(evaluation)
    return Work(
        losses=forward * evaluation.loss_images * evaluation.loss_draws * len(trial.milestones),
        generating=generated * image,
        encoding=generated * ENCODERS[distance.encoder].flops if distance else 0.0,
        pictures=evaluation.sample_images * image,
    )


def evaluation_flops(trial: Trial) -> float:
    """FLOPs of all evaluations of a trial."""
    return evaluation_work(trial).total


def affordable_images(evaluation: Evaluation, distance: Distance, largest: Iterable[tuple[float, float]]) -> int:
    """The most images, of IMAGES, of which a distance costs little at the largest budgets, all sizes taken together.

    `largest` has the forward FLOPs of a sample and the samples of each size's. There are always more images than
    features, or a covariance would be made of too few; where even the fewest cost too much, they are it, and fewer
    milestones have a distance (`distances`).
    """
    budgets = list(largest)
    enough = [images for images in IMAGES if images > ENCODERS[distance.encoder].dim]
    training = sum(3 * forward * samples for forward, samples in budgets)
    for images in enough:
        one = dataclasses.replace(distance, images=images)
        cost = sum(distance_flops(evaluation, one, forward) for forward, _ in budgets)
        if cost <= SHARE_OF_LARGEST * training:
            return images
    return enough[-1]
