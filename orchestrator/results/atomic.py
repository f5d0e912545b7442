"""Files that appear whole or not at all: written under a hidden temporary name, flushed to the disk, then renamed.

On object storage an upload is that by itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from orchestrator.faults import points
from orchestrator.results.location import Location, ObjectPath


def write_bytes(path: Location, data: bytes | memoryview, point: points.Point | None = None) -> None:
    """Writes `data` to `path`, whole or not at all, and durably; the folder is created where absent.

    A process killed midway leaves at most a hidden `.tmp-*` file beside it, which readers of the folder ignore.
    Raises OSError as the file system does (disk full, no permission); `path` is then as it was. `point` names the
    moment before the rename, for faults.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if point is not None:
            points.reach(point)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename durable. Some network file systems cannot sync a folder; the file is in place regardless."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
