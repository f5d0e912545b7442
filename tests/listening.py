"""Ports that processes have opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def beyond_loopback(processes: Iterable[psutil.Process]) -> list[object]:
    """Addresses other than this machine's own on which processes listen."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one.laddr for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
    return [address for address in found if not address.ip.removeprefix("::ffff:").startswith(("127.", "::1"))]
