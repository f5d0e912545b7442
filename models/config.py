"""What a model is, as data: frozen configurations that planning can read without importing torch.

Every family is one dataclass here. Its fields determine the architecture completely, so its canonical JSON is part of
a trial's identity. Errors say what was got, what was wanted and the remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

Positions = Literal["sincos", "learned", "rope"]
Block = Literal["serial", "parallel"]
MlpKind = Literal["gelu", "swiglu"]

_DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A class-conditional diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748).

    The options `qk_norm`, `positions`, `block`, `mlp` and `bias` default to the published model.
    """

    family: ClassVar[str] = "dit"
    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        f"{size}/{patch}": {"patch": patch, "width": width, "depth": depth, "heads": heads}
        for size, (width, depth, heads) in _DIT_SIZES.items()
        for patch in (2, 4, 8)
    }
    """Published sizes (DiT, table 1 and section 4) by name, as fields of this class."""

    image_size: int
    """Height and width of the (latent) image in pixels."""
    channels: int
    """Channels of the (latent) image."""
    num_classes: int
    """Classes of the label table; one more row is added for the null class of guidance dropout."""
    patch: int
    """Side of a square patch in pixels; divides `image_size`."""
    width: int
    """Size of the residual stream; a multiple of `heads`, and of 4 with sin-cos positions."""
    depth: int
    """Number of transformer blocks."""
    heads: int
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden size of the MLP over `width`; a SwiGLU's is 2/3 of that, see `mlp_hidden`."""
    frequency_size: int = 256
    """Size of the sinusoidal timestep features; even."""
    class_dropout: float = 0.1
    """Probability with which a training label becomes the null class."""
    learn_sigma: bool = False
    """Predict a second set of channels (the learned variance of DDPM)."""
    zero_init: bool = True
    """adaLN-Zero: modulation starts at zero, so every block starts as the identity."""
    qk_norm: bool = False
    """RMS norm of queries and keys over each head, each with one learned gain of `head_dim` numbers that the heads of a
    block share (Dehghani et al. 2023, arXiv 2302.05442, section 2; Zhang & Sennrich 2019, arXiv 1910.07467)."""
    positions: Positions = "sincos"
    """"sincos": fixed 2-D sines and cosines, added to the tokens (DiT). "learned": a table of `tokens` x `width`, added
    to the tokens. "rope": queries and keys are rotated by their column and row (Su et al. 2021, arXiv 2104.09864, one
    half of a head for each axis); `head_dim` must be a multiple of 4."""
    block: Block = "serial"
    """"serial": attention, then the MLP, each with its own norm, shift, scale and gate: 6 adaLN vectors. "parallel":
    both read one modulated norm and one gate scales their sum, x + gate (attn(h) + mlp(h)): 3 adaLN vectors, so the
    block's adaLN has half the parameters (Dehghani et al. 2023, arXiv 2302.05442, section 2)."""
    mlp: MlpKind = "gelu"
    """"gelu": fc2(gelu(fc1 x)), tanh-GELU. "swiglu": fc2(silu(a) b) with a, b = fc1 x (Shazeer 2020, arXiv
    2002.05202)."""
    bias: bool = True
    """Biases of the attention's and the MLP's linear maps; embedders, adaLN and readout keep theirs either way."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "num_classes", "patch", "width", "depth", "heads", "mlp_ratio"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a whole number of at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}; wanted a width that is a multiple of heads"
            )
        for name, kind in (("positions", Positions), ("block", Block), ("mlp", MlpKind)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted one of {', '.join(get_args(kind))}")
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, which 2-D sin-cos positions need")
        if self.positions == "rope" and self.head_dim % 4:
            raise ValueError(
                f"heads of size {self.head_dim} cannot be rotated in 2-D: two axes of pairs need a multiple of 4; "
                f"change heads or width, or take positions sincos or learned"
            )
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
    def mlp_hidden(self) -> int:
        """Hidden size of the MLP.

        `mlp_ratio` x `width`; of a SwiGLU, which has three matrices for two, 2/3 of that to the nearest multiple of 8
        (at least 8), so that both kinds have about the same number of parameters.
        """
        hidden = self.mlp_ratio * self.width
        return hidden if self.mlp == "gelu" else max(8, 8 * ((hidden + 6) // 12))

    @property
    def modulation_vectors(self) -> int:
        """adaLN vectors of one block."""
        return 6 if self.block == "serial" else 3

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


def preset_fields(family: type[ModelConfig], name: str) -> Mapping[str, int]:
    """The fields that a published size fixes (patch, width, depth, heads).

    Args:
        family: the configuration's class.
        name: such as "XL/2"; "DiT-XL/2" is the same.

    Raises:
        ValueError: the family has no such size; the nearest name is told.
    """
    short = name.split("-", 1)[1] if name.lower().startswith(f"{family.family}-") else name
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

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                wanted = ", ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name} of {type(self).__name__} is {getattr(self, name)!r}; wanted one of {wanted}")


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(_Named):
    """x_t = (1 - t) x + t eps, target eps - x (Liu et al. 2022, arXiv 2209.03003); t = 0 is data, t = 1 is noise."""

    t_distribution: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of training times; "logit-normal" is rf/lognorm(0, 1) of Esser et al. 2024, arXiv 2403.03206."""
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
class XPrediction(_Named):
    """Prediction of the image itself, unweighted (Ho et al. 2020; Salimans & Ho 2022, section 4), uniform t."""

    path: Literal["linear", "gvp", "vp"] = "gvp"
    """The interpolant between image and noise."""
    name: Literal["x-prediction"] = "x-prediction"


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


Objective = RectifiedFlow | Interpolant | DDPM | VPrediction | XPrediction | EDM
