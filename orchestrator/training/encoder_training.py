"""Trains the small encoders that come with ditlaw: the same weights each time on one machine.

All are classifiers. What tells classes apart says little of colours and places, by which procedural images differ
most: there the features must also give the picture's coarse layout, its mean colours on a 4 x 4 grid (a clip's at its
beginning and at its end), through a linear map that is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.fid.catalog import ENCODERS
from models.fid.classifier import Classifier, ClipClassifier, mirrored, new_classifier
from orchestrator.results.atomic import write_bytes
from orchestrator.spec.datasets import DATASETS
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.order import torch_generator
from orchestrator.training.data.source import opened

BATCH = 128
EPOCH = 60_000
"""Images of an epoch, also of data without end."""
LEARNING_RATE = 4e-3
WARMUP_SHARE = 0.15
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05
LAYOUT = 4
"""Rows and columns of the coarse picture that features must give."""
LAYOUT_WEIGHT = 5.0
"""Of the layout's mean squared error (about 0.1 where nothing is known of it) beside the cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an encoder is trained on, and to do what."""

    dataset: str
    mirror: bool
    """Half of the images are mirrored: there are few of them."""
    layout: bool
    """Features must give the coarse layout too."""


RECIPES = {
    "fmnist-cnn": Recipe(dataset="fashion-mnist", mirror=True, layout=False),
    "shapes-cnn": Recipe(dataset="procedural-32", mirror=False, layout=True),
    "moving-cnn": Recipe(dataset="moving-16", mirror=False, layout=True),
}
"""By the name of the encoder."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How it stands after an epoch."""

    number: int
    loss: float
    """Of the last batch."""
    accuracy: float
    """Share of the test images that are classified rightly."""


def train(
    name: str,
    data: Path,
    out: Path,
    epochs: int,
    *,
    start: Path | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Iterator[Epoch]:
    """Train the encoder `name` and write its weights to `out`, a safetensors file; yields after each epoch.

    Rates rise and fall once over the epochs (Smith & Topin 2019, arXiv 1708.07120), to half the height where training
    goes on from the weights in `start`.

    Raises:
        ValueError: its images are not in the folder `data`.
    """
    recipe, facts = RECIPES[name], ENCODERS[name]
    assert facts.input is not None, "only classifiers have a recipe"
    training = opened(DATASETS[recipe.dataset], data, torch.device(device))
    test_images, test_labels = load(recipe.dataset, "validation", data)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = new_classifier(facts)
        layout = nn.Linear(facts.dim, facts.input[0] * LAYOUT**2 * (2 if facts.samples == "clips" else 1))
    if start is not None:
        model.load_state_dict(load_file(start))
    model.to(device)
    layout.to(device)
    steps_of_epoch = EPOCH // BATCH
    steps, highest = epochs * steps_of_epoch, LEARNING_RATE if start is None else LEARNING_RATE / 2
    parameters = [*model.parameters(), *(layout.parameters() if recipe.layout else ())]
    optimizer = torch.optim.AdamW(parameters, lr=highest, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps, pct_start=WARMUP_SHARE)
    for step in range(steps):
        x, y = training.batch(seed, step * BATCH, BATCH, slice(0, BATCH))
        if recipe.mirror:
            x = mirrored(x, torch_generator(seed, "encoder", step))
        features = model.features(x)
        loss = nn.functional.cross_entropy(model.head(features), y, label_smoothing=LABEL_SMOOTHING)
        if recipe.layout:
            loss = loss + LAYOUT_WEIGHT * nn.functional.mse_loss(layout(features), _coarse(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % steps_of_epoch == 0:
            number = (step + 1) // steps_of_epoch
            yield Epoch(number=number, loss=float(loss.detach()), accuracy=accuracy(model, test_images, test_labels))
    write_bytes(out, save({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}))


def _coarse(x: Tensor) -> Tensor:
    """The layout of images, or of the first and of the second half of clips, a row each."""
    if x.dim() == 4:
        return nn.functional.adaptive_avg_pool2d(x, LAYOUT).flatten(1)
    return nn.functional.adaptive_avg_pool3d(x, (2, LAYOUT, LAYOUT)).flatten(1)


@torch.no_grad()
def accuracy(model: Classifier | ClipClassifier, images: Tensor, labels: Tensor) -> float:
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
