"""The masked image model's configuration and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.base import PatchConfig, Predicts
from models.configs.dit import DiTConfig, plain_dit
from models.cost import Cost, Precision, activation_bytes, cost
from models.tally import Tally, block_values

SHIPPED = {"fashion-mnist-p4-c512.safetensors": "9fda378dc3aa7fc8e7dd0f47c3505b05217e67318765e5140307525c5847bdfd"}
"""Checksums of the codebooks that come with ditlaw, by file."""


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(PatchConfig):
    """A bidirectional transformer that fills in masked tokens (Chang et al. 2022, arXiv 2202.04200; Patil et al. 2024,
    arXiv 2401.01808).

    A token is the number of a patch in a codebook of patches, made beforehand by k-means over the dataset's
    (`ditlaw data codebook`): a tokenizer without a network, that costs nothing and is the same for every trial. Blocks
    are a DiT's, modulated by the class. It is trained by the objective masked-tokens alone.
    """

    family: ClassVar[str] = "masked"
    predicts: ClassVar[Predicts] = "tokens"
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its positions are learned",
        "learn_sigma": "it predicts tokens",
        "text": "it is conditioned on class labels",
        "block": "its blocks are serial",
        "frequency_size": "it is not told the time, which the number of masked tokens tells",
    }

    dataset: str
    """The dataset that the codebook is of."""
    codes: int = 512
    """Patches of the codebook."""
    codebook_sha256: str | None = None
    """Checksum of the codebook's file, as `ditlaw data codebook` prints it: it, not the name, says which tokens these
    are. Of a codebook that comes with ditlaw it is known."""
    qk_norm: bool = False
    """RMS norm of queries and keys over each head, with a learned gain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_sha256 is None:
            if self.codebook not in SHIPPED:
                raise ValueError(
                    f"codebook_sha256 is not given, and no {self.codebook} comes with ditlaw; wanted the checksum that "
                    f"`ditlaw data codebook {self.dataset} --patch {self.patch} --codes {self.codes}` prints"
                )
            object.__setattr__(self, "codebook_sha256", SHIPPED[self.codebook])
        elif len(self.codebook_sha256) != 64:
            raise ValueError(
                f"codebook_sha256 has {len(self.codebook_sha256)} characters; wanted 64 hexadecimal digits"
            )

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        small = {"dataset": "blobs", "codes": 24, "codebook_sha256": "0" * 64, **options}
        return super().example(width=width, depth=depth, head_dim=head_dim, **small)

    @property
    def codebook(self) -> str:
        """Name of the file of the codebook."""
        return f"{self.dataset}-p{self.patch}-c{self.codes}.safetensors"

    @property
    def checksum(self) -> str:
        """Checksum of the codebook's file."""
        assert self.codebook_sha256 is not None, "resolved at construction"
        return self.codebook_sha256

    @property
    def plain(self) -> DiTConfig:
        """The DiT whose blocks these are."""
        return plain_dit(self, qk_norm=self.qk_norm, positions="learned")


@cost.register
def _masked_cost(config: MaskedConfig) -> Cost:
    """Looking patches up in the codebook is not counted: it has no weights, and can be done once a dataset."""
    tally, width, tokens = Tally(), config.width, config.tokens
    tally.tables += (config.codes + 1) * width + tokens * width + (config.num_classes + 1) * width
    for _ in range(config.depth):
        tally.linear(width, 6 * width, uses=1)
        tally.linear(width, 3 * width, uses=tokens)
        tally.linear(width, width, uses=tokens)
        tally.linear(width, config.mlp_hidden, uses=tokens)
        tally.linear(config.mlp_hidden, width, uses=tokens)
        tally.vectors += 2 * config.head_dim if config.qk_norm else 0
        tally.attention(tokens, tokens, width)
    tally.linear(width, 2 * width, uses=1)
    tally.linear(width, config.codes, uses=tokens)
    return tally.cost(tokens)


@activation_bytes.register
def _masked_activation_bytes(config: MaskedConfig, precision: Precision, checkpointing: bool) -> int:
    """A bound: see `models.tally.block_values`; logits and their logarithms are kept in fp32."""
    size, width, tokens = 4 if precision == "fp32" else 2, config.width, config.tokens
    block = block_values(tokens=tokens, width=width, hidden=config.mlp_hidden, heads=config.heads)
    kept = config.depth * tokens * width + block if checkpointing else config.depth * block
    return size * (kept + 6 * tokens * width + 8 * width) + 4 * tokens * (config.codes * 2 + 8)
