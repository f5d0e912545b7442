"""Labelled clips: of video files in class folders, read by PyAV, or of a dataset of moving figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from orchestrator.spec.datasets import Dataset
from orchestrator.training.data.encode import Labelled
from orchestrator.training.data.examples import middle_square
from orchestrator.training.data.images import rendered, to_float

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"}


def has_videos(source: Path) -> bool:
    """Whether a folder has class folders with video files in them."""
    return source.is_dir() and next(_files(source), None) is not None


def clips(source: Path, *, frames: int, every: int, size: int) -> Iterator[Labelled]:
    """Clips of the videos in class folders, in an order that does not change, in colour, their middle square resized.

    A video gives as many clips, one after the other, as it has frames for.

    Args:
        frames: of a clip.
        every: so-manieth frame of the video that is taken.

    Raises:
        ValueError: PyAV is not installed, a file cannot be read, its codec is missing, or it is shorter than one clip.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("video files need PyAV, which is not installed. Run: pip install av") from error
    for number, path in enumerate(_files(source)):
        taken: list[Tensor] = []
        made = 0
        for frame in _decoded(av, path, every):
            taken.append(_pixels(frame, size))
            if len(taken) == frames:
                yield Labelled(torch.stack(taken, dim=1), path.relative_to(source).parts[0], number)
                made += 1
                taken = []
        if not made:
            raise ValueError(
                f"{path} gives {len(taken)} frames, taking every {every}; wanted the {frames} of a clip. Lower "
                "--frames or --every, or remove the file."
            )


def _decoded(av: Any, path: Path, every: int) -> Iterator[Image.Image]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no pictures in it; remove it")
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    yield frame.to_image()
    except (av.error.FFmpegError, av.error.InvalidDataError) as error:
        raise ValueError(
            f"{path} cannot be decoded: {error}. If its codec is missing (`python -m av --codecs` lists those there "
            "are), convert it, as with ffmpeg -i FILE -c:v libx264 NEW.mp4; or remove it."
        ) from error


def _files(source: Path) -> Iterator[Path]:
    for folder in sorted(child for child in source.iterdir() if child.is_dir()):
        yield from (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEOS)


def _pixels(frame: Image.Image, size: int) -> Float[Tensor, "3 s s"]:
    square = middle_square(frame.convert("RGB"), size)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def rendered_clips(dataset: Dataset, count: int) -> Iterator[Labelled]:
    """The first `count` clips of a dataset of moving figures.

    Raises:
        ValueError: the dataset is of images, or not without end.
    """
    if dataset.frames is None or dataset.form != "moving":
        raise ValueError(f"{dataset.name} is no dataset of moving figures; wanted one, or a folder of video files")
    for indices in torch.arange(count).split(64):
        samples, labels = rendered(dataset, indices)
        for sample, label, number in zip(to_float(samples), labels.tolist(), indices.tolist(), strict=True):
            yield Labelled(sample, dataset.class_names[label], number)
