"""Training objectives: how images are noised, what the model predicts, and the flow that a prediction implies.

An objective draws nothing: uniform numbers and noise come from outside, so that the caller decides what they depend on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Protocol, final

from jaxtyping import Float, Int
from torch import Tensor

from models import config


class Denoiser(Protocol):
    """A model, or anything with its call: noised images, times and labels to a prediction."""

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"], /
    ) -> Float[Tensor, "b c_out h w"]: ...


class Objective(ABC):
    """What a model is trained to predict. Time runs from 0 (data) to 1 (noise).

    A subclass says how it noises (`noised`), what the prediction is compared with (`target`), and how a sampler turns
    a prediction into the velocity dx/dt of the probability-flow ODE (`velocity`). Predictions of the velocity, of the
    image or of the noise differ in the last two only.
    """

    @abstractmethod
    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training times from numbers uniform in [0, 1)."""

    @abstractmethod
    def noised(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x_t, the images at time t."""

    @abstractmethod
    def target(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """What the model should predict."""

    @abstractmethod
    def velocity(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """dx_t/dt that a prediction implies."""

    @final
    def predict(
        self, model: Denoiser, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The model's prediction in float32, without the second set of channels of a model with `learn_sigma`."""
        prediction = model(x_t, t, y).float()
        return prediction if prediction.shape == x_t.shape else prediction[:, : x_t.shape[1]]

    @final
    def loss(
        self,
        model: Denoiser,
        x: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each sample over its pixels and channels, in float32."""
        prediction = self.predict(model, self.noised(x, noise, t), t, y)
        return (prediction - self.target(x, noise, t)).square().flatten(1).mean(1)


@final
class RectifiedFlow(Objective):
    """x_t = (1 - t) x + t eps, target eps - x, t uniform (Liu et al. 2022, arXiv 2209.03003)."""

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u

    def noised(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        t = t.view(-1, 1, 1, 1)
        return (1 - t) * x + t * noise

    def target(
        self, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        return noise - x

    def velocity(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        return prediction


@singledispatch
def build_objective(objective: config.Objective) -> Objective:
    """The objective that a configuration describes.

    Raises:
        ValueError: none is registered for its class.
    """
    known = [kind.__name__ for kind in build_objective.registry if kind is not object]
    raise ValueError(f"no objective for {type(objective).__name__}; wanted one of {known}")


@build_objective.register
def _build_rectified_flow(objective: config.RectifiedFlow) -> Objective:
    return RectifiedFlow()
