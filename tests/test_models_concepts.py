"""Concept directions: found where planted, chance where there is nothing."""

from __future__ import annotations

import pytest
import torch

from models.concepts import area_under_curve, concepts, features
from models.config import FAMILIES, SP, MaskedTokens, RectifiedFlow
from models.families import build
from models.objectives import build_objective


def test_a_planted_direction_is_found_and_separates() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    planted = torch.nn.functional.one_hot(y, 4).float() @ torch.eye(4, 16) * 3
    x = planted + torch.randn(400, 16, generator=generator)
    found = concepts(x[:200], y[:200], x[200:], y[200:], 4)
    assert found.directions.norm(dim=1) == pytest.approx(torch.ones(4), rel=1e-5)
    assert (found.directions.argmax(1) == torch.arange(4)).all()
    assert found.separability.min() > 0.95
    nothing = torch.randn(400, 16, generator=generator)
    assert concepts(nothing[:200], y[:200], nothing[200:], y[200:], 4).separability.mean() == pytest.approx(
        0.5, abs=0.1
    )
    with pytest.raises(ValueError, match="class 4 is none or all of the images that directions are made from"):
        concepts(x, y, x, y, 5)


def test_the_area_counts_pairs_and_ties_a_half() -> None:
    scores, positive = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([False, True, False, True])
    assert area_under_curve(scores, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_features(family: str) -> None:
    config = FAMILIES[family].example(width=16, depth=1, head_dim=8)
    model = build(config, SP(), 0)
    objective = build_objective(RectifiedFlow() if config.predicts == "images" else MaskedTokens())
    x, noise = torch.randn(2, 5, *config.shape, generator=torch.Generator().manual_seed(0))
    found = features(model, objective, x, noise, t=0.3, batch=2)
    assert found.shape[0] == 5
    assert torch.allclose(found, features(model, objective, x, noise, t=0.3, batch=5), atol=1e-5)
    assert not any(block._forward_hooks for block in getattr(model, model.trunk))
