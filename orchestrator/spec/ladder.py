"""The sizes of a sweep: a list of models, or a rule that gives one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from orchestrator.spec.section import Name, Numbers, PositiveFloat, Section, Wholes, tag_of


class Size(Section):
    """One model of the ladder: a published `preset`, or `width` and `depth`."""

    name: Name
    """Name of the size in tables and plots."""
    preset: str | None = None
    """A published size of the family with its patch, such as S/2 or XL/4; gives width, depth, heads and patch."""
    width: int | None = Field(default=None, ge=1)
    """Size of the residual stream."""
    depth: int | None = Field(default=None, ge=1)
    """Transformer blocks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; or give `head_dim` for all sizes."""
    patch: int | None = None
    """Side of a square patch, pixels."""

    @model_validator(mode="after")
    def _preset_or_shape(self) -> Self:
        given = [key for key in ("width", "depth", "heads", "patch") if getattr(self, key) is not None]
        if self.preset is not None and given:
            raise ValueError(
                f"size {self.name} gives preset and {', '.join(given)}; wanted preset alone, or width and depth"
            )
        if self.preset is None and not {"width", "depth"} <= set(given):
            missing = [key for key in ("width", "depth") if key not in given]
            raise ValueError(
                f"size {self.name} gives no {' and no '.join(missing)}; wanted width and depth, or a preset"
            )
        return self


class WidthLadder(Section):
    """Sizes of one depth and several widths, named w<width>."""

    rule: Literal["width"]
    """A ladder over widths."""
    widths: Wholes
    """Widths; those of a rule are rounded to multiples of the head size."""
    depth: int = Field(ge=1)
    """Depth of all."""


class DepthLadder(Section):
    """Sizes of one width and several depths, named d<depth>."""

    rule: Literal["depth"]
    """A ladder over depths."""
    depths: Wholes
    """Depths."""
    width: int = Field(ge=1)
    """Width of all."""


class AspectLadder(Section):
    """Sizes of one aspect, width / depth: by width, or by the number of parameters. Named w<width>d<depth>."""

    rule: Literal["aspect"]
    """A ladder in which width and depth grow together."""
    aspect: PositiveFloat
    """Width over depth; depths are rounded, and are at least 1."""
    widths: Wholes | None = None
    """Widths; or `params`."""
    params: Numbers | None = None
    """Backbone parameters: the width whose model comes nearest is taken."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.widths is None) == (self.params is None):
            raise ValueError("wanted exactly one of widths and params")
        return self


class ExpectedOptimum(Section):
    """Where the compute-optimal size is expected: N*(C) = params x (C / flops)^exponent, or as a file of fits says."""

    params: PositiveFloat | None = None
    """Backbone parameters that are expected to be best at `flops`."""
    flops: PositiveFloat | None = None
    """Training FLOPs for which `params` are said."""
    exponent: float = Field(default=0.5, gt=0, lt=1)
    """Exponent of N*(C); about 0.5 where model and data should grow alike (Hoffmann et al. 2022)."""
    allocation: str | None = None
    """A JSON file that `ditlaw fit --law isoflop --json` has printed; the path is from this file's folder."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        by_hand = self.params is not None and self.flops is not None
        if by_hand == (self.allocation is not None) or (self.params is None) != (self.flops is None):
            raise ValueError("wanted params and flops, or an allocation file")
        return self


class IsoFlopLadder(Section):
    """For each budget the sizes around its expected optimum, from one geometric ladder: so that budgets share sizes."""

    rule: Literal["isoflop"]
    """Sizes chosen by budget."""
    expected: ExpectedOptimum
    """The optimum that is expected."""
    per_budget: int = Field(default=7, ge=3, le=100)
    """Sizes of each budget, as many below the optimum as above."""
    ratio: float = Field(default=1.5, gt=1.0)
    """Parameters of a size over those of the one below it."""
    depth: int | None = Field(default=None, ge=1)
    """Depth of all; or `aspect`."""
    aspect: PositiveFloat | None = None
    """Width over depth."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.depth is None) == (self.aspect is None):
            raise ValueError("wanted exactly one of depth and aspect")
        return self


Ladder = Annotated[
    Annotated[WidthLadder, Tag("width")]
    | Annotated[DepthLadder, Tag("depth")]
    | Annotated[AspectLadder, Tag("aspect")]
    | Annotated[IsoFlopLadder, Tag("isoflop")],
    Discriminator(tag_of("rule")),
]
