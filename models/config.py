"""What a model is and how it is trained, as data: frozen configurations that planning can read without importing torch.

Families are in `models.configs`, one file each. Errors say what was got, what was wanted and the remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from models.configs.base import ADDED_LATER, ModelConfig, Predicts, Samples
from models.configs.dit import DiTConfig
from models.configs.flux import FluxConfig
from models.configs.jit import JiTConfig
from models.configs.masked import MaskedConfig
from models.configs.mmdit import MMDiTConfig
from models.configs.unet import UNetConfig
from models.configs.unet3d import UNet3DConfig
from models.configs.uvit import UViTConfig
from models.configs.video_dit import VideoDiTConfig

_CONFIGS = (
    DiTConfig,
    UNetConfig,
    MMDiTConfig,
    FluxConfig,
    UViTConfig,
    JiTConfig,
    MaskedConfig,
    VideoDiTConfig,
    UNet3DConfig,
)
FAMILIES: dict[str, type[ModelConfig]] = {config.family: config for config in _CONFIGS}
"""Every family by its name."""


def preset_fields(family: type[ModelConfig], name: str) -> Mapping[str, int]:
    """The fields that a published size fixes (patch, width, depth, heads).

    Args:
        family: the configuration's class.
        name: such as "XL/2"; "DiT-XL/2" and "SiT-XL/2" are the same.

    Raises:
        ValueError: the family has no such size; the nearest name is told.
    """
    prefix, _, rest = name.partition("-")
    short = rest if prefix.lower() in (family.family, *family.aliases) else name
    if not family.presets:
        raise ValueError(f"preset {name!r} is not known: family {family.family} has no published sizes; give its width")
    if short not in family.presets:
        nearest = difflib.get_close_matches(short, family.presets, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"preset {name!r} is not known; wanted one of {', '.join(family.presets)}; did you mean {nearest!r}?"
        )
    return family.presets[short]


def preset(name: str, *, image_size: int = 32, channels: int = 4, num_classes: int = 1000, **options: Any) -> DiTConfig:
    """A published DiT: "DiT-S/2" to "DiT-XL/8" (Peebles & Xie 2022, table 1), by default for ImageNet-256 latents.

    Args:
        name: size and patch, with or without "DiT-".
        image_size, channels, num_classes: as in `DiTConfig`.
        options: any other field of `DiTConfig`. The published checkpoints have `learn_sigma=True`.

    Raises:
        ValueError: the name is not known, or the configuration is impossible.
    """
    fields: dict[str, Any] = {**preset_fields(DiTConfig, name), **options}
    return DiTConfig(image_size=image_size, channels=channels, num_classes=num_classes, **fields)


@dataclass(frozen=True, kw_only=True)
class SP:
    """Standard parameterization: the DiT recipe, one learning rate for every parameter."""

    name: Literal["sp"] = "sp"


@dataclass(frozen=True, kw_only=True)
class MuP:
    """Maximal update parameterization for Adam (Yang et al. 2022, arXiv 2203.03466), heads of fixed size."""

    base_width: int
    """Width w0 at which it equals a plain model; the learning rate is tuned there."""
    name: Literal["mup"] = "mup"

    def __post_init__(self) -> None:
        if self.base_width < 1:
            raise ValueError(f"base_width is {self.base_width}; wanted at least 1")


@dataclass(frozen=True, kw_only=True)
class CompleteP:
    """µP in width, and in depth residual branches times (depth / base_depth)^-1 (Dey et al. 2025, arXiv 2505.01618)."""

    base_width: int
    """Width w0 at which the learning rate is tuned."""
    base_depth: int
    """Depth L0 at which the learning rate is tuned; there it equals µP."""
    name: Literal["completep"] = "completep"

    def __post_init__(self) -> None:
        for name in ("base_width", "base_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")


Parameterization = SP | MuP | CompleteP


class _Named:
    """A configuration whose alternatives are checked at construction, also where no sweep does it before."""

    predicts: ClassVar[Predicts] = "images"
    """What models it trains."""
    sampler: ClassVar[Literal["parallel-decoding", "pyramid"] | None] = None
    """The one sampler that generates with what it trains, whatever sampler a sweep's other arms have; None: any."""

    @property
    def samples(self) -> Samples | None:
        """The one kind of sample that it trains models of; None: any."""
        return None

    @property
    def needs_flow(self) -> bool:
        """Whether training asks for the optical flow of its samples."""
        return False

    @property
    def resolutions(self) -> int:
        """Resolutions of a sample that it trains a model on."""
        return 1

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                wanted = ", ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name} of {type(self).__name__} is {getattr(self, name)!r}; wanted one of {wanted}")


class _Consistent(_Named):
    """An objective that can ask clips to be consistent in time; the field is its own, for the schema's description."""

    consistency: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.consistency < math.inf:
            raise ValueError(f"consistency is {self.consistency}; wanted a finite weight of at least 0")

    @property
    def samples(self) -> Samples | None:
        return "clips" if self.consistency else None

    @property
    def needs_flow(self) -> bool:
        return self.consistency > 0


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(_Consistent):
    """x_t = (1 - t) x + t eps, target eps - x (Liu et al. 2022, arXiv 2209.03003); t = 0 is data, t = 1 is noise."""

    t_distribution: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of training times; "logit-normal" is rf/lognorm(0, 1) of Esser et al. 2024, arXiv 2403.03206."""
    consistency: float = field(default=0.0, metadata=ADDED_LATER)
    """Weight, in training, of the warping error of the clips that predictions imply, under the flow of the data."""
    name: Literal["rectified-flow"] = "rectified-flow"


@dataclass(frozen=True, kw_only=True)
class Interpolant(_Named):
    """Velocity prediction on SiT's interpolants (Ma et al. 2024, arXiv 2401.08740), uniform t."""

    path: Literal["linear", "gvp", "vp"] = "linear"
    """Linear; generalised variance-preserving (a quarter of a circle); or the variance-preserving diffusion."""
    name: Literal["interpolant"] = "interpolant"


@dataclass(frozen=True, kw_only=True)
class DDPM(_Named):
    """Noise prediction at 1000 discrete times (Ho et al. 2020, arXiv 2006.11239)."""

    betas: Literal["linear", "cosine"] = "linear"
    """Schedule of the variances: linear (Ho et al.) or cosine (Nichol & Dhariwal 2021, arXiv 2102.09672)."""
    learn_variance: bool = False
    """Learn the variance of the reverse steps (Nichol & Dhariwal 2021); the model needs `learn_sigma`."""
    name: Literal["ddpm"] = "ddpm"


@dataclass(frozen=True, kw_only=True)
class VPrediction(_Named):
    """v = alpha eps - sigma x on a variance-preserving path (Salimans & Ho 2022, arXiv 2202.00512), uniform t."""

    path: Literal["gvp", "vp"] = "gvp"
    """"gvp" is the cosine schedule of the paper, alpha = cos(pi t / 2)."""
    name: Literal["v-prediction"] = "v-prediction"


@dataclass(frozen=True, kw_only=True)
class XPrediction(_Consistent):
    """Prediction of the image itself, unweighted (Ho et al. 2020; Salimans & Ho 2022, section 4), uniform t."""

    path: Literal["linear", "gvp", "vp"] = "gvp"
    """The interpolant between image and noise."""
    consistency: float = field(default=0.0, metadata=ADDED_LATER)
    """Weight, in training, of the warping error of the clips that predictions imply, under the flow of the data."""
    name: Literal["x-prediction"] = "x-prediction"


@dataclass(frozen=True, kw_only=True)
class XVelocityPrediction(_Named):
    """Prediction of the image, with the squared error of the velocity that it implies, on x_t = (1 - t) x + t eps
    (Li & He 2025, arXiv 2511.13720, section 4.1 and table 9)."""

    logit_mean: float = 0.8
    """Mean of logit(t), which is normal; the paper's time runs the other way, and its mean is -0.8."""
    logit_std: float = 0.8
    """Standard deviation of logit(t)."""
    least_t: float = 0.05
    """The error of the image is divided by t, at least by this."""
    name: Literal["x-prediction-velocity-loss"] = "x-prediction-velocity-loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.logit_mean) and 0 < self.logit_std < math.inf):
            raise ValueError(
                f"logit(t) is of mean {self.logit_mean} and deviation {self.logit_std}; wanted finite ones"
            )
        if not 0 < self.least_t < 1:
            raise ValueError(f"least_t is {self.least_t}; wanted above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class EDM(_Named):
    """Preconditioned denoising with log-normal noise levels (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    log_sigma_mean: float = -1.2
    """P_mean of the noise levels of training."""
    log_sigma_std: float = 1.2
    """P_std of the noise levels of training."""
    sigma_data: float = 0.5
    """Standard deviation of the data."""
    name: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("log_sigma_std", "sigma_data"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a finite number above 0")
        if not math.isfinite(self.log_sigma_mean):
            raise ValueError(f"log_sigma_mean is {self.log_sigma_mean}; wanted a finite number")


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(_Named):
    """Cross-entropy of masked tokens (Chang et al. 2022, arXiv 2202.04200), for models that predict tokens; images are
    generated by parallel decoding."""

    predicts: ClassVar[Predicts] = "tokens"
    sampler: ClassVar[Literal["parallel-decoding", "pyramid"] | None] = "parallel-decoding"
    decoding_steps: int = 12
    """Steps of parallel decoding, whatever sampler the sweep's other arms have."""
    name: Literal["masked-tokens"] = "masked-tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoding_steps < 1:
            raise ValueError(f"decoding_steps is {self.decoding_steps}; wanted at least 1")


@dataclass(frozen=True, kw_only=True)
class PyramidFlow(_Named):
    """Rectified flow of clips on several resolutions in one model, the coarsest first (Jin et al. 2024, arXiv
    2410.05954); the model has as many `levels` as there are weights. Clips are generated level by level."""

    sampler: ClassVar[Literal["parallel-decoding", "pyramid"] | None] = "pyramid"
    weights: tuple[float, ...] = (1.0, 1.0)
    """Of the squared error on each level, the finest first."""
    name: Literal["pyramid-flow"] = "pyramid-flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights are {list(self.weights)}; wanted one finite number above 0 for each level")

    @property
    def samples(self) -> Samples | None:
        return "clips"

    @property
    def resolutions(self) -> int:
        return len(self.weights)


Objective = (
    RectifiedFlow
    | Interpolant
    | DDPM
    | VPrediction
    | XPrediction
    | XVelocityPrediction
    | EDM
    | MaskedTokens
    | PyramidFlow
)


@cache
def objective_label(objective: Objective) -> str:
    """An objective's name with the options that are not its defaults: losses of different labels do not compare."""
    defaults = type(objective)()
    changed = [
        f"{option.name}={getattr(objective, option.name)}"
        for option in fields(objective)
        if getattr(objective, option.name) != getattr(defaults, option.name)
    ]
    return f"{objective.name} {', '.join(changed)}".rstrip()
