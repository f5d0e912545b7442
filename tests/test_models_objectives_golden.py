"""Loss traces of every objective, kept so that a change in what is trained does not go unnoticed."""

from __future__ import annotations

import pytest
import torch

from models import config
from models.config import DiTConfig, MuP
from models.families import build
from models.objectives import build_objective
from models.parameterization import parameter_groups

CONFIGS: dict[str, config.Objective] = {
    "flow-logit-normal": config.RectifiedFlow(t_distribution="logit-normal"),
    "interpolant-gvp": config.Interpolant(path="gvp"),
    "interpolant-vp": config.Interpolant(path="vp"),
    "ddpm-linear": config.DDPM(),
    "ddpm-cosine": config.DDPM(betas="cosine"),
    "ddpm-learned-variance": config.DDPM(learn_variance=True),
    "v-gvp": config.VPrediction(),
    "x-gvp": config.XPrediction(),
    "edm": config.EDM(),
}


def trace(objective_config: config.Objective) -> list[float]:
    """20 steps of a tiny DiT on blobs of one brightness a class."""
    learn_sigma = getattr(objective_config, "learn_variance", False)
    model_config = DiTConfig(
        image_size=8, channels=1, num_classes=4, patch=2, width=16, depth=2, heads=2, learn_sigma=learn_sigma
    )
    parameterization = MuP(base_width=16)
    model, objective = build(model_config, parameterization, 3), build_objective(objective_config)
    optimizer = torch.optim.AdamW(parameter_groups(model, parameterization, 5e-3, 0.01), betas=(0.9, 0.99))
    generator, losses = torch.Generator().manual_seed(7), []
    for _ in range(20):
        y = torch.randint(0, 5, (16,), generator=generator)
        x = torch.tanh(torch.randn(16, 1, 8, 8, generator=generator) * 0.2 + y.view(-1, 1, 1, 1) * 0.4 - 0.8)
        t = objective.draw_t(torch.rand(16, generator=generator))
        loss = objective.loss(model, x, y, t, torch.randn(x.shape, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_loss_trace(name: str) -> None:
    assert trace(CONFIGS[name]) == pytest.approx(GOLDEN[name], rel=1e-4)


# fmt: off
GOLDEN = {
    "flow-logit-normal": [
        1.17572, 1.19807, 1.23137, 1.10734, 1.20766, 1.07389, 0.958641, 1.03648, 0.838905, 0.748877,
        0.710835, 0.594522, 0.765856, 0.706618, 0.655562, 0.576874, 0.53791, 0.513572, 0.453641, 0.529099,
    ],
    "interpolant-gvp": [
        1.78589, 1.349, 1.41869, 1.70769, 1.86183, 1.15503, 1.17286, 1.41908, 1.06151, 1.08236,
        1.08222, 0.815538, 1.31507, 0.920135, 1.1973, 1.04967, 0.887698, 0.828967, 0.707923, 1.0567,
    ],
    "interpolant-vp": [
        3.79731, 2.38282, 1.83651, 5.72835, 4.79112, 0.919228, 1.38789, 2.59828, 1.58508, 1.76368,
        1.79454, 1.0365, 2.81699, 1.15041, 2.03684, 2.41489, 1.50055, 1.21812, 1.01376, 1.89534,
    ],
    "ddpm-linear": [
        1.02016, 0.976801, 0.904394, 0.870294, 0.867965, 0.712597, 0.658781, 0.650253, 0.516309, 0.425236,
        0.391977, 0.276951, 0.394789, 0.179784, 0.268221, 0.315728, 0.201915, 0.236626, 0.125337, 0.181185,
    ],
    "ddpm-cosine": [
        1.02016, 0.983538, 0.914496, 0.890805, 0.907129, 0.738274, 0.687515, 0.694399, 0.55957, 0.485093,
        0.461122, 0.343976, 0.457386, 0.267442, 0.311187, 0.432205, 0.261179, 0.31354, 0.199457, 0.310745,
    ],
    "ddpm-learned-variance": [
        1.0308, 0.988476, 0.913976, 0.937684, 0.882648, 0.719449, 0.666815, 0.660122, 0.528027, 0.430193,
        0.399385, 0.279779, 0.408376, 0.182249, 0.272622, 0.325089, 0.20463, 0.240083, 0.127513, 0.18522,
    ],
    "v-gvp": [
        0.723792, 0.541487, 0.562481, 0.679043, 0.733279, 0.440306, 0.443578, 0.540947, 0.409206, 0.424643,
        0.433458, 0.342579, 0.513101, 0.361948, 0.474138, 0.41154, 0.339752, 0.32335, 0.278296, 0.417675,
    ],
    "x-gvp": [
        0.173779, 0.165338, 0.273506, 0.133701, 0.172691, 0.197329, 0.170994, 0.141196, 0.134273, 0.136784,
        0.124933, 0.194634, 0.0978318, 0.114726, 0.117376, 0.0952135, 0.110075, 0.0929845, 0.0929885, 0.089219,
    ],
    "edm": [
        0.913377, 0.824539, 0.981126, 0.859009, 0.949298, 0.879264, 0.796196, 0.837502, 0.712439, 0.741312,
        0.679097, 0.65053, 0.787391, 0.714688, 0.757629, 0.688792, 0.644002, 0.665412, 0.511418, 0.732147,
    ],
}
# fmt: on
