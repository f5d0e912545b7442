"""A milestone's measurement: losses, and distances and pictures of generated images where the trial has them there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from models.objectives import Objective
from orchestrator.results.outbox import Outbox
from orchestrator.results.partials import drop_partials, partials_folder, write_partial
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.evaluation_cost import distances
from orchestrator.spec.trial import Trial
from orchestrator.training.data.consistency import denoised_warping_error, generated_warping_error
from orchestrator.training.data.pictures import grids
from orchestrator.training.distance import (
    Distances,
    NotFinite,
    distances_of,
    fingerprint_of,
    generated_features,
)
from orchestrator.training.evaluation import Losses, sample_images, save_grid, validation_losses
from orchestrator.training.gang import GangMember
from orchestrator.training.sampling import Generator

Keep = Callable[[Callable[[], object]], None]
"""Makes a write happen, whatever it takes; see `Attempt._keep`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured at a milestone."""

    losses: Losses
    distances: Distances | None
    has_grid: bool
    failure: str | None
    """Why the trial has diverged here; None where it has not."""
    consistency: Mapping[str, float | None] = field(default_factory=dict)
    """How well clips agree with optical flow, by column."""

    def columns(self, trial: Trial) -> dict[str, object]:
        """Of the measurement's row; what was not measured is None."""
        evaluation, losses = trial.evaluation, self.losses
        images = self.has_grid or self.distances is not None
        return {
            "loss": losses.mean,
            "loss_sd": losses.sd,
            "loss_by_time": list(losses.by_time),
            "loss_draws": evaluation.loss_images * evaluation.loss_draws,
            **(self.distances.columns() if self.distances else {}),
            **self.consistency,
            "sampler": evaluation.sampler if images else None,
            "sampler_steps": evaluation.sampler_steps if images else None,
            "guidance": evaluation.guidance if images else None,
        }


class Meter:
    """Measures a model of a trial; collective over the gang.

    Args:
        model: it has the averaged weights of the milestone when `measure` is called.

    Raises:
        ValueError: the trial has distances, and the encoder's weights are missing or not those of the results.
    """

    def __init__(
        self, trial: Trial, member: GangMember, objective: Objective, model: nn.Module, outbox: Outbox
    ) -> None:
        self.trial, self.member, self.objective, self.model, self.outbox = trial, member, objective, model, outbox
        self.generator = Generator(model, objective, trial, beat=member.beat)
        self.milestones = distances(trial)
        distance = trial.evaluation.distance
        if distance is not None and self.milestones:  # what is wrong is said before anything is trained
            member.real_images(trial.dataset, distance.encoder)

    def measure(self, milestone: int, keep: Keep) -> Measured:
        """Everything that the trial has at `milestone`. A model that has diverged gets no pictures."""
        member, trial = self.member, self.trial
        draws = member.draws(trial.dataset, trial.evaluation)
        losses = validation_losses(self.model, self.objective, draws, member.rank, member.world_size, member.beat)
        if not math.isfinite(losses.mean):
            reason = f"validation loss is {losses.mean} at {milestone} samples"
            return Measured(losses=losses, distances=None, has_grid=False, failure=reason)
        found = None
        if milestone in self.milestones:
            try:
                found = self._distances(milestone, keep)
            except NotFinite as error:
                reason = f"{error} at {milestone} samples"
                return Measured(losses=losses, distances=None, has_grid=False, failure=reason)
        agrees = denoised_warping_error(self.model, self.objective, draws.x, draws.y, draws.noise, draws.flow)
        consistency = {"warping_error": agrees}
        has_grid = milestone == trial.milestones[-1] and trial.evaluation.sample_images > 0
        if has_grid and member.rank == 0:
            made = sample_images(self.generator)
            consistency["warping_error_generated"] = generated_warping_error(dataset_named(trial.dataset), made)
            files = grids(made, trial.model.num_classes)
            grid = partial(save_grid, member.results, trial.trial_id, milestone, files)
            keep(lambda: self.outbox.put(grid, sum(map(len, files.values()))))
        return Measured(losses=losses, distances=found, has_grid=has_grid, failure=None, consistency=consistency)

    def _distances(self, milestone: int, keep: Keep) -> Distances:
        member, evaluation = self.member, self.trial.evaluation
        distance = evaluation.distance
        assert distance is not None, "only trials with a distance have milestones for it"
        encoder, real = member.encoder(distance.encoder), member.real_images(self.trial.dataset, distance.encoder)
        folder = partials_folder(member.results, self.trial.trial_id, milestone)

        def put(data: bytes) -> None:
            keep(lambda: self.outbox.put(partial(write_partial, folder, data), len(data)))

        features = generated_features(
            self.generator,
            encoder,
            distance.images,
            folder=folder,
            put=put,
            fingerprint=fingerprint_of(self.model, evaluation, distance, encoder),
            rank=member.rank,
            world_size=member.world_size,
            beat=member.beat,
        )
        found = distances_of(features, real, encoder.name, evaluation.seed)
        if member.rank == 0:
            keep(lambda: self.outbox.put(partial(drop_partials, folder)))
        return found
