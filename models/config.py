"""What a model is, as data: frozen configurations that planning can read without importing torch.

Every family is one dataclass here. Its fields determine the architecture completely, so its canonical JSON is part of
a trial's identity. Errors say what was got, what was wanted and the remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A class-conditional diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748)."""

    family: ClassVar[str] = "dit"

    image_size: int
    """Height and width of the (latent) image in pixels."""
    channels: int
    """Channels of the (latent) image."""
    num_classes: int
    """Classes of the label table; one more row is added for the null class of guidance dropout."""
    patch: int
    """Side of a square patch in pixels; divides `image_size`."""
    width: int
    """Size of the residual stream; a multiple of `heads` and of 4 (the 2-D sin-cos positions)."""
    depth: int
    """Number of transformer blocks."""
    heads: int
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden size of the MLP over `width`."""
    frequency_size: int = 256
    """Size of the sinusoidal timestep features; even."""
    class_dropout: float = 0.1
    """Probability with which a training label becomes the null class."""
    learn_sigma: bool = False
    """Predict a second set of channels (the learned variance of DDPM)."""
    zero_init: bool = True
    """adaLN-Zero: modulation starts at zero, so every block starts as the identity."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "num_classes", "patch", "width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}; wanted a width that is a multiple of heads"
            )
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, which 2-D sin-cos positions need")
        if self.image_size % self.patch:
            raise ValueError(
                f"patch {self.patch} does not divide image_size {self.image_size}; wanted one of "
                f"{[p for p in range(1, self.image_size + 1) if self.image_size % p == 0]}"
            )
        if self.frequency_size < 2 or self.frequency_size % 2:
            raise ValueError(f"frequency_size is {self.frequency_size}; wanted an even number of at least 2")
        if not 0.0 <= self.class_dropout < 1.0:
            raise ValueError(f"class_dropout is {self.class_dropout}; wanted at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.channels * (2 if self.learn_sigma else 1)


ModelConfig = DiTConfig
FAMILIES: dict[str, type[ModelConfig]] = {config.family: config for config in (DiTConfig,)}


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


Parameterization = SP | MuP


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """x_t = (1 - t) x + t eps, target eps - x (Liu et al. 2022, arXiv 2209.03003); t = 0 is data, t = 1 is noise."""

    t_distribution: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of training times; "logit-normal" is rf/lognorm(0, 1) of Esser et al. 2024, arXiv 2403.03206."""
    name: Literal["rectified-flow"] = "rectified-flow"


@dataclass(frozen=True, kw_only=True)
class Interpolant:
    """Velocity prediction on SiT's interpolants (Ma et al. 2024, arXiv 2401.08740), uniform t."""

    path: Literal["linear", "gvp", "vp"] = "linear"
    """Linear; generalised variance-preserving (a quarter of a circle); or the variance-preserving diffusion."""
    name: Literal["interpolant"] = "interpolant"


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Noise prediction at 1000 discrete times (Ho et al. 2020, arXiv 2006.11239)."""

    betas: Literal["linear", "cosine"] = "linear"
    """Schedule of the variances: linear (Ho et al.) or cosine (Nichol & Dhariwal 2021, arXiv 2102.09672)."""
    learn_variance: bool = False
    """Learn the variance of the reverse steps (Nichol & Dhariwal 2021); the model needs `learn_sigma`."""
    name: Literal["ddpm"] = "ddpm"


@dataclass(frozen=True, kw_only=True)
class VPrediction:
    """v = alpha eps - sigma x on a variance-preserving path (Salimans & Ho 2022, arXiv 2202.00512), uniform t."""

    path: Literal["gvp", "vp"] = "gvp"
    """"gvp" is the cosine schedule of the paper, alpha = cos(pi t / 2)."""
    name: Literal["v-prediction"] = "v-prediction"


@dataclass(frozen=True, kw_only=True)
class XPrediction:
    """Prediction of the image itself, unweighted (Ho et al. 2020; Salimans & Ho 2022, section 4), uniform t."""

    path: Literal["linear", "gvp", "vp"] = "gvp"
    """The interpolant between image and noise."""
    name: Literal["x-prediction"] = "x-prediction"


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Preconditioned denoising with log-normal noise levels (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    log_sigma_mean: float = -1.2
    """P_mean of the noise levels of training."""
    log_sigma_std: float = 1.2
    """P_std of the noise levels of training."""
    sigma_data: float = 0.5
    """Standard deviation of the data."""
    name: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        for name in ("log_sigma_std", "sigma_data"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a finite number above 0")
        if not math.isfinite(self.log_sigma_mean):
            raise ValueError(f"log_sigma_mean is {self.log_sigma_mean}; wanted a finite number")


Objective = RectifiedFlow | Interpolant | DDPM | VPrediction | XPrediction | EDM
