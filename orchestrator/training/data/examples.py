"""Labelled pictures from where people keep them: folders of classes, WebDataset tars, Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class Example(NamedTuple):
    """One picture and its class, by name or number."""

    picture: Image.Image
    label: str


def examples(source: Path) -> Iterator[Example]:
    """The pictures of a source, in an order that does not change.

    A folder of class folders; one tar, or a folder of tars, in WebDataset's layout (files of one sample share their
    name up to the first dot: a picture, and its class in `.cls` or in `.json` under "label"); one Parquet file, or a
    folder of them, with columns `image` (bytes, or a struct with `bytes`) and `label`.

    Raises:
        ValueError: there is nothing of that kind, or something cannot be read; it says what, and what was wanted.
    """
    tars, tables = _files(source, ".tar"), _files(source, ".parquet")
    if tars:
        for path in tars:
            yield from _of_tar(path)
    elif tables:
        for path in tables:
            yield from _of_parquet(path)
    elif source.is_dir() and (classes := sorted(child for child in source.iterdir() if child.is_dir())):
        for folder in classes:
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in PICTURES:
                    yield Example(_opened(path.read_bytes(), path), folder.name)
    else:
        raise ValueError(
            f"{source} holds no pictures; wanted a folder of class folders, .tar files in WebDataset's layout or "
            ".parquet files with columns image and label"
        )


def middle_square(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture at `size` x `size`."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def _files(source: Path, suffix: str) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == suffix else []
    return sorted(source.glob(f"*{suffix}")) if source.is_dir() else []


def _opened(data: bytes, where: object) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where} is not a picture: {error}. Remove it, or put the right file there.") from error


def _of_tar(path: Path) -> Iterator[Example]:
    sample: dict[str, bytes] = {}
    key = None
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if (folder, stem) != key:
                    yield from _of_sample(sample, f"{path}: {key}")
                    key, sample = (folder, stem), {}
                content = tar.extractfile(member)
                assert content is not None, "it is a file"
                sample[extension.lower()] = content.read()
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a whole tar: {error}. Put the right file there.") from error
    yield from _of_sample(sample, f"{path}: {key}")


def _of_sample(files: dict[str, bytes], where: str) -> Iterator[Example]:
    """One sample of a tar; nothing where it has no picture."""
    picture = next((data for extension, data in files.items() if f".{extension}" in PICTURES), None)
    if picture is None:
        return
    if "cls" in files:
        label: Any = files["cls"].decode().strip()
    else:
        label = json.loads(files.get("json", b"{}")).get("label")
    if label is None:
        raise ValueError(f'{where} has a picture and no class; wanted a .cls file beside it, or "label" in its .json')
    yield Example(_opened(picture, where), str(label))


def _of_parquet(path: Path) -> Iterator[Example]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}. Put the right file there.") from error
    columns = set(file.schema_arrow.names)
    if not {"image", "label"} <= columns:
        raise ValueError(f"{path} has columns {', '.join(sorted(columns))}; wanted image and label among them")
    for batch in file.iter_batches(batch_size=64, columns=["image", "label"]):
        for row in batch.to_pylist():
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            yield Example(_opened(image, path), str(row["label"]))
