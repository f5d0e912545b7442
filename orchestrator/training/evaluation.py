"""What is measured at a milestone: the loss on fixed validation draws, and images for people to look at."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from models.configs.base import ModelConfig
from models.objectives import Objective
from models.samplers import sample
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location
from orchestrator.spec.trial import Evaluation
from orchestrator.training.data.images import to_float
from orchestrator.training.data.order import torch_generator

BATCH = 256
"""Images of one forward pass: fixed, so that sums do not depend on anything else."""


@dataclass(frozen=True)
class Draws:
    """The fixed draws of a sweep's validation loss: the same for every trial, whatever its seed or size.

    `x` [n, c, h, w] in [-1, 1]; `y`, `u` [n], the latter uniform in [0, 1) and stratified; `noise` [n, c, h, w].
    """

    x: Tensor
    y: Tensor
    u: Tensor
    noise: Tensor


def fixed_draws(images: Tensor, labels: Tensor, evaluation: Evaluation) -> Draws:
    """Draws for `loss_images` images, `loss_draws` times each.

    Stratified times (one in each of n equal bins, Kingma et al. 2021, arXiv 2107.00630, appendix I.1) take most of the
    variance out of the mean over times.
    """
    num = min(evaluation.loss_images, len(images))
    generator = torch_generator(evaluation.seed, "evaluation", 0)
    chosen = torch.randperm(len(images), generator=generator)[:num].repeat(evaluation.loss_draws)
    total = len(chosen)
    bins = torch.randperm(total, generator=generator)
    u = (bins + torch.rand(total, generator=generator)) / total
    x = to_float(images[chosen])
    return Draws(x, labels[chosen], u.clamp(max=1 - 2**-24), torch.randn(x.shape, generator=generator))


@torch.no_grad()
def validation_loss(model: nn.Module, objective: Objective, draws: Draws, rank: int, world_size: int) -> float:
    """Mean loss over the draws, in float64; workers share the batches and each returns the whole mean."""
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(rank * BATCH, len(draws.x), world_size * BATCH):
        part = slice(start, start + BATCH)
        x, y, noise = (tensor[part].to(device) for tensor in (draws.x, draws.y, draws.noise))
        t = objective.draw_t(draws.u[part].to(device))
        total += objective.loss(model, x, y, t, noise).double().sum()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return float(total) / len(draws.x)


def sample_grid(model: nn.Module, objective: Objective, config: ModelConfig, evaluation: Evaluation) -> bytes:
    """A PNG of generated images, one column a class; its noise is the same for every trial.

    Images beyond a multiple of the number of classes are left out, but at least one row is made.
    """
    device = next(model.parameters()).device
    noise, y = sample_noise(config, evaluation)
    images = sample(
        model,
        objective,
        noise.to(device),
        y.to(device),
        sampler=evaluation.sampler,
        steps=evaluation.sampler_steps,
        guidance=evaluation.guidance,
        null_class=config.num_classes,
        guidance_interval=evaluation.guidance_interval,
        generator=torch_generator(evaluation.seed, "sampler", 0),
    )
    return grid_png(images.cpu(), config.num_classes)


def sample_noise(config: ModelConfig, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    """Noise [n, c, h, w] and labels [n] of the images of a grid, row by row."""
    num_classes, shape = config.num_classes, (config.channels, config.image_size, config.image_size)
    rows = max(1, evaluation.sample_images // num_classes)
    generator = torch_generator(evaluation.seed, "sample", 0)
    noise = torch.randn((rows * num_classes, *shape), generator=generator)
    return noise, torch.arange(num_classes).repeat(rows)


def save_grid(results: Location, trial_id: str, samples: int, png: bytes) -> None:
    """Keep a grid where the report and MLflow look for it."""
    write_bytes(results / "samples" / f"{trial_id}-{samples}.png", png)


def grid_png(images: Tensor, columns: int) -> bytes:
    """[n, c, h, w] in [-1, 1] as one picture with a pixel between images."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    n, c, h, w = pixels.shape
    rows = n // columns
    canvas = torch.full((c, rows * (h + 1) - 1, columns * (w + 1) - 1), 128, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (h + 1), index % columns * (w + 1)
        canvas[:, top : top + h, left : left + w] = image
    array = canvas[0].numpy() if c == 1 else canvas[:3].permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
