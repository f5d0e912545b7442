"""DPM-Solver-v3: a multistep solver with coefficients from the model's own statistics (Zheng et al. 2023,
arXiv 2310.13268).

With lambda = log(alpha / sigma) the probability-flow ODE is dx/d lambda = (alpha'/alpha - l) x - (sigma eps - l x) for
any coefficient l(lambda). Let f = (sigma eps(x, lambda) - l x) / alpha, and approximate its derivative along the flow
by df/d lambda = s f + b. The paper takes l, s and b that make the remainders smallest in the mean, for each dimension,
and expands the rest in a Taylor series. Whatever l, s and b are, the solver converges at its order; they set its
constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.field import Field
from models.objectives import Denoiser, Objective

SUBSTEP = 0.02
"""Largest step in lambda of the integrals of the coefficients."""


@dataclass(frozen=True)
class Statistics:
    """l, s and b at ascending lambda, linear in between and constant beyond; float64.

    `half_log_snr` [n]; `l`, `s`, `b` [n, c, h, w], or any shape after n that broadcasts with images.
    """

    half_log_snr: Float[Tensor, " n"]
    l: Float[Tensor, " n *shape"]  # noqa: E741 (the paper's symbol)
    s: Float[Tensor, " n *shape"]
    b: Float[Tensor, " n *shape"]

    def __post_init__(self) -> None:
        n = len(self.half_log_snr)
        if n < 2 or not bool((self.half_log_snr.diff() > 0).all()):
            raise ValueError(f"half_log_snr is {self.half_log_snr.tolist()}; wanted two ascending values or more")
        for name in ("l", "s", "b"):
            values = getattr(self, name)
            if len(values) != n or not bool(values.isfinite().all()):
                raise ValueError(f"{name} has shape {list(values.shape)}; wanted {n} finite rows, one a half_log_snr")

    def at(self, half_log_snr: float) -> tuple[Tensor, Tensor, Tensor]:
        """l, s and b there."""
        grid = self.half_log_snr
        right = int(torch.searchsorted(grid, half_log_snr).clamp(1, len(grid) - 1))
        share = (half_log_snr - float(grid[right - 1])) / float(grid[right] - grid[right - 1])
        share = min(1.0, max(0.0, share))
        l, s, b = (torch.lerp(v[right - 1], v[right], share) for v in (self.l, self.s, self.b))  # noqa: E741
        return l, s, b

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({name: getattr(self, name).contiguous() for name in ("half_log_snr", "l", "s", "b")}, path)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote; raise ValueError for a file with other names."""
        tensors = load_file(path)
        if sorted(tensors) != ["b", "half_log_snr", "l", "s"]:
            raise ValueError(f"{path} holds {sorted(tensors)}; wanted b, half_log_snr, l, s. Estimate statistics anew.")
        return cls(**tensors)


def dpm_v3(
    field: Field, x: Tensor, times: Sequence[float], statistics: Statistics, order: Literal[1, 2, 3] = 2
) -> Tensor:
    """Images (or the state at the last time) from x at the first of `times`.

    The multistep predictor of the paper without its corrector. The first steps are of lower order, which leaves the
    error of a third order solver of second order with a small constant.
    """
    path = field.objective.path
    past: list[tuple[float, Tensor]] = []  # (lambda, f), newest first
    for t, s in itertools.pairwise(times):
        x0, eps = field.x0_and_eps(x, t)
        if s == 0:
            return x0
        now, then, alpha = field.half_log_snr(t), field.half_log_snr(s), field.scalar(path.alpha, t)
        past = [(now, math.exp(-now) * eps - statistics.at(now)[0].to(x) / alpha * x), *past[: order - 1]]
        step = _integrals(statistics, now, then, num_moments=len(past))
        total = step.offset.to(x)
        for moment, coefficient in zip(step.moments, _taylor(statistics, past), strict=True):
            total = total + moment.to(x) * coefficient
        x = field.scalar(path.alpha, s) * (-step.l).exp().to(x) * (x / alpha - total)
    return x


def _taylor(statistics: Statistics, past: list[tuple[float, Tensor]]) -> list[Tensor]:
    """Coefficients of h(lambda) = exp(-int s) f - int exp(-int s) b, all from the newest lambda, as a polynomial in the
    distance from there. Its derivative is the remainder f' - s f - b, which the statistics make small."""
    now = past[0][0]
    distances, values = [], []
    for there, f in past:
        back = _integrals(statistics, now, there, num_moments=0)
        distances.append(there - now)
        values.append((-back.s).exp().to(f) * f - back.b.to(f))
    inverse = torch.linalg.inv(torch.tensor([[d**k for k in range(len(past))] for d in distances], dtype=torch.float64))
    return [sum((float(w) * v for w, v in zip(row, values, strict=True)), torch.zeros(())) for row in inverse]


@dataclass(frozen=True)
class _Integrals:
    """With L = int l, S = int s and B = int exp(-S) b from one lambda: their values at another, `offset`
    int exp(L + S) B, and `moments` int exp(L + S) (lambda - start)^k."""

    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor
    offset: Tensor
    moments: list[Tensor]


def _integrals(statistics: Statistics, start: float, end: float, num_moments: int) -> _Integrals:
    """The integrals from `start` to `end` (either way round) by the classical Runge-Kutta method."""

    def slopes(at: float, state: list[Tensor]) -> list[Tensor]:
        l, s, b = statistics.at(at)  # noqa: E741
        weight = (state[0] + state[1]).exp()
        moments = [weight * (at - start) ** k for k in range(num_moments)]
        return [l, s, (-state[1]).exp() * b, weight * state[2], *moments]

    def moved(state: list[Tensor], by: list[Tensor], h: float) -> list[Tensor]:
        return [value + h * slope for value, slope in zip(state, by, strict=True)]

    state = [torch.zeros_like(statistics.l[0]) for _ in range(4 + num_moments)]
    count = max(1, math.ceil(abs(end - start) / SUBSTEP))
    h = (end - start) / count
    for i in range(count if end != start else 0):
        at = start + i * h
        k1 = slopes(at, state)
        k2 = slopes(at + h / 2, moved(state, k1, h / 2))
        k3 = slopes(at + h / 2, moved(state, k2, h / 2))
        k4 = slopes(at + h, moved(state, k3, h))
        state = moved(state, [a + 2 * b + 2 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)], h / 6)
    l, s, b, offset, *moments = state  # noqa: E741
    return _Integrals(l, s, b, offset, moments)


@torch.no_grad()
def estimate_statistics(
    model: Denoiser,
    objective: Objective,
    images: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    generator: torch.Generator,
    *,
    guidance: float = 1.0,
    null_class: int = 0,
    num_points: int = 64,
    half_log_snr: tuple[float, float] = (-5.1, 5.1),
    batch_size: int = 256,
) -> Statistics:
    """Statistics of a model on noised images (sections 3.1 and 3.2): 5 evaluations an image at each of the points.

    Args:
        images: training images as the model sees them; a thousand is plenty for images of 32 x 32.
        y: their labels.
        generator: of the noise and of the random signs; a CPU generator.
        guidance: scale that sampling will use; the statistics are of the guided model.
        null_class: label of the unconditional prediction.
        num_points: points of the grid, equally spaced in lambda.
        half_log_snr: range of lambda = log(alpha / sigma); cut to that of the path.

    Raises:
        ValueError: fewer than two points, or no images.
    """
    if num_points < 2 or len(images) < 1:
        raise ValueError(f"got num_points {num_points} and {len(images)} images; wanted at least 2 and 1")
    noise = torch.randn(images.shape, generator=generator).to(images)
    signs = (torch.randint(0, 2, images.shape, generator=generator) * 2 - 1).to(images)
    path = objective.path
    lowest = Field.scalar(path.half_log_snr, path.time_of(half_log_snr[0]))
    grid = torch.linspace(lowest, half_log_snr[1], num_points, dtype=torch.float64)
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
    batches = [
        _Batch(Field(model, objective, y[p], guidance=guidance, null_class=null_class), images[p], noise[p], signs[p])
        for p in parts
    ]
    l = torch.stack([_mean([b.jacobian_diagonal(float(at)) for b in batches]) for at in grid])  # noqa: E741
    unknown = Statistics(grid, l, torch.zeros_like(l), torch.zeros_like(l))
    fitted = [_regression([b.f_and_slope(float(at), unknown) for b in batches]) for at in grid]
    return Statistics(grid, l, torch.stack([s for s, _ in fitted]), torch.stack([b for _, b in fitted]))


@dataclass(frozen=True)
class _Batch:
    """Images with the noise and the random signs that go with them."""

    field: Field
    images: Tensor
    noise: Tensor
    signs: Tensor

    def noised(self, at: float) -> tuple[Tensor, float, float, float]:
        """x_t with t, alpha and sigma at a lambda."""
        path = self.field.objective.path
        t = path.time_of(at)
        alpha, sigma = Field.scalar(path.alpha, t), Field.scalar(path.sigma, t)
        return alpha * self.images + sigma * self.noise, t, alpha, sigma

    def jacobian_diagonal(self, at: float) -> Tensor:
        """Per image, the diagonal of sigma d eps / dx by signs v: v (sigma J v), J v by central differences.

        Its mean is the l that makes the gradient of sigma eps - l x smallest (section 3.1).
        """
        x, t, alpha, sigma = self.noised(at)
        move = 0.01 * math.hypot(alpha, sigma) * self.signs
        ahead, behind = (self.field.x0_and_eps(x + d, t)[1] for d in (move, -move))
        return (sigma * (ahead - behind) / (2 * move)).double()

    def f_and_slope(self, at: float, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
        """Per image: f, df/d lambda along the flow by central differences, and the square of sigma eps / alpha."""
        x, t, alpha, sigma = self.noised(at)
        x0, eps = self.field.x0_and_eps(x, t)
        path, delta = self.field.objective.path, 0.02
        f = []
        for there in (at - delta, at + delta):
            t_there = path.time_of(there)
            alpha_there, sigma_there = Field.scalar(path.alpha, t_there), Field.scalar(path.sigma, t_there)
            x_there = alpha_there * x0 + sigma_there * eps
            eps_there = self.field.x0_and_eps(x_there, t_there)[1]
            f.append(math.exp(-there) * eps_there - statistics.at(there)[0].to(x) / alpha_there * x_there)
        middle = math.exp(-at) * eps - statistics.at(at)[0].to(x) / alpha * x
        return middle.double(), ((f[1] - f[0]) / (2 * delta)).double(), (sigma / alpha * eps).double() ** 2


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).mean(0).cpu()


def _regression(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """s and b of the least squares fit of the slope by s f + b, for each dimension (section 3.2).

    A little of the size of sigma eps / alpha is added to the variance of f: where l leaves nothing of f, s is 0.
    """
    f, slope, scale = (torch.cat(column) for column in zip(*parts, strict=True))
    covariance = (f * slope).mean(0) - f.mean(0) * slope.mean(0)
    s = covariance / (f.var(0, correction=0) + 1e-4 * scale.mean(0))
    return s.cpu(), (slope.mean(0) - s * f.mean(0)).cpu()
