"""µP's settings against Microsoft's `mup`, the package of the paper's authors (Yang et al. 2022, arXiv 2203.03466).

The package asks for torchvision, which would replace torch by the newest, so it is no dependency: install it with
`pip install --no-deps mup==1.0.0`. Without it, its rule is still tested, as the table that MuAdam follows.
"""

from __future__ import annotations

import pytest
import torch

from models.config import DiTConfig, MuP
from models.dit import DiT
from models.parameterization import parameter_groups

BASE, RATE, DECAY = 16, 1e-3, 0.1


def dit(width: int) -> DiT:
    config = DiTConfig(image_size=8, channels=1, num_classes=10, patch=2, width=width, depth=2, heads=width // 16)
    return DiT(config, MuP(base_width=BASE))


def ours(width: int) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(dit(width), MuP(base_width=BASE), RATE, DECAY)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def rule(width: int) -> dict[str, tuple[float, float]]:
    """MuAdamW's rule: a weight both of whose sides grow has lr / m and weight decay x m, every other is left alone."""
    small, large = dict(dit(BASE).named_parameters()), dict(dit(width).named_parameters())
    m = width / BASE
    growing = {n: sum(a != b for a, b in zip(p.shape, large[n].shape, strict=True)) for n, p in small.items()}
    return {n: (RATE / m, DECAY * m) if count == 2 else (RATE, DECAY) for n, count in growing.items()}


@pytest.mark.parametrize("width", [32, 64, 128])
def test_groups_follow_the_rule_of_muadamw(width: int) -> None:
    assert ours(width) == rule(width)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_groups_equal_those_of_the_package(width: int) -> None:
    mup = pytest.importorskip("mup", reason="pip install --no-deps mup==1.0.0")
    model = dit(width)
    # The readout is a plain linear map here: the package's own layer would scale the forward pass, ours does already.
    mup.set_base_shapes(model, dit(BASE), delta=dit(2 * BASE), rescale_params=False, do_assert=False)
    optimizer = mup.MuAdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    names = {parameter: name for name, parameter in model.named_parameters()}
    theirs = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert theirs == ours(width)


def test_the_readout_is_divided_like_that_of_the_package() -> None:
    mup = pytest.importorskip("mup", reason="pip install --no-deps mup==1.0.0")

    def readout(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(mup.MuReadout(width, 4, readout_zero_init=True))

    theirs, model = readout(64), dit(64)
    mup.set_base_shapes(theirs, readout(BASE), delta=readout(2 * BASE))
    assert model.final_layer.linear.weight.shape == theirs[0].weight.shape
    h, weight, bias = torch.randn(3, 64), torch.randn(4, 64), torch.randn(4)
    with torch.no_grad():
        for linear in (theirs[0], model.final_layer.linear):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        # Modulation starts at zero, so the final layer sees the norm of its input.
        normed = torch.nn.functional.layer_norm(h, (64,), eps=1e-6)
        got = model.final_layer(h[:, None], torch.zeros(3, 64))[:, 0]
        torch.testing.assert_close(got, theirs(normed))
