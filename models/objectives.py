"""Training objectives: how images are noised, what the model predicts, and the flow that a prediction implies.

An objective is a Gaussian path (`models.paths`), a kind of prediction (`models.predictions`) and a distribution of
training times. Samples are images [b, c, h, w] or clips [b, c, f, h, w]. It draws nothing: uniform numbers and noise
come from outside, so that the caller decides what they depend on. Time runs from 0 (data) to 1 (noise), and the model
gets times in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import singledispatch
from importlib import import_module
from typing import Literal, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import config
from models.configs.base import Predicts
from models.learned_variance import bound
from models.paths import BETAS, INTERPOLANTS, NUM_STEPS, Linear, Path, VarianceExploding, over
from models.predictions import Epsilon, Preconditioned, Prediction, V, Velocity, X
from models.warping import Flow, warping_error

HIGHEST_HALF_LOG_SNR = 5.1
"""lambda = log(alpha / sigma) from which a solver in lambda takes its last step, to the image."""


class Denoiser(Protocol):
    """A model, or anything with its call: noised images, times and labels to a prediction."""

    def __call__(
        self, x: Float[Tensor, "b c *size"], t: Float[Tensor, " b"], y: Int[Tensor, " b"], /
    ) -> Float[Tensor, "b c_out *size"]: ...


class Objective(ABC):
    """What a model is trained to predict. Time runs from 0 (data) to 1 (noise).

    A subclass gives its path, its kind of prediction and its distribution of times; one that predicts tokens has a loss
    of its own instead, and neither path nor prediction.
    """

    predicts: Predicts = "images"
    sampler: str | None = None
    """The one sampler of `models.samplers` that generates with what it trains; None: any but those."""
    path: Path
    prediction: Prediction
    learn_variance: bool = False
    """The model's second set of channels is the variance of a reverse step, and is trained."""

    def weight(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        """What the squared error of the prediction is multiplied by; None where nothing is."""
        return None

    @abstractmethod
    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training times from numbers uniform in [0, 1)."""

    def inputs(
        self, x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c *size"], Float[Tensor, " b"]]:
        """What the model is given for x_t and t: they themselves, unless an objective scales them."""
        return x_t, t

    def times(self, steps: int, start: float, *, by_log_snr: bool = False) -> list[float]:
        """The `steps` + 1 times of a sampler from `start` to 0: equal steps, unless an objective has its own.

        With `by_log_snr` the steps are equal in lambda = log(alpha / sigma) up to HIGHEST_HALF_LOG_SNR, and the last
        goes from there to 0: solvers in lambda want that (Lu et al. 2022, arXiv 2211.01095, section 3.4).
        """
        if not by_log_snr:
            return [start * (1 - i / steps) for i in range(steps + 1)]
        low = float(self.path.half_log_snr(torch.tensor(start, dtype=torch.float64)))
        step = (HIGHEST_HALF_LOG_SNR - low) / max(1, steps - 1)
        return [start, *(self.path.time_of(low + i * step) for i in range(1, steps)), 0.0]

    @final
    def noised(
        self, x: Float[Tensor, "b c *size"], noise: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c *size"]:
        """x_t = alpha x + sigma noise, the images at time t."""
        t = over(t, x)
        return self.path.alpha(t) * x + self.path.sigma(t) * noise

    @final
    def target(
        self, x: Float[Tensor, "b c *size"], noise: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c *size"]:
        """What the model should predict."""
        return self.prediction.target(self.path, x, noise, over(t, x))

    @final
    def x0_and_eps(
        self, prediction: Float[Tensor, "b c *size"], x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c *size"], Float[Tensor, "b c *size"]]:
        """The image and the noise that a prediction implies; not finite where the prediction leaves one open."""
        return self.prediction.x0_and_eps(self.path, prediction, x_t, over(t, x_t))

    @final
    def velocity(
        self, prediction: Float[Tensor, "b c *size"], x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c *size"]:
        """dx_t/dt that a prediction implies."""
        return self.prediction.velocity(self.path, prediction, x_t, over(t, x_t))

    @final
    @property
    def finite_at_data(self) -> bool:
        """Whether the velocity can be evaluated at t = 0."""
        return self.prediction.finite_at_data and self.path.smooth_at_data

    @final
    def outputs(
        self, model: Denoiser, x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c *size"], Float[Tensor, "b c2 *size"]]:
        """The model's prediction and its further channels (none without `learn_sigma`), in float32 at least.

        Raises:
            ValueError: the variance is to be learned and the model has no channels for it.
        """
        output = model(*self.inputs(x_t, t), y)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        prediction, rest = output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]
        if self.learn_variance and rest.shape != prediction.shape:
            raise ValueError(
                f"the model predicts {output.shape[1]} channels for {x_t.shape[1]}; a learned variance wants twice as "
                "many. Set learn_sigma of the model, or drop learn_variance."
            )
        return prediction, rest

    @final
    def predict(
        self, model: Denoiser, x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c *size"]:
        """The model's prediction, without the second set of channels of a model with `learn_sigma`."""
        return self.outputs(model, x_t, t, y)[0]

    consistency: float = 0.0
    """Weight of the warping error in `training_loss`, which then wants the flow of clips."""

    @final
    def training_loss(
        self,
        model: Denoiser,
        x: Float[Tensor, "b c *size"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c *size"],
        *flow: Tensor,
    ) -> Float[Tensor, " b"]:
        """What training minimises, of each sample: the loss, and with a weight of consistency the warping error, under
        the flow of the clips themselves, of the clips that predictions imply."""
        if not flow:
            return self.loss(model, x, y, t, noise)
        x_t = self.noised(x, noise, t)
        prediction, rest = self.outputs(model, x_t, t, y)
        x0 = self.x0_and_eps(prediction, x_t, t)[0]
        return self._error(prediction, rest, x, x_t, t, noise) + self.consistency * warping_error(x0, Flow(*flow))

    def denoised(
        self, model: Denoiser, x: Float[Tensor, "b c *size"], y: Int[Tensor, " b"], noise: Float[Tensor, "b c *size"]
    ) -> Float[Tensor, "b c *size"]:
        """The model's estimate of samples from where they weigh as much as the noise in them, alpha = sigma."""
        t = torch.full((len(x),), self.path.time_of(0.0), device=x.device)
        x_t = self.noised(x, noise, t)
        return self.x0_and_eps(self.predict(model, x_t, t, y), x_t, t)[0]

    def loss(
        self,
        model: Denoiser,
        x: Float[Tensor, "b c *size"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c *size"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each sample over its pixels and channels, in float32.

        With a learned variance, plus the term of the variational bound. The paper's 0.001 L_vlb is a sum over 1000
        times, of which t is one: the factors cancel.
        """
        x_t = self.noised(x, noise, t)
        return self._error(*self.outputs(model, x_t, t, y), x, x_t, t, noise)

    def _error(self, prediction: Tensor, rest: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The loss of each sample, from what the model gave for x_t."""
        error = (prediction - self.target(x, noise, t)).square().flatten(1).mean(1)
        weight = self.weight(t)
        if weight is not None:
            error = weight * error
        if not self.learn_variance:
            return error
        x0 = self.x0_and_eps(prediction.detach(), x_t, t)[0]
        return error + bound(self.path, x, x_t, x0, rest, over(t, x))


@final
class RectifiedFlow(Objective):
    """x_t = (1 - t) x + t eps, target eps - x (Liu et al. 2022, arXiv 2209.03003).

    t is uniform, or logit(t) is standard normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """

    def __init__(
        self, t_distribution: Literal["uniform", "logit-normal"] = "uniform", consistency: float = 0.0
    ) -> None:
        self.path, self.prediction = Linear(), Velocity()
        self.consistency = consistency
        self.t_distribution = t_distribution

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u if self.t_distribution == "uniform" else torch.sigmoid(torch.special.ndtri(u))


@final
class Interpolant(Objective):
    """x_t = alpha x + sigma eps, target alpha' x + sigma' eps (Ma et al. 2024, arXiv 2401.08740, section 2), uniform t.

    On the variance-preserving path sigma' is infinite at t = 0, and t starts at 1e-5 (the paper's code).
    """

    def __init__(self, path: Path) -> None:
        self.path, self.prediction = path, Velocity()

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u if self.path.smooth_at_data else 1e-5 + (1 - 1e-5) * u


@final
class DDPM(Objective):
    """x_t = sqrt(alpha_bar_k) x + sqrt(1 - alpha_bar_k) eps, target eps (Ho et al. 2020, equation 14).

    k is uniform in 1 ... 1000 and t = k / 1000. With a learned variance the loss is L_simple + 0.001 L_vlb
    (Nichol & Dhariwal 2021, equation 16).
    """

    def __init__(self, path: Path, learn_variance: bool = False) -> None:
        self.path, self.prediction = path, Epsilon()
        self.learn_variance = learn_variance

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (torch.floor(NUM_STEPS * u).clamp(max=NUM_STEPS - 1) + 1) / NUM_STEPS


@final
class VPrediction(Objective):
    """x_t = alpha x + sigma eps, target v = alpha eps - sigma x (Salimans & Ho 2022, arXiv 2202.00512), uniform t."""

    def __init__(self, path: Path) -> None:
        self.path, self.prediction = path, V()

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u


@final
class XPrediction(Objective):
    """x_t = alpha x + sigma eps, target x (Salimans & Ho 2022, section 4), without weights, uniform t."""

    def __init__(self, path: Path, consistency: float = 0.0) -> None:
        self.path, self.prediction = path, X()
        self.consistency = consistency

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u


@final
class XVelocityPrediction(Objective):
    """x_t = (1 - t) x + t eps, output x, loss of the velocity (x_t - x) / t (Li & He 2025, arXiv 2511.13720).

    The velocities that the output and the image imply differ by (output - x) / t. logit(t) is normal.
    """

    def __init__(self, logit_mean: float, logit_std: float, least_t: float) -> None:
        self.path, self.prediction = Linear(), X()
        self.logit_mean, self.logit_std, self.least_t = logit_mean, logit_std, least_t

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(u))

    def weight(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return t.clamp(min=self.least_t) ** -2


@final
class EDM(Objective):
    """x_t = x + sigma eps, target (x - c_skip x_t) / c_out (Karras et al. 2022, arXiv 2206.00364, equation 8, table 1).

    log sigma is normal and cut to the noise levels of sampling, 0.002 to 80; t = sigma / 80. The model gets c_in x_t,
    and log sigma mapped from those levels to [0, 1]: (4 c_noise - log 0.002) / log(80 / 0.002), where c_noise =
    log(sigma) / 4.
    """

    sigma_min = 0.002
    rho = 7.0

    def __init__(self, log_sigma_mean: float, log_sigma_std: float, sigma_data: float) -> None:
        self.path, self.prediction = VarianceExploding(), Preconditioned(sigma_data)
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.t_min = self.sigma_min / VarianceExploding.sigma_max

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        sigma = torch.exp(self.log_sigma_mean + self.log_sigma_std * torch.special.ndtri(u))
        return (sigma / VarianceExploding.sigma_max).clamp(self.t_min, 1.0)

    def inputs(
        self, x_t: Float[Tensor, "b c *size"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c *size"], Float[Tensor, " b"]]:
        assert isinstance(self.prediction, Preconditioned)
        c_in = self.prediction.c_in(self.path, over(t, x_t))
        return c_in * x_t, 1 - torch.log(t.clamp(self.t_min, 1.0)) / math.log(self.t_min)

    def times(self, steps: int, start: float, *, by_log_snr: bool = False) -> list[float]:
        """Noise levels equally spaced in sigma^(1/7) from the largest to 0.002, then 0 (equation 5)."""
        high, low = start ** (1 / self.rho), self.t_min ** (1 / self.rho)
        return [(high + i / max(1, steps - 1) * (low - high)) ** self.rho for i in range(steps)] + [0.0]


@singledispatch
def build_objective(objective: config.Objective) -> Objective:
    """The objective that a configuration describes.

    Raises:
        ValueError: none is registered for its class.
    """
    for elsewhere in ("models.masked", "models.pyramid"):  # they import this module, and register theirs
        import_module(elsewhere)
    if type(objective) in build_objective.registry:
        return build_objective(objective)
    known = [kind.__name__ for kind in build_objective.registry if kind is not object]
    raise ValueError(f"no objective for {type(objective).__name__}; wanted one of {known}")


@build_objective.register
def _build_rectified_flow(objective: config.RectifiedFlow) -> Objective:
    return RectifiedFlow(objective.t_distribution, objective.consistency)


@build_objective.register
def _build_interpolant(objective: config.Interpolant) -> Objective:
    return Interpolant(INTERPOLANTS[objective.path])


@build_objective.register
def _build_ddpm(objective: config.DDPM) -> Objective:
    return DDPM(BETAS[objective.betas], objective.learn_variance)


@build_objective.register
def _build_v_prediction(objective: config.VPrediction) -> Objective:
    return VPrediction(INTERPOLANTS[objective.path])


@build_objective.register
def _build_x_prediction(objective: config.XPrediction) -> Objective:
    return XPrediction(INTERPOLANTS[objective.path], objective.consistency)


@build_objective.register
def _build_x_velocity(objective: config.XVelocityPrediction) -> Objective:
    return XVelocityPrediction(objective.logit_mean, objective.logit_std, objective.least_t)


@build_objective.register
def _build_edm(objective: config.EDM) -> Objective:
    return EDM(objective.log_sigma_mean, objective.log_sigma_std, objective.sigma_data)
