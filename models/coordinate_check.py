"""The coordinate check: do activations, and how far training moves them, stay put as a model grows?

Yang et al. 2022 (arXiv 2203.03466, appendix D.1) train models of several widths for a few steps and look at the size of
every layer's activations. Under a right parameterization it does not follow the width; Dey et al. 2025 (arXiv
2505.01618) ask the same of the depth. The statement is about a limit, so what is not the limit is kept out:

- One fixed batch for all sizes and seeds: only the weights differ.
- Sizes are RMS values, averaged over seeds as second moments: at width 64 one draw of the weights moves a slope by
  several hundredths. The noise falls with the width, and so does the number of seeds, which keeps the check cheap.
- A small learning rate, 2^-10. At 2^-6 four Adam steps move a weight by up to half of its initial scale; then the
  slopes are of a trajectory that overshoots: they change sign from step to step and shrink with the rate.
- `size` is the activation's RMS, `change` that of its difference from initialisation. The verdict wants every size
  flat, and the change of the last residual stream and of the output: at a small rate sizes are those of the draw, and
  alone they would call SP flat over depths, whose last stream moves nearly in proportion to the depth. The change of an
  inner block is no criterion over depths: block 0 of L is 1/L of the way, and moves the stream by so much less.
- What is exactly zero at some size (the readout before the first step, adaLN-Zero before the second) has no slope.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.config import FAMILIES, SP, CompleteP, MaskedTokens, MuP, Parameterization, RectifiedFlow
from models.configs.base import ModelConfig
from models.families import build
from models.objectives import build_objective
from models.parameterization import TaggedModule, parameter_groups

TOLERANCE = 0.05
"""Largest slope of a size, either way, of what is called flat."""
CHANGE_TOLERANCE = 0.2
"""The same for the change of `ENDS`. A wrong table shows as 1/2 or 1; a right one was seen to leave up to 0.18 over
depths 2 to 32 without adaLN-Zero, for two blocks are not yet the limit."""
ENDS = ("blocks.last", "output")
"""The last residual stream and the output, where what all layers learn adds up."""

Axis = Literal["width", "depth"]
Measure = Literal["size", "change"]
MEASURES: tuple[Measure, ...] = ("size", "change")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the check is made."""

    steps: int = 4
    """Adam steps."""
    learning_rate: float = 2.0**-10
    """Base learning rate."""
    seeds: int = 16
    """Initialisations to average over at the smallest width; at k times that width 1/k as many (at least one)."""
    depth_seeds: int = 4
    """Initialisations to average over at every depth."""
    batch_size: int = 16
    """Images of the one fixed batch."""
    head_dim: int = 32
    """Size of an attention head, the same at every width."""
    zero_init: bool = True
    """Whether residual branches start at zero."""
    family: str = "dit"
    """The family that is checked."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the family."""
    eps: float = 1e-8
    """Adam's epsilon at the base width and depth."""

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "depth_seeds", "batch_size", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is not known; wanted one of {', '.join(FAMILIES)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; wanted above 0")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """RMS of one layer's activation and of its change, averaged over seeds, after some steps at one width or depth."""

    layer: str
    step: int
    extent: int
    """The width, or the depth."""
    size: float
    change: float


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Slope of log RMS against log width or depth, of one layer after some steps."""

    layer: str
    step: int
    measure: Measure
    slope: float


def parameterization_named(name: str, *, base_width: int, base_depth: int) -> Parameterization:
    """The parameterization of a name, with its bases.

    Raises:
        ValueError: the name is not known, or a base is below 1.
    """
    if name == "sp":
        return SP()
    if name == "mup":
        return MuP(base_width=base_width)
    if name == "completep":
        return CompleteP(base_width=base_width, base_depth=base_depth)
    raise ValueError(f"parameterization {name!r} is not known; wanted one of sp, mup, completep")


def check(
    axis: Axis, extents: Sequence[int], other: int, parameterization: Parameterization, protocol: Protocol
) -> list[Reading]:
    """Readings over widths at one depth, or over depths at one width.

    Args:
        axis: what is varied.
        extents: its values, at least two different ones.
        other: the depth if widths are varied, the width if depths are.

    Raises:
        ValueError: fewer than two values, or a width that heads do not divide.
    """
    if len(set(extents)) < 2:
        raise ValueError(f"a slope needs two {axis}s; got {list(extents)}")
    configs = {n: _config(n if axis == "width" else other, other if axis == "width" else n, protocol) for n in extents}
    readings: list[Reading] = []
    for extent, config in configs.items():
        fewer = max(1, protocol.seeds * min(extents) // extent)
        num_seeds = fewer if axis == "width" else protocol.depth_seeds
        runs = [_train(config, parameterization, seed, protocol) for seed in range(num_seeds)]
        for (layer, step), (size, change) in _averaged(runs).items():
            readings.append(Reading(layer=layer, step=step, extent=extent, size=size, change=change))
    return readings


def slopes(readings: Iterable[Reading]) -> list[Slope]:
    """Least-squares slopes of log RMS, for each layer that all models have and step at which it is nowhere zero."""
    readings = list(readings)
    num_extents = len({r.extent for r in readings})
    points: dict[tuple[str, int, Measure], list[tuple[int, float]]] = defaultdict(list)
    for r in readings:
        for measure in MEASURES:
            points[r.layer, r.step, measure].append((r.extent, getattr(r, measure)))
    return [
        Slope(layer=layer, step=step, measure=measure, slope=_log_slope(line))
        for (layer, step, measure), line in points.items()
        if len(line) == num_extents and all(value != 0 for _, value in line)
    ]


def steepest(found: Iterable[Slope], measure: Measure = "size", layers: Sequence[str] = ()) -> Slope:
    """The slope of largest magnitude after at least one step, of all layers or some; nan counts as the largest.

    Raises:
        ValueError: there is none.
    """
    trained = [s for s in found if s.step > 0 and s.measure == measure and (not layers or s.layer in layers)]
    if not trained:
        raise ValueError(f"no slope of {measure} after a step; wanted readings of at least one step")
    return max(trained, key=lambda s: math.inf if math.isnan(s.slope) else abs(s.slope))


def is_flat(found: Iterable[Slope]) -> bool:
    """Whether all sizes, and the change of the last stream and the output, are within tolerance after every step."""
    found = list(found)
    sizes_flat = abs(steepest(found).slope) <= TOLERANCE
    return sizes_flat and abs(steepest(found, "change", ENDS).slope) <= CHANGE_TOLERANCE


def _config(width: int, depth: int, protocol: Protocol) -> ModelConfig:
    if width % protocol.head_dim:
        raise ValueError(
            f"width {width} is not a multiple of the head size {protocol.head_dim}; wanted whole heads of one size"
        )
    options = {"zero_init": protocol.zero_init, **protocol.options}
    return FAMILIES[protocol.family].example(width=width, depth=depth, head_dim=protocol.head_dim, **options)


Run = dict[tuple[str, int], tuple[float, float]]
"""(layer, step) -> mean squares of the activation and of its change."""


def _train(config: ModelConfig, parameterization: Parameterization, seed: int, protocol: Protocol) -> Run:
    """Train one model on the fixed batch and look at its layers before each step and after the last."""
    model = build(config, parameterization, seed)
    groups = parameter_groups(model, parameterization, protocol.learning_rate, 0.0, protocol.eps)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    objective = build_objective(RectifiedFlow() if config.predicts == "images" else MaskedTokens())
    x, y, t, noise = _batch(protocol.batch_size, config)
    seen: dict[str, Tensor] = {}
    _watch(model, seen)
    first: dict[str, Tensor] = {}
    run: Run = {}
    for step in range(protocol.steps + 1):
        with torch.set_grad_enabled(step < protocol.steps):
            loss = objective.loss(model, x, y, t, noise).mean()
        first = first or dict(seen)
        for layer, activation in seen.items():
            run[layer, step] = (_mean_square(activation), _mean_square(activation - first[layer]))
        if step < protocol.steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return run


def _batch(size: int, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of one blob each on a grey ground, labels, times, noise: the same at every call."""
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(-1, 1, config.shape[-1])
    centre = torch.rand(size, 2, 1, 1, generator=generator) - 0.5
    x = 2 * torch.exp(-4 * ((ramp[:, None] - centre[:, 0]) ** 2 + (ramp - centre[:, 1]) ** 2)) - 1
    x = x.reshape(size, *(1 for _ in config.shape[:-2]), *config.shape[-2:]).expand(size, *config.shape)
    noise = torch.randn(size, *config.shape, generator=generator)
    y = torch.randint(0, config.num_classes, (size,), generator=generator)
    return x, y, torch.rand(size, generator=generator), noise


def _watch(model: TaggedModule, seen: dict[str, Tensor]) -> None:
    """Keep the output of every layer of `model` in `seen` at each forward pass."""

    def keep(layer: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        # Of a block of several streams the first, which is the image's.
        def hook(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
            seen[layer] = (out[0] if isinstance(out, tuple) else out).detach()

        return hook

    num_blocks = len(getattr(model, model.trunk))
    for name, module in model.named_modules():
        if name == "" or re.fullmatch(model.activations, name):
            # The last block has one name at every depth.
            layer = name.replace(f"{model.trunk}.{num_blocks - 1}", "blocks.last") if num_blocks > 1 else name
            module.register_forward_hook(keep(layer or "output"))


def _averaged(runs: Sequence[Run]) -> Run:
    """Root mean squares over runs."""
    return {
        key: (
            math.sqrt(sum(run[key][0] for run in runs) / len(runs)),
            math.sqrt(sum(run[key][1] for run in runs) / len(runs)),
        )
        for key in runs[0]
    }


def _mean_square(x: Tensor) -> float:
    return x.float().square().mean().item()


def _log_slope(line: Sequence[tuple[int, float]]) -> float:
    if not all(math.isfinite(value) for _, value in line):
        return math.nan
    xs, ys = [math.log(x) for x, _ in line], [math.log(y) for _, y in line]
    middle = sum(xs) / len(xs)
    return sum((x - middle) * y for x, y in zip(xs, ys, strict=True)) / sum((x - middle) ** 2 for x in xs)
