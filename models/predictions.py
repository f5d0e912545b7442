"""What a model's output stands for, and how it becomes an image, a noise and a velocity.

At a time t the noised images x_t = alpha x + sigma eps are known, so one prediction fixes both x and eps. Coefficients
broadcast over images: the times here have shape [b, 1, ...].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from models.paths import Path

Images = Float[Tensor, "b c *size"]
Times = Float[Tensor, "b *ones"]


class Prediction(ABC):
    """One kind of output."""

    @abstractmethod
    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        """The output of a model that knew the image and the noise."""

    @abstractmethod
    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        """The image and the noise that an output implies."""

    def velocity(self, path: Path, output: Images, x_t: Images, t: Times) -> Images:
        """dx_t/dt = alpha' x + sigma' eps of the probability-flow ODE that an output implies."""
        x0, eps = self.x0_and_eps(path, output, x_t, t)
        return path.d_alpha(t) * x0 + path.d_sigma(t) * eps

    finite_at_data: bool = False
    """The velocity at t = 0 does not divide by sigma = 0 (on a path that is smooth there)."""


@final
class Epsilon(Prediction):
    """The noise (Ho et al. 2020, equation 12). Says nothing of the image where alpha = 0."""

    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        return noise

    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        return (x_t - path.sigma(t) * output) / path.alpha(t), output


@final
class X(Prediction):
    """The image (Salimans & Ho 2022, section 4). Says nothing of the noise where sigma = 0."""

    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        return x

    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        return output, (x_t - path.alpha(t) * output) / path.sigma(t)


@final
class V(Prediction):
    """v = alpha eps - sigma x on a path with alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, appendix D)."""

    finite_at_data = True

    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        return path.alpha(t) * noise - path.sigma(t) * x

    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        alpha, sigma = path.alpha(t), path.sigma(t)
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output


@final
class Velocity(Prediction):
    """The velocity alpha' x + sigma' eps itself (Ma et al. 2024)."""

    finite_at_data = True

    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        return path.d_alpha(t) * x + path.d_sigma(t) * noise

    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        # Two linear equations: x_t = alpha x + sigma eps and its derivative.
        alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        determinant = alpha * d_sigma - sigma * d_alpha
        return (d_sigma * x_t - sigma * output) / determinant, (alpha * output - d_alpha * x_t) / determinant

    def velocity(self, path: Path, output: Images, x_t: Images, t: Times) -> Images:
        return output


@final
class Preconditioned(Prediction):
    """F of D(x_t) = c_skip x_t + c_out F(c_in x_t) on alpha = 1 (Karras et al. 2022, equation 7 and table 1).

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2). With the
    paper's weight 1 / c_out^2 the loss of D is the plain squared error of F.
    """

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def target(self, path: Path, x: Images, noise: Images, t: Times) -> Images:
        # (x - c_skip x_t) / c_out without its cancellation at small sigma.
        sigma, sigma_data = path.sigma(t), self.sigma_data
        return (sigma / sigma_data * x - sigma_data * noise) * self.c_in(path, t)

    def x0_and_eps(self, path: Path, output: Images, x_t: Images, t: Times) -> tuple[Images, Images]:
        sigma, sigma_data, c_in = path.sigma(t), self.sigma_data, self.c_in(path, t)
        x0 = sigma_data**2 * c_in**2 * x_t + sigma * sigma_data * c_in * output
        return x0, sigma * c_in**2 * x_t - sigma_data * c_in * output

    def c_in(self, path: Path, t: Times) -> Times:
        """1 / sqrt(sigma^2 + sigma_data^2), which gives the model inputs of unit variance."""
        return torch.rsqrt(path.sigma(t) ** 2 + self.sigma_data**2)
