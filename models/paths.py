"""Gaussian paths x_t = alpha(t) x + sigma(t) eps between an image x and noise eps.

Time runs one way everywhere: t = 0 is data and t = 1 is noise, as in DDPM, EDM, rectified flow after Esser et al. 2024
and the SiT paper (Ma et al. 2024, arXiv 2401.08740). SiT's code runs the other way, x_t = t x + (1 - t) eps: its t is
1 - t here, and its velocity is minus the one here. A schedule of 1000 steps has its step k at t = k / 1000, and k = 0
is data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

NUM_STEPS = 1000
"""Steps of the discrete schedules."""

Times = Float[Tensor, "*shape"]


def over(t: Float[Tensor, " b"], x: Float[Tensor, "b c *size"]) -> Tensor:
    """Numbers of samples, such as their times, shaped to be multiplied with the samples: [b, 1, ...]."""
    return t.view(-1, *(1 for _ in x.shape[1:]))


class Path(ABC):
    """alpha and sigma as functions of t in [0, 1], with their derivatives; results have the dtype of t."""

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """Factor of the image; falls from 1."""

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        """Factor of the noise; rises from 0."""

    @abstractmethod
    def d_alpha(self, t: Times) -> Times:
        """d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Times) -> Times:
        """d sigma / dt; infinite at t = 0 where sigma^2, not sigma, is smooth."""

    smooth_at_data: bool = True
    """d sigma / dt is finite at t = 0."""

    def half_log_snr(self, t: Times) -> Times:
        """lambda = log(alpha / sigma), which falls in t."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    @final
    def time_of(self, half_log_snr: float) -> float:
        """The t in [0, 1] at which lambda is `half_log_snr`, by bisection; the nearer end if there is none."""
        low, high = 0.0, 1.0
        while (middle := (low + high) / 2) not in (low, high):
            here = float(self.half_log_snr(torch.tensor(middle, dtype=torch.float64)))
            low, high = (middle, high) if here > half_log_snr else (low, middle)
        return high


@final
class Linear(Path):
    """alpha = 1 - t, sigma = t (Liu et al. 2022, arXiv 2209.03003; Ma et al. 2024, arXiv 2401.08740)."""

    def alpha(self, t: Times) -> Times:
        return 1 - t

    def sigma(self, t: Times) -> Times:
        return t

    def d_alpha(self, t: Times) -> Times:
        return torch.full_like(t, -1.0)

    def d_sigma(self, t: Times) -> Times:
        return torch.ones_like(t)


@final
class GVP(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Ma et al. 2024; the cosine schedule of Salimans & Ho 2022)."""

    def alpha(self, t: Times) -> Times:
        # A sine, because the cosine of the rounded pi / 2 is not quite zero.
        return torch.sin((1 - t) * (math.pi / 2))

    def sigma(self, t: Times) -> Times:
        return torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Times) -> Times:
        return -self.sigma(t) * (math.pi / 2)

    def d_sigma(self, t: Times) -> Times:
        return self.alpha(t) * (math.pi / 2)


class VariancePreserving(Path):
    """A path with alpha^2 + sigma^2 = 1 that is given by log alpha; computed in float64, as 1 - alpha^2 cancels."""

    smooth_at_data = False

    @abstractmethod
    def log_alpha(self, t: Times) -> Times:
        """log alpha for t in float64."""

    @abstractmethod
    def d_log_alpha(self, t: Times) -> Times:
        """Its derivative, for t in float64."""

    @final
    def alpha(self, t: Times) -> Times:
        return self.log_alpha(t.double()).exp().to(t.dtype)

    @final
    def sigma(self, t: Times) -> Times:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t.double()))).to(t.dtype)

    @final
    def d_alpha(self, t: Times) -> Times:
        return (self.d_log_alpha(t.double()) * self.log_alpha(t.double()).exp()).to(t.dtype)

    @final
    def d_sigma(self, t: Times) -> Times:
        log_alpha = self.log_alpha(t.double())
        slope = -self.d_log_alpha(t.double()) * (2 * log_alpha).exp()
        return (slope / torch.sqrt(-torch.expm1(2 * log_alpha))).to(t.dtype)

    @final
    def half_log_snr(self, t: Times) -> Times:
        log_alpha = self.log_alpha(t.double())
        return (log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))).to(t.dtype)


@final
class VP(VariancePreserving):
    """The variance-preserving SDE with beta from 0.1 to 20 (Song et al. 2021, arXiv 2011.13456; Ma et al. 2024)."""

    beta_min, beta_max = 0.1, 20.0

    def log_alpha(self, t: Times) -> Times:
        """-t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def d_log_alpha(self, t: Times) -> Times:
        return -0.5 * t * (self.beta_max - self.beta_min) - 0.5 * self.beta_min


@final
class LinearBetas(VariancePreserving):
    """beta_k from 1e-4 to 0.02 over k = 1 ... 1000 (Ho et al. 2020, section 4), between the steps too.

    With beta_k linear in k and slope d, alpha_bar_k = prod (1 - beta_i) = d^k Gamma(K) / Gamma(K - k) where
    K = (1 - beta_1) / d + 1 is about 50,000. The gamma functions take any real k = 1000 t, so the path is smooth, and
    exact at the steps. Their logarithms are by Stirling's series, whose next term is below 1e-16, with the large terms
    cancelled by hand.
    """

    beta_first, beta_last = 1e-4, 0.02
    slope = (beta_last - beta_first) / (NUM_STEPS - 1)
    offset = (1 - beta_first) / slope + 1

    def log_alpha(self, t: Times) -> Times:
        k, rest = NUM_STEPS * t, self.offset - NUM_STEPS * t
        large = k * (math.log1p(self.slope - self.beta_first) - 1) - (rest - 0.5) * torch.log1p(-k / self.offset)
        return 0.5 * (large + (1 / self.offset - 1 / rest) / 12)

    def d_log_alpha(self, t: Times) -> Times:
        rest = self.offset - NUM_STEPS * t
        large = math.log1p(self.slope - self.beta_first) + torch.log1p(-NUM_STEPS * t / self.offset)
        return 0.5 * NUM_STEPS * (large - 0.5 / rest - 1 / (12 * rest**2))


@final
class CosineBetas(VariancePreserving):
    """alpha_bar = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), s = 0.008 (Nichol & Dhariwal 2021, equation 17).

    The paper cuts beta at 0.999, which changes the last step only: alpha_bar_1000 = 0.001 alpha_bar_999 instead of 0,
    and log alpha_bar is taken as linear in that step.
    """

    shift = 0.008
    last = (NUM_STEPS - 1) / NUM_STEPS

    def _angle(self, t: Times) -> Times:
        return (t.clamp(max=self.last) + self.shift) / (1 + self.shift) * (math.pi / 2)

    def log_alpha(self, t: Times) -> Times:
        start = math.log(math.cos(self.shift / (1 + self.shift) * math.pi / 2))
        beyond = (t - self.last).clamp(min=0) * NUM_STEPS
        # Clamped because the start's two cosines need not round alike.
        smooth = (torch.log(torch.cos(self._angle(t))) - start).clamp(max=0)
        return smooth + 0.5 * math.log(0.001) * beyond

    def d_log_alpha(self, t: Times) -> Times:
        slope = -torch.tan(self._angle(t)) * (math.pi / 2) / (1 + self.shift)
        return torch.where(t > self.last, 0.5 * math.log(0.001) * NUM_STEPS, slope)


@final
class VarianceExploding(Path):
    """alpha = 1, sigma = sigma_max t (Karras et al. 2022): time is the noise level in units of the largest, 80."""

    sigma_max = 80.0

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return self.sigma_max * t

    def d_alpha(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def d_sigma(self, t: Times) -> Times:
        return torch.full_like(t, self.sigma_max)


INTERPOLANTS: dict[Literal["linear", "gvp", "vp"], Path] = {"linear": Linear(), "gvp": GVP(), "vp": VP()}
BETAS: dict[Literal["linear", "cosine"], Path] = {"linear": LinearBetas(), "cosine": CosineBetas()}


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x), s < t, is normal with mean `of_x_t` x_t + `of_x` x and this variance.

    `step_variance` is the variance of q(x_t | x_s): beta_t of a DDPM where t and s are neighbours.
    """

    of_x_t: Tensor
    of_x: Tensor
    variance: Tensor
    step_variance: Tensor


def posterior(path: Path, t: Times, s: Times) -> Posterior:
    """The posterior of the Markov chain with these marginals (Ho et al. 2020, equations 6 and 7; Kingma et al. 2021,
    arXiv 2107.00630, appendix A for any path); float64, 0 <= s < t."""
    t, s = t.double(), s.double()
    alpha_s, variance_s, variance_t = path.alpha(s), path.sigma(s) ** 2, path.sigma(t) ** 2
    ratio = path.alpha(t) / alpha_s
    step = variance_t - ratio**2 * variance_s
    return Posterior(
        of_x_t=ratio * variance_s / variance_t,
        of_x=alpha_s * step / variance_t,
        variance=step * variance_s / variance_t,
        step_variance=step,
    )
