"""What a model costs, in closed form: parameters, FLOPs and memory, without importing torch.

One multiply-add is 2 FLOPs. Counted are matrix products and the two attention products, exactly as
`torch.utils.flop_counter.FlopCounterMode` counts them; element-wise work, softmax, norms and table look-ups are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from models.config import DiTConfig, ModelConfig, preset

Precision = Literal["fp32", "bf16"]

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


@cost.register
def _dit_cost(config: DiTConfig) -> Cost:
    width, hidden, tokens = config.width, config.mlp_hidden, config.tokens
    patch_in = config.channels * config.patch**2
    patch_out = config.out_channels * config.patch**2
    modulation = config.modulation_vectors
    fc1_out = hidden * (2 if config.mlp == "swiglu" else 1)

    block_per_token = 4 * width**2 + width * fc1_out + hidden * width  # qkv and proj, fc1, fc2
    block_per_image = modulation * width**2  # adaLN
    per_token = patch_in * width + config.depth * block_per_token + width * patch_out
    per_image = config.frequency_size * width + width**2 + config.depth * block_per_image + 2 * width**2

    block_biases = modulation * width + (3 * width + width + fc1_out + width if config.bias else 0)
    block_gains = 2 * config.head_dim if config.qk_norm else 0
    vectors = width + 2 * width + config.depth * (block_biases + block_gains) + 2 * width + patch_out
    label_table = (config.num_classes + 1) * width
    positions = tokens * width if config.positions == "learned" else 0
    backbone = per_token + per_image + vectors

    attention = config.depth * 2 * tokens**2 * width  # multiply-adds of q k^T and of its product with v
    return Cost(
        params_total=backbone + label_table + positions,
        params_backbone=backbone,
        params_matmul=per_token + per_image / tokens,
        forward_flops=2.0 * (tokens * per_token + per_image + attention),
        tokens=tokens,
    )


PAPER_GIGA_MULTIPLY_ADDS = {
    "S/8": 0.36, "S/4": 1.41, "S/2": 6.06,
    "B/8": 1.42, "B/4": 5.56, "B/2": 23.01,
    "L/8": 5.01, "L/4": 19.70, "L/2": 80.71,
    "XL/8": 7.39, "XL/4": 29.05, "XL/2": 118.64,
}  # fmt: skip
"""The "Gflops" of the DiT paper (Peebles & Xie 2022, arXiv 2212.09748, table 4), which are multiply-adds."""


def preset_table() -> str:
    """The presets' parameters and work as a Markdown table: 32 x 32 x 4 latents, 1000 classes, learned variance."""
    lines = [
        "| preset | parameters | backbone | tokens | forward, 10^9 multiply-adds | in the paper | "
        "training, 10^9 FLOPs a sample |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in DiTConfig.presets:
        size = cost(preset(name, learn_sigma=True))
        lines.append(
            f"| DiT-{name} | {size.params_total:,} | {size.params_backbone:,} | {size.tokens} "
            f"| {size.forward_flops / 2e9:.2f} | {PAPER_GIGA_MULTIPLY_ADDS[name]:.2f} "
            f"| {size.training_flops / 1e9:.2f} |"
        )
    return "\n".join(lines)


@singledispatch
def activation_bytes(config: ModelConfig, precision: Precision, checkpointing: bool) -> int:
    """Bytes that one sample adds to a training step: every tensor that autograd saves for the backward pass, once.

    Eager, with an attention kernel that does not keep its logits (flash or memory-efficient), from the model's input to
    the squared error. fp32 is as on the CPU, where an RMS norm is not one kernel; in bf16, as DeepSpeed has it, weights
    and all activations but the error are bf16, without autocast, and an RMS norm is one kernel. Not counted: weights,
    and what lives shorter than from the forward to the backward pass (see `working_bytes`).

    Args:
        config: the model.
        precision: "fp32" or "bf16".
        checkpointing: each block keeps only its input and is computed again in the backward pass; the largest moment,
            with one block whole, is counted.

    Raises:
        ValueError: no closed form is registered for the class of `config`.
    """
    known = [family.__name__ for family in activation_bytes.registry if family is not object]
    raise ValueError(f"no activation bytes for {type(config).__name__}; wanted one of {known}")


@activation_bytes.register
def _dit_activation_bytes(config: DiTConfig, precision: Precision, checkpointing: bool) -> int:
    width, tokens = config.width, config.tokens
    size = 2 if precision == "bf16" else 4
    patches = tokens * config.channels * config.patch**2
    embedders = size * (patches + config.frequency_size + 4 * width)  # 4: in and out of the two SiLUs
    readout = _norm_bytes(config, size)
    error = 4 * config.channels * config.image_size**2
    whole = 1 if checkpointing else config.depth
    inputs = config.depth * size * tokens * width if checkpointing else 0
    return embedders + inputs + whole * _dit_block_bytes(config, size) + readout + error


def _norm_bytes(config: DiTConfig, size: int) -> int:
    """An adaLN: the stream and its norm with mean and deviation in fp32, 1 + scale, and the input of the next map."""
    return config.tokens * (3 * size * config.width + 8) + size * config.width


def _dit_block_bytes(config: DiTConfig, size: int) -> int:
    width, hidden = config.width, config.mlp_hidden
    per_token = 3 * width + width  # q, k, v and the attended values
    if config.qk_norm and size == 4:
        per_token += 4 * width + 2 * config.heads  # normed, times gain, and the norms themselves
    elif config.qk_norm or config.positions == "rope":
        per_token += 2 * width  # normed or turned copies; v keeps the originals alive
    per_token += 2 * hidden if config.mlp == "gelu" else 4 * hidden
    per_token += 2 * width if config.block == "serial" else width  # what the gates multiply
    norms = 2 if config.block == "serial" else 1
    log_sum_exp = 4 * config.tokens * config.heads * (3 if config.qk_norm and size == 2 else 1)  # and norms, fused
    vectors = size * config.modulation_vectors * width
    return size * config.tokens * per_token + log_sum_exp + vectors + norms * _norm_bytes(config, size)


@singledispatch
def working_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of one sample that a training step needs within a block at most, on top of `activation_bytes`.

    Raises:
        ValueError: no closed form is registered for the class of `config`.
    """
    known = [family.__name__ for family in working_bytes.registry if family is not object]
    raise ValueError(f"no working bytes for {type(config).__name__}; wanted one of {known}")


@working_bytes.register
def _dit_working_bytes(config: DiTConfig, precision: Precision) -> int:
    """The gradient of the MLP's hidden layer; in fp32 on the CPU what the non-linearity is made of, as in inference."""
    return 2 * config.tokens * config.mlp_hidden if precision == "bf16" else inference_bytes(config, precision)


@singledispatch
def inference_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of one sample that a forward pass without gradients needs at most.

    Raises:
        ValueError: no closed form is registered for the class of `config`.
    """
    known = [family.__name__ for family in inference_bytes.registry if family is not object]
    raise ValueError(f"no inference bytes for {type(config).__name__}; wanted one of {known}")


@inference_bytes.register
def _dit_inference_bytes(config: DiTConfig, precision: Precision) -> int:
    """At the MLP's non-linearity, the widest place: the stream, its norm, and the hidden layer before and after."""
    hidden = config.mlp_hidden * (2 if config.mlp == "gelu" else 4)
    return (2 if precision == "bf16" else 4) * config.tokens * (2 * config.width + hidden)
