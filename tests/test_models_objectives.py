import pytest
import torch
from torch import Tensor

from models.config import RectifiedFlow
from models.objectives import build_objective

X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
Y = torch.arange(6)
OBJECTIVE = build_objective(RectifiedFlow())


def test_time_runs_from_data_to_noise() -> None:
    x_t = OBJECTIVE.noised(X, NOISE, T)
    assert torch.equal(x_t[0], X[0])
    assert torch.equal(x_t[5], NOISE[5])
    torch.testing.assert_close(x_t[2], 0.75 * X[2] + 0.25 * NOISE[2])
    u = torch.rand(5)
    assert torch.equal(OBJECTIVE.draw_t(u), u)


def test_target_is_the_derivative_of_the_path() -> None:
    x, noise, t = X.double(), NOISE.double(), T.double()
    step = 1e-6
    slope = (OBJECTIVE.noised(x, noise, t + step) - OBJECTIVE.noised(x, noise, t - step)) / (2 * step)
    torch.testing.assert_close(OBJECTIVE.target(x, noise, t), slope)
    assert torch.equal(OBJECTIVE.velocity(slope, x, t), slope)


def test_the_exact_velocity_has_no_loss() -> None:
    def oracle(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert torch.equal(x, OBJECTIVE.noised(X, NOISE, T))
        assert torch.equal(t, T)
        assert torch.equal(y, Y)
        return NOISE - X

    assert torch.equal(OBJECTIVE.loss(oracle, X, Y, T, NOISE), torch.zeros(6))


@pytest.mark.parametrize("extra_channels", [0, 2])
def test_loss_is_the_mean_square_of_each_sample(extra_channels: int) -> None:
    offset = torch.arange(6.0).view(6, 1, 1, 1)

    def off(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([NOISE - X + offset, torch.full((6, extra_channels, 4, 4), 100.0)], 1).bfloat16()

    loss = OBJECTIVE.loss(off, X, Y, T, NOISE)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.arange(6.0) ** 2, atol=1e-3, rtol=0.02)


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(ValueError, match=r"no objective for str; wanted one of \['RectifiedFlow', .*'EDM'\]"):
        build_objective("rectified-flow")  # type: ignore[arg-type]
