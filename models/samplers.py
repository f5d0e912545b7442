"""Samplers: from noise (t = 1) to images (t = 0), for every objective through its Gaussian path.

A sampler walks down a list of times. Where it arrives at t = 0 and the velocity there divides by sigma = 0, or there
is no log-SNR, the last step is the estimate of the image, which is what every one of them tends to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.dpm_v3 import Statistics, dpm_v3
from models.field import Field
from models.learned_variance import log_variance
from models.masked import decode
from models.objectives import Denoiser, Objective
from models.paths import posterior
from models.predictions import Epsilon
from models.pyramid import PyramidFlow, walk

Sampler = Literal[
    "ddpm", "ddim", "euler", "heun", "sde-euler", "dpmpp-2m", "dpmpp-3m", "dpm-v3", "parallel-decoding", "pyramid"
]
LOWEST_HALF_LOG_SNR = -5.1
"""Where sampling starts if it cannot at alpha = 0; DPM-Solver's code cuts there (Lu et al. 2022, arXiv 2206.00927).

The image's share of x_t is then 0.6% in standard deviation, and starting from pure noise leaves it out.
"""


@torch.no_grad()
def sample(
    model: Denoiser,
    objective: Objective,
    noise: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    null_class: int,
    guidance_interval: tuple[float, float] | None = None,
    generator: torch.Generator | BlockedNoise | None = None,
    statistics: Statistics | None = None,
    times: Sequence[float] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Images from noise, in float32 (float64 if the noise is).

    Args:
        model: called with images, times and labels.
        objective: gives images, noise and velocity from the model's prediction, and the times.
        noise: standard normal; the state at t = 1 but for the path's sigma(1).
        y: labels.
        sampler: see SAMPLERS. Evaluations: two a step for "heun" (one for a last step to the estimate of the image),
            steps + 1 for "dpmpp-3m", one a step for the others.
        steps: steps from noise to data: equal in t, for the DPM solvers in log(alpha / sigma), and EDM's own for EDM.
            The last goes to the estimate of the image, so orders above 1 show on what lies before it.
        guidance: scale w of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) in the convention
            u + w (c - u): 1 is no guidance and costs one forward pass an evaluation; any other costs one of twice
            the batch.
        null_class: label of the unconditional prediction.
        guidance_interval: guidance only at times in [low, high], no guidance elsewhere (Kynkäänniemi et al. 2024,
            arXiv 2404.07724, which gives the interval in sigma); None is everywhere.
        generator: of the noise that "ddpm" and "sde-euler" add, drawn on its device, or one for each block of images;
            the others draw nothing.
        statistics: of the model, for "dpm-v3" (`models.dpm_v3.estimate_statistics`).
        times: the `steps` + 1 times to step through instead, from noise down to 0.

    Raises:
        ValueError: `sampler` is unknown, `steps` is below 1, the interval is not within [0, 1], or the sampler lacks
            its generator or statistics.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}; wanted one of {list(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; wanted at least 1")
    kind = SAMPLERS[sampler]
    wanted = [objective.sampler] if objective.sampler else [name for name, other in SAMPLERS.items() if not other.own]
    if sampler not in wanted:
        raise ValueError(
            f"sampler is {sampler!r} for a model that predicts {objective.predicts}; wanted one of {wanted}, which go "
            f"with {type(objective).__name__}"
        )
    draws = Draws(generator, statistics, sampler)
    field = Field(model, objective, y, guidance=guidance, null_class=null_class, interval=guidance_interval)
    if kind.own:
        return kind.walk(field, noise, [1 - i / steps for i in range(steps + 1)], draws)
    path, start = objective.path, 1.0
    if kind.needs_log_snr or isinstance(objective.prediction, Epsilon):
        start = path.time_of(LOWEST_HALF_LOG_SNR)
    x = noise if noise.dtype == torch.float64 else noise.float()
    times = times or objective.times(steps, start, by_log_snr=kind.needs_log_snr)
    return kind.walk(field, x * field.scalar(path.sigma, times[0]), times, draws)


@dataclass(frozen=True)
class BlockedNoise:
    """Noise of a batch in blocks of `size` images, each from a generator of its own: what an image gets does not depend
    on the batch that it is in. A batch may end within its last block."""

    generators: Sequence[torch.Generator]
    size: int

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape and on the device of `like`."""
        shape = (self.size, *like.shape[1:])
        blocks = [torch.randn(shape, generator=g, device=g.device, dtype=like.dtype) for g in self.generators]
        return torch.cat(blocks)[: len(like)].to(like.device)


@dataclass(frozen=True)
class Draws:
    """What some samplers need besides the model."""

    generator: torch.Generator | BlockedNoise | None
    statistics: Statistics | None
    sampler: str

    def __post_init__(self) -> None:
        kind = SAMPLERS[self.sampler]
        if kind.stochastic and self.generator is None:
            raise ValueError(f"sampler {self.sampler} adds noise; wanted a generator, such as torch.Generator()")
        if self.sampler == "dpm-v3" and self.statistics is None:
            raise ValueError("sampler dpm-v3 needs statistics of the model; wanted those of estimate_statistics")

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, the same on every device if the generator is the CPU's."""
        assert self.generator is not None
        if isinstance(self.generator, BlockedNoise):
            return self.generator.normal(like)
        numbers = torch.randn(like.shape, generator=self.generator, device=self.generator.device, dtype=like.dtype)
        return numbers.to(like.device)


@dataclass(frozen=True)
class Kind:
    """A sampler: how it walks down the times, and what it needs."""

    walk: Callable[[Field, Tensor, Sequence[float], Draws], Tensor]
    stochastic: bool = False
    needs_log_snr: bool = False
    own: bool = False
    """Of one objective alone, which has no other: it gets the noise and the times as they are."""


def _euler(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    for t, s in itertools.pairwise(times):
        if s == 0 and not field.objective.finite_at_data:
            return field.x0_and_eps(x, t)[0]
        x = x + (s - t) * field.velocity(x, t)
    return x


def _heun(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """The trapezoidal rule with an Euler predictor (Karras et al. 2022, arXiv 2206.00364, algorithm 1)."""
    for t, s in itertools.pairwise(times):
        if s == 0 and not field.objective.finite_at_data:
            return field.x0_and_eps(x, t)[0]
        h = s - t
        first = field.velocity(x, t)
        second = field.velocity(x + h * first, s)
        x = x + h * 0.5 * (first + second)
    return x


def _sde_euler(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """Euler-Maruyama of dx = (v - w score / 2) dt + sqrt(w) dW backwards in t (Ma et al. 2024, section 2).

    The diffusion is w = sigma(t) sigma(1), the paper's sigma_t on paths that end in unit noise, so that w score is
    -sigma(1) eps and nothing divides by sigma. The last step is the estimate of the image, as in the paper's code.
    """
    path = field.objective.path
    sigma_1 = field.scalar(path.sigma, 1.0)
    for t, s in itertools.pairwise(times):
        x0, eps = field.x0_and_eps(x, t)
        if s == 0:
            return x0
        velocity = field.scalar(path.d_alpha, t) * x0 + field.scalar(path.d_sigma, t) * eps
        w = field.scalar(path.sigma, t) * sigma_1
        x = x - (t - s) * (velocity + 0.5 * sigma_1 * eps) + math.sqrt(w * (t - s)) * draws.normal(x)
    return x


def _ddim(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """x_s = alpha_s x + sigma_s eps, estimated at t (Song et al. 2021, arXiv 2010.02502, equation 12 with eta 0)."""
    path = field.objective.path
    for t, s in itertools.pairwise(times):
        x0, eps = field.x0_and_eps(x, t)
        x = x0 if s == 0 else field.scalar(path.alpha, s) * x0 + field.scalar(path.sigma, s) * eps
    return x


def _ddpm(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """Ancestral sampling from q(x_s | x_t, x0) (Ho et al. 2020, equations 6 and 7), on any times.

    The variance is the posterior's, or the learned one of steps of this length (Nichol & Dhariwal 2021, section 4).
    """
    path, learned = field.objective.path, field.objective.learn_variance
    for t, s in itertools.pairwise(times):
        x0, fraction = field.x0_and_fraction(x, t)
        if s == 0:
            return x0
        at_t, at_s = (torch.full((1, 1, 1, 1), time, dtype=torch.float64, device=x.device) for time in (t, s))
        step = posterior(path, at_t, at_s)
        mean = step.of_x_t.to(x.dtype) * x + step.of_x.to(x.dtype) * x0
        std = (0.5 * log_variance(path, fraction, at_t, at_s)).exp() if learned else step.variance.sqrt().to(x.dtype)
        x = mean + std * draws.normal(x)
    return x


def _dpmpp(field: Field, x: Tensor, times: Sequence[float], *, order: Literal[2, 3]) -> Tensor:
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095, section 4): with lambda = log(alpha / sigma),

    x_s = sigma_s / sigma_t x_t + sigma_s int e^lambda x0(lambda) d lambda over the step of length h,

    with the last `order` estimates of the image: for 2M as in algorithm 2 of the paper, for 3M exact for the parabola
    in lambda through them. The third order term is twice
    that of diffusers 0.42, whose error falls as the second power of the step only. One more evaluation in the first
    step gives the third order solver a start of second order, which it needs.
    """
    path = field.objective.path
    past: list[tuple[float, Tensor]] = []  # (lambda, x0), newest last
    for t, s in itertools.pairwise(times):
        x0 = field.x0_and_eps(x, t)[0]
        if s == 0:
            return x0
        at_t, at_s = field.half_log_snr(t), field.half_log_snr(s)
        h = at_s - at_t
        alpha_s, decay = field.scalar(path.alpha, s), field.scalar(path.sigma, s) / field.scalar(path.sigma, t)
        past = [*past[1 - order :], (at_t, x0)]
        start, base = len(past) == 1, decay * x - alpha_s * math.expm1(-h) * x0
        if start and order == 3:
            past.insert(0, (at_s, field.x0_and_eps(base, s)[0]))
        slope, curvature = _differences(past, h)
        x = base + alpha_s * (math.expm1(-h) / h + 1 if order == 3 else -math.expm1(-h) / 2) * slope
        x = x + alpha_s * (1 - 2 * (h + math.expm1(-h)) / h**2) * curvature
        if start and order == 3:
            past = past[1:]
    return x


def _differences(past: list[tuple[float, Tensor]], h: float) -> tuple[Tensor | float, Tensor | float]:
    """h x0' and h^2 x0'' / 2 at the newest point, of the polynomial in lambda through all of them."""
    if len(past) == 1:
        return 0.0, 0.0
    (at_1, x_1), (at_0, x_0) = past[-2:]
    first = (x_0 - x_1) / (at_0 - at_1)
    if len(past) == 2:
        return h * first, 0.0
    at_2, x_2 = past[-3]
    second = (first - (x_1 - x_2) / (at_1 - at_2)) / (at_0 - at_2)
    return h * (first + second * (at_0 - at_1)), h**2 * second


def _dpmpp_2m(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    return _dpmpp(field, x, times, order=2)


def _dpmpp_3m(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    return _dpmpp(field, x, times, order=3)


def _dpm_v3(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    assert draws.statistics is not None
    return dpm_v3(field, x, times, draws.statistics)


def _parallel_decoding(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """Of tokens (`models.masked.decode`): one step a time; the noise to start from has no part in it."""
    null = field.both[len(field.y) :]
    steps, guidance = len(times) - 1, field.guidance
    return decode(field.model, field.y, null, steps=steps, guidance=guidance, normal=draws.normal)


def _pyramid(field: Field, x: Tensor, times: Sequence[float], draws: Draws) -> Tensor:
    """Euler's method level by level (`models.pyramid.walk`)."""
    assert isinstance(field.objective, PyramidFlow), "no other objective has this sampler"
    return walk(field.objective, field.velocity, x, len(times) - 1, draws.normal)


SAMPLERS: dict[str, Kind] = {
    "ddpm": Kind(_ddpm, stochastic=True),
    "ddim": Kind(_ddim),
    "euler": Kind(_euler),
    "heun": Kind(_heun),
    "sde-euler": Kind(_sde_euler, stochastic=True),
    "dpmpp-2m": Kind(_dpmpp_2m, needs_log_snr=True),
    "dpmpp-3m": Kind(_dpmpp_3m, needs_log_snr=True),
    "dpm-v3": Kind(_dpm_v3, needs_log_snr=True),
    "parallel-decoding": Kind(_parallel_decoding, stochastic=True, own=True),
    "pyramid": Kind(_pyramid, stochastic=True, own=True),
}
"""Every sampler by its name."""
