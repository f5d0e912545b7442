from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST; `make test` fetches it before the tests."""
    from orchestrator.training.data.fetch import default_folder, find

    folder = default_folder("fashion-mnist")
    if find("fashion-mnist", folder):
        pytest.skip("Fashion-MNIST is not here: run `ditlaw data fetch fashion-mnist`")
    return folder.absolute()
