"""The memory of one worker at its fullest, in closed form, part by part: what training.loop.Attempt holds.

Calibrated against measured peaks by `ditlaw bench memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from models.configs.base import ModelConfig
from models.cost import REDUCE_BUCKET, Precision, activation_bytes, cost, inference_bytes, working_bytes

EVALUATION_BATCH = 256
"""Images of one forward pass of the validation loss, as in training.evaluation."""
UNDIVIDED_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time at ZeRO 0, which copies them for it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker, by what holds them. P is the number of parameters, w of workers, e bytes of a weight."""

    weights: int
    """e P; at ZeRO 3 divided by w."""
    master: int
    """fp32 weights that the optimizer steps, 4 P / w; at ZeRO 0 the weights are the master. None with offload."""
    moments: int
    """Adam's two, 8 P; from ZeRO 1 on divided by w. None with offload."""
    ema: int
    """The fp32 average, 4 P; from ZeRO 1 on divided by w."""
    measured: int
    """The fp32 model that evaluation runs, 4 P."""
    gradients: int
    """What the optimizer's step is made of, e P; from ZeRO 1 on divided by w. None with offload."""
    accumulated: int
    """Gradients that are there before the last backward pass begins."""
    reducing: int
    """Gradients, and copies of them, at the end of the last backward pass, where they are reduced."""
    bucket: int
    """What ZeRO reduces gradients in during a backward pass."""
    standing: int
    """What is held all the time of what a step needs: by ZeRO 3 of `gradients` and `bucket`, by a CUDA graph all."""
    gathered: int
    """Weights that ZeRO 3 has gathered from the other workers."""
    activations: int
    """What the forward pass of a micro-batch keeps for the backward pass."""
    working: int
    """What lives within one block of it."""
    gradients_to_step: int
    """Flat fp32 gradients that a ZeRO optimizer makes for its step, and what it makes them from."""
    copied_master: int
    """With offload, the fp32 weights that the EMA is given, 4 P / w."""
    evaluation: int
    """What the forward pass of the validation loss needs, or making images and encoding them, whichever is more."""
    host: int
    """What offload keeps in the host's memory for this worker: master, moments and gradients. Not part of `total`."""

    @property
    def state(self) -> int:
        """Weights, optimizer, EMA and the model measured with it."""
        return self.weights + self.master + self.moments + self.ema + self.measured

    @property
    def held(self) -> int:
        """What is held between two steps."""
        return self.state + self.standing

    @property
    def training(self) -> int:
        """The most that a training step needs: at either end of the last backward pass (in between activations go as
        gradients come), in the optimizer's step, or in the EMA's."""
        before = self.accumulated + self.bucket + self.gathered + self.activations + self.working
        after = self.reducing + self.bucket + self.gathered
        step = max(self.gradients, self.standing) + self.gradients_to_step
        return self.state + max(before, after, step, self.standing + self.copied_master)

    @property
    def total(self) -> int:
        """The most that is held at any time: in a training step or in an evaluation."""
        return max(self.training, self.held + self.evaluation)


@lru_cache(maxsize=4096)
def memory(
    model: ModelConfig,
    *,
    micro_batch: int,
    micro_steps: int = 1,
    precision: Precision,
    zero_stage: int,
    num_workers: int,
    activation_checkpointing: bool = False,
    offload: bool = False,
    evaluation_batch: int = EVALUATION_BATCH,
    generation_bytes: int = 0,
) -> Memory:
    """Memory of one of `num_workers` workers that train `model` with AdamW through DeepSpeed.

    ZeRO 1 divides master and moments by the workers, 2 gradients too, 3 weights too (Rajbhandari et al. 2019, arXiv
    1910.02054, figure 1). Offload moves master and moments to the host (Ren et al. 2021, arXiv 2101.06840). Buffers are
    those of DeepSpeed 0.19 as training.engine sets it up.

    Args:
        micro_batch: samples of one forward and backward pass.
        micro_steps: forward and backward passes of an optimizer step.
        evaluation_batch: images of one forward pass of the validation loss.
        generation_bytes: of generating images and encoding them (`planning.evaluation`).

    Raises:
        ValueError: the stage is none, there is no worker, or it is ZeRO 0 in bf16 or fp8 or with offload, which has no
            master weights.
    """
    if zero_stage not in (0, 1, 2, 3) or num_workers < 1:
        raise ValueError(
            f"got zero_stage {zero_stage} and {num_workers} workers; wanted a stage of 0 to 3 and at least 1 worker"
        )
    if zero_stage == 0 and (precision != "fp32" or offload):
        what = precision if precision != "fp32" else "offload"
        raise ValueError(f"got {what} at zero_stage 0, which keeps no fp32 master weights; wanted stage 1, 2 or 3")
    params = cost(model).params_total
    size = 4 if precision == "fp32" else 2
    share = -(-params // num_workers)
    owned = params if zero_stage == 0 else share  # what this worker's optimizer steps
    gradients = 0 if offload else owned
    bucket = 0 if zero_stage == 0 else min(REDUCE_BUCKET, params)
    again = micro_steps > 1
    return Memory(
        weights=size * (share if zero_stage == 3 else params),
        master=0 if zero_stage == 0 or offload else 4 * owned,
        moments=0 if offload else 8 * owned,
        ema=4 * owned,
        measured=4 * params,
        gradients=size * gradients,
        accumulated=size * _accumulated(params, gradients, zero_stage, again),
        reducing=size * _reducing(params, gradients, bucket, zero_stage, again, num_workers),
        bucket=size * bucket,
        standing=size * (gradients + bucket) if zero_stage == 3 else 0,
        gathered=size * (params - share) if zero_stage == 3 else 0,
        activations=micro_batch * activation_bytes(model, precision, activation_checkpointing),
        working=micro_batch * working_bytes(model, precision),
        gradients_to_step=0 if zero_stage == 0 or offload else owned * (4 if precision == "fp32" else 6),
        copied_master=4 * owned if offload else 0,
        evaluation=max(evaluation_batch * inference_bytes(model, "fp32"), generation_bytes),
        host=_host(share, size, zero_stage == 2 and again) if offload else 0,
    )


@lru_cache(maxsize=4096)
def flat_memory(
    model: ModelConfig,
    *,
    micro_batch: int,
    precision: Precision,
    num_workers: int,
    captured: bool,
    evaluation_batch: int = EVALUATION_BATCH,
    generation_bytes: int = 0,
) -> Memory:
    """Memory of one of `num_workers` workers that train `model` without DeepSpeed, over flat buffers (training.pack).

    Masters, moments and average are divided by the workers; in fp32 masters are part of the weights.

    Args:
        micro_batch: a worker's share of the batch.
        captured: the step is a CUDA graph, which keeps all that a step needs.
        evaluation_batch: images of one forward pass of the validation loss.
        generation_bytes: of generating images and encoding them (`planning.evaluation`).
    """
    params = cost(model).params_total
    size = 4 if precision == "fp32" else 2
    share = -(-params // num_workers)
    buffer = size * params
    activations = micro_batch * activation_bytes(model, precision, False)
    working = micro_batch * working_bytes(model, precision)
    reducing = buffer + size * params  # autograd's are copied into the buffer
    averages = 4 * params if num_workers > 1 else 0  # gathered to be measured
    return Memory(
        weights=size * params,
        master=0 if precision == "fp32" else 4 * share,
        moments=8 * share,
        ema=4 * share,
        measured=4 * params,
        gradients=buffer,
        accumulated=buffer,
        reducing=reducing,
        bucket=0,
        standing=max(buffer + activations + working, reducing) if captured else buffer,
        gathered=0,
        activations=activations,
        working=working,
        gradients_to_step=0,
        copied_master=0,
        evaluation=max(evaluation_batch * inference_bytes(model, "fp32"), generation_bytes, averages),
        host=0,
    )


def _accumulated(params: int, gradients: int, zero_stage: int, again: bool) -> int:
    """Elements of gradients before the last backward pass of several (`again`); ZeRO 3 always has its buffer."""
    if zero_stage == 3:
        return gradients
    if not again:
        return 0
    return gradients if zero_stage == 2 else params


def _reducing(params: int, gradients: int, bucket: int, zero_stage: int, again: bool, num_workers: int) -> int:
    """Elements of gradients at the end of the last backward pass, beside the bucket.

    ZeRO 0 copies them to reduce them. 1 has them all until then, and if they do not fit in one bucket the first of its
    own share too. 2 keeps the sum of earlier micro-batches (`again`) beside the newest. A bucket is copied once more
    for several workers, at 3 always.
    """
    if zero_stage == 0:
        return params + min(UNDIVIDED_BUCKET, params)
    if zero_stage == 1:
        return params + (gradients if params > bucket else 0)
    if zero_stage == 2:
        return (2 if again else 1) * gradients + (bucket if num_workers > 1 else 0)
    return gradients + bucket


def _host(share: int, size: int, sums: bool) -> int:
    """Bytes of offload: fp32 master, moments and gradients, and in the precision of the step new weights (ZeRO 1, 2) or
    gradients (3); ZeRO 2 also `sums` the gradients of earlier micro-batches there."""
    return share * (4 + 8 + 4 + size * (2 if sums else 1))
