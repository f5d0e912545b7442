"""Captions for text-conditioned models: a table of embeddings, one row a class and a last one for the empty caption.

Embeddings are made beforehand. Those of class names come from a small encoder without weights, so that every machine
has the same ones and nothing is downloaded; those of any other encoder come from a shard in the dataset's folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from models.configs.text import ClassNames, Text, TextShard

GRAMS = (1, 2, 3)
"""Lengths of the character n-grams of a word."""


def encoded(captions: Sequence[str], *, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Embeddings of captions: sequence [n, tokens, width] and pooled [n, width], of RMS 1 where there are words.

    A word is the sum of fixed random vectors of its character n-grams (Bojanowski et al. 2017, arXiv 1607.04606, with
    hashes for the table), so that words that look alike lie near each other. A caption is its words, padded with zeros,
    and pooled it is their mean. Vectors depend on the n-gram and `width` alone.
    """
    sequence = torch.zeros(len(captions), tokens, width)
    pooled = torch.zeros(len(captions), width)
    for row, caption in enumerate(captions):
        words = re.findall(r"\w+", caption.lower())[:tokens]
        for place, word in enumerate(words):
            sequence[row, place] = _word(word, width)
        if words:
            pooled[row] = _normal(sequence[row, : len(words)].mean(0))
    return sequence, pooled


def _word(word: str, width: int) -> Tensor:
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in GRAMS for i in range(len(marked) - n + 1)]
    return _normal(torch.stack([_gram(gram, width) for gram in grams]).sum(0))


def _gram(gram: str, width: int) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=4).digest(), "little")
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _normal(x: Tensor) -> Tensor:
    return x / x.square().mean().sqrt()


def write_shard(path: Path, sequence: Tensor, pooled: Tensor, captions: Sequence[str]) -> TextShard:
    """Write embeddings [n, tokens, width] and [n, p] with their captions; returns what a spec says of the file."""
    tensors = {"sequence": sequence.contiguous(), "pooled": pooled.contiguous()}
    metadata: Mapping[str, str] = {"captions": "\n".join(captions)}
    save_file(tensors, path, metadata=dict(metadata))
    return TextShard(
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        tokens=sequence.shape[1],
        width=sequence.shape[2],
        pooled=pooled.shape[1],
    )


def read_shard(shard: TextShard, num_classes: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Sequence [classes, tokens, width] and pooled [classes, pooled] of a shard, float32.

    Raises:
        ValueError: the file is not there, is not the one of the checksum, or holds embeddings of another shape.
    """
    path = Path(folder) / shard.file
    if not path.is_file():
        raise ValueError(f"no text embeddings at {path.absolute()}; put the file with sha256 {shard.sha256} there")
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != shard.sha256:
        raise ValueError(f"{path} has sha256 {digest}; wanted {shard.sha256}. Put the right file there, or correct it.")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    wanted = {"sequence": [num_classes, shard.tokens, shard.width], "pooled": [num_classes, shard.pooled]}
    got = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if got != wanted:
        raise ValueError(f"{path} holds {got}; wanted {wanted}: one caption a class")
    return tensors["sequence"].float(), tensors["pooled"].float()


class Captions(nn.Module):
    """The embeddings of a label's caption; the null class has the empty caption, which is zeros.

    Of a shard they are zeros until `equip` has read it.
    """

    sequence: Tensor
    pooled: Tensor

    def __init__(self, text: Text, class_names: Sequence[str]) -> None:
        super().__init__()
        self.text, self.num_classes = text, len(class_names)
        sequence = torch.zeros(self.num_classes + 1, text.tokens, text.width)
        pooled = torch.zeros(self.num_classes + 1, text.pooled)
        self.register_buffer("sequence", sequence, persistent=False)
        self.register_buffer("pooled", pooled, persistent=False)
        if isinstance(text, ClassNames) and not self.sequence.is_meta:
            self._fill(*encoded(class_names, tokens=text.tokens, width=text.width))

    def equip(self, folder: Path) -> None:
        """Read a shard from the dataset's folder; class names need nothing."""
        if isinstance(self.text, TextShard):
            self._fill(*read_shard(self.text, self.num_classes, folder))

    def _fill(self, sequence: Tensor, pooled: Tensor) -> None:
        self.sequence[: self.num_classes] = sequence.to(self.sequence)
        self.pooled[: self.num_classes] = pooled.to(self.pooled)

    def forward(self, y: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b p"]]:
        return self.sequence[y], self.pooled[y]
