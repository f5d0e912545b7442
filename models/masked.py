"""A masked image model: a transformer over tokens of patches, its loss, and parallel decoding.

After MaskGIT (Chang et al. 2022, arXiv 2202.04200); classifier-free guidance of logits as aMUSEd's (Patil et al. 2024,
arXiv 2401.01808). Time runs as everywhere: at t = 0 nothing is masked, at t = 1 everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from models import config
from models.blocks import FinalLayer, LabelEmbedder, check_shape, unpatched
from models.codebook import Codebook
from models.config import Parameterization
from models.configs.masked import MaskedConfig
from models.dit import DiTBlock
from models.mmdit import BLOCK_TAGS
from models.objectives import Objective, build_objective
from models.parameterization import Role, Start, Tag, TaggedModule, TagTable, branch_multiplier, readout_multiplier


class MaskedTransformer(TaggedModule):
    """Logits of every token's code, from codes of which some are the mask, `config.codes`."""

    config: MaskedConfig
    tags: ClassVar[TagTable] = (
        ("positions", Tag(Role.VECTOR, Start.EMBEDDING)),
        ("[xy]_embedder.embedding_table.weight", Tag(Role.INPUT, Start.EMBEDDING)),
        *BLOCK_TAGS,
    )
    activations: ClassVar[str] = r"x_embedder|blocks\.\d+(\.(attn|mlp))?"

    def __init__(self, config: MaskedConfig, parameterization: Parameterization) -> None:
        super().__init__()
        self.config = config
        width, branch = config.width, branch_multiplier(parameterization, config.depth)
        self.codebook = Codebook(codes=config.codes, values=config.patch_values)
        self.x_embedder = LabelEmbedder(num_classes=config.codes, width=width)  # one row more: the mask
        self.y_embedder = LabelEmbedder(num_classes=config.num_classes, width=width)
        self.positions = nn.Parameter(torch.zeros(config.tokens, width))
        self.blocks = nn.ModuleList(DiTBlock(config.plain, branch) for _ in range(config.depth))
        readout = readout_multiplier(parameterization, width)
        self.final_layer = FinalLayer(width=width, outputs=config.codes, multiplier=readout)

    def equip(self, folder: Path) -> None:
        self.codebook.equip(folder, self.config.codebook, self.config.checksum)

    def inputs(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.tokens_of(x), y

    def tokens_of(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The codes nearest to the images' patches."""
        check_shape(x, self.config)
        return self.codebook.nearest(patches(x, self.config.patch))

    def image_of(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        """The images that codes stand for."""
        values = rearrange(self.codebook.patches[tokens], "b n (c k) -> b n (k c)", c=self.config.channels)
        return unpatched(values, self.config.side, self.config.patch)

    def forward(self, tokens: Int[Tensor, "b n"], y: Int[Tensor, " b"]) -> Float[Tensor, "b n k"]:
        """Logits [b, tokens, codes] of codes [b, tokens] in [0, codes]; labels as a DiT's."""
        x = self.x_embedder(tokens) + self.positions
        condition = F.silu(self.y_embedder(y))
        for block in self.blocks:
            x = self.through(block, x, condition)
        return self.final_layer(x, condition)


def patches(x: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n v"]:
    """The patches of images in row-major order, each channels, rows, columns."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def masked_share(t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Share of tokens that are masked at t: MaskGIT's cosine schedule, with its r = 1 - t."""
    return torch.sin(0.5 * math.pi * t)


@final
class MaskedTokens(Objective):
    """Cross-entropy of the masked tokens in nats, its mean over them (Chang et al. 2022, equation 1); t is uniform."""

    predicts = "tokens"
    sampler = "parallel-decoding"

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u

    def loss(
        self,
        model: Any,
        x: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, " b"]:
        """Loss of each sample. The tokens whose noise (its first number in the patch) is lowest are masked, at least
        one; so the same draws mask the same tokens for every model of a patch size."""
        tokens = model.tokens_of(x)
        order = patches(noise, model.config.patch)[..., 0].argsort(dim=1).argsort(dim=1)
        num_masked = (masked_share(t) * tokens.shape[1]).ceil().clamp(min=1)
        masked = order < num_masked[:, None]
        logits = model(torch.where(masked, model.config.codes, tokens), y).float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        return (losses * masked).sum(1) / num_masked


TEMPERATURE = 4.5
"""Of the noise on confidences at the first step of decoding; it falls linearly to 0 (Chang et al. 2022, code)."""


@build_objective.register
def _build_masked_tokens(objective: config.MaskedTokens) -> Objective:
    return MaskedTokens()


@torch.no_grad()
def decode(
    model: Any,
    y: Int[Tensor, " b"],
    null: Int[Tensor, " b"],
    *,
    steps: int,
    guidance: float,
    normal: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b c h w"]:
    """Images by parallel decoding: at every step all masked tokens are drawn, and the most confident are kept.

    Args:
        model: a `MaskedTransformer`.
        y, null: labels, and those of the unconditional prediction.
        steps: forward passes; MaskGIT's images take 8 to 12.
        guidance: scale w of u + w (c - u) on logits; 1 is none.
        normal: standard normal numbers of the shape and on the device of a tensor.
    """
    mask, n = model.config.codes, model.config.tokens
    tokens = torch.full((len(y), n), mask, device=y.device)
    for step in range(1, steps + 1):
        logits = model(tokens, y).float()
        if guidance != 1.0:
            logits = torch.lerp(model(tokens, null).float(), logits, guidance)
        drawn = (logits + _gumbel(normal(logits))).argmax(-1)
        masked = tokens == mask
        likelihood = logits.log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
        share = step / steps
        confidence = likelihood + TEMPERATURE * (1 - share) * _gumbel(normal(likelihood))
        confidence = torch.where(masked, confidence, torch.inf)
        left = int(n * math.cos(0.5 * math.pi * share)) if step < steps else 0
        keep = confidence.argsort(dim=1, descending=True).argsort(dim=1) < n - left
        tokens = torch.where(masked & keep, drawn, tokens)
    return model.image_of(tokens)


def _gumbel(normal: Tensor) -> Tensor:
    """Gumbel numbers from normal ones, through their distribution function."""
    uniform = torch.special.ndtr(normal.double()).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform)).float()
