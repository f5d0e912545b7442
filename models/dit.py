"""The diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748), written from the paper.

Parameter names follow the published checkpoints, so that loading one is a matter of reshaping the patch embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.blocks import (
    Attention,
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    SwiGlu,
    TimestepEmbedder,
    check_shape,
    modulated_norm,
    modulation,
    placed,
    positions_2d,
    rotations_2d,
    unpatched,
    vectors,
)
from models.config import Parameterization
from models.configs.dit import DiTConfig
from models.fused import through_blocks
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier

ModulatedNorm = Callable[[Tensor, Tensor, Tensor], Tensor]


def _attention(config: DiTConfig) -> Attention:
    return Attention(width=config.width, heads=config.heads, bias=config.bias, qk_norm=config.qk_norm)


def _mlp(config: DiTConfig) -> nn.Module:
    kind = SwiGlu if config.mlp == "swiglu" else Mlp
    return kind(width=config.width, hidden=config.mlp_hidden, bias=config.bias)


class _Block(nn.Module):
    """What blocks share: attention, MLP and modulation, and what a residual branch is multiplied by."""

    def __init__(self, config: DiTConfig, branch: float) -> None:
        super().__init__()
        self.branch = branch
        self.attn = _attention(config)
        self.mlp = _mlp(config)
        self.adaLN_modulation = modulation(config.width, config.modulation_vectors)


class DiTBlock(_Block):
    """A transformer block with adaLN-Zero conditioning (DiT, figure 3)."""

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        rotation: Float[Tensor, "2 n half"] | None = None,
        context: Float[Tensor, "b m d"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors(self.adaLN_modulation, condition, 6)
        norm, norm_mlp = self.norms()
        x = torch.addcmul(x, gate, self.attn(norm(x, shift, scale), rotation), value=self.branch)
        x = self.between(x, context)
        return torch.addcmul(x, gate_mlp, self.mlp(norm_mlp(x, shift_mlp, scale_mlp)), value=self.branch)

    def norms(self) -> tuple[ModulatedNorm, ModulatedNorm]:
        """The modulated norms before attention and MLP, called with (x, shift, scale): without parameters here."""
        return modulated_norm, modulated_norm

    def between(self, x: Float[Tensor, "b n d"], context: Tensor | None) -> Float[Tensor, "b n d"]:
        """What a family adds between attention and MLP: nothing here."""
        return x


class ParallelBlock(_Block):
    """Attention and MLP side by side on one modulated norm, x + gate (attn(h) + mlp(h)), with adaLN-Zero conditioning.

    Three modulation vectors for six: one norm needs one shift and one scale, and one sum one gate (Dehghani et al.
    2023, arXiv 2302.05442, section 2, without its biasless norms).
    """

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        rotation: Float[Tensor, "2 n half"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        shift, scale, gate = vectors(self.adaLN_modulation, condition, 3)
        h = modulated_norm(x, shift, scale)
        return torch.addcmul(x, gate, self.attn(h, rotation) + self.mlp(h), value=self.branch)


class DiT(TaggedModule):
    """A class-conditional diffusion transformer.

    Starts at zero; `models.families.build` gives an initialised one. Label dropout is the training loop's, which
    replaces labels by the null class `config.num_classes`: the forward pass draws nothing.
    """

    tags: ClassVar[TagTable] = (
        ("blocks.*.bias", Tag(Role.BIAS, Start.ZERO, branch=True)),
        ("*.bias", Tag(Role.BIAS, Start.ZERO)),
        ("positions", Tag(Role.VECTOR, Start.EMBEDDING)),
        ("x_embedder.proj.weight", Tag(Role.INPUT, Start.LINEAR)),
        ("t_embedder.mlp.0.weight", Tag(Role.INPUT, Start.TIMESTEP)),
        ("t_embedder.mlp.2.weight", Tag(Role.HIDDEN, Start.TIMESTEP)),
        ("y_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        ("blocks.*.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION, branch=True)),
        ("*.adaLN_modulation.1.weight", Tag(Role.HIDDEN, Start.MODULATION)),
        ("blocks.*.attn.[qk]_norm.weight", Tag(Role.VECTOR, Start.ONE, branch=True)),
        ("blocks.*.attn.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("blocks.*.mlp.*.weight", Tag(Role.HIDDEN, Start.LINEAR, branch=True)),
        ("final_layer.linear.weight", Tag(Role.OUTPUT, Start.ZERO)),
    )
    activations: ClassVar[str] = (
        r"[xty]_embedder|blocks\.\d+(\.(attn|mlp|adaLN_modulation))?|final_layer\.adaLN_modulation"
    )

    config: DiTConfig
    positions: Tensor | None
    rotation: Tensor | None

    def __init__(self, config: DiTConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(channels=config.channels, patch=config.patch, width=config.width)
        self.t_embedder = TimestepEmbedder(width=config.width, frequency_size=config.frequency_size)
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=config.width)
        block = ParallelBlock if config.block == "parallel" else DiTBlock
        branch = branch_multiplier(parameterization, config.depth)
        self.blocks = nn.ModuleList(block(config, branch) for _ in range(config.depth))
        self.final_layer = FinalLayer(
            width=config.width,
            outputs=config.patch**2 * config.out_channels,
            multiplier=readout_multiplier(parameterization, config.width),
        )
        side, rope = config.image_size // config.patch, config.positions == "rope"
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(config.tokens, config.width))
        else:
            self.register_buffer("positions", None if rope else positions_2d(side, config.width), persistent=False)
        self.register_buffer("rotation", rotations_2d(side, config.head_dim) if rope else None, persistent=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c_out h w"]:
        """Prediction for noised images.

        Args:
            x: noised images; cast to the model's precision.
            t: times in [0, 1]; keep them in float32.
            y: labels in [0, num_classes]; `num_classes` is the null class.

        Raises:
            ValueError: images of another shape.
        """
        config = self.config
        check_shape(x, config)
        x = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))  # [b, n, d]
        if self.positions is not None:
            x = placed(x, self.positions.to(x.dtype))
        condition = F.silu(self.t_embedder(t) + self.y_embedder(y))  # [b, d]
        if self._fusable(x):
            h = through_blocks(self.blocks, self.final_layer, x, condition)
            out = self.final_layer.linear(h, self.final_layer.multiplier)
        else:
            for block in self.blocks:
                x = self.through(block, x, condition, self.rotation)
            out = self.final_layer(x, condition)  # [b, n, patch * patch * c_out]
        return unpatched(out, config.image_size // config.patch, config.patch)

    def _fusable(self, x: Tensor) -> bool:
        """Whether the blocks are such as `models.fused` knows, in the precision and on the device that it is for."""
        return self.fused and self.config.fusable and x.is_cuda and x.dtype == torch.bfloat16
