"""Clips in training: what agrees with optical flow, pictures that move, and which specs are refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.config import RectifiedFlow, XPrediction
from models.cost import cost
from models.objectives import build_objective
from models.warping import Flow
from orchestrator.planning.plan import make
from orchestrator.results.store import read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.datasets import DATASETS, MANIFEST
from orchestrator.spec.source import SpecError
from orchestrator.spec.trial import Trial
from orchestrator.training import reference
from orchestrator.training.data.clips import rendered_clips
from orchestrator.training.data.consistency import (
    denoised_warping_error,
    flow_of_validation,
    generated_warping_error,
)
from orchestrator.training.data.encode import as_they_are, encode
from orchestrator.training.data.images import rendered
from orchestrator.training.data.moving import optical_flow, render_clips
from orchestrator.training.data.pictures import grid_as, grids
from orchestrator.training.data.procedural import FIRST_VALIDATION
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt


class Knows(torch.nn.Module):
    """Predicts the velocity towards `x`, or x itself."""

    def __init__(self, x: Tensor, velocity: bool) -> None:
        super().__init__()
        self.x, self.velocity, self.unused = x, velocity, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (x_t - self.x) / t.view(-1, 1, 1, 1, 1) if self.velocity else self.x


@pytest.mark.parametrize("kind", [RectifiedFlow, XPrediction])
def test_the_term_of_consistency_is_zero_of_true_clips_and_grows_with_disorder(kind) -> None:
    indices = torch.arange(6)
    x, y = render_clips(indices, 32, 4, 1)
    flow, noise, t = optical_flow(indices, 32, 4), torch.randn(x.shape), torch.full((6,), 0.5)
    plain, consistent = build_objective(kind()), build_objective(kind(consistency=2.0))
    for disorder in (0.0, 0.1, 0.2):
        wrong = x + disorder * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        model = Knows(wrong, kind is RectifiedFlow)
        added = consistent.training_loss(model, x, y, t, noise, *flow) - plain.training_loss(model, x, y, t, noise)
        # Independent noise in both frames: its variance twice, less what interpolation averages away.
        assert added.mean().item() == pytest.approx(2.0 * 1.75 * disorder**2, rel=0.2, abs=1e-6)
    assert plain.consistency == 0.0
    with pytest.raises(ValueError, match=r"consistency is -1.0; wanted a finite weight of at least 0"):
        kind(consistency=-1.0)


def test_denoised_clips_are_judged_by_the_true_flow_where_there_is_one_and_images_not_at_all() -> None:
    dataset = DATASETS["moving-16-grey"]
    indices = torch.tensor([5, 1, 9])
    x, y = rendered(dataset, FIRST_VALIDATION + indices)
    flow = flow_of_validation(dataset, indices, x)
    assert flow is not None
    objective, noise = build_objective(RectifiedFlow()), torch.randn(x.shape)
    error = denoised_warping_error(Knows(x, True), objective, x, y, noise, flow)
    assert error == pytest.approx(0.0, abs=1e-6)
    worse = denoised_warping_error(Knows(x.flip(2), True), objective, x, y, noise, flow)
    assert worse > 1e-4
    assert flow_of_validation(DATASETS["procedural-16"], indices, x[:, :, 0]) is None
    assert denoised_warping_error(Knows(x, True), objective, x, y, noise, None) is None
    held = dataclasses.replace(dataset, form="latents")
    estimated = flow_of_validation(held, indices, x)
    assert isinstance(estimated, Flow)
    assert not torch.equal(estimated.displacement, flow.displacement)
    assert flow_of_validation(dataclasses.replace(held, space="latents"), indices, x) is None


def test_clips_of_which_no_flow_is_known_anywhere_count_neither_as_good_nor_as_bad() -> None:
    dataset = DATASETS["moving-32-grey"]
    indices = torch.arange(4)
    x, y = rendered(dataset, FIRST_VALIDATION + indices)
    flow = flow_of_validation(dataset, indices, x)
    assert flow is not None
    objective, noise = build_objective(RectifiedFlow()), torch.randn(x.shape)
    model = Knows(x.flip(2), True)

    def error(covered: Tensor) -> float | None:
        return denoised_warping_error(model, objective, x, y, noise, Flow(flow.displacement, covered))

    first = torch.zeros_like(flow.covered)
    first[0] = flow.covered[0]
    alone = denoised_warping_error(
        Knows(x[:1].flip(2), True), objective, x[:1], y[:1], noise[:1], Flow(flow.displacement[:1], flow.covered[:1])
    )
    assert error(first) == pytest.approx(alone, rel=1e-5)
    assert error(torch.zeros_like(flow.covered)) is None


def test_generated_clips_are_judged_by_their_own_estimated_flow() -> None:
    dataset = DATASETS["moving-32"]
    clips, _ = render_clips(torch.arange(10), 32, 4, 3)
    shuffled = clips[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    mixed = torch.stack([clips[:, :, 0], shuffled[:, :, 1], clips[:, :, 2], shuffled[:, :, 3]], dim=2)
    still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    found = [generated_warping_error(dataset, some) for some in (still, clips, mixed)]
    assert found[0] < 1e-9 < found[1] < 0.1 * found[2]
    assert generated_warping_error(DATASETS["procedural-32"], clips[:, :, 0]) is None
    assert generated_warping_error(dataclasses.replace(dataset, space="latents"), clips) is None


def test_grids_of_clips_move_and_those_of_images_do_not(monkeypatch) -> None:
    clips, _ = render_clips(torch.arange(6), 16, 5, 1)
    files = grids(clips, 3)
    gif = Image.open(io.BytesIO(files["gif"]))
    assert (gif.n_frames, gif.size) == (5, ((3 * 65 - 1), (2 * 65 - 1)))
    assert set(grids(clips[:, :, 0], 3)) == {"png"}
    with pytest.raises(ValueError, match="clips cannot be written as png; wanted gif or mp4"):
        grid_as("png", clips, 3)
    with pytest.raises(ValueError, match="images cannot be written as a file without suffix; wanted png"):
        grid_as("", clips[:, :, 0], 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"an MP4 needs PyAV, which is not installed. Run: pip install av, or write"):
        grid_as("mp4", clips, 3)


def test_an_mp4_has_the_frames_twice(tmp_path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed, which makes MP4 files")
    clips, _ = render_clips(torch.arange(6), 16, 5, 3)
    path = tmp_path / "grid.mp4"
    path.write_bytes(grid_as("mp4", clips, 3))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 10
    assert frames[0].shape == (130, 194, 3)
    first = Image.open(io.BytesIO(grids(clips, 3)["gif"])).convert("RGB")
    middle = torch.tensor(list(first.resize((6, 4)).getdata())).float()
    seen = torch.tensor(list(Image.fromarray(frames[0]).resize((6, 4)).getdata())).float()
    assert (middle - seen).abs().mean() < 25


SPEC = """
name: clips
dataset: {dataset}
models: {{family: {family}, {options}sizes: {{rule: width, widths: [16], depth: 1}}}}
{more}
arms: {{a: {{}}}}
training: {{batch_size: 8}}
budgets: {{samples: [64]}}
"""
PATCHES = "patch: 4, head_dim: 8, "


@pytest.mark.parametrize(
    ("dataset", "family", "options", "more", "message"),
    [
        ("moving-16", "dit", PATCHES, "", "got dit, a family of images, for dataset moving-16, which holds clips; "
         "wanted one of video-dit, unet3d, or another dataset"),
        ("procedural-16", "video-dit", PATCHES, "", "a family of clips, for dataset procedural-16, which holds images"),
        ("moving-16", "video-dit", PATCHES + "patch_frames: 3, ", "", "is 3, which does not divide clips of 8 frames; "
         r"wanted one of \[1, 2, 4, 8\]"),
        ("procedural-16", "dit", PATCHES, "objective: {name: rectified-flow, consistency: 0.1}",
         "rectified-flow consistency=0.1 is of clips, and family dit of images; wanted another of the two"),
        ("moving-16", "video-dit", PATCHES, "objective: pyramid-flow",
         "pyramid-flow trains models of 2 levels, and size w16 has 1; wanted models.levels: 2"),
        ("moving-16", "video-dit", PATCHES + "levels: 2, ", "", "trains models of 1 levels, and size w16 has 2"),
        ("moving-16", "video-dit", PATCHES, "evaluation: {distance: {encoder: shapes-cnn}}",
         "got shapes-cnn, which is of images, for dataset moving-16, which holds clips; wanted one of moving-cnn"),
        ("moving-16", "video-dit", "head_dim: 8, ", "", "has no patch"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_remedy(
    tmp_path: Path, dataset: str, family: str, options: str, more: str, message: str
) -> None:
    path = tmp_path / "clips.yaml"
    path.write_text(SPEC.format(dataset=dataset, family=family, options=options, more=more))
    with pytest.raises(SpecError, match=message):
        make(path)


def test_consistency_of_latents_is_refused_and_of_pixels_from_files_is_not(tmp_path: Path, monkeypatch) -> None:
    """Also of a dataset whose manifest is of before it said which of the two it holds."""
    monkeypatch.setenv("DITLAW_DATA", str(tmp_path))
    for name, space in (("px", "pixels"), ("latents", "latents"), ("older", "pixels")):
        samples = rendered_clips(DATASETS["moving-16-grey"], 40)
        folder = encode(samples, as_they_are, tmp_path / name, batch=20, validation_every=2, space=space)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("space")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    path = tmp_path / "clips.yaml"
    for name, told in (("px", None), ("latents", "holds latents, of which"), ("older", "holds latents, of which")):
        more = "objective: {name: rectified-flow, consistency: 0.1}\nevaluation: {loss_images: 16}"
        path.write_text(SPEC.format(dataset=name, family="video-dit", options=PATCHES, more=more))
        if told is None:
            make(path)
            continue
        with pytest.raises(SpecError, match=f"asks for optical flow, and dataset {name} {told} there is none; wanted"):
            make(path)
    more = "evaluation: {loss_images: 16, distance: {encoder: moving-cnn}}"
    path.write_text(SPEC.format(dataset="latents", family="video-dit", options=PATCHES, more=more))
    with pytest.raises(SpecError, match="encoders see pixels, and dataset latents holds latents; wanted no distance"):
        make(path)


TRAINED = """
name: clips
dataset: moving-16-grey-varied
models: {family: video-dit, patch: 8, patch_frames: 2, head_dim: 8, sizes: {rule: width, widths: [8], depth: 1}}
arms: {a: {}}
objective: {name: rectified-flow, consistency: 0.1}
training: {batch_size: 8, learning_rate: 1.0e-2}
budgets: {samples: [32, 64]}
evaluation: {loss_images: 16, sample_images: 10, sampler: euler, sampler_steps: 2}
"""


def test_a_training_of_clips_of_two_lengths_goes_on_bit_for_bit_and_measures_them(group, tmp_path: Path) -> None:
    path = tmp_path / "clips.yaml"
    path.write_text(TRAINED)
    (trial,) = make(path).trials
    longer = dataclasses.replace(trial.model, frame_counts=())
    assert trial.flops_per_sample == pytest.approx(
        3 * (cost(longer).forward_flops + cost(half(longer)).forward_flops) / 2
    )
    parted = (trial.milestones[:1], trial.milestones[1:])
    tables = [
        trained(trial, group, tmp_path / name, parts)
        for name, parts in (("whole", (trial.milestones,)), ("parted", parted))
    ]
    columns = ["loss", "loss_train", "warping_error", "tokens", "flops"]
    assert tables[0][columns].equals(tables[1][columns])
    assert (tables[0]["warping_error"] > 0).all()
    assert tables[0]["warping_error_generated"].notna().tolist() == [False, True]
    assert tables[0]["fd_per_frame"].isna().all()
    grids_made = {file.suffix for file in (tmp_path / "whole" / "samples").iterdir()}
    assert ".gif" in grids_made <= {".gif", ".mp4"}


def half(config):
    return dataclasses.replace(config, frames=config.frames // 2)


def trained(trial: Trial, data: Path, results: Path, parts: Sequence[tuple[int, ...]]) -> pandas.DataFrame:
    """The measurements of a trial, by samples, that has been trained in so many attempts."""
    member = GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=results, data=data)
    for attempt, milestones in enumerate(parts):
        job = Assignment(
            trial=trial, attempt=attempt, gang="g", milestones=milestones, samples_spent=0, checkpoint_seconds=1e9,
            mlflow_run_id=None,
        )  # fmt: skip
        assert run_attempt(job, member) == ("completed", None)
    return read_measurements(results).sort_values("samples").reset_index(drop=True)


MEASURED = """
name: clips
dataset: moving-16-grey
models:
  {family: video-dit, levels: 2, patch: 8, patch_frames: 8, head_dim: 8, sizes: {rule: width, widths: [8], depth: 1}}
arms: {a: {objective: pyramid-flow}}
training: {batch_size: 8}
budgets: {samples: [32]}
evaluation:
  loss_images: 16
  sample_images: 10
  sampler_steps: 2
  guidance: 1.0
  distance: {encoder: moving-cnn, images: 100, most_of_training: 1.0e+9}
"""


def test_a_trial_has_the_distance_of_its_clips_and_that_of_their_frames(
    group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of generated clips, by pyramidal flow's own sampler, and both far from 0 so early."""
    monkeypatch.setattr(reference, "IMAGES", 250)
    path = tmp_path / "clips.yaml"
    path.write_text(MEASURED)
    (trial,) = make(path).trials
    (row,) = trained(trial, group, tmp_path / "results", (trial.milestones,)).to_dict("records")
    assert (row["fd_encoder"], row["eval_samples"], row["sampler"]) == ("moving-cnn", 100, "pyramid")
    assert row["fd"] > 1
    assert row["fd_per_frame"] > 1
    assert row["fd"] != row["fd_per_frame"]
    assert math.isnan(row["fid"])
    (kept,) = (tmp_path / "results" / "references").iterdir()
    assert kept.name.startswith("moving-16-grey-moving-cnn-")
