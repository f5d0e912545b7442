"""Trains the encoder `fmnist-cnn`, a small classifier of Fashion-MNIST: the same weights each time on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.fid.classifier import Classifier, mirrored
from orchestrator.results.atomic import write_bytes
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import batch_indices, torch_generator

BATCH = 128
LEARNING_RATE = 4e-3
WARMUP_SHARE = 0.15
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How it stands after an epoch."""

    number: int
    loss: float
    """Of the last batch."""
    accuracy: float
    """Share of the test images that are classified rightly."""


def train(
    data: Path,
    out: Path,
    epochs: int,
    *,
    start: Path | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Iterator[Epoch]:
    """Train and write the weights to `out`, a safetensors file; yields after each epoch.

    Rates rise and fall once over the epochs (Smith & Topin 2019, arXiv 1708.07120), to half the height where training
    goes on from the weights in `start`.

    Raises:
        ValueError: Fashion-MNIST is not in the folder `data`.
    """
    images, labels = load("fashion-mnist", "train", data)
    test_images, test_labels = load("fashion-mnist", "validation", data)
    steps = epochs * (len(images) // BATCH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(channels=1, num_classes=10)
    if start is not None:
        model.load_state_dict(load_file(start))
    model.to(device)
    highest = LEARNING_RATE if start is None else LEARNING_RATE / 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=highest, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps, pct_start=WARMUP_SHARE)
    for step in range(steps):
        chosen = torch.from_numpy(batch_indices(seed, step * BATCH, BATCH, len(images)))
        x = mirrored(to_float(images[chosen]), torch_generator(seed, "encoder", step))
        y = labels[chosen].to(device)
        loss = nn.functional.cross_entropy(model(x.to(device)), y, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (len(images) // BATCH) == 0:
            number = (step + 1) // (len(images) // BATCH)
            yield Epoch(number=number, loss=float(loss.detach()), accuracy=accuracy(model, test_images, test_labels))
    write_bytes(out, save({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}))


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model, in evaluation, gives their label."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    hits = sum(
        int((model(to_float(x).to(device)).argmax(dim=1).cpu() == y).sum())
        for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    model.train(was_training)
    return hits / len(images)
