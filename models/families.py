"""From a configuration to an initialised model."""

from __future__ import annotations

from functools import singledispatch

from models.config import DiTConfig, ModelConfig, Parameterization
from models.dit import DiT
from models.parameterization import TaggedModule, initialise


@singledispatch
def build(config: ModelConfig, parameterization: Parameterization, seed: int) -> TaggedModule:
    """The model that `config` describes, float32 on the CPU, its weights drawn from `seed` alone.

    Raises:
        ValueError: no family is registered for the class of `config`.
    """
    known = [family.__name__ for family in build.registry if family is not object]
    raise ValueError(f"no model for {type(config).__name__}; wanted one of {known}")


@build.register
def _build_dit(config: DiTConfig, parameterization: Parameterization, seed: int) -> TaggedModule:
    model = DiT(config, parameterization)
    initialise(model, config, parameterization, seed)
    return model
