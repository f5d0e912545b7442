"""What a model costs, in closed form: parameters and FLOPs, without importing torch.

One multiply-add is 2 FLOPs. Counted are matrix products and the two attention products, exactly as
`torch.utils.flop_counter.FlopCounterMode` counts them; element-wise work, softmax, norms and table look-ups are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from models.config import DiTConfig, ModelConfig

FLOPS_DEFINITION = "3x-forward-matmul-v1"
"""Name of the definition used here: training = 3 x forward, forward = matrix products only. A column of every row."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and work of one model. FLOPs are of one sample; one multiply-add is 2 FLOPs."""

    params_total: int
    """Every trainable parameter. Fixed sin-cos positions are a buffer and are not counted anywhere."""
    params_backbone: int
    """`params_total` without the label table; patch embedding, timestep MLP and readout are included."""
    params_matmul: float
    """Weights of matrix products, weighted by use per token: one that is used once per image counts 1 / tokens.
    Biases and the label table count 0."""
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
    width, tokens = config.width, config.tokens
    patch_in = config.channels * config.patch**2
    patch_out = config.out_channels * config.patch**2

    block_per_token = (4 + 2 * config.mlp_ratio) * width**2  # qkv, proj, fc1, fc2
    block_per_image = 6 * width**2  # adaLN
    per_token = patch_in * width + config.depth * block_per_token + width * patch_out
    per_image = config.frequency_size * width + width**2 + config.depth * block_per_image + 2 * width**2

    block_biases = (3 + 1 + config.mlp_ratio + 1 + 6) * width
    biases = width + 2 * width + config.depth * block_biases + 2 * width + patch_out
    label_table = (config.num_classes + 1) * width
    backbone = per_token + per_image + biases

    attention = config.depth * 2 * tokens**2 * width  # multiply-adds of q k^T and of its product with v
    return Cost(
        params_total=backbone + label_table,
        params_backbone=backbone,
        params_matmul=per_token + per_image / tokens,
        forward_flops=2.0 * (tokens * per_token + per_image + attention),
        tokens=tokens,
    )
