"""Guidance distillation: a student that is told the guidance scale gives in one pass what its teacher gives in two.

Meng et al. 2022 (arXiv 2210.03142, section 3.1), as FLUX.1-dev is trained from FLUX.1-pro.
"""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.objectives import Denoiser, Objective
from models.paths import over


@final
class GuidanceDistillation(Objective):
    """The squared error of the student's prediction from u + w (c - u) of a teacher, w uniform in a range.

    Args:
        base: the objective that the teacher was trained under: its path, prediction and times are the student's.
        teacher: in evaluation mode; it is given labels, and the null class.
        null_class: the label of the teacher's unconditional prediction.
        scales: least and largest guidance scale; 1 is none.

    Raises:
        ValueError: the scales are no range from 1 on.
    """

    def __init__(
        self, base: Objective, teacher: Denoiser, *, null_class: int, scales: tuple[float, float] = (1.0, 5.0)
    ) -> None:
        if not 1.0 <= scales[0] < scales[1]:
            raise ValueError(f"scales are {scales}; wanted (low, high) with 1 <= low < high")
        self.base, self.teacher, self.null_class, self.scales = base, teacher, null_class, scales
        self.path, self.prediction = base.path, base.prediction

    def draw_t(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.base.draw_t(u)

    def inputs(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        return self.base.inputs(x_t, t)

    def guidance_scales(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """A scale for each sample, uniform in the range: it draws nothing, so the scale is what lies behind the second
        decimal of the noise's sum, which tells nothing of the noise."""
        fraction = torch.remainder(100.0 * noise.double().flatten(1).sum(1), 1.0).float()
        return self.scales[0] + (self.scales[1] - self.scales[0]) * fraction

    def loss(
        self,
        model: Any,
        x: Float[Tensor, "b c h w"],
        y: Int[Tensor, " b"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each sample over pixels and channels. `model` takes scales as its fourth argument."""
        x_t, w = self.noised(x, noise, t), self.guidance_scales(noise)
        with torch.no_grad():
            conditional = self.base.predict(self.teacher, x_t, t, y)
            unconditional = self.base.predict(self.teacher, x_t, t, torch.full_like(y, self.null_class))
            target = torch.lerp(unconditional, conditional, over(w, conditional))
        return (self.base.predict(_at(model, w), x_t, t, y) - target).square().flatten(1).mean(1)


class AtGuidance(nn.Module):
    """A distilled model at one guidance scale, to be sampled without guidance."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        prediction: Tensor = self.model(x, t, y, torch.full_like(t, self.scale))
        return prediction


def _at(model: Any, w: Float[Tensor, " b"]) -> Denoiser:
    def guided(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        prediction: Tensor = model(x, t, y, w)
        return prediction

    return guided
