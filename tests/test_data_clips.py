"""Clips from files and their latents: videos that PyAV reads, a causal autoencoder, and datasets made of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from models.causal_vae import CausalVAE, CausalVAEConfig, coding_flops, is_causal_vae, read_vae, write_vae
from orchestrator.cli import main
from orchestrator.spec.datasets import DATASETS, dataset_named
from orchestrator.training.data.autoencoding import train_vae
from orchestrator.training.data.clips import clips, has_videos, rendered_clips
from orchestrator.training.data.encode import Labelled, as_they_are, encode, encoder_in
from orchestrator.training.data.images import load
from orchestrator.training.data.moving import render_clips
from orchestrator.training.data.pictures import grid_as
from orchestrator.training.data.source import opened

CPU = torch.device("cpu")
NO_AV = "PyAV is not installed, which reads video files"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two class folders: a GIF of 9 frames, and an MP4 of 12 where PyAV is there."""
    moving, _ = render_clips(torch.arange(2), 16, 9, 3)
    for name in ("up", "down"):
        (tmp_path / "videos" / name).mkdir(parents=True)
    (tmp_path / "videos" / "up" / "a.gif").write_bytes(grid_as("gif", moving[:1], 1))
    if "av" in sys.modules or __import__("importlib.util").util.find_spec("av"):
        (tmp_path / "videos" / "down" / "b.mp4").write_bytes(grid_as("mp4", moving[1:, :, :6], 1))
    return tmp_path / "videos"


def test_videos_become_clips_of_their_middle_square(videos: Path) -> None:
    pytest.importorskip("av", reason=NO_AV)
    assert has_videos(videos)
    assert not has_videos(videos / "up")
    found = list(clips(videos, frames=4, every=1, size=8))
    assert [clip.label for clip in found] == ["down", "down", "down", "up", "up"]  # folders in order; 12 and 9 frames
    assert [clip.origin for clip in found] == [0, 0, 0, 1, 1]
    assert all(clip.sample.shape == (3, 4, 8, 8) for clip in found)
    moving, _ = render_clips(torch.arange(1), 16, 9, 3)
    coarse = torch.nn.functional.interpolate(moving[0].transpose(0, 1), size=(8, 8), mode="area").transpose(0, 1)
    assert (found[3].sample - coarse[:, :4]).abs().mean() < 0.15  # a GIF has few colours
    sparse = list(clips(videos, frames=4, every=2, size=8))
    assert [clip.label for clip in sparse] == ["down", "up"]
    assert torch.equal(sparse[1].sample[:, 1], found[3].sample[:, 2])


def test_what_cannot_be_read_is_refused_with_the_remedy(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason=NO_AV)
    with pytest.raises(
        ValueError, match=r"a.gif gives 9 frames, taking every 1; wanted the 10 of a clip. Lower --frames"
    ):
        list(clips(videos, frames=10, every=1, size=8))
    (videos / "down" / "aa.mp4").write_bytes(b"no video at all")
    with pytest.raises(
        ValueError, match=r"aa.mp4 cannot be decoded: .* If its codec is missing .* convert it, as with ff"
    ):
        list(clips(videos, frames=4, every=1, size=8))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"video files need PyAV, which is not installed. Run: pip install av"):
        list(clips(videos, frames=4, every=1, size=8))


def latents(temporal: int, frames: int = 8) -> CausalVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CausalVAE(CausalVAEConfig(width=8, temporal=temporal))


@pytest.mark.parametrize("temporal", [4, 1])
def test_latents_and_their_decoding_never_see_the_future(temporal: int) -> None:
    """Latent i is of frames up to temporal x (i + 1); alone it is of its own frame where frames are encoded alone."""
    model = latents(temporal)
    x = torch.randn(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    mean, log_variance = model.posterior(x)
    assert mean.shape == log_variance.shape == (1, 4, 8 // temporal, 2, 2)
    decoded = model.decoded(mean)
    assert decoded.shape == x.shape
    for values, each in ((mean, temporal), (decoded, 1)):
        for index, value in enumerate(values.square().sum((0, 1, 3, 4))):
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
            seen = (gradient.abs().sum((0, 1, 3, 4)) > 0).nonzero()[:, 0].tolist()
            last = (index + 1) * each - 1
            if temporal == 1:
                assert seen == [index]
            else:
                assert max(seen) <= last // temporal * temporal + temporal - 1
                assert last in seen or values is decoded
    with pytest.raises(
        ValueError, match=r"wanted \[b, 3, frames, h, w\] with frames a multiple of .* and sides of 8. Ch"
    ):
        model.posterior(torch.zeros(1, 3, 6 if temporal == 4 else 8, 16, 12))


@pytest.mark.parametrize("temporal", [4, 1])
def test_the_flops_of_encoding_and_decoding_are_those_counted(temporal: int) -> None:
    config = CausalVAEConfig(width=6, channels=1, latent_channels=3, temporal=temporal)
    with torch.device("meta"):
        model, counted = CausalVAE(config), []
        for run, x in ((model.posterior, torch.zeros(2, 1, 8, 16, 16)), (model.decoded, None)):
            x = torch.zeros(2, 3, 8 // temporal, 2, 2) if x is None else x
            with FlopCounterMode(display=False) as counter:
                run(x)
            counted.append(counter.get_total_flops() / 2)
    assert counted == list(coding_flops(config, 8, 16))


@pytest.mark.parametrize("temporal", [4, 1])
def test_golden_trace_of_the_autoencoder(temporal: int, tmp_path: Path) -> None:
    """Errors and KL terms of ten steps on figures that move."""
    config = CausalVAEConfig(width=4, channels=1, temporal=temporal)
    data = opened(DATASETS["moving-16-grey"], tmp_path, CPU)
    found = [(now.error, now.kl) for now in train_vae(data, config, tmp_path / "vae", steps=10, batch=4)][1::4]
    assert found == [pytest.approx(pair, rel=2e-3) for pair in GOLDEN_VAE[temporal]]


GOLDEN_VAE = {
    4: [(0.45402, 0.100593), (0.397596, 0.279326), (0.350159, 0.261712)],
    1: [(0.494364, 0.092763), (0.401665, 0.161331), (0.358849, 0.202462)],
}
"""After steps 2, 6 and 10: the root mean square error and the KL divergence, by `temporal`."""


def test_an_autoencoder_is_kept_and_read_again_and_damage_is_told(tmp_path: Path) -> None:
    model = latents(4)
    write_vae(tmp_path / "vae", model, 2.0)
    assert is_causal_vae(tmp_path / "vae")
    assert not is_causal_vae(tmp_path)
    x = render_clips(torch.arange(2), 16, 8, 3)[0]
    assert torch.allclose(encoder_in(tmp_path / "vae", CPU)(x), 2.0 * model.posterior(x)[0], atol=1e-6)
    assert read_vae(tmp_path / "vae").config.scale == 2.0
    (tmp_path / "vae" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no whole autoencoder: .*Train it again: ditlaw data vae"):
        read_vae(tmp_path / "vae")
    with pytest.raises(ValueError, match="temporal is 2; wanted 4, or 1"):
        CausalVAEConfig(temporal=2)  # type: ignore[arg-type]


def test_a_vae_is_trained_and_its_latents_are_a_dataset_of_clips(tmp_path: Path, monkeypatch) -> None:
    """By the commands, as one would; the loss falls, and trainings and sweeps find the latents."""
    monkeypatch.setenv("DITLAW_DATA", str(tmp_path / "data"))
    vae, run = str(tmp_path / "vae"), CliRunner().invoke
    trained = run(main, ["data", "vae", "moving-16", "--steps", "12", "--width", "2", "--batch", "4", "-o", vae])
    assert trained.exit_code == 0, trained.output
    errors = [float(line.split("error ")[1].split(",")[0]) for line in trained.output.splitlines() if "error" in line]
    assert errors[-1] < errors[0]
    flops = coding_flops(CausalVAEConfig(width=2), 8, 16)
    assert trained.output.splitlines()[-1] == (
        f"{vae}: encoding a clip takes {flops.encode:.3g} FLOPs, decoding it {flops.decode:.3g}; this training "
        f"{3 * sum(flops) * 4 * 12:.3g}"
    )
    encoded = run(main, ["data", "encode", "moving-16", "--vae", vae, "--name", "mine", "--clips", "40"])
    assert encoded.exit_code == 0, encoded.output
    dataset = dataset_named("mine")
    assert dataset.shape == (4, 2, 2, 2)
    assert dataset.samples == "clips"
    assert (dataset.train_images, dataset.validation_images) == (38, 2)
    held, labels = load("mine", "train", tmp_path / "data" / "mine")
    assert held.shape == (38, 4, 2, 2, 2)
    assert (
        dataset.class_names[labels[0]] == DATASETS["moving-16"].class_names[render_clips(torch.arange(1), 16, 8, 3)[1]]
    )
    assert held.float().std() == pytest.approx(1.0, abs=0.3)
    data = opened(dataset, tmp_path / "data" / "mine", CPU)
    assert data.batch(0, 0, 4, slice(0, 4))[0].shape == (4, 4, 2, 2, 2)
    assert "38 clips of 2 frames of 2 x 2 x 4" in run(main, ["data", "list"]).output
    wrong = run(main, ["data", "vae", "procedural-16", "-o", vae])
    assert wrong.exit_code == 2
    assert "procedural-16 holds images; wanted a dataset of clips" in wrong.output


def test_clips_of_one_file_are_all_for_training_or_all_for_validation(tmp_path: Path, monkeypatch) -> None:
    """Those of files 1 and 3 of five; a file's clips never come to be on both sides."""
    monkeypatch.setenv("DITLAW_DATA", str(tmp_path))
    counts = (3, 1, 2, 4, 1)
    made = [
        Labelled(torch.full((1, 2, 4, 4), float(origin)), "a", origin)
        for origin, count in enumerate(counts)
        for _ in range(count)
    ]
    folder = encode(made, as_they_are, tmp_path / "split", batch=4, validation_every=2)
    origins = {split: load("split", split, folder)[0][:, 0, 0, 0, 0].tolist() for split in ("train", "validation")}
    assert origins == {"train": [0, 0, 0, 2, 2, 4], "validation": [1, 3, 3, 3, 3]}
    with pytest.raises(ValueError, match=r"samples of 1 pictures or video files; wanted at least 2, .* Lower --valid"):
        encode(made[:3], as_they_are, tmp_path / "single", batch=4, validation_every=2)


def test_clips_without_an_autoencoder_stay_pixels_and_still_ones_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DITLAW_DATA", str(tmp_path))
    folder = encode(
        rendered_clips(DATASETS["moving-16-grey"], 6), as_they_are, tmp_path / "px", batch=4, validation_every=3
    )
    held, _ = load("px", "train", folder)
    assert torch.allclose(held.float(), render_clips(torch.tensor([0, 1, 3, 4]), 16, 8, 1)[0], atol=1e-3)
    assert json.loads((folder / "dataset.json").read_text())["frames"] == 8
    with pytest.raises(
        ValueError, match="procedural-16 is no dataset of moving figures; wanted one, or a folder of video"
    ):
        list(rendered_clips(DATASETS["procedural-16"], 1))
    pictures = tmp_path / "pictures" / "a"
    pictures.mkdir(parents=True)
    told = CliRunner().invoke(main, ["data", "encode", str(pictures.parent), "--name", "n"])
    assert told.exit_code == 2
    assert "pictures are encoded by an autoencoder; wanted its folder: --vae FOLDER" in told.output
