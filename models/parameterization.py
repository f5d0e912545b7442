"""Parameterizations: how a model's initial scale and optimizer settings follow its width and depth, as tables.

A family tags its parameters (`Tag`) by name; a parameterization is a `Table` over the tags. No family knows of a
parameterization beyond the multipliers of its readout and residual branches, and no parameterization knows a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import SP, CompleteP, MuP, Parameterization
from models.configs.base import ModelConfig


class Role(Enum):
    """What happens to a parameter's two sides as the width grows (Yang et al. 2022, arXiv 2203.03466, table 8)."""

    INPUT = "input"
    """Fixed fan-in, growing fan-out."""
    HIDDEN = "hidden"
    """Both grow."""
    OUTPUT = "output"
    """Growing fan-in, fixed fan-out."""
    VECTOR = "vector"
    """One growing side: gains, learned positions."""
    BIAS = "bias"


class Start(Enum):
    """How a family wants a parameter to start; a parameterization gives each its scale."""

    LINEAR = "linear"
    TIMESTEP = "timestep"
    """The timestep MLP, which DiT starts apart from the other linear maps."""
    EMBEDDING = "embedding"
    MODULATION = "modulation"
    """adaLN: zero if the config says `zero_init`, else like a linear map."""
    ZERO = "zero"
    ONE = "one"


@dataclass(frozen=True)
class Tag:
    """Role and start of a parameter."""

    role: Role
    start: Start
    branch: bool = False
    """Whether it lies in a residual branch, of which there are as many as the model is deep."""


TagTable = tuple[tuple[str, Tag], ...]
"""Shell patterns over parameter names and their tags; the first match counts."""


class TaggedModule(nn.Module):
    """A model that can be parameterized: every family's base class."""

    config: ModelConfig
    tags: ClassVar[TagTable]
    activations: ClassVar[str]
    """Regular expression of the submodules whose outputs the coordinate check looks at; the output always is."""
    trunk: ClassVar[str] = "blocks"
    """Name of the list of its blocks, first to last."""
    activation_checkpointing: bool = False
    """Blocks keep only their input, and are computed again in the backward pass. Set on a built model: it changes no
    number, so it is not part of the configuration."""
    fused: bool = False
    """Let a family that can take the kernels of `models.fused` where they are for: on a GPU in bfloat16. Set on a built
    model whose weights are at hand whenever it is called; it changes numbers by rounding."""

    def equip(self, folder: Path) -> None:
        """Read what the model needs besides images from the dataset's folder; most families need nothing."""

    def inputs(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """What the forward pass takes for images, times and labels: they themselves, unless a family says otherwise."""
        return x, t, y

    def through(self, block: nn.Module, *inputs: Any) -> Any:
        """The block's output, with activation checkpointing if it is on. A block draws nothing, so there is no random
        state to keep."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Powers of m = width / base_width by which a role's settings are multiplied."""

    learning_rate: int = 0
    weight_decay: int = 0
    eps: int = 0
    """Of Adam's epsilon, which belongs with the size of the gradient's entries."""
    multiplier: int = 0
    """Of the parameter's output in the forward pass; honoured by the family for its readout."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A parameterization over roles and starts."""

    scaling: dict[Role, Scaling]
    std: Callable[[Start, int, int], float]
    """Initial standard deviation of (start, fan_in, fan_out)."""
    uniform: frozenset[Start]
    """Starts drawn uniformly; the others are normal."""
    branch: int = 0
    """Power of depth / base_depth by which residual branches, and Adam's epsilon of what lies in them, are multiplied:
    the gradient there has the branch's factor."""


def _sp_std(start: Start, fan_in: int, fan_out: int) -> float:
    # DiT: Xavier for linear maps, normal(0.02) for the label table and the timestep MLP.
    return math.sqrt(2.0 / (fan_in + fan_out)) if start in (Start.LINEAR, Start.MODULATION) else 0.02


def _mup_std(start: Start, fan_in: int, fan_out: int) -> float:
    # A label is a one-hot vector: its row is the activation itself, whose scale must not follow any fan.
    return 0.02 if start is Start.EMBEDDING else 1.0 / math.sqrt(fan_in)


# Every gradient comes through the readout's 1/m, so its entries are of size 1/m, the readout's own weight included, and
# Adam's epsilon has to follow (Everett et al. 2024, arXiv 2407.05872; Dey et al. 2025, arXiv 2505.01618, table 1):
# held at 1e-6 it bends the adaLN activations of `models.coordinate_check` by -0.15 a unit of log width. The readout's
# bias alone sees a gradient of size 1, for which a smaller epsilon is no harm.
_MUP_SCALING: dict[Role, Scaling] = {
    Role.INPUT: Scaling(eps=-1),
    # lr * weight_decay stays what it is at the base width.
    Role.HIDDEN: Scaling(learning_rate=-1, weight_decay=1, eps=-1),
    Role.OUTPUT: Scaling(eps=-1, multiplier=-1),
    Role.VECTOR: Scaling(eps=-1),
    Role.BIAS: Scaling(eps=-1),
}

_TABLES: dict[type[Parameterization], Table] = {
    SP: Table(
        scaling={role: Scaling() for role in Role},
        std=_sp_std,
        uniform=frozenset({Start.LINEAR, Start.MODULATION}),
    ),
    MuP: Table(scaling=_MUP_SCALING, std=_mup_std, uniform=frozenset()),
    # Dey et al. 2025, table 1 at alpha = 1: learning rates take m_L^(alpha - 1) = 1 in depth, weight decay nothing.
    CompleteP: Table(scaling=_MUP_SCALING, std=_mup_std, uniform=frozenset(), branch=-1),
}


def table(parameterization: Parameterization) -> Table:
    """The table of a parameterization.

    Raises:
        ValueError: there is none for its class.
    """
    if type(parameterization) not in _TABLES:
        raise ValueError(
            f"no table for parameterization {type(parameterization).__name__}; "
            f"wanted one of {[known.__name__ for known in _TABLES]}"
        )
    return _TABLES[type(parameterization)]


def width_ratio(parameterization: Parameterization, width: int) -> float:
    """m = width / base_width; 1 where the parameterization has no base width."""
    return width / parameterization.base_width if isinstance(parameterization, MuP | CompleteP) else 1.0


def depth_ratio(parameterization: Parameterization, depth: int) -> float:
    """depth / base_depth; 1 where the parameterization has no base depth."""
    return depth / parameterization.base_depth if isinstance(parameterization, CompleteP) else 1.0


def branch_multiplier(parameterization: Parameterization, depth: int) -> float:
    """What every residual branch is multiplied by: base_depth / depth under CompleteP, else 1."""
    return depth_ratio(parameterization, depth) ** table(parameterization).branch


def readout_multiplier(parameterization: Parameterization, width: int) -> float:
    """What the readout's matrix product is multiplied by: 1/m under µP and CompleteP, 1 under SP."""
    power = table(parameterization).scaling[Role.OUTPUT].multiplier
    return width_ratio(parameterization, width) ** power


def tagged_parameters(model: TaggedModule) -> Iterator[tuple[str, nn.Parameter, Tag]]:
    """Name, parameter and tag of each parameter, in the model's order.

    Raises:
        ValueError: a parameter matches no pattern of the model's tags.
    """
    for name, parameter in model.named_parameters():
        tag = next((tag for pattern, tag in model.tags if fnmatchcase(name, pattern)), None)
        if tag is None:
            raise ValueError(
                f"parameter {name} of {type(model).__name__} has no tag; wanted a pattern for it in the family's tags"
            )
        yield name, parameter, tag


def initialise(model: TaggedModule, config: ModelConfig, parameterization: Parameterization, seed: int) -> None:
    """Draw every parameter in place, from `seed` alone: the global generator is neither read nor moved.

    Drawn in float32 on the CPU and then cast, so that device and precision do not change the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    rules = table(parameterization)
    with torch.no_grad():
        for _, parameter, tag in tagged_parameters(model):
            parameter.copy_(_drawn(parameter, tag.start, config.zero_init, rules, generator))


def _drawn(parameter: Tensor, start: Start, zero_init: bool, rules: Table, generator: torch.Generator) -> Tensor:
    """The initial value of one parameter."""
    if start is Start.ZERO or (start is Start.MODULATION and zero_init):
        return torch.zeros(parameter.shape)
    if start is Start.ONE:
        return torch.ones(parameter.shape)
    fan_in, fan_out = parameter[0].numel(), parameter.shape[0] * parameter.shape[2:].numel()
    std = rules.std(start, fan_in, fan_out)
    draw = torch.empty(parameter.shape)
    if start in rules.uniform:
        bound = math.sqrt(3.0) * std
        return draw.uniform_(-bound, bound, generator=generator)
    return draw.normal_(0.0, std, generator=generator)


def parameter_groups(
    model: TaggedModule,
    parameterization: Parameterization,
    learning_rate: float,
    weight_decay: float,
    eps: float = 1e-8,
) -> list[dict[str, Any]]:
    """Optimizer groups of a model: one for each distinct scaling, however wide or deep the model is.

    Each has `params` and `names` (lists, in the model's order), `lr`, `weight_decay`, `eps` and `name` (its roles
    joined by "+"; "-branch" marks those in residual branches where they are set apart). Groups come in the order of
    `Role`, so a family has the same groups at every size. Weight decay applies to every parameter, as AdamW over all
    parameters does in the DiT recipe.

    Args:
        learning_rate, weight_decay, eps: AdamW's settings at the parameterization's base width and depth.
    """
    rules = table(parameterization)
    m, depth = width_ratio(parameterization, model.config.width), depth_ratio(parameterization, model.config.depth)
    members: dict[tuple[Role, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter, tag in tagged_parameters(model):
        apart = tag.branch and rules.branch != 0
        members.setdefault((tag.role, apart), []).append((name, parameter))

    def powers(kind: tuple[Role, bool]) -> tuple[int, int, int, int]:
        scaling = rules.scaling[kind[0]]
        return scaling.learning_rate, scaling.weight_decay, scaling.eps, rules.branch if kind[1] else 0

    kinds = [(role, apart) for role in Role for apart in (False, True) if (role, apart) in members]
    groups = []
    for wanted in dict.fromkeys(powers(kind) for kind in kinds):
        alike = [kind for kind in kinds if powers(kind) == wanted]
        named = [pair for kind in alike for pair in members[kind]]
        groups.append(
            {
                "params": [parameter for _, parameter in named],
                "names": [name for name, _ in named],
                "lr": learning_rate * m ** wanted[0],
                "weight_decay": weight_decay * m ** wanted[1],
                "eps": eps * m ** wanted[2] * depth ** wanted[3],
                "name": "+".join(f"{role.value}-branch" if apart else role.value for role, apart in alike),
            }
        )
    return groups
