"""Generated images by number: image i of a sweep's evaluation has the same label and noise for every trial.

Noise comes in blocks of 64 images, each a function of (seed, block): an image does not depend on how many are made, in
which batches, or by which worker. What stochastic samplers add on their way is drawn on the device, and so is another
on a GPU than on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from models.configs.base import ModelConfig
from models.objectives import Denoiser, Objective
from models.samplers import BlockedNoise, sample
from orchestrator.spec.evaluation_cost import evaluation_work
from orchestrator.spec.trial import Evaluation, Trial
from orchestrator.training.compilation import compiled
from orchestrator.training.data.order import torch_generator

BLOCK = 64
"""Images that share a generator of noise."""
COMPILING_PAYS_FROM = 3e15
"""FLOPs of all images of a trial from which on a GPU compiling the model, a quarter of a minute, is made up for."""
BATCH = {"cpu": 4 * BLOCK, "cuda": 16 * BLOCK}
"""Images of one forward pass, by the type of device; with guidance it is of twice as many."""


def first_noise(config: ModelConfig, evaluation: Evaluation, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Noise [n, *shape of a sample] and labels [n] of images `start` to `stop` (not included); labels take turns."""
    first, last = start // BLOCK, -(-stop // BLOCK)
    blocks = [
        torch.randn((BLOCK, *config.shape), generator=torch_generator(evaluation.seed, "image", block))
        for block in range(first, last)
    ]
    noise = torch.cat(blocks)[start - first * BLOCK :][: stop - start]
    return noise, torch.arange(start, stop) % config.num_classes


class Generator:
    """Makes images of a trial's model on its device: on a GPU in bf16 autocast, and compiled where the trial is and its
    images are enough to pay for that.

    With `label` all images are of that class. `beat` is called before each forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        trial: Trial,
        label: int | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.label, self._beat = label, beat
        self.objective, self.config, self.evaluation = objective, trial.model, trial.evaluation
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.batch = BATCH["cuda" if on_gpu else "cpu"]
        work = evaluation_work(trial)
        self._fixed_shape = on_gpu and trial.compiled and work.generating + work.pictures >= COMPILING_PAYS_FROM
        self._model: Denoiser = compiled(model.forward) if self._fixed_shape else model

    @torch.no_grad()
    def images(self, start: int, stop: int) -> Tensor:
        """Images `start` to `stop` [n, *shape of a sample] in float32, about in [-1, 1]; `start` begins a block.

        A compiled model always gets a whole batch, so that it is compiled once.
        """
        assert start % BLOCK == 0, f"batches begin with a block of {BLOCK}, not at image {start}"
        wanted, evaluation = stop - start, self.evaluation
        stop = start + self.batch if self._fixed_shape else stop
        noise, y = first_noise(self.config, evaluation, start, stop)
        if self.label is not None:
            y = torch.full_like(y, self.label)
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        kind = self.device.type
        steps = BlockedNoise([torch_generator(evaluation.seed, "walk", block, kind) for block in blocks], BLOCK)
        with self._precision():
            images = sample(
                self._denoised,
                self.objective,
                noise.to(self.device),
                y.to(self.device),
                sampler=evaluation.sampler,
                steps=evaluation.sampler_steps,
                guidance=evaluation.guidance,
                null_class=self.config.num_classes,
                guidance_interval=evaluation.guidance_interval,
                generator=steps,
            )
        return images[:wanted].float()

    def _denoised(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The model's, after a sign of life: what counts signs is not to be compiled, anew for every number."""
        self._beat()
        return self._model(x, t, y)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def batches(images: int, batch: int, done: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the batches of whole blocks that are not done yet: `done` tells it of an image."""
    for start in range(0, images, batch):
        stop = min(start + batch, images)
        if not all(done(image) for image in range(start, stop)):
            yield start, stop
