"""Where checkpoints lie, and how whole ones come and go, which the driver needs to know without reading one."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, ObjectPath

MANIFEST = "manifest.json"
POINTER = "newest.json"
"""Beside a trial's checkpoints: which one was saved last."""


def checkpoints_folder(results: Location, trial_id: str) -> Location:
    """The folder of a trial's checkpoints."""
    return results / "checkpoints" / trial_id


def checkpoint_name(samples: int) -> str:
    """The folder name of a checkpoint at `samples` seen; names sort as samples do."""
    return f"{samples:015d}"


def checkpoint_folders(results: Location, trial_id: str) -> Sequence[Location]:
    """Finished checkpoints of a trial, newest first, valid or not.

    On a file system a checkpoint's folder gets its name when it is whole; on object storage its manifest comes last.
    """
    folder = checkpoints_folder(results, trial_id)
    if isinstance(folder, ObjectPath):
        manifests = [path for path in folder.files_below() if path.name == MANIFEST]
        return sorted((path.parent for path in manifests if path.parent.name.isdigit()), reverse=True)
    if not folder.is_dir():
        return []
    return sorted((f for f in folder.iterdir() if f.name.isdigit() and f.is_dir()), reverse=True)


def has_checkpoint(results: Location, trial_id: str, samples: int) -> bool:
    """Whether a trial has a finished checkpoint at exactly `samples`."""
    folder = checkpoints_folder(results, trial_id) / checkpoint_name(samples)
    return (folder / MANIFEST).is_file() if isinstance(folder, ObjectPath) else folder.is_dir()


def drop_checkpoint(folder: Location) -> None:
    """Delete a checkpoint; killed midway, this leaves no half-deleted one that counts."""
    if isinstance(folder, ObjectPath):
        with contextlib.suppress(OSError):
            (folder / MANIFEST).unlink(missing_ok=True)
            folder.remove_tree()
        return
    gone = folder.with_name(f".{folder.name}.gone")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def copy_checkpoint(source: Location, target: Location) -> None:
    """Copy a checkpoint, so that it is at `target` whole or not at all. Raises OSError where it cannot be."""
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            shutil.copytree(source, temporary)
            temporary.rename(target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return
    names = sorted((path.name for path in source.iterdir()), key=lambda name: (name == MANIFEST, name))
    if MANIFEST not in names:
        raise FileNotFoundError(f"{source} has no {MANIFEST}")
    for name in names:
        write_bytes(target / name, (source / name).read_bytes())
