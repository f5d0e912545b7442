"""Encoding: pictures of every kind of source become one dataset, which planning knows and trainings map into memory."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from orchestrator.spec.datasets import dataset_named, encoded_names
from orchestrator.training.data.encode import autoencoder, encode, pictures_of
from orchestrator.training.data.examples import examples
from orchestrator.training.data.images import load, to_float
from orchestrator.training.data.source import HeldImages

COLOURS = {"2": (255, 0, 0), "10": (0, 0, 255)}


def png(colour, size=(12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def folders(path: Path) -> Path:
    for label, colour in COLOURS.items():
        (path / label).mkdir(parents=True)
        for number in range(3):
            (path / label / f"{number}.png").write_bytes(png(colour))
    return path


def tars(path: Path) -> Path:
    path.mkdir()
    for shard in range(3):
        with tarfile.open(path / f"{shard}.tar", "w") as tar:
            for number, (label, colour) in enumerate(COLOURS.items()):
                files = (
                    {"png": png(colour), "cls": label.encode()}
                    if shard
                    else {"json": json.dumps({"label": int(label)}).encode(), "png": png(colour)}
                )
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{shard}{number}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return path


def tables(path: Path) -> Path:
    rows = [
        {"image": {"bytes": png(colour), "path": None}, "label": int(label)} for label, colour in COLOURS.items()
    ] * 3
    parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def means(images: torch.Tensor) -> torch.Tensor:
    """An encoder: the mean colour of quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2)


@pytest.mark.parametrize("source", [folders, tars, tables])
def test_every_kind_of_source_gives_the_same_dataset(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAW_DATA", str(tmp_path / "data"))
    folder = encode(
        pictures_of(examples(source(tmp_path / "pictures")), 8),
        means,
        tmp_path / "data" / "mine",
        batch=4,
        validation_every=3,
    )
    dataset = dataset_named("mine")
    assert encoded_names() == ["mine"]
    assert (dataset.image_size, dataset.channels, dataset.class_names) == (2, 3, ("2", "10"))
    assert (dataset.train_images, dataset.validation_images, dataset.form) == (4, 2, "latents")
    seen = []
    for split, count in (("train", 4), ("validation", 2)):
        latents, labels = load("mine", split, folder)
        assert latents.shape == (count, 3, 2, 2)
        assert latents.dtype == torch.float16
        expected = torch.tensor([list(COLOURS.values())[label] for label in labels]) / 127.5 - 1
        torch.testing.assert_close(
            to_float(latents), expected[:, :, None, None].expand(-1, -1, 2, 2), rtol=0, atol=1e-3
        )
        seen += labels.tolist()
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]
    x, y = HeldImages(*load("mine", "train", folder)).batch(0, 0, 4, slice(1, 3))
    assert (x.dtype, x.shape, y.shape) == (torch.float32, (2, 3, 2, 2), (2,))
    with pytest.raises(ValueError, match="holds a dataset already"):
        encode(pictures_of(examples(tmp_path / "pictures"), 8), means, folder, batch=4, validation_every=3)
    (folder / "train-labels.bin").unlink()
    with pytest.raises(ValueError, match=r"train-labels\.bin missing or of a wrong size\. Put them back"):
        load("mine", "train", folder)
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        dataset_named("mine")


def test_sources_that_hold_nothing_or_are_broken_say_so(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures; wanted a folder of class folders"):
        list(examples(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png is not a picture"):
        list(examples(tmp_path))
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"c\.parquet is not a Parquet file"):
        list(examples(tmp_path / "c.parquet"))
    parquet.write_table(pyarrow.table({"x": np.arange(3)}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="has columns x; wanted image and label"):
        list(examples(tmp_path / "d.parquet"))
    (tmp_path / "e.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"e\.tar is not a whole tar"):
        list(examples(tmp_path / "e.tar"))
    one = folders(tmp_path / "few")
    with pytest.raises(ValueError, match="samples of 6 pictures or video files; wanted at least 7"):
        encode(pictures_of(examples(one), 8), means, tmp_path / "out", batch=4, validation_every=7)


def test_a_folder_without_an_autoencoder_says_which_files_to_put_there(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=r"wanted config\.json and diffusion_pytorch_model\.safetensors there"):
        autoencoder(tmp_path, torch.device("cpu"))


def test_a_diffusers_autoencoder_from_a_local_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.5,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = autoencoder(tmp_path, torch.device("cpu"))(images)
    with torch.no_grad():
        torch.testing.assert_close(latents, 0.5 * model.encode(images).latent_dist.mean)
    assert latents.shape == (2, 4, 8, 8)
