"""How well clips agree with optical flow: with their own, of validation clips that a model has denoised; with what is
estimated from them, of clips that it has generated. Of still images and of latents there is nothing to say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.objectives import Objective
from models.warping import Flow, estimated_flow, warping_error
from orchestrator.spec.datasets import Dataset
from orchestrator.training.data.moving import optical_flow
from orchestrator.training.data.procedural import FIRST_VALIDATION

CLIPS = 128
"""Clips of one estimate."""


def flow_of_validation(dataset: Dataset, indices: Tensor, samples: Tensor) -> Flow | None:
    """The flow of the first CLIPS of some validation clips, by their indices in the split: true where the dataset knows
    it, else estimated; None of images and of latents."""
    if not dataset.has_flow:
        return None
    assert dataset.frames is not None, "what has flow is clips"
    if dataset.form == "moving":
        return optical_flow(FIRST_VALIDATION + indices[:CLIPS], dataset.image_size, dataset.frames)
    return estimated_flow(samples[:CLIPS])


@torch.no_grad()
def denoised_warping_error(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, noise: Tensor, flow: Flow | None
) -> float | None:
    """Warping error under their own flow of what the model makes of validation clips in as much noise as signal.

    0 is that of the clips themselves, were the flow exact; the first clips are taken, as many as there are flows of.
    None where there is no flow, or none of it is to be believed.
    """
    if flow is None:
        return None
    device, n = next(model.parameters()).device, len(flow.displacement)
    clips = objective.denoised(model, *(tensor[:n].to(device) for tensor in (x, y, noise)))
    return _mean_error(clips, Flow(*(part.to(device) for part in flow)))


def generated_warping_error(dataset: Dataset, samples: Tensor) -> float | None:
    """Mean warping error of clips like those of a dataset under the flow that is estimated from them; None of images,
    of latents, and where no flow is to be believed."""
    if not dataset.has_flow:
        return None
    clips = samples.float().clamp(-1, 1)
    return _mean_error(clips, estimated_flow(clips))


def _mean_error(clips: Tensor, flow: Flow) -> float | None:
    """Over the clips of which anything is covered: the others have no error, which is not to say that they are good."""
    judged = flow.covered.flatten(1).any(1)
    return float(warping_error(clips, flow)[judged].mean()) if bool(judged.any()) else None
