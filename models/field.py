"""What a sampler asks of a model at images and a time that all of them share, with guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.objectives import Denoiser, Objective


class Field:
    """The estimates of a model under an objective and classifier-free guidance.

    Args:
        guidance: scale w of u + w (c - u); 1 is none.
        null_class: label of the unconditional prediction u.
        interval: times [low, high] at which guidance acts; None is everywhere.

    Raises:
        ValueError: the interval is not within [0, 1] or is empty.
    """

    def __init__(
        self,
        model: Denoiser,
        objective: Objective,
        y: Tensor,
        *,
        guidance: float = 1.0,
        null_class: int = 0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"guidance_interval is {interval}; wanted (low, high) with 0 <= low < high <= 1")
        self.model, self.objective, self.y = model, objective, y
        self.guidance, self.interval = guidance, interval
        self.both = torch.cat([y, torch.full_like(y, null_class)])

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt of the probability-flow ODE."""
        return self.objective.velocity(self._outputs(x, t)[0], x, self._times(x, t))

    def x0_and_eps(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The estimates of the image and of the noise."""
        return self.objective.x0_and_eps(self._outputs(x, t)[0], x, self._times(x, t))

    def x0_and_fraction(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The estimate of the image, and the further channels (of the learned variance) if the model has them."""
        prediction, rest = self._outputs(x, t)
        return self.objective.x0_and_eps(prediction, x, self._times(x, t))[0], rest

    @staticmethod
    def scalar(coefficient: Callable[[Tensor], Tensor], t: float) -> float:
        """A coefficient of the path at t, computed in float64."""
        return float(coefficient(torch.tensor(t, dtype=torch.float64)))

    def half_log_snr(self, t: float) -> float:
        """lambda = log(alpha / sigma) at t."""
        return self.scalar(self.objective.path.half_log_snr, t)

    def _times(self, x: Tensor, t: float) -> Tensor:
        return torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)

    def _outputs(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The guided prediction and the further channels.

        Images, noise and velocity are affine in the prediction at one x and t, so guiding it guides all of them. The
        further channels are not guided: they are those with the class.
        """
        acts = self.interval is None or self.interval[0] <= t <= self.interval[1]
        if self.guidance == 1.0 or not acts:
            return self.objective.outputs(self.model, x, self._times(x, t), self.y)
        twice = torch.cat([x, x])
        prediction, rest = self.objective.outputs(self.model, twice, self._times(twice, t), self.both)
        with_class, without_class = prediction.chunk(2)
        return torch.lerp(without_class, with_class, self.guidance), rest[: len(x)]
