"""Where checkpoints lie, and how whole ones come and go, which the driver needs to know without reading one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.results.atomic import sync_folder, write_bytes
from orchestrator.results.location import Location, ObjectPath

MANIFEST = "manifest.json"
POINTER = "newest.json"
"""Beside a trial's checkpoints: which one was saved last."""
COPY_BYTES = 16 << 20
"""Copied at a time."""


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


def copy_checkpoint(source: Location, target: Location, trial_id: str) -> None:
    """Copy a trial's checkpoint, so that it is at `target` whole and durable, or not at all.

    Raises:
        OSError: it cannot be read or written.
        ValueError: it is damaged: its files are not those that its manifest names, or it is another trial's.
    """
    manifest = (source / MANIFEST).read_bytes()
    files = _files(manifest, trial_id)
    if isinstance(source, Path) and isinstance(target, Path):
        _copy_folder(source, target, manifest, files)
        return
    for name, known in files.items():
        write_bytes(target / name, _checked(source / name, known))
    write_bytes(target / MANIFEST, manifest)


def read_checkpoint(folder: Location, trial_id: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a trial's checkpoint, and its files by name. Raises as `copy_checkpoint` where it is damaged."""
    manifest = (folder / MANIFEST).read_bytes()
    files = {name: _checked(folder / name, known) for name, known in _files(manifest, trial_id).items()}
    return json.loads(manifest), files


def set_aside(folder: Location) -> None:
    """Let a checkpoint count no more, and keep what is left of it for a person. Raises OSError where it cannot be."""
    name = f".damaged-{secrets.token_hex(2)}"
    if isinstance(folder, ObjectPath):
        write_bytes(folder / f"{MANIFEST}{name}", (folder / MANIFEST).read_bytes())
        (folder / MANIFEST).unlink()
    else:
        folder.rename(folder.with_name(folder.name + name))


def _files(manifest: bytes, trial_id: str) -> dict[str, dict[str, object]]:
    """What a manifest says of its checkpoint's files, by name. ValueError where it is damaged, or another trial's."""
    try:
        content = json.loads(manifest)
        owner, files = content["trial_id"], {str(name): dict(known) for name, known in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from error
    if owner != trial_id:
        raise ValueError(f"it is of trial {owner}; wanted {trial_id}")
    return files


def _copy_folder(source: Path, target: Path, manifest: bytes, files: Mapping[str, Mapping[str, object]]) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        for name, known in files.items():
            digest, size = hashlib.sha256(), 0
            with (source / name).open("rb") as original, (temporary / name).open("xb") as copy:
                while chunk := original.read(COPY_BYTES):
                    digest.update(chunk)
                    size += copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
            _check(name, size, digest.hexdigest(), known)
        write_bytes(temporary / MANIFEST, manifest)
        temporary.rename(target)
    except (OSError, ValueError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _checked(path: Location, known: Mapping[str, object]) -> bytes:
    data = path.read_bytes()
    _check(path.name, len(data), hashlib.sha256(data).hexdigest(), known)
    return data


def _check(name: str, size: int, sha256: str, known: Mapping[str, object]) -> None:
    if (size, sha256) != (known.get("bytes"), known.get("sha256")):
        raise ValueError(
            f"its {name} has {size} bytes of SHA-256 {sha256[:12]}..., its {MANIFEST} says {known.get('bytes')} "
            f"of {str(known.get('sha256'))[:12]}..."
        )
