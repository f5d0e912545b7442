"""From a configuration to an initialised model."""

from __future__ import annotations

from typing import Any

from models.config import Parameterization
from models.configs.base import ModelConfig
from models.configs.dit import DiTConfig
from models.dit import DiT
from models.parameterization import TaggedModule, initialise

MODULES: dict[type[ModelConfig], Any] = {DiTConfig: DiT}
"""The module of every family, which is made from a configuration and a parameterization."""


def build(config: ModelConfig, parameterization: Parameterization, seed: int) -> TaggedModule:
    """The model that `config` describes, float32 on the CPU, its weights drawn from `seed` alone.

    Raises:
        ValueError: no module is registered for the class of `config`.
    """
    if type(config) not in MODULES:
        known = [family.__name__ for family in MODULES]
        raise ValueError(f"no model for {type(config).__name__}; wanted one of {known}")
    model: TaggedModule = MODULES[type(config)](config, parameterization)
    initialise(model, config, parameterization, seed)
    return model
