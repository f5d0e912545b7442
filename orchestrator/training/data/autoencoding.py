"""Trains the causal autoencoder of clips on a dataset of clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.causal_vae import KL_WEIGHT, CausalVAE, CausalVAEConfig, write_vae
from orchestrator.training.data.order import torch_generator
from orchestrator.training.data.source import TrainingData

LEARNING_RATE = 2e-3
SCALE_CLIPS = 64
"""Clips whose latents tell the scale."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How it stands after some steps; of the last batch."""

    step: int
    error: float
    """Root mean square error of reconstructions, of pixels in [-1, 1]."""
    kl: float
    """Nats a latent number."""


def train_vae(
    data: TrainingData, config: CausalVAEConfig, folder: Path, *, steps: int, batch: int, seed: int = 0
) -> Iterator[Progress]:
    """Train and write to `folder`; yields ten times on the way.

    Raises:
        ValueError: the clips do not suit the autoencoder: their channels, frames or size.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CausalVAE(config).to(data.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    rising = max(0.1, 2 / steps)  # its rate rises over one step at least
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=rising)
    for step in range(steps):
        x, _ = data.batch(seed, step * batch, batch, slice(0, batch))
        error, kl = model.loss(x, torch_generator(seed, "vae", step))
        optimizer.zero_grad()
        (error + KL_WEIGHT * kl).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) * 10 // steps > step * 10 // steps:
            yield Progress(step=step + 1, error=float(error.detach()) ** 0.5, kl=float(kl.detach()))
    with torch.no_grad():
        clips, _ = data.batch(seed, steps * batch, SCALE_CLIPS, slice(0, SCALE_CLIPS))
        scale = 1 / float(model.posterior(clips)[0].std())
    write_vae(folder, model, scale)
