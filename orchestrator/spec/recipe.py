"""How trials are trained: optimizer, schedule, batch size."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from orchestrator.spec.section import Numbers, PositiveFloat, Section, tag_of

Decay = Annotated[float, Field(ge=0, lt=1)]


class Ema(Section):
    """Power-function EMA (Karras et al. 2024): its length is a fixed share of the training so far."""

    relative_std: float = Field(default=0.1, gt=0, lt=0.28)
    """Standard deviation of the averaging window, as a share of the samples seen."""


class Constant(Section):
    """Warmup, then a constant rate: every shorter budget is a prefix of a longer one and costs nothing."""

    name: Literal["constant"] = "constant"
    """constant"""


class WarmupStableDecay(Section):
    """Warmup, a constant trunk, and for each budget a cooldown to zero that branches off it (Hägele et al. 2024)."""

    name: Literal["wsd"]
    """wsd"""
    cooldown: float = Field(default=0.2, gt=0, lt=1)
    """Share of a budget's samples over which the rate goes to zero."""
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Rate over the cooldown's share x: 1 - x, or 1 - sqrt(x)."""


class PowerBatch(Section):
    """Batch size as a power of what a budget spends: coefficient x (samples or FLOPs)^exponent."""

    rule: Literal["power"]
    """A power law."""
    of: Literal["samples", "flops"]
    """What it is a power of."""
    coefficient: PositiveFloat
    """Batch size at 1 sample or 1 FLOP."""
    exponent: float = Field(gt=-1, lt=1)
    """Its exponent."""
    multiple_of: int = Field(default=8, ge=1)
    """Rounded to a multiple of this; budgets whose batches are the same share a trajectory."""
    at_least: int = Field(default=1, ge=1)
    """Smallest batch."""
    at_most: int | None = Field(default=None, ge=1)
    """Largest batch."""


def _batch_kind(value: Any) -> str:
    return "rule" if isinstance(value, dict | PowerBatch) else "fixed"


BatchSize = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("fixed")] | Annotated[PowerBatch, Tag("rule")],
    Discriminator(_batch_kind),
]


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Schedule = Annotated[
    Annotated[Constant, Tag("constant")] | Annotated[WarmupStableDecay, Tag("wsd")],
    Discriminator(tag_of("name")),
    BeforeValidator(_by_name),
]


class Training(Section):
    """The recipe shared by every trial."""

    learning_rate: Numbers = [1e-3]
    """Base learning rate of AdamW (at base_width under µP), or several to sweep over: a list or a rule."""
    batch_size: BatchSize = 256
    """Samples a step, over all workers: a number, or a rule by budget."""
    warmup_samples: int = Field(default=0, ge=0)
    """Samples of linear warmup."""
    schedule: Schedule = Constant()
    """Learning rate after the warmup: constant, or {name: wsd, cooldown: 0.2}."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Adam's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    gradient_clip: PositiveFloat | None = None
    """Largest global gradient norm; absent: no clipping."""
    ema: Ema = Ema()
    """Averaging of the weights that are measured."""
