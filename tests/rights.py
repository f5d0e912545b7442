"""What a user may do to whom the modes of files apply."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """A user to whom modes of files apply, though root may run the tests; `folder` can be reached."""
    for above in (folder, *folder.parents):
        if not (mode := above.stat().st_mode) & 0o001:  # pytest makes them for their owner alone
            above.chmod(mode | 0o055)
    uid = os.geteuid()
    os.seteuid(uid or 65534)
    try:
        yield
    finally:
        os.seteuid(uid)
