"""Where the captions of a text-conditioned model come from, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from models.configs.base import TransformerConfig


def _check_sizes(tokens: int, width: int) -> None:
    for name, value in (("tokens", tokens), ("width", width)):
        if value < 1:
            raise ValueError(f"text has {name} {value}; wanted at least 1")


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """One caption a class, its name, through an encoder without weights (`models.text.encoded`)."""

    tokens: int = 4
    """Words that are kept of a name; shorter names are padded."""
    width: int = 64
    """Size of a word's embedding, and of the pooled one."""
    name: Literal["class-names"] = "class-names"

    def __post_init__(self) -> None:
        _check_sizes(self.tokens, self.width)

    @property
    def pooled(self) -> int:
        """Size of the pooled embedding."""
        return self.width


@dataclass(frozen=True, kw_only=True)
class TextShard:
    """One caption a class, embedded beforehand by any encoder: a safetensors file in the dataset's folder.

    It holds `sequence` [classes, tokens, width] and `pooled` [classes, pooled]; `ditlaw data captions` writes one.
    """

    file: str
    """Name of the file in the dataset's folder."""
    sha256: str
    """Checksum of the file: it, not the name, says which embeddings these are."""
    tokens: int
    """Tokens of a caption."""
    width: int
    """Size of a token's embedding."""
    pooled: int
    """Size of the pooled embedding."""
    name: Literal["shard"] = "shard"

    def __post_init__(self) -> None:
        _check_sizes(self.tokens, self.width)
        if len(self.sha256) != 64:
            raise ValueError(f"text has a sha256 of {len(self.sha256)} characters; wanted 64 hexadecimal digits")


Text = ClassNames | TextShard


@dataclass(frozen=True, kw_only=True)
class TextConditioned(TransformerConfig):
    """A transformer whose labels are captions, embedded beforehand."""

    class_names: tuple[str, ...]
    """What the classes are called: the captions of {name: class-names}."""
    text: Text | None = None
    """Embeddings of the captions: {name: class-names}, or a {name: shard, ...} in the dataset's folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_text()

    def _check_text(self) -> None:
        if self.text is None:
            raise ValueError(
                f"family {self.family} is conditioned on text, and no embeddings of it are given; wanted "
                "text: {name: class-names}, or text: {name: shard, file: ..., sha256: ..., tokens: ..., width: ..., "
                "pooled: ...} as `ditlaw data captions` prints it"
            )
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names are {len(self.class_names)} for {self.num_classes} classes; wanted one each")

    @classmethod
    def example(cls, *, width: int, depth: int, head_dim: int, **options: Any) -> Self:
        text = {"class_names": NAMES, "text": ClassNames(), **options}
        return super().example(width=width, depth=depth, head_dim=head_dim, **text)

    @property
    def captions(self) -> Text:
        """The embeddings, which are there."""
        assert self.text is not None, "refused at construction"
        return self.text


NAMES = (
    "shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "long sleeved shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Class names of the examples."""
