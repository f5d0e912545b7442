"""The learned variance of a DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.1).

The model's second set of channels, v in [-1, 1], places the log variance of a reverse step between its two bounds.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from models.paths import NUM_STEPS, Path, posterior

Images = Float[Tensor, "b c h w"]
Times = Float[Tensor, "b 1 1 1"]


def log_variance(path: Path, fraction: Images, t: Times, s: Times) -> Images:
    """log of exp(f log beta + (1 - f) log beta~) for the step from t to s, f = (v + 1) / 2 (equation 15).

    beta~ is 0 for a step to t = 0; there it is that of the step before (as in the paper's code), whose length is taken
    to be the same.
    """
    step = posterior(path, t, s)
    first = s <= 0
    second = posterior(path, torch.where(first, 2 * t.double(), t), torch.where(first, t.double(), s))
    low = torch.where(first, second.variance, step.variance).log().to(fraction.dtype)
    high = step.step_variance.log().to(fraction.dtype)
    return low + (fraction + 1) / 2 * (high - low)


def bound(path: Path, x: Images, x_t: Images, x0: Images, fraction: Images, t: Times) -> Float[Tensor, " b"]:
    """The term of L_vlb at t = k / 1000 in bits a dimension (Ho et al. 2020, equations 5 and 13).

    For k > 1 the divergence of the reverse step from the posterior; for k = 1 the negative log likelihood of 8-bit
    images in [-1, 1]. `x0`, the model's estimate of the images, is taken as given: only `fraction` is learned here.
    """
    s = (t - 1 / NUM_STEPS).clamp(min=0)
    s = torch.where(s < 0.5 / NUM_STEPS, 0.0, s)
    step, log_model = posterior(path, t, s), log_variance(path, fraction, t, s)
    of_x_t, of_x = step.of_x_t.to(x.dtype), step.of_x.to(x.dtype)
    mean = of_x_t * x_t + of_x * x0.detach()
    first = s <= 0
    log_true = torch.where(first, 1.0, step.variance).log().to(x.dtype)
    difference = (of_x_t * x_t + of_x * x - mean).square()
    divergence = 0.5 * (log_model - log_true - 1 + (log_true - log_model).exp() + difference * (-log_model).exp())
    nats = torch.where(first, _discretised_nll(x, mean, log_model), divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def _discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the normal probability of the bin of x, of width 2 / 255; the outer bins reach to infinity."""
    inverse_std = (-0.5 * log_variance).exp()
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse_std)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse_std)
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return -(upper - lower).clamp(min=1e-12).log()
