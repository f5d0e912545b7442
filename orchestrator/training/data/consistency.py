"""How well clips agree with optical flow: with their own, of validation clips that a model has denoised; with what is
estimated from them, of clips that it has generated. Of still images there is nothing to say."""

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
    it, else estimated; None of images."""
    if dataset.frames is None:
        return None
    if dataset.form == "moving":
        return optical_flow(FIRST_VALIDATION + indices[:CLIPS], dataset.image_size, dataset.frames)
    return estimated_flow(samples[:CLIPS])


@torch.no_grad()
def denoised_warping_error(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, noise: Tensor, flow: Flow | None
) -> float | None:
    """Warping error under their own flow of what the model makes of validation clips in as much noise as signal.

    0 is that of the clips themselves, were the flow exact; the first clips are taken, as many as there are flows of.
    """
    if flow is None:
        return None
    device, n = next(model.parameters()).device, len(flow.displacement)
    clips = objective.denoised(model, *(tensor[:n].to(device) for tensor in (x, y, noise)))
    return float(warping_error(clips, Flow(*(part.to(device) for part in flow))).mean())


def generated_warping_error(samples: Tensor) -> float | None:
    """Mean warping error of clips under the flow that is estimated from them; None of images, and of clips where no
    flow is to be believed."""
    if samples.dim() != 5:
        return None
    clips = samples.float().clamp(-1, 1)
    flow = estimated_flow(clips)
    if not bool(flow.covered.any()):
        return None
    return float(warping_error(clips, flow).mean())
