"""What is measured at a milestone: the loss on fixed validation draws, and images for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.objectives import Objective
from models.warping import Flow
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location
from orchestrator.spec.trial import Evaluation
from orchestrator.training.data.images import to_float
from orchestrator.training.data.order import torch_generator
from orchestrator.training.sampling import Generator, batches

BATCH = 256
"""Images of one forward pass: fixed, so that sums do not depend on anything else."""
TIME_BUCKETS = 10
"""Parts of [0, 1] for which losses are told apart."""


@dataclass(frozen=True)
class Draws:
    """The fixed draws of a sweep's validation loss: the same for every trial, whatever its seed or size.

    `x` [n, c, h, w] in [-1, 1]; `y`, `u` [n], the latter uniform in [0, 1) and stratified; `noise` [n, c, h, w].
    """

    x: Tensor
    y: Tensor
    u: Tensor
    noise: Tensor
    flow: Flow | None = None
    """That of the first samples, where they are clips."""


def fixed_draws(
    images: Tensor,
    labels: Tensor,
    evaluation: Evaluation,
    flow_of: Callable[[Tensor, Tensor], Flow | None] = lambda indices, samples: None,
) -> Draws:
    """Draws for `loss_images` images, `loss_draws` times each; `flow_of` tells the flow of validation samples by their
    indices and values, if they have one.

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
    noise = torch.randn(x.shape, generator=generator)
    return Draws(x, labels[chosen], u.clamp(max=1 - 2**-24), noise, flow_of(chosen, x))


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The validation loss and what is known of its noise."""

    mean: float
    sd: float
    """Standard deviation of the mean over other draws of images, times and noise."""
    by_time: tuple[float | None, ...]
    """Means over the draws whose time lies in each tenth of [0, 1]; None where none does."""


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    objective: Objective,
    draws: Draws,
    rank: int = 0,
    world_size: int = 1,
    beat: Callable[[], None] = lambda: None,
) -> Losses:
    """Losses over the draws, in float64; workers share the batches, calling `beat` before each, and each returns the
    whole. Collective."""
    device = next(model.parameters()).device
    losses, times = torch.zeros(2, len(draws.x), dtype=torch.float64, device=device)
    for start in range(rank * BATCH, len(draws.x), world_size * BATCH):
        beat()
        part = slice(start, start + BATCH)
        x, y, noise = (tensor[part].to(device) for tensor in (draws.x, draws.y, draws.noise))
        t = objective.draw_t(draws.u[part].to(device))
        losses[part], times[part] = objective.loss(model, x, y, t, noise).double(), t.double()
    if world_size > 1:
        both = torch.stack([losses, times])
        torch.distributed.all_reduce(both)
        losses, times = both
    losses, times = losses.cpu(), times.cpu()
    return Losses(mean=float(losses.mean()), sd=_sd_of_mean(losses, draws.u), by_time=_by_time(losses, times))


def _sd_of_mean(losses: Tensor, u: Tensor) -> float:
    """Of a stratified mean with one draw a stratum: neighbouring strata taken together in pairs (Cochran 1977, section
    5A.12). Times differ little within a pair, so what is left is the noise of images and draws."""
    ordered = losses[u.argsort()]
    even = ordered[: len(ordered) // 2 * 2]
    return float((even[::2] - even[1::2]).square().sum().sqrt() / max(len(even), 1))


def _by_time(losses: Tensor, times: Tensor) -> tuple[float | None, ...]:
    bucket = (times * TIME_BUCKETS).long().clamp(0, TIME_BUCKETS - 1)
    means = []
    for index in range(TIME_BUCKETS):
        inside = losses[bucket == index]
        means.append(float(inside.mean()) if len(inside) else None)
    return tuple(means)


def sample_images(generator: Generator) -> Tensor:
    """The first samples of the evaluation [n, *shape], on the CPU: rows of one a class.

    Samples beyond a multiple of the number of classes are left out, but at least one row is made.
    """
    num_classes = generator.config.num_classes
    rows = max(1, generator.evaluation.sample_images // num_classes)
    parts = [generator.images(*part) for part in batches(rows * num_classes, generator.batch, lambda image: False)]
    return torch.cat(parts).cpu()


def save_grid(results: Location, trial_id: str, samples: int, files: Mapping[str, bytes]) -> None:
    """Keep a grid, by the suffixes of its files, where the report and MLflow look for it."""
    for suffix, data in files.items():
        write_bytes(results / "samples" / f"{trial_id}-{samples}.{suffix}", data)
