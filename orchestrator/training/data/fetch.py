"""`ditlaw data fetch`: the only code that downloads data. Everything else reads files that are already there.

Imports no torch, so that planning can ask which files are missing.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.results.atomic import write_bytes
from orchestrator.spec.datasets import FASHION_MNIST, DataFile, Dataset, dataset_named

_logger = logging.getLogger(__name__)

_PACKAGE = "dataset-fashion-mnist"
_PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PUBLIC_ADDRESSES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",  # the dataset's README
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
_APT_SECONDS = 300
_HTTP_SECONDS = 30

Source = tuple[str, Callable[[Sequence[DataFile], Path], None]]
"""A name for people, and what copies files into a folder; it raises OSError or ValueError where it cannot."""


def find(dataset_name: str, folder: Path) -> list[DataFile]:
    """The dataset's files that are missing from `folder`, or are of a wrong size; empty when all are there."""
    return [file for file in dataset_named(dataset_name).files if not _has_size(Path(folder) / file.name, file)]


def fetch_fashion_mnist(folder: Path, source: Path | None = None) -> Path:
    """Puts the four files of Fashion-MNIST into `folder`, checksums verified, and returns it.

    With `source`, a folder that holds them, nothing else is tried. Else, in order: Debian's package where installed,
    the same package downloaded and unpacked without root, and the dataset's public addresses. Files already there with
    the right checksums are left alone. Raises ValueError that says what was tried, why it failed, and which files to
    put where by hand.
    """
    sources = _fashion_mnist_sources() if source is None else [folder_source(source)]
    return fetch_dataset(FASHION_MNIST, folder, sources)


def fetch_dataset(dataset: Dataset, folder: Path, sources: Sequence[Source]) -> Path:
    """Puts the files of a dataset into `folder` from the first source that has them; as `fetch_fashion_mnist`."""
    folder = Path(folder)
    _require_writable(folder)
    failures: list[str] = []
    for name, copy in sources:
        wanted = [file for file in dataset.files if not _is_intact(folder / file.name, file)]
        if not wanted:
            return folder
        try:
            copy(wanted, folder)
        except (OSError, ValueError, subprocess.SubprocessError, http.client.HTTPException) as error:
            failures.append(f"{name}: {error}")
            _logger.info("%s was not to be had from %s: %s", dataset.name, name, error)
        else:
            _logger.info("%s fetched from %s into %s", dataset.name, name, folder)
            return folder
    raise ValueError(_explain(dataset, folder, failures))


def folder_source(folder: Path) -> Source:
    """A folder that a person has put the files into."""
    return (f"folder {folder}", lambda files, to: _copy_from(Path(folder), files, to))


def _fashion_mnist_sources() -> list[Source]:
    return [
        (f"installed package {_PACKAGE}", lambda files, to: _copy_from(_PACKAGE_FOLDER, files, to)),
        (f"package {_PACKAGE} from the machine's package sources", _copy_from_apt),
        *((address, lambda files, to, a=address: _download(a, files, to)) for address in _PUBLIC_ADDRESSES),
    ]


def _copy_from(source: Path, files: Sequence[DataFile], folder: Path) -> None:
    if not source.is_dir():
        raise ValueError("no such folder")
    for file in files:
        if not (source / file.name).is_file():
            raise ValueError(f"no file {file.name}")
        _install((source / file.name).read_bytes(), file, folder)


def _copy_from_apt(files: Sequence[DataFile], folder: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ValueError(f"{program} is not installed")
    with tempfile.TemporaryDirectory(prefix="ditlaw-apt-") as scratch:
        package = _download_package(Path(scratch))
        _execute(["dpkg-deb", "-x", str(package), f"{scratch}/unpacked"], Path(scratch))
        _copy_from(Path(scratch, "unpacked") / _PACKAGE_FOLDER.relative_to("/"), files, folder)


def _download_package(scratch: Path) -> Path:
    """Downloads the .deb with the machine's package lists or, where they do not do, with lists of our own."""
    apt = ["apt-get", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User="]
    try:
        _execute([*apt, "download", _PACKAGE], scratch)
    except (ValueError, subprocess.SubprocessError) as error:
        _logger.info("the machine's package lists do not do (%s); fetching private ones", error)
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (scratch / name).mkdir(parents=True)
        (scratch / "state" / "status").touch()
        apt += ["-o", f"Dir::State={scratch}/state", "-o", f"Dir::State::Lists={scratch}/lists"]
        apt += ["-o", f"Dir::State::status={scratch}/state/status", "-o", f"Dir::Cache={scratch}/cache"]
        apt += ["-o", "Acquire::Languages=none", "-o", "Debug::NoLocking=1"]
        try:
            _execute([*apt, "update"], scratch)
        except ValueError as update_error:  # one source of several may be down, or a hook may want root
            _logger.info("%s", update_error)
        _execute([*apt, "download", _PACKAGE], scratch)
    packages = sorted(scratch.glob("*.deb"))
    if not packages:
        raise ValueError("apt-get download left no package")
    return packages[-1]


def _execute(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_APT_SECONDS, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        # The verb of the command, without our options.
        verb = next((word for word in command if word in ("update", "download")), command[1])
        raise ValueError(f"{command[0]} {verb} failed: {' '.join(said[-3:]) or f'exit status {done.returncode}'}")


def _download(address: str, files: Sequence[DataFile], folder: Path) -> None:
    for file in files:
        with urllib.request.urlopen(f"{address}/{file.name}", timeout=_HTTP_SECONDS) as reply:
            data = reply.read(file.bytes + 1)
        _install(data, file, folder)


def _install(data: bytes, file: DataFile, folder: Path) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"{file.name} has sha256 {digest} ({len(data)} bytes); wanted {file.sha256} ({file.bytes} bytes)"
        )
    write_bytes(folder / file.name, data)


def _is_intact(path: Path, file: DataFile) -> bool:
    return _has_size(path, file) and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def _has_size(path: Path, file: DataFile) -> bool:
    try:
        return path.is_file() and path.stat().st_size == file.bytes
    except OSError:  # a folder that may not be looked into
        return False


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"data folder {folder} cannot be written ({error}). Choose another with --to.") from error


def _explain(dataset: Dataset, folder: Path, failures: Sequence[str]) -> str:
    tried = "\n".join(f"  {failure}" for failure in failures)
    files = "\n".join(f"  {file.name}  {file.bytes} bytes  sha256 {file.sha256}" for file in dataset.files)
    return (
        f"{dataset.name} could not be fetched. Tried:\n{tried}\nPut these files into {folder.absolute()}, or into any "
        f"folder and run ditlaw data fetch {dataset.name} --from FOLDER:\n{files}"
    )
