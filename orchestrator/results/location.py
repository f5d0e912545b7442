"""Where results lie: a folder of this machine, or a prefix on object storage with the same few operations.

`location("s3://bucket/prefix")` gives an ObjectPath, anything else a pathlib.Path. pyarrow opens s3, gs and abfs;
other schemes go through fsspec where it knows them. S3 takes its settings from the usual AWS variables.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

CONNECT_SECONDS, REQUEST_SECONDS = 5, 60
"""How long one request to S3 may take; it is tried three times."""

_URI = re.compile(r"^(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<key>.*)$", re.DOTALL)


class Status(NamedTuple):
    """What is known of an object; named as in os.stat_result."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a prefix of objects, with the part of pathlib.Path's interface that results need.

    A write shows whole or not at all. There is no rename and there are no folders: `mkdir` does nothing, and a prefix
    is there once an object is below it. Methods raise OSError as Path's do (FileNotFoundError where nothing is).
    """

    scheme: str
    key: str
    """Bucket and prefix, without slashes at the ends."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """The prefix above; a bucket is its own parent."""
        return ObjectPath(self.scheme, self.key.rpartition("/")[0] or self.key)

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def absolute(self) -> ObjectPath:
        return self

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(other.key)

    @property
    def filesystem(self) -> Any:
        """The pyarrow file system, in which this path is `key`."""
        return _filesystem(self.scheme, self.key.partition("/")[0])

    def exists(self) -> bool:
        return self._info().type != _arrow().FileType.NotFound

    def is_file(self) -> bool:
        return self._info().type == _arrow().FileType.File

    def is_dir(self) -> bool:
        return self._info().type == _arrow().FileType.Directory

    def stat(self) -> Status:
        info = self._info()
        if info.type == _arrow().FileType.NotFound:
            raise FileNotFoundError(f"there is nothing at {self}")
        return Status(info.size or 0, info.mtime.timestamp() if info.mtime else 0.0)

    def iterdir(self) -> Iterator[ObjectPath]:
        """What is directly below."""
        for info in self._listing(recursive=False):
            yield ObjectPath(self.scheme, info.path.strip("/"))

    def files_below(self) -> list[ObjectPath]:
        """All objects below, at any depth; none where there is nothing."""
        found = self._listing(recursive=True, absent=True)
        return [ObjectPath(self.scheme, info.path.strip("/")) for info in found if info.type == _arrow().FileType.File]

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: object storage has no folders."""

    def read_bytes(self) -> bytes:
        for again in (True, True, False):
            try:
                with self.filesystem.open_input_file(self.key) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                raise
            except OSError:  # also an object that was replaced or deleted between the requests for its size and itself
                if not again:
                    raise
        raise AssertionError("the last try returns or raises")

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes | memoryview) -> None:
        """The object appears when its last byte is up, or not at all; an object of that name is replaced."""
        # One write and then close: a stream that is closed after half of several writes would leave half an object.
        with self.filesystem.open_output_stream(self.key) as stream:
            stream.write(data)

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*((FileNotFoundError,) if missing_ok else ())):
            self.filesystem.delete_file(self.key)

    def remove_tree(self) -> None:
        """Delete all objects below."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.key)

    def _info(self) -> Any:
        return self.filesystem.get_file_info(self.key)

    def _listing(self, recursive: bool, absent: bool = False) -> list[Any]:
        selector = _arrow().FileSelector(self.key, recursive=recursive, allow_not_found=absent)
        return list(self.filesystem.get_file_info(selector))


Location = Path | ObjectPath


@cache
def _arrow() -> Any:
    """pyarrow's file systems, imported with the first use: what only names places, as planning does, goes without."""
    from pyarrow import fs

    return fs


def entries(folder: Location, without: Collection[str] = ()) -> list[Location]:
    """What is directly in a folder, by name, but for those names. Raises FileNotFoundError where there is no folder."""
    names = os.listdir(folder) if isinstance(folder, Path) else [path.name for path in folder.iterdir()]
    return [folder / name for name in sorted(name for name in names if name not in without)]


def location(text: str | Path | ObjectPath) -> Location:
    """The place that a person wrote: a URI, or a path of this machine.

    Raises:
        ValueError: a URI without a bucket, or with `..`, which object storage would take literally.
    """
    if isinstance(text, Path | ObjectPath):
        return text
    match = _URI.match(text)
    if match is None:
        return Path(text)
    scheme, key = match["scheme"], match["key"].strip("/")
    if scheme == "file":
        return Path("/" + key)
    parts = key.split("/")
    if not all(parts) or {".", ".."} & set(parts) or re.search(r"[?#\s]", key):
        raise ValueError(f"results URI {text!r} is not a place; wanted {scheme}://BUCKET or {scheme}://BUCKET/PREFIX.")
    return ObjectPath(scheme, key)


@cache
def _filesystem(scheme: str, bucket: str) -> Any:
    """The file system of a bucket, one a process. ValueError where nothing here can open the scheme."""
    if scheme == "s3":
        return _s3(bucket)
    try:
        return _arrow().FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except (ValueError, NotImplementedError) as refused:
        try:
            import fsspec

            return _arrow().PyFileSystem(_arrow().FSSpecHandler(fsspec.filesystem(scheme)))
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"nothing here opens {scheme}:// ({error}); wanted a folder, or s3://, gs:// or abfs://, or a scheme "
                "whose fsspec package is installed."
            ) from refused


def _s3(bucket: str) -> Any:
    """S3, or what speaks its language at AWS_ENDPOINT_URL."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else _arrow().resolve_s3_region(bucket)
    options = {
        "region": region,
        "connect_timeout": CONNECT_SECONDS,
        "request_timeout": REQUEST_SECONDS,
        "retry_strategy": _arrow().AwsStandardS3RetryStrategy(max_attempts=3),
        **({"endpoint_override": endpoint} if endpoint else {}),
    }
    try:
        return _arrow().S3FileSystem(
            **options, allow_delayed_open=True
        )  # small objects in one request instead of three
    except TypeError:  # pyarrow before 19
        return _arrow().S3FileSystem(**options)
