"""What evaluations need of a device: the bytes of their largest pass, and the seconds that they take."""

from __future__ import annotations

import math

from models.configs.base import ModelConfig
from models.cost import Precision, inference_bytes
from models.fid.catalog import ENCODERS
from orchestrator.planning.devices import Device, training_flops_per_second
from orchestrator.planning.memory import EVALUATION_BATCH
from orchestrator.spec.evaluation_cost import evaluation_work
from orchestrator.spec.trial import Evaluation, Trial

GENERATED = {"cpu": 256, "gpu": 1024}
"""Images that are generated at a time, as in training.sampling."""
WALK = 6
"""fp32 pictures an image that a sampler holds at most: two states, the last three estimates, and noise."""


def generation_bytes(evaluation: Evaluation, model: ModelConfig, *, on_gpu: bool, whole: bool) -> int:
    """Bytes at most of generating images and encoding them; 0 where none are made.

    Args:
        whole: pictures for people are made in whole batches too, as compiled models make them.
    """
    batch = GENERATED["gpu" if on_gpu else "cpu"]
    if evaluation.distance is None and not whole:
        batch = min(batch, evaluation.sample_images)
    if evaluation.distance is None and not evaluation.sample_images:
        return 0
    forward = batch * (2 if evaluation.guidance != 1 else 1) * inference_bytes(model, _precision(on_gpu))
    walk = 4 * WALK * batch * math.prod(model.shape)
    if evaluation.distance is None:
        return forward + walk
    encoder = ENCODERS[evaluation.distance.encoder]
    return encoder.weight_bytes + max(forward + walk, min(batch, encoder.batch) * encoder.image_bytes)


def generation_bytes_of(trial: Trial, *, on_gpu: bool) -> int:
    """The same of a trial."""
    return generation_bytes(trial.evaluation, trial.model, on_gpu=on_gpu, whole=on_gpu and trial.compiled)


def evaluation_seconds(trial: Trial, device: Device) -> float:
    """Estimated seconds of all evaluations of a trial on its workers, of one GPU or core each.

    Workers share losses and distances; one makes the pictures for people. Losses and encoders run in fp32; images are
    generated in bf16 on a GPU.
    """
    work, kind = evaluation_work(trial), device.kind
    exact, _ = training_flops_per_second(device, trial.model, "fp32", EVALUATION_BATCH, False)
    fast, _ = training_flops_per_second(device, trial.model, _precision(kind == "gpu"), GENERATED[kind], False)
    shared = (work.losses + work.encoding) / exact + work.generating / fast
    return shared / trial.num_workers + work.pictures / fast


def _precision(on_gpu: bool) -> Precision:
    return "bf16" if on_gpu else "fp32"
