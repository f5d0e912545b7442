"""What a model costs, in closed form: parameters, FLOPs and memory, without importing torch.

One multiply-add is 2 FLOPs. Counted are matrix products and the two attention products, exactly as
`torch.utils.flop_counter.FlopCounterMode` counts them; element-wise work, softmax, norms and table look-ups are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from models.configs.base import ModelConfig

Precision = Literal["fp32", "bf16", "fp8"]

FLOPS_DEFINITION = "3x-forward-matmul-v1"
"""Name of the definition used here: training = 3 x forward, forward = matrix products only. A column of every row."""

REDUCE_BUCKET = 100_000_000
"""Gradients that ZeRO reduces at a time: 0.2 GB in bf16, where a collective has long reached its full bandwidth."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and work of one model. FLOPs are of one sample; one multiply-add is 2 FLOPs."""

    params_total: int
    """Every trainable parameter. Fixed positions (sin-cos, rotary) are a buffer and are not counted anywhere."""
    params_backbone: int
    """`params_total` without the label table and learned positions; patch embedding, timestep MLP and readout are
    included."""
    params_matmul: float
    """Weights of matrix products, weighted by use per token: one that is used once per image counts 1 / tokens.
    Biases, gains, positions and the label table count 0."""
    forward_flops: float
    """FLOPs of one forward pass."""
    tokens: int
    """Tokens of one sample."""

    @property
    def training_flops(self) -> float:
        """FLOPs of one training step on one sample: the backward pass is taken as twice the forward pass."""
        return 3.0 * self.forward_flops


@singledispatch
def cost(config: ModelConfig) -> Cost:
    """Cost of the model that `config` describes. A new family registers its own closed form.

    Raises:
        ValueError: no closed form is registered for the class of `config`.
    """
    raise ValueError(f"no cost for {type(config).__name__}; wanted one of {[c.__name__ for c in _families()]}")


def _families() -> list[type]:
    return [family for family in cost.registry if family is not object]


@singledispatch
def activation_bytes(config: ModelConfig, precision: Precision, checkpointing: bool) -> int:
    """Bytes that one sample adds to a training step: every tensor that autograd saves for the backward pass, once.

    Eager, with an attention kernel that does not keep its logits (flash or memory-efficient), from the model's input to
    the squared error. fp32 is as on the CPU, where an RMS norm is not one kernel; in bf16, as DeepSpeed has it, weights
    and all activations but the error are bf16, without autocast, and an RMS norm is one kernel. Not counted: weights,
    and what lives shorter than from the forward to the backward pass (see `working_bytes`).

    Args:
        config: the model.
        precision: "fp32", or "bf16", which "fp8" is like: what is kept for the backward pass is bf16 there too.
        checkpointing: each block keeps only its input and is computed again in the backward pass; the largest moment,
            with one block whole, is counted.

    Raises:
        ValueError: no closed form is registered for the class of `config`.
    """
    known = [family.__name__ for family in activation_bytes.registry if family is not object]
    raise ValueError(f"no activation bytes for {type(config).__name__}; wanted one of {known}")


@singledispatch
def working_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of one sample that a training step needs within a block at most, on top of `activation_bytes`.

    Unless a family registers its own: all that a step with activation checkpointing keeps, which holds one block whole
    and is more than any block works with at a time.
    """
    return activation_bytes(config, precision, True)


@singledispatch
def inference_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of one sample that a forward pass without gradients needs at most; bounded as `working_bytes`."""
    return activation_bytes(config, precision, True)
