"""From a configuration to an initialised model."""

from __future__ import annotations

from typing import Any

from models.config import Parameterization
from models.configs.base import ModelConfig
from models.configs.dit import DiTConfig
from models.configs.flux import FluxConfig
from models.configs.jit import JiTConfig
from models.configs.masked import MaskedConfig
from models.configs.mmdit import MMDiTConfig
from models.configs.unet import UNetConfig
from models.configs.unet3d import UNet3DConfig
from models.configs.uvit import UViTConfig
from models.configs.video_dit import VideoDiTConfig
from models.dit import DiT
from models.flux import Flux
from models.jit import JiT
from models.masked import MaskedTransformer
from models.mmdit import MMDiT
from models.parameterization import TaggedModule, initialise
from models.unet import UNet
from models.unet3d import UNet3D
from models.uvit import UViT
from models.video_dit import VideoDiT

MODULES: dict[type[ModelConfig], Any] = {
    DiTConfig: DiT,
    UNetConfig: UNet,
    MMDiTConfig: MMDiT,
    FluxConfig: Flux,
    UViTConfig: UViT,
    JiTConfig: JiT,
    MaskedConfig: MaskedTransformer,
    VideoDiTConfig: VideoDiT,
    UNet3DConfig: UNet3D,
}
"""The module of every family, which is made from a configuration and a parameterization."""


def build(config: ModelConfig, parameterization: Parameterization, seed: int) -> TaggedModule:
    """The model that `config` describes, float32 on the CPU, its weights drawn from `seed` alone.

    Raises:
        ValueError: as `undrawn`.
    """
    model = undrawn(config, parameterization)
    initialise(model, config, parameterization, seed)
    return model


def undrawn(config: ModelConfig, parameterization: Parameterization) -> TaggedModule:
    """The model that `config` describes, float32 on the CPU, for weights that are there already: its own are no
    initialisation, whose drawing takes half a second for every hundred million weights.

    Raises:
        ValueError: no module is registered for the class of `config`.
    """
    if type(config) not in MODULES:
        known = [family.__name__ for family in MODULES]
        raise ValueError(f"no model for {type(config).__name__}; wanted one of {known}")
    model: TaggedModule = MODULES[type(config)](config, parameterization)
    return model
