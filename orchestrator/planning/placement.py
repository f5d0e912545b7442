"""What a trial needs of the machines, and how long it takes there."""

from __future__ import annotations

import itertools

from orchestrator.planning.memory import memory
from orchestrator.spec.trial import Evaluation, Trial

CHECKPOINT_BYTES_PER_PARAM = 16
"""fp32 weights, two Adam moments and the EMA."""

CPU_FLOPS_PER_SECOND = ((16, 8e9), (24, 12e9), (32, 16e9), (48, 22e9), (64, 27e9), (96, 34e9))
"""Training FLOP/s of one CPU core by width: medians over the quickstart's trials (DiT, patch 4, 28 x 28, heads of 8,
batch 64, fp32, torch 2.13.0) with both cores of a 2-core AMD EPYC busy."""
GPU_FLOPS_PER_SECOND = 200e12
"""An assumption until a device's own table is measured: about 20% of an H100's dense bf16 peak."""


def training_seconds(trial: Trial, cpus_per_worker: float, gpus_per_worker: float) -> float:
    """Estimated seconds of training of `trial` on its workers, without evaluation."""
    if gpus_per_worker > 0:
        rate = GPU_FLOPS_PER_SECOND * min(1.0, gpus_per_worker)
    else:
        rate = cpu_flops_per_second(trial.model.width) * cpus_per_worker
    return trial.flops / (rate * trial.num_workers)


def cpu_flops_per_second(width: int) -> float:
    """Training FLOP/s of one core at `width`, by log-linear interpolation of the measured table."""
    widths = [w for w, _ in CPU_FLOPS_PER_SECOND]
    rates = [r for _, r in CPU_FLOPS_PER_SECOND]
    for (w0, r0), (w1, r1) in itertools.pairwise(CPU_FLOPS_PER_SECOND):
        if w0 <= width <= w1:
            return r0 + (r1 - r0) * (width - w0) / (w1 - w0)
    return rates[0] if width < widths[0] else rates[-1]


def evaluation_flops(trial: Trial) -> float:
    """FLOPs of the losses at every milestone and the images at the last (forward passes only)."""
    evaluation = trial.evaluation
    forward = trial.flops_per_sample / 3
    losses = evaluation.loss_images * evaluation.loss_draws * len(trial.milestones)
    return forward * (losses + evaluation.sample_images * sampling_passes(evaluation))


def sampling_passes(evaluation: Evaluation) -> float:
    """Forward passes of one generated image; with an interval of guidance, by its share of the times."""
    steps = evaluation.sampler_steps
    evaluations = {"heun": 2 * steps, "dpmpp-3m": steps + 1}.get(evaluation.sampler, steps)
    low, high = evaluation.guidance_interval or (0.0, 1.0)
    return evaluations * (1 + (high - low if evaluation.guidance != 1 else 0.0))


def state_bytes(trial: Trial) -> int:
    """Bytes of weights, gradients, optimizer, EMA and the model measured with it, on one worker; no activations."""
    needed = memory(
        trial.model,
        micro_batch=trial.micro_batch or trial.batch_size // trial.num_workers,
        micro_steps=trial.micro_steps,
        precision=trial.precision,
        zero_stage=trial.zero_stage,
        num_workers=trial.num_workers,
    )
    return needed.state + needed.gradients


def checkpoint_bytes(trial: Trial) -> int:
    """Bytes of the trial's checkpoints: the newest two are kept."""
    return 2 * CHECKPOINT_BYTES_PER_PARAM * trial.params_total
