"""Ray on this machine alone: which ports it opens is settled before it is imported."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where this is 0, Ray takes 127.0.0.1 for the address of a node, on Linux too, and all its servers listen there alone.
Otherwise it takes the address by which the machine reaches others, even for a node that was given as 127.0.0.1."""
LOOPBACK = ("127.0.0.1", "localhost")


def keep_to_loopback(address: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the Ray that is imported next open no port beyond loopback, unless it joins a cluster that has some.

    Args:
        address: of the cluster, or None for one of its own on this machine.
        environment: that Ray will read.
    """
    if address is None or _on_loopback_alone(address):
        environment.setdefault(VARIABLE, "0")


def _on_loopback_alone(address: str) -> bool:
    """Whether a cluster answers at an address of loopback, and not at this machine's own."""
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK or not port.isdigit():
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
            own = probe.getsockname()[0]
        except OSError:
            return True
    return _answers(host, int(port)) and not _answers(own, int(port))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True
