"""Parameterizations: how initial scale, learning rate and weight decay follow a model's width, as tables over roles.

A family tags its parameters (`Tag`) by name; a parameterization is a `Table` over the tags. No family knows of a
parameterization beyond the readout's multiplier, and no parameterization knows a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.config import SP, ModelConfig, MuP, Parameterization


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


TagTable = tuple[tuple[str, Tag], ...]
"""Shell patterns over parameter names and their tags; the first match counts."""


class TaggedModule(nn.Module):
    """A model that can be parameterized: every family's base class."""

    config: ModelConfig
    tags: ClassVar[TagTable]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Powers of m = width / base_width by which a role's settings are multiplied."""

    learning_rate: int = 0
    weight_decay: int = 0
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


def _sp_std(start: Start, fan_in: int, fan_out: int) -> float:
    # DiT: Xavier for linear maps, normal(0.02) for the label table and the timestep MLP.
    return math.sqrt(2.0 / (fan_in + fan_out)) if start in (Start.LINEAR, Start.MODULATION) else 0.02


def _mup_std(start: Start, fan_in: int, fan_out: int) -> float:
    # A label is a one-hot vector: its row is the activation itself, whose scale must not follow any fan.
    return 0.02 if start is Start.EMBEDDING else 1.0 / math.sqrt(fan_in)


_TABLES: dict[type[Parameterization], Table] = {
    SP: Table(
        scaling={role: Scaling() for role in Role},
        std=_sp_std,
        uniform=frozenset({Start.LINEAR, Start.MODULATION}),
    ),
    MuP: Table(
        scaling={
            Role.INPUT: Scaling(),
            # lr * weight_decay stays what it is at the base width.
            Role.HIDDEN: Scaling(learning_rate=-1, weight_decay=1),
            Role.OUTPUT: Scaling(multiplier=-1),
            Role.VECTOR: Scaling(),
            Role.BIAS: Scaling(),
        },
        std=_mup_std,
        uniform=frozenset(),
    ),
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
    return width / parameterization.base_width if isinstance(parameterization, MuP) else 1.0


def readout_multiplier(parameterization: Parameterization, width: int) -> float:
    """What the readout's matrix product is multiplied by: 1/m under µP, 1 under SP."""
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
    fan_out, fan_in = parameter.shape[0], parameter[0].numel()
    std = rules.std(start, fan_in, fan_out)
    draw = torch.empty(parameter.shape)
    if start in rules.uniform:
        bound = math.sqrt(3.0) * std
        return draw.uniform_(-bound, bound, generator=generator)
    return draw.normal_(0.0, std, generator=generator)


def parameter_groups(
    model: TaggedModule, parameterization: Parameterization, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups of a model: one for each distinct scaling, however large m is.

    Each has `params` and `names` (lists, in the model's order), `lr`, `weight_decay` and `name` (its roles joined by
    "+"). Groups come in the order of `Role`, so the same model gives the same groups at every width. Weight decay
    applies to every parameter, as AdamW over all parameters does in the DiT recipe.
    """
    scaling = table(parameterization).scaling
    m = width_ratio(parameterization, model.config.width)
    members: dict[Role, list[tuple[str, nn.Parameter]]] = {role: [] for role in Role}
    for name, parameter, tag in tagged_parameters(model):
        members[tag.role].append((name, parameter))

    def powers(role: Role) -> tuple[int, int]:
        return scaling[role].learning_rate, scaling[role].weight_decay

    groups = []
    for kind in dict.fromkeys(powers(role) for role in Role):
        roles = [role for role in Role if powers(role) == kind and members[role]]
        if not roles:
            continue
        named = [pair for role in roles for pair in members[role]]
        groups.append(
            {
                "params": [parameter for _, parameter in named],
                "names": [name for name, _ in named],
                "lr": learning_rate * m ** kind[0],
                "weight_decay": weight_decay * m ** kind[1],
                "name": "+".join(role.value for role in roles),
            }
        )
    return groups
