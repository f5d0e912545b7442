"""Moving figures: functions of their index, whose true flow carries each frame onto the next, and its estimate."""

from __future__ import annotations

import pytest
import torch

from models.warping import estimated_flow, lucas_kanade, solid, warped, warping_error
from orchestrator.spec.datasets import DATASETS, MOVING
from orchestrator.training.data.images import rendered
from orchestrator.training.data.moving import optical_flow, render_clips
from orchestrator.training.data.procedural import FIRST_VALIDATION
from orchestrator.training.data.source import EndlessImages, HeldImages

CPU = torch.device("cpu")


def pairs(clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames k and frames k + 1, each [n (f - 1), c, h, w]."""
    return clips[:, :, :-1].transpose(1, 2).flatten(0, 1), clips[:, :, 1:].transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("dataset", MOVING, ids=lambda dataset: dataset.name)
def test_clips_have_the_datasets_shape_and_classes(dataset):
    clips, labels = rendered(dataset, torch.arange(300))
    assert clips.shape == (300, *dataset.shape)
    assert clips.dtype == torch.float32
    assert -1 <= clips.min() < -0.5 < 0.5 < clips.max() <= 1
    assert labels.bincount(minlength=dataset.num_classes).min() > 10, "of 30 on average"
    assert len(dataset.class_names) == dataset.num_classes == 10


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("forward", [False, True])
def test_the_true_flow_warps_frames_onto_each_other_to_a_thousandth(size, forward):
    """At every covered pixel of every clip, on a scale of which the whole is 2; and without it they are far apart."""
    indices = torch.arange(1600 // size)
    clips, labels = render_clips(indices, size, 8, 3)
    flow = optical_flow(indices, size, 8, forward=forward)
    before, after = pairs(clips)
    if forward:
        before, after = after, before
    error = (warped(before, flow.displacement.flatten(0, 1)) - after).abs().amax(1).view_as(flow.covered)
    assert error[flow.covered].max() < 1e-3
    unmoved = (before - after).abs().amax(1).view_as(flow.covered)
    for label in range(10):  # every class has pixels that move and are covered
        assert unmoved[labels == label][flow.covered[labels == label]].max() > 0.02
    assert flow.covered.float().mean() > (0.1 if size == 16 else 0.4)
    if not forward:
        assert warping_error(clips, flow).max() < 1e-7
        assert warping_error(clips.flip(2), flow).mean() > 1e-4


def test_figures_and_background_move_each_in_their_way():
    indices = torch.arange(60)
    _, labels = render_clips(indices, 32, 8, 1)
    flow = optical_flow(indices, 32, 8).displacement
    middle, corner = flow[:, :, :, 15:17, 15:17].mean((3, 4)), flow[:, :, :, 0, 0]
    assert (corner - corner[:, :1]).abs().max() < 1e-5, "the background drifts evenly"
    drifting = labels // 2 == 0
    assert torch.linalg.norm((middle - corner)[drifting], dim=-1).mean() > 0.5


def test_a_clip_is_a_function_of_its_index_and_its_frames_not_of_how_many_there_are():
    indices = torch.tensor([5, 2**33 + 5, 2**61 + 17, FIRST_VALIDATION, 0])
    clips, labels = render_clips(indices, 16, 8, 3)
    for index, clip, label in zip(indices, clips, labels, strict=True):
        alone, its_label = render_clips(index[None], 16, 8, 3)
        assert its_label == label
        assert (alone[0] - clip).abs().max() < 1e-5
    short, _ = render_clips(indices, 16, 3, 3)
    assert torch.allclose(short, clips[:, :, :3], atol=1e-5)
    assert [float(clip.mean()) for clip in clips] == pytest.approx(PINNED, abs=2e-3), "stored trials compare"
    assert len({float(clip.double().sum()) for clip in render_clips(torch.arange(500), 16, 2, 1)[0]}) == 500


PINNED = [-0.0755, 0.0906, 0.1433, 0.0984, 0.1893]


def test_batches_walk_and_take_turns_in_their_number_of_frames():
    data = EndlessImages(DATASETS["moving-16-grey-varied"], CPU)
    first, labels = data.batch(3, 0, 32, slice(0, 16))
    second, _ = data.batch(3, 32, 32, slice(0, 16))
    assert first.shape == (16, 1, 4, 16, 16)
    assert second.shape == (16, 1, 8, 16, 16)
    whole, same = EndlessImages(DATASETS["moving-16-grey"], CPU).batch(3, 0, 32, slice(0, 16))
    assert torch.equal(labels, same)
    assert torch.allclose(whole[:, :, :4], first, atol=1e-5)
    flow = data.flow(3, 32, 32, slice(8, 16))
    assert warping_error(second[8:], flow).max() < 1e-6
    with pytest.raises(ValueError, match="procedural-16 holds still images, which have no optical flow; wanted a"):
        EndlessImages(DATASETS["procedural-16"], CPU).flow(0, 0, 4, slice(0, 4))


def test_warping_by_whole_pixels_moves_them_and_edges_are_not_solid():
    frame = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(1, 2, 9, 9)
    flow[:, 0], flow[:, 1] = 1, -2  # each pixel comes from one further right and two further up
    moved, whole = warped(frame, flow), solid(torch.ones(1, 9, 9, dtype=torch.bool), flow)
    assert torch.allclose(moved[:, :, 3:8, 1:7], frame[:, :, 1:6, 2:8], atol=1e-6)
    assert not whole[:, :3].any()
    assert not whole[:, :, 6:].any()
    assert whole[:, 3:8, 0:6].all()


def test_the_estimated_flow_finds_a_shift_and_most_of_the_true_flow():
    indices = torch.arange(40)
    clips, _ = render_clips(indices, 32, 4, 3)
    true, found = optical_flow(indices, 32, 4), estimated_flow(clips)
    both = true.covered & found.covered
    error = (found.displacement - true.displacement).norm(dim=2)[both].median()
    assert error < 0.3 * true.displacement.norm(dim=2)[both].median()
    assert both.float().mean() > 0.3
    still = estimated_flow(clips[:, :, :1].expand(-1, -1, 3, -1, -1))
    assert still.displacement.abs().max() < 1e-4
    shifted = lucas_kanade(clips[:, :, 0], clips[:, :, 0])
    assert shifted.abs().max() < 1e-4
    held = HeldImages(clips, torch.zeros(40, dtype=torch.long))
    assert held.flow(0, 0, 8, slice(0, 8)).displacement.shape == (8, 3, 2, 32, 32)
