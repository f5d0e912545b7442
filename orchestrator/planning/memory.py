"""The memory of one worker at its fullest, in closed form, part by part: what training.loop.Attempt holds.

Calibrated against measured peaks by `ditlaw bench memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig
from models.cost import REDUCE_BUCKET, Precision, activation_bytes, cost, working_bytes

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
    """fp32 weights that the optimizer steps, 4 P / w; at ZeRO 0 the weights are the master."""
    moments: int
    """Adam's two, 8 P; from ZeRO 1 on divided by w."""
    ema: int
    """The fp32 average, 4 P: every worker holds it whole."""
    measured: int
    """The fp32 model that evaluation runs, 4 P."""
    gradients: int
    """At the end of the backward pass, e P; from ZeRO 2 on divided by w. Twice where a second copy is being made."""
    accumulated: int
    """Of `gradients`, what is there before the last backward pass begins."""
    bucket: int
    """What ZeRO reduces gradients in."""
    gathered: int
    """Weights that ZeRO 3 has gathered from the other workers."""
    activations: int
    """What the forward pass of a micro-batch keeps for the backward pass."""
    working: int
    """What lives within one block of it."""
    gradients_to_step: int
    """Flat fp32 gradients that a ZeRO optimizer makes for its step, and what it makes them from."""
    gathered_master: int
    """The fp32 weights that the EMA is given, 4 P, where the module does not hold them whole."""
    evaluation: int
    """What the forward pass of the validation loss needs."""

    @property
    def state(self) -> int:
        """What is held between two steps."""
        return self.weights + self.master + self.moments + self.ema + self.measured

    @property
    def training(self) -> int:
        """The most that a training step needs: one of the two ends of the last backward pass (in between activations
        go as gradients come), the optimizer's step, or the EMA's."""
        before = self.accumulated + self.bucket + self.gathered + self.activations + self.working
        after = self.gradients + self.bucket + self.gathered
        step = self.gradients + self.gradients_to_step
        return self.state + max(before, after, step, self.gathered_master)

    @property
    def total(self) -> int:
        """The most that is held at any time: in a training step or in an evaluation."""
        return max(self.training, self.state + self.evaluation)


def memory(
    model: ModelConfig,
    *,
    micro_batch: int,
    micro_steps: int = 1,
    precision: Precision,
    zero_stage: int,
    num_workers: int,
    activation_checkpointing: bool = False,
    evaluation_batch: int = EVALUATION_BATCH,
) -> Memory:
    """Memory of one of `num_workers` workers that train `model` with AdamW through DeepSpeed.

    ZeRO 1 divides master and moments by the workers, 2 gradients too, 3 weights too (Rajbhandari et al. 2019, arXiv
    1910.02054, figure 1). Buffers are those of DeepSpeed 0.19 as training.engine sets it up.

    Args:
        micro_batch: samples of one forward and backward pass.
        micro_steps: forward and backward passes of an optimizer step.
        evaluation_batch: images of one forward pass in an evaluation.

    Raises:
        ValueError: the stage is none, there is no worker, or it is ZeRO 0 in bf16, which has no master weights.
    """
    if zero_stage not in (0, 1, 2, 3) or num_workers < 1:
        raise ValueError(
            f"got zero_stage {zero_stage} and {num_workers} workers; wanted a stage of 0 to 3 and at least 1 worker"
        )
    if precision == "bf16" and zero_stage == 0:
        raise ValueError("got bf16 at zero_stage 0, which keeps no fp32 master weights; wanted stage 1, 2 or 3")
    params = cost(model).params_total
    size = 2 if precision == "bf16" else 4
    share = -(-params // num_workers)
    owned = params if zero_stage == 0 else share  # what this worker's optimizer steps
    gradients, accumulated = _gradients(params, share, zero_stage, micro_steps)
    return Memory(
        weights=size * (share if zero_stage == 3 else params),
        master=0 if zero_stage == 0 else 4 * owned,
        moments=8 * owned,
        ema=4 * params,
        measured=4 * params,
        gradients=size * gradients,
        accumulated=size * accumulated,
        bucket=size * _bucket(params, zero_stage, num_workers),
        gathered=size * (params - share) if zero_stage == 3 else 0,
        activations=micro_batch * activation_bytes(model, precision, activation_checkpointing),
        working=micro_batch * working_bytes(model, precision),
        gradients_to_step=0 if zero_stage == 0 else owned * (6 if precision == "bf16" else 4),
        gathered_master=0 if precision == "fp32" and zero_stage < 3 else 4 * params,
        evaluation=evaluation_batch * working_bytes(model, "fp32"),
    )


def _gradients(params: int, share: int, zero_stage: int, micro_steps: int) -> tuple[int, int]:
    """Elements of gradients at the end of the last backward pass, and before it.

    ZeRO 1 copies the worker's share out of the bucket, 2 keeps the sum of earlier micro-batches beside the newest, 3
    has one buffer from the start.
    """
    again = micro_steps > 1
    return {
        0: (params, params if again else 0),
        1: (params + share, params if again else 0),
        2: (2 * share if again else share, share if again else 0),
        3: (share, share),
    }[zero_stage]


def _bucket(params: int, zero_stage: int, num_workers: int) -> int:
    """Elements of the buffers in which gradients are reduced, with the copy that is made where they are of several
    workers (ZeRO 1, 2) or always (3); ZeRO 0 has only the copy."""
    if zero_stage == 0:
        return min(UNDIVIDED_BUCKET, params)
    copies = 2 if zero_stage == 3 or num_workers > 1 else 1
    return copies * min(REDUCE_BUCKET, params)
