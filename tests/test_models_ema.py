import pytest
import torch

from models.ema import Ema, gamma_of


@pytest.mark.parametrize("relative_std", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_window_has_the_relative_std(relative_std: float) -> None:
    """The density (gamma + 1) tau^gamma on [0, 1] by quadrature."""
    gamma = gamma_of(relative_std)
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = (gamma + 1) * tau**gamma
    mean = (weight * tau).mean()
    assert float(((weight * (tau - mean) ** 2).mean()).sqrt()) == pytest.approx(relative_std, rel=1e-6)


def test_published_gammas() -> None:
    """sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94 (Karras et al. 2024)."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


def test_average_equals_a_weighted_sum_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    ends = [8, 16, 24, 40, 41, 100, 164, 228]
    trajectory = [
        [torch.randn(3, 2, generator=generator), torch.randn(5, generator=generator)] for _ in range(len(ends))
    ]
    ema = Ema([torch.full((3, 2), 7.0), torch.full((5,), 7.0)], 0.1)
    before = 0
    for params, after in zip(trajectory, ends, strict=True):
        ema.update(params, before, after)
        if before == 0:
            assert all(torch.equal(a, b) for a, b in zip(ema.tensors, params, strict=True))
        before = after
    # The parameters between two updates weigh the integral of (gamma + 1) tau^gamma over that interval.
    power = ema.gamma + 1
    weights = [(b / 228) ** power - (a / 228) ** power for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert sum(weights) == pytest.approx(1)
    for i, tensor in enumerate(ema.tensors):
        wanted = sum(w * params[i].double() for w, params in zip(weights, trajectory, strict=True))
        torch.testing.assert_close(tensor.double(), wanted, atol=1e-6, rtol=1e-5)


def test_average_does_not_depend_on_the_batch_size() -> None:
    """Parameters that stay put between samples 64 and 128 count the same in one step or in eight."""
    first, second = [torch.tensor([1.0])], [torch.tensor([2.0])]
    one, eight = Ema(first, 0.1), Ema(first, 0.1)
    for ema in (one, eight):
        ema.update(first, 0, 64)
    one.update(second, 64, 128)
    for samples in range(64, 128, 8):
        eight.update(second, samples, samples + 8)
    torch.testing.assert_close(one.tensors, eight.tensors, atol=1e-6, rtol=0)


def test_bfloat16_parameters_are_averaged_in_float32() -> None:
    params = [torch.tensor([1.0, 3.0], dtype=torch.bfloat16)]
    ema = Ema(params, 0.1)
    ema.update(params, 0, 1000)
    ema.update([params[0] * 2], 1000, 1001)
    assert ema.tensors[0].dtype == torch.float32
    assert 1.0 < ema.tensors[0][0].item() == pytest.approx(1 + 1 - (1000 / 1001) ** (ema.gamma + 1), rel=1e-6)


def test_a_saved_average_goes_on_bitwise() -> None:
    params = [torch.randn(4), torch.randn(2, 2)]
    ema, other = Ema(params, 0.1), Ema([torch.zeros(4), torch.zeros(2, 2)], 0.1)
    ema.update([p + 1 for p in params], 8, 16)
    other.load_state_dict(ema.state_dict())
    for each in (ema, other):
        each.update([p * 3 for p in params], 16, 24)
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors, other.tensors, strict=True))
    other.tensors[0].zero_()
    assert ema.tensors[0].any(), "a loaded state is copied"


def test_bad_input_is_named() -> None:
    params = [torch.zeros(2)]
    with pytest.raises(ValueError, match=r"relative_std is 0\.3; wanted above 0 and below 0\.2887"):
        Ema(params, 0.3)
    with pytest.raises(ValueError, match="samples go from 8 to 8; wanted an increase"):
        Ema(params, 0.1).update(params, 8, 8)
    with pytest.raises(ValueError, match=r"saved EMA has relative_std 0\.2; wanted 0\.1"):
        Ema(params, 0.1).load_state_dict(Ema(params, 0.2).state_dict())
    with pytest.raises(ValueError, match=r"saved EMA has tensors of shapes \[\[3\]\]; wanted \[\[2\]\]"):
        Ema(params, 0.1).load_state_dict(Ema([torch.zeros(3)], 0.1).state_dict())
