"""Averages rebuilt from snapshots against averages kept during training."""

import itertools

import pytest
import torch

from models.ema import Ema, gamma_of
from models.posthoc_ema import Snapshot, combination, inner_products, reconstruct

STEPS, BATCH = 1024, 32
STORED = (0.05, 0.1)


def trajectory() -> list[list[torch.Tensor]]:
    """Weights that drift ever slower and jitter."""
    generator = torch.Generator().manual_seed(0)
    weights, drift, path = torch.zeros(40), torch.linspace(-2, 2, 40), []
    for step in range(STEPS):
        weights = weights + 0.04 * (1 - step / STEPS) * drift + 0.1 * torch.randn(40, generator=generator)
        path.append([weights[:30].view(5, 6), weights[30:]])
    return path


def averaged(relative_std: float, snapshots: int) -> list[Snapshot]:
    path = trajectory()
    ema = Ema(path[0], relative_std)
    found = []
    for step, params in enumerate(path):
        ema.update(params, step * BATCH, (step + 1) * BATCH)
        if (step + 1) % (STEPS // snapshots) == 0:
            found.append(Snapshot((step + 1) * BATCH, relative_std, [tensor.clone() for tensor in ema.tensors]))
    return found


def error(relative_std: float, snapshots: int) -> float:
    stored = [snapshot for each in STORED for snapshot in averaged(each, snapshots)]
    got = reconstruct(stored, STEPS * BATCH, relative_std)
    wanted = averaged(relative_std, 1)[0].tensors
    assert [tensor.shape for tensor in got] == [(5, 6), (10,)]
    difference = torch.cat([(a - b).flatten() for a, b in zip(got, wanted, strict=True)])
    return float(difference.norm() / torch.cat([b.flatten() for b in wanted]).norm())


def test_inner_products_are_the_integrals() -> None:
    gamma, end = torch.tensor([16.97, 6.94, 2.0]), torch.tensor([0.3, 0.55, 1.0])
    tau = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    profiles = [
        torch.where(tau < e, (g + 1) * (tau / e) ** g / e, 0.0)
        for g, e in zip(gamma.double(), end.double(), strict=True)
    ]
    wanted = torch.stack([torch.stack([(a * b).mean() for b in profiles]) for a in profiles])
    torch.testing.assert_close(inner_products(gamma, end, gamma, end), wanted, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("relative_std", [0.03, 0.07, 0.15, 0.2])
def test_any_length_is_rebuilt_and_better_from_more_snapshots(relative_std: float) -> None:
    errors = [error(relative_std, snapshots) for snapshots in (4, 8, 16, 32)]
    assert all(more < 0.5 * fewer for fewer, more in itertools.pairwise(errors))
    assert errors[-1] < 1e-3


def test_a_stored_length_is_itself() -> None:
    stored = [(512, 0.05), (512, 0.1), (1024, 0.05), (1024, 0.1)]
    found = combination(stored, 1024, 0.05)
    torch.testing.assert_close(found.weights, torch.tensor([0, 0, 1, 0]).double(), atol=1e-9, rtol=0)
    assert found.residual < 1e-6
    earlier = combination(stored, 512, 0.07)
    assert earlier.weights[2:].tolist() == [0, 0], "what was stored later is not used"


def test_residual_is_the_distance_of_the_profiles() -> None:
    stored = [(512, 0.1), (1024, 0.05), (1024, 0.1)]
    found = combination(stored, 1024, 0.15)
    tau = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * 1024

    def profile(end: int, relative_std: float) -> torch.Tensor:
        gamma = gamma_of(relative_std)
        return torch.where(tau < end, (gamma + 1) / end * (tau / end) ** gamma, 0.0)

    wanted = profile(1024, 0.15)
    rest = wanted - sum(w * profile(*each) for w, each in zip(found.weights, stored, strict=True))
    assert found.residual == pytest.approx(float(rest.norm() / wanted.norm()), rel=1e-3)
    assert found.residual > 0.05


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"no average is stored at 700 samples; wanted one of \[512, 1024\]"):
        combination([(512, 0.1), (1024, 0.1)], 700, 0.05)
    with pytest.raises(ValueError, match=r"wanted each \(samples, relative_std\) once"):
        combination([(512, 0.1), (512, 0.1)], 512, 0.05)
    with pytest.raises(ValueError, match=r"relative_std is 0\.3"):
        combination([(512, 0.1)], 512, 0.3)
    snapshots = [Snapshot(512, 0.1, [torch.zeros(2)]), Snapshot(1024, 0.1, [torch.zeros(3)])]
    with pytest.raises(ValueError, match="wanted the same parameters in each"):
        reconstruct(snapshots, 1024, 0.05)
