"""Samplers on a Gaussian: for data N(0, s^2) the rectified flow is linear, and its solution is known."""

import math

import pytest
import torch
from torch import Tensor

from models.config import RectifiedFlow
from models.objectives import build_objective
from models.samplers import sample

OBJECTIVE = build_objective(RectifiedFlow())
S = 0.5


def gaussian_velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E[eps - x | x_t] for data N(0, S^2): (t - (1 - t) S^2) / ((1 - t)^2 S^2 + t^2) x_t."""
    t = t.view(-1, 1, 1, 1)
    return (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) * x


def error(sampler: str, steps: int) -> float:
    """Distance to the exact map of the flow, noise -> S noise."""
    noise = torch.ones(1, 1, 1, 1)
    got = sample(
        gaussian_velocity,
        OBJECTIVE,
        noise,
        torch.zeros(1, dtype=torch.long),
        sampler=sampler,  # type: ignore[arg-type]
        steps=steps,
        guidance=1.0,
        null_class=0,
    )
    return abs(got.item() - S)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order(sampler: str, order: int) -> None:
    coarse, fine = error(sampler, 16), error(sampler, 64)
    assert math.log(coarse / fine) / math.log(4) == pytest.approx(order, abs=0.15)


class Counted:
    """A constant velocity per label: label for y < 3, -1 for the null class 3."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.batches.append(len(x))
        value = torch.where(y == 3, -1.0, y.float())
        return value.view(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize(
    ("sampler", "guidance", "batches"),
    [("euler", 1.0, [3, 3]), ("euler", 2.5, [6, 6]), ("heun", 1.0, [3] * 4), ("euler", 0.0, [6, 6])],
)
def test_guidance_and_its_cost(sampler: str, guidance: float, batches: list[int]) -> None:
    model, noise = Counted(), torch.randn(3, 1, 2, 2)
    y = torch.tensor([0, 1, 2])
    got = sample(model, OBJECTIVE, noise, y, sampler=sampler, steps=2, guidance=guidance, null_class=3)  # type: ignore[arg-type]
    velocity = -1 + guidance * (y.float() + 1)
    torch.testing.assert_close(got, noise - velocity.view(3, 1, 1, 1))
    assert model.batches == batches


def test_sampling_keeps_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    got = sample(
        lambda x, t, y: weight * x,
        OBJECTIVE,
        torch.randn(2, 1, 2, 2),
        torch.zeros(2, dtype=torch.long),
        sampler="euler",
        steps=1,
        guidance=1.0,
        null_class=1,
    )
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("ddim", 2, r"sampler is 'ddim'; wanted one of \['euler', 'heun'\]"),
        ("euler", 0, "steps is 0; wanted at least 1"),
    ],
)
def test_bad_settings_are_named(sampler: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(
            gaussian_velocity,
            OBJECTIVE,
            torch.ones(1, 1, 1, 1),
            torch.zeros(1, dtype=torch.long),
            sampler=sampler,  # type: ignore[arg-type]
            steps=steps,
            guidance=1.0,
            null_class=0,
        )
