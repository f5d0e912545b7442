"""Models of clips: what their tokens see, clips of other lengths and resolutions, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.config import SP, XPrediction
from models.configs.clips import View, windows
from models.configs.text import ClassNames
from models.configs.unet3d import UNet3DConfig
from models.configs.video_dit import VideoDiTConfig
from models.cost import cost
from models.families import build
from models.objectives import build_objective
from models.parameterization import TaggedModule, parameter_groups
from models.spacetime import positions_3d, rotations_3d


def small(depth: int = 2, **options: Any) -> VideoDiTConfig:
    return VideoDiTConfig.example(
        width=24, depth=depth, head_dim=12, **{"zero_init": False, "frames": 4, "patch_frames": 1, **options}
    )


def lively(config: VideoDiTConfig | UNet3DConfig) -> TaggedModule:
    """A model whose every weight, the readout's included, does something."""
    model = build(config, SP(), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(config: VideoDiTConfig | UNet3DConfig, **shape: int) -> tuple[Tensor, Tensor, Tensor]:
    sizes = {"frames": config.frames, "side": config.image_size, **shape}
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, config.channels, sizes["frames"], sizes["side"], sizes["side"], generator=generator)
    return x, torch.tensor([0.3, 0.8]), torch.tensor([1, config.num_classes])


@pytest.mark.parametrize("positions", ["sincos", "rope"])
@pytest.mark.parametrize("shape", [{"frames": 2, "patch_frames": 2}, {"image_size": 2, "patch": 2, "patch_frames": 1}])
def test_factorised_is_full_attention_where_the_other_axis_has_length_one(
    positions: str, shape: dict[str, int]
) -> None:
    """The same weights give the same clips, and their costs are the same."""
    full, factorised = (small(attention=kind, positions=positions, **shape) for kind in ("full", "factorised"))
    x, t, y = inputs(full)
    assert torch.allclose(lively(full)(x, t, y), lively(factorised)(x, t, y), atol=1e-6)
    assert cost(full) == cost(factorised)


def test_kinds_of_attention_have_the_same_weights_and_differ_in_what_they_see_and_cost() -> None:
    configs = {kind: small(attention=kind, patch_frames=1) for kind in ("full", "factorised", "causal", "windowed")}
    outputs = {kind: lively(config)(*inputs(config)) for kind, config in configs.items()}
    assert len({tuple(p.shape for p in build(config, SP(), 0).parameters()) for config in configs.values()}) == 1
    for kind in ("factorised", "causal", "windowed"):
        assert not torch.allclose(outputs["full"], outputs[kind], atol=1e-3)
    costs = {kind: cost(config).forward_flops for kind, config in configs.items()}
    assert costs["factorised"] < min(costs["causal"], costs["windowed"]) < costs["full"]
    assert cost(small(attention="windowed", window=3, patch_frames=1)) == cost(configs["full"])
    wide = small(attention="windowed", window=3, patch_frames=1)
    assert torch.allclose(lively(wide)(*inputs(wide)), outputs["full"], atol=1e-5)


def influence(config: VideoDiTConfig) -> Tensor:
    """[frames of tokens out, frames of tokens in]: whether the input of a frame moves the output of another."""
    model, (x, t, y) = lively(config), inputs(config)
    x.requires_grad_(True)
    out = model(x, t, y).unflatten(2, (-1, config.patch_frames)).square().sum((0, 1, 3, 4, 5))
    rows = []
    for value in out:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        rows.append(gradient.unflatten(2, (-1, config.patch_frames)).abs().sum((0, 1, 3, 4, 5)) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("options", [{"positions": "rope"}, {"conditioning": "cross", "patch_frames": 2, "frames": 8}])
def test_causal_attention_never_sees_the_future(options: dict[str, Any]) -> None:
    seen = influence(small(attention="causal", **options))
    assert torch.equal(seen, torch.ones(4, 4, dtype=torch.bool).tril())


def test_windowed_attention_sees_so_many_frames_a_block_and_full_all_of_them() -> None:
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    for depth, window in ((1, 1), (2, 1), (1, 2)):
        seen = influence(small(depth, attention="windowed", window=window, frames=6))
        assert torch.equal(seen, distance <= depth * window)
    assert influence(small(1, attention="full")).all()
    assert torch.equal(influence(small(1, attention="factorised")), torch.eye(4, dtype=torch.bool))
    assert influence(small(2, attention="factorised")).all()
    assert [list(seen) for _, seen in windows(3, before=None, after=0)] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_shorter_clips_cost_what_a_model_of_shorter_clips_costs_and_causal_ones_are_its_first_frames(
    positions: str,
) -> None:
    config = small(attention="causal", positions=positions)
    model = lively(config)
    x, t, y = inputs(config)
    assert torch.allclose(model(x[:, :, :2], t, y), model(x, t, y)[:, :, :2], atol=1e-5)
    costs = [cost(replace(config, frames=frames)) for frames in (2, 4)]
    both = cost(replace(config, frame_counts=(2, 4)))
    assert both.forward_flops == sum(c.forward_flops for c in costs) / 2
    assert both.tokens == 48 == sum(c.tokens for c in costs) // 2
    assert both.params_matmul * both.tokens == pytest.approx(sum(c.params_matmul * c.tokens for c in costs) / 2)


def test_coarser_clips_go_through_the_same_model_and_lie_in_the_middle_of_what_they_stand_for() -> None:
    config = small(levels=3)
    assert config.views == (View(4, 8), View(4, 4), View(4, 2))
    model = lively(config)
    for side in (8, 4, 2):
        x, t, y = inputs(config, side=side)
        assert model(x, t, y).shape == x.shape
    fine, coarse = rotations_3d(2, 4, 12), rotations_3d(2, 2, 12, spacing=2.0)
    angle = torch.atan2(fine[1], fine[0])[0].view(4, 4, -1)[:, :, -1]  # of columns, at the slowest frequency
    assert torch.atan2(coarse[1], coarse[0])[0, 0, -1] == pytest.approx(angle[0, :2].mean().item(), rel=1e-3)


@pytest.mark.parametrize("width", [6, 16, 27])
def test_positions_tell_every_place_apart(width: int) -> None:
    places = positions_3d(3, 4, width).flatten(0, 1)
    assert places.shape == (48, width)
    assert torch.pdist(places).min() > 1e-3


def test_a_clip_is_refused_that_is_not_of_the_models_shape() -> None:
    model = build(small(patch_frames=2), SP(), 0)
    _, t, y = inputs(model.config)
    for shape in ([2, 1, 3, 8, 8], [2, 1, 6, 8, 8], [2, 3, 4, 8, 8], [2, 1, 4, 8, 4], [2, 1, 8, 8], [2, 1, 4, 4, 4]):
        with pytest.raises(
            ValueError, match=r"clips have shape \[2, .*wanted \[b, 1, frames, 8, 8\] of at most 4 frames"
        ):
            model(torch.zeros(shape), t, y)
    unet = build(UNet3DConfig.example(width=16, depth=1, head_dim=8), SP(), 0)
    with pytest.raises(ValueError, match=r"wanted \[b, 1, frames, 8, 8\] of at most 4 frames"):
        unet(torch.zeros(2, 1, 5, 8, 8), t, y)
    assert unet(torch.zeros(2, 1, 3, 8, 8), t, y).shape == (2, 1, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_frames": 3}, r"patch_frames is 3, which does not divide clips of 4 frames; wanted one of \[1, 2, 4\]"),
        ({"frame_counts": (4, 5)}, "frame_counts has 5; wanted 1 to the 4 frames of a whole clip"),
        ({"frame_counts": (3, 4), "patch_frames": 2}, "does not divide clips of 3 frames"),
        ({"levels": 4}, "levels is 4: image_size 8 is no multiple of 16, the patch of the coarsest; wanted fewer"),
        ({"positions": "rope", "heads": 6}, "heads of size 4 cannot be rotated in 3-D: .* at least 6"),
        ({"attention": "sparse"}, "attention is 'sparse'; wanted one of full, factorised, causal, windowed"),
        ({"window": 0}, "window is 0; wanted a whole number of at least 1"),
        (
            {"text": ClassNames(tokens=2)},
            "text is given, which conditioning adaln does not read; drop it, or take cross",
        ),
        ({"conditioning": "cross", "text": None}, "is conditioned on text, and no embeddings of it are given"),
    ],
)
def test_impossible_models_are_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("convolution", ["factorised", "full"])
def test_a_3d_unet_sees_other_frames_and_starts_as_the_identity_of_its_skips(convolution: str) -> None:
    config = UNet3DConfig.example(width=8, depth=1, head_dim=8, convolution=convolution, zero_init=False)
    model = lively(config)
    x, t, y = inputs(config)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x, t, y)[:, :, 0].square().sum(), x)
    assert (gradient.abs().sum((0, 1, 3, 4)) > 0).all()
    assert len(list(model.parameters())) > 50


def test_x_prediction_learns_a_clip() -> None:
    config = small(zero_init=True)
    model, objective = build(config, SP(), 0), build_objective(XPrediction())
    x, t, y = inputs(config)
    x = x[:, :, :1].expand_as(x)
    optimizer = torch.optim.AdamW(parameter_groups(model, SP(), 1e-2, 0.0))
    losses = []
    for _ in range(25):
        loss = objective.loss(model, x, y, t, torch.zeros_like(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
