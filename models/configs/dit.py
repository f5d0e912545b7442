"""The diffusion transformer's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models.configs.base import PatchConfig, TransformerConfig, check_fixed_positions, check_rotation, swiglu_hidden
from models.cost import Cost, Precision, activation_bytes, cost, inference_bytes, working_bytes

Positions = Literal["sincos", "learned", "rope"]
Block = Literal["serial", "parallel"]
MlpKind = Literal["gelu", "swiglu"]

_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerConfig):
    """A class-conditional diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748).

    The options `qk_norm`, `positions`, `block`, `mlp` and `bias` default to the published model.
    """

    family: ClassVar[str] = "dit"
    aliases: ClassVar[tuple[str, ...]] = ("sit",)
    packable: ClassVar[bool] = True
    can_use_float8: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        f"{size}/{patch}": {"patch": patch, "width": width, "depth": depth, "heads": heads}
        for size, (width, depth, heads) in _SIZES.items()
        for patch in (2, 4, 8)
    }
    """Published sizes (DiT, table 1 and section 4) by name, as fields of this class."""

    learn_sigma: bool = False
    """Predict a second set of channels (the learned variance of DDPM)."""
    qk_norm: bool = False
    """RMS norm of queries and keys over each head, each with one learned gain of `head_dim` numbers that the heads of a
    block share (Dehghani et al. 2023, arXiv 2302.05442, section 2; Zhang & Sennrich 2019, arXiv 1910.07467)."""
    positions: Positions = "sincos"
    """"sincos": fixed 2-D sines and cosines, added to the tokens (DiT). "learned": a table of `tokens` x `width`, added
    to the tokens. "rope": queries and keys are rotated by their column and row (Su et al. 2021, arXiv 2104.09864, one
    half of a head for each axis); `head_dim` must be a multiple of 4."""
    block: Block = "serial"
    """"serial": attention, then the MLP, each with its own norm, shift, scale and gate: 6 adaLN vectors. "parallel":
    both read one modulated norm and one gate scales their sum, x + gate (attn(h) + mlp(h)): 3 adaLN vectors, so the
    block's adaLN has half the parameters (Dehghani et al. 2023, arXiv 2302.05442, section 2)."""
    mlp: MlpKind = "gelu"
    """"gelu": fc2(gelu(fc1 x)), tanh-GELU. "swiglu": fc2(silu(a) b) with a, b = fc1 x (Shazeer 2020, arXiv
    2002.05202)."""
    bias: bool = True
    """Biases of the attention's and the MLP's linear maps; embedders, adaLN and readout keep theirs either way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "sincos":
            check_fixed_positions(self.width)
        if self.positions == "rope":
            check_rotation(self.head_dim)

    @property
    def mlp_hidden(self) -> int:
        """Hidden size of the MLP.

        `mlp_ratio` x `width`; of a SwiGLU, which has three matrices for two, 2/3 of that to the nearest multiple of 8
        (at least 8), so that both kinds have about the same number of parameters.
        """
        return self.mlp_ratio * self.width if self.mlp == "gelu" else swiglu_hidden(self.mlp_ratio, self.width)

    @property
    def fusable(self) -> bool:
        """Of this class alone: one that is made from it may have other blocks."""
        plain = self.block == "serial" and self.mlp == "gelu" and self.positions != "rope"
        return type(self) is DiTConfig and plain

    @property
    def modulation_vectors(self) -> int:
        """adaLN vectors of one block."""
        return 6 if self.block == "serial" else 3

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.channels * (2 if self.learn_sigma else 1)


def plain_dit(config: PatchConfig, **options: Any) -> DiTConfig:
    """The DiT of the same samples and size, for the blocks that another family takes from it."""
    return DiTConfig(
        image_size=config.image_size, channels=config.channels, num_classes=config.num_classes, patch=config.patch,
        width=config.width, depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio, **options,
    )  # fmt: skip


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


@activation_bytes.register
def _dit_activation_bytes(config: DiTConfig, precision: Precision, checkpointing: bool) -> int:
    width, tokens = config.width, config.tokens
    size = 4 if precision == "fp32" else 2
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


@working_bytes.register
def _dit_working_bytes(config: DiTConfig, precision: Precision) -> int:
    """The gradient of the MLP's hidden layer; in fp32 on the CPU what the non-linearity is made of, as in inference."""
    return inference_bytes(config, precision) if precision == "fp32" else 2 * config.tokens * config.mlp_hidden


@inference_bytes.register
def _dit_inference_bytes(config: DiTConfig, precision: Precision) -> int:
    """At the MLP's non-linearity, the widest place: the stream, its norm, and the hidden layer before and after."""
    hidden = config.mlp_hidden * (2 if config.mlp == "gelu" else 4)
    return (4 if precision == "fp32" else 2) * config.tokens * (2 * config.width + hidden)
