"""Encoders by name: what they make of images, and what they say of weights that are missing or wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.fid import encoders
from models.fid.catalog import ENCODERS
from models.fid.classifier import Classifier, classifier_flops, clip_classifier_flops, mirrored, new_classifier
from models.fid.encoders import load_encoder, to_bytes
from orchestrator.training.data.moving import render_clips
from orchestrator.training.data.procedural import FIRST_VALIDATION, render
from orchestrator.training.encoder_training import accuracy


def images(n: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


SMALL = [facts for facts in ENCODERS.values() if facts.input is not None and facts.samples == "images"]


@pytest.mark.parametrize("facts", SMALL, ids=lambda facts: facts.name)
def test_the_shipped_encoders_take_images_of_any_size(tmp_path, facts):
    encoder = load_encoder(facts.name, tmp_path)
    for channels, size in ((1, 28), (3, 32), (1, 64)):
        features = encoder.features(images(3, channels, size))
        assert features.shape == (3, encoder.dim) == (3, facts.dim)
        assert features.dtype == torch.float32
    grey = images(2, 1, 28)
    assert torch.allclose(encoder.features(grey), encoder.features(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert (encoders.SHIPPED / facts.file).stat().st_size < 2_000_000


def test_only_the_encoder_of_shapes_sees_colours(tmp_path):
    """The same pictures with their channels exchanged."""
    colour = images(4, 3, 32)
    for name, same in (("fmnist-cnn", True), ("shapes-cnn", False)):
        encoder = load_encoder(name, tmp_path)
        assert torch.allclose(encoder.features(colour), encoder.features(colour.flip(1)), atol=1e-4) == same


def test_the_encoder_of_shapes_classifies_them(tmp_path):
    network = load_encoder("shapes-cnn", tmp_path).network.classifier
    pictures, labels = render(torch.arange(300) + FIRST_VALIDATION, 32, 3)
    assert accuracy(network, pictures, labels) > 0.98


@pytest.mark.parametrize("facts", SMALL, ids=lambda facts: facts.name)
def test_their_flops_are_those_that_planning_counts(facts):
    from torch.utils.flop_counter import FlopCounterMode

    channels, size = facts.input
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Classifier(channels, 10).features(torch.zeros(1, channels, size, size))
    assert counter.get_total_flops() == classifier_flops(size, channels)
    assert facts.flops == pytest.approx(classifier_flops(size, channels), rel=0.01)


def test_the_flops_of_the_encoder_of_clips_are_counted_with_its_frames():
    from torch.utils.flop_counter import FlopCounterMode

    facts = ENCODERS["moving-cnn"]
    channels, size = facts.input
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        new_classifier(facts).features(torch.zeros(1, channels, 8, size, size))
    assert counter.get_total_flops() == clip_classifier_flops(8, size, channels)
    beside = ENCODERS[facts.frames_by].flops
    assert facts.flops == pytest.approx(clip_classifier_flops(8, size, channels) + beside, rel=0.01)


def test_half_of_the_training_images_are_mirrored():
    x = torch.arange(6.0).expand(200, 1, 1, 6)
    found = mirrored(x, torch.Generator().manual_seed(0))[:, 0, 0]
    same, turned = (found == x[:, 0, 0]).all(dim=1), (found == x[:, 0, 0].flip(1)).all(dim=1)
    assert bool((same ^ turned).all())
    assert 80 < int(turned.sum()) < 120


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (torch.zeros(1, 1, 28, 28), r"fmnist-cnn got images of torch.float32 and shape \[1, 1, 28, 28\]; wanted bytes"),
        (torch.zeros(1, 2, 28, 28, dtype=torch.uint8), r"shape \[1, 2, 28, 28\]; wanted bytes 0 to 255"),
        (torch.zeros(28, 28, dtype=torch.uint8), r"wanted bytes 0 to 255 of shape \[n, 1 or 3, h, w\]"),
    ],
)
def test_images_that_are_no_bytes_are_refused(tmp_path, got, message):
    with pytest.raises(ValueError, match=message):
        load_encoder("fmnist-cnn", tmp_path).features(got)


def test_bytes_of_floats():
    assert to_bytes(torch.tensor([[[[-1.0, 0.0, 1.0, 7.0]]]])).flatten().tolist() == [0, 128, 255, 255]
    with pytest.raises(ValueError, match="1 of 2 images are not finite"):
        to_bytes(torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), torch.nan)]))


def test_missing_or_wrong_weights_say_which_file_is_wanted(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"no encoder 'vgg'; known are inception, fmnist-cnn, shapes-cnn, moving-cnn, dinov2, clip"
    ):
        load_encoder("vgg", tmp_path)
    with pytest.raises(ValueError, match=r"pt_inception-2015-12-05-6726825d.pth is missing; .*SHA-256 6726825d0af5f7"):
        load_encoder("inception", tmp_path)
    (tmp_path / ENCODERS["inception"].file).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has SHA-256 .*; wanted .*published as .*pytorch-fid.*Fetch it again"):
        load_encoder("inception", tmp_path)
    with pytest.raises(ValueError, match=r"wanted config.json and \*.safetensors in .*dinov2-large"):
        load_encoder("dinov2", tmp_path)
    monkeypatch.setitem(
        ENCODERS, "fmnist-cnn", dataclasses.replace(ENCODERS["fmnist-cnn"], sha256="0" * 64)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"fmnist_cnn\.safetensors has SHA-256"):
        load_encoder("fmnist-cnn", tmp_path)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_transformers_come_from_local_folders(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 56, "image_size": 224}
    if name == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**shape))
    else:
        model = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**shape, intermediate_size=32, projection_dim=8)
        )
    model.save_pretrained(tmp_path / ENCODERS[name].file)
    encoder = load_encoder(name, tmp_path)
    assert encoder.dim == (16 if name == "dinov2" else 8)
    features = encoder.features(images(2, 1, 28))
    assert features.shape == (2, encoder.dim)
    assert len(encoder.digest) == 64
    assert encoder.digest == load_encoder(name, tmp_path).digest
    model.save_pretrained(tmp_path / ENCODERS[name].file, max_shard_size="1KB")
    assert encoder.digest != load_encoder(name, tmp_path).digest


def test_the_encoder_of_clips_sees_motion_and_one_frame_of_each_clip(tmp_path):
    encoder, still = load_encoder("moving-cnn", tmp_path), load_encoder("shapes-cnn", tmp_path)
    clips, labels = render_clips(torch.arange(200) + FIRST_VALIDATION, 16, 8, 3)
    pictures = to_bytes(clips)
    features = encoder.features(pictures)
    assert features.shape == (200, encoder.dim) == (200, 64 + encoder.frame_dim)
    frames = pictures[torch.arange(200), :, torch.arange(200) % 8]
    assert torch.allclose(features[:, 64:], still.features(frames), atol=1e-4)
    assert accuracy(encoder.network.whole.classifier, clips, labels) > MOVING_ACCURACY
    frozen = encoder.features(pictures[:, :, :1].expand(-1, -1, 8, -1, -1))
    assert not torch.allclose(frozen[:, :64], features[:, :64], atol=0.1)
    for channels, size, count in ((1, 16, 8), (3, 32, 4)):
        assert encoder.features(torch.zeros(2, channels, count, size, size, dtype=torch.uint8)).shape == (
            2,
            encoder.dim,
        )
    with pytest.raises(
        ValueError, match=r"moving-cnn got clips of torch.uint8 .* wanted bytes .* \[n, 1 or 3, f, h, w\]"
    ):
        encoder.features(pictures[:, :, 0])


MOVING_ACCURACY = 0.9
