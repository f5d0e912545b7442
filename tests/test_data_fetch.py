"""Fetching: verified, idempotent, and able to say what to do where it cannot."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.spec.datasets import FASHION_MNIST, DataFile, Dataset, default_folder
from orchestrator.training.data.fetch import Source, fetch_dataset, fetch_fashion_mnist, find, folder_source

CONTENTS = {"a.gz": b"first", "b.gz": b"second"}
DATASET = Dataset(
    name="tiny",
    image_size=2,
    channels=1,
    class_names=("x",),
    train_images=1,
    validation_images=1,
    files=tuple(
        DataFile(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in CONTENTS.items()
    ),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in CONTENTS.items():
        (folder / name).write_bytes(data)
    return folder


def unreachable(files: Sequence[DataFile], folder: Path) -> None:
    raise OSError("no route to host")


DOWN: Source = ("a server", unreachable)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_takes_the_first_source_that_works(source: Path, tmp_path: Path) -> None:
    assert fetch_dataset(DATASET, tmp_path / "to", [DOWN, folder_source(source)]) == tmp_path / "to"
    assert contents(tmp_path / "to") == CONTENTS, "and leaves nothing else there"


def test_intact_files_ask_no_source(source: Path, tmp_path: Path) -> None:
    fetch_dataset(DATASET, tmp_path / "to", [folder_source(source)])
    fetch_dataset(DATASET, tmp_path / "to", [DOWN])


def test_a_damaged_file_of_the_right_size_is_replaced(source: Path, tmp_path: Path) -> None:
    fetch_dataset(DATASET, tmp_path / "to", [folder_source(source)])
    (tmp_path / "to" / "a.gz").write_bytes(b"tsrif")
    fetch_dataset(DATASET, tmp_path / "to", [folder_source(source)])
    assert contents(tmp_path / "to") == CONTENTS


def test_a_failure_lists_what_was_tried_and_what_to_do(source: Path, tmp_path: Path) -> None:
    (source / "b.gz").write_bytes(b"forged")
    with pytest.raises(ValueError, match="tiny could not be fetched") as error:
        fetch_dataset(DATASET, tmp_path / "to", [DOWN, folder_source(source)])
    message = str(error.value)
    assert "a server: no route to host" in message
    assert f"folder {source}: b.gz has sha256 {hashlib.sha256(b'forged').hexdigest()} (6 bytes)" in message
    for file in DATASET.files:
        assert f"{file.name}  {file.bytes} bytes  sha256 {file.sha256}" in message
    assert f"Put these files into {tmp_path / 'to'}" in message
    assert not (tmp_path / "to" / "b.gz").exists()


def test_a_folder_given_by_the_user_is_the_only_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not be fetched") as error:
        fetch_fashion_mnist(tmp_path / "to", tmp_path / "absent")
    assert f"Tried:\n  folder {tmp_path / 'absent'}: no such folder\nPut" in str(error.value)


def test_a_folder_that_cannot_be_written_is_refused_before_any_download(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data folder .*file cannot be written .* Choose another with --to"):
        fetch_dataset(DATASET, tmp_path / "file", [DOWN])


def test_find_lists_missing_files_without_torch(tmp_path: Path) -> None:
    assert find("fashion-mnist", tmp_path) == list(FASHION_MNIST.files)
    (tmp_path / FASHION_MNIST.files[1].name).write_bytes(bytes(FASHION_MNIST.files[1].bytes))
    assert [file.name for file in find("fashion-mnist", tmp_path)] == [
        file.name for index, file in enumerate(FASHION_MNIST.files) if index != 1
    ]
    code = "import orchestrator.training.data.fetch, sys; sys.exit(bool({'torch', 'pyarrow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset 'cifar' is not known; wanted one of fashion-mnist"):
        find("cifar", tmp_path)


def test_the_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITLAW_DATA", raising=False)
    assert default_folder("fashion-mnist") == Path("data/fashion-mnist")
    monkeypatch.setenv("DITLAW_DATA", "/somewhere")
    assert default_folder("fashion-mnist") == Path("/somewhere/fashion-mnist")
