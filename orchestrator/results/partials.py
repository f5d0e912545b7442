"""What an evaluation has worked out so far, kept until it ends: killed in the middle, it goes on from there.

`evaluations/<trial>-<samples>/*.safetensors`: each file has the features of some images. A file is there whole or not
at all, and counts only for the weights that it names.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence

from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, ObjectPath

log = logging.getLogger(__name__)


def partials_folder(results: Location, trial_id: str, samples: int) -> Location:
    """Where the parts of an evaluation lie while it is under way."""
    return results / "evaluations" / f"{trial_id}-{samples}"


def write_partial(folder: Location, data: bytes) -> None:
    """Add a part; its name is its writer's alone."""
    write_bytes(folder / f"{secrets.token_hex(8)}.safetensors", data)


def read_partials(folder: Location) -> Iterator[bytes]:
    """All parts; none where nothing was begun."""
    paths: Sequence[Location]
    if isinstance(folder, ObjectPath):
        paths = sorted(folder.files_below())
    else:
        paths = sorted(folder.glob("[!.]*.safetensors")) if folder.is_dir() else []
    for path in paths:
        try:
            yield path.read_bytes()
        except OSError as error:
            log.warning("%s cannot be read (%s); its images are made again", path, error)


def drop_partials(folder: Location) -> None:
    """Delete them, as far as that is possible; what stays does no harm."""
    if isinstance(folder, ObjectPath):
        with contextlib.suppress(OSError):
            folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)
