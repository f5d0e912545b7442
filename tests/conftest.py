from __future__ import annotations

import gc
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

# Several processes of tests, and the workers they start, share the cores; more threads than cores would slow them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# By itself Python looks for garbage after every 700 objects, which takes a fifth of the time of all imports.
gc.set_threshold(50_000, 20, 50)
# Where this is set, every process that a test starts would compile all of ditlaw.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="Also run the tests that take minutes each.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _starts_ray(item.nodeid))
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes minutes; make test-long runs it")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Nothing that was imported or collected goes again: looking through all of it for garbage takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """A file is for one process, and all files that start Ray for the first: two clusters would starve each other."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if _starts_ray(nodeid) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def _starts_ray(nodeid: str) -> bool:
    return Path(nodeid.split("::")[0]).name.startswith(("test_end_to_end", "test_faults_", "test_cluster_s"))


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback, kept in memory."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


_buckets = itertools.count()


@pytest.fixture
def s3(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket; this process and those it starts reach it by the usual AWS variables."""
    for name, value in (
        ("AWS_ENDPOINT_URL", _s3_server),
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_buckets)}"
    urlopen(Request(f"{_s3_server}/{bucket}", method="PUT"), timeout=10).close()
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST; `make test` fetches it before the tests."""
    from orchestrator.spec.datasets import default_folder
    from orchestrator.training.data.fetch import find

    folder = default_folder("fashion-mnist")
    if find("fashion-mnist", folder):
        pytest.skip("Fashion-MNIST is not here: run `ditlaw data fetch fashion-mnist`")
    return folder.absolute()


def _while_ray_is_tested(fixture_name: str, config: pytest.Config) -> str:
    """Files that break a cluster share it. Without --long there is one; idle nodes would slow the tests that follow."""
    return "session" if config.getoption("--long") else "module"


@pytest.fixture(scope=_while_ray_is_tested)
def cluster_to_break(tmp_path_factory):
    """Several raylets on this machine; every test of faults leaves two nodes of one CPU, and a head."""
    from orchestrator.faults.rig import Rig

    with Rig(tmp_path_factory.mktemp("rig"), durable=True) as rig:
        yield rig


@pytest.fixture(scope="module")
def rig(cluster_to_break):
    """The cluster, with an empty ledger and no armed faults."""
    cluster_to_break.forget()
    return cluster_to_break


@pytest.fixture(scope=_while_ray_is_tested)
def undisturbed(cluster_to_break, tmp_path_factory, fashion_mnist) -> Path:
    """The results of sweeps/soak.yaml when nothing is broken."""
    results = tmp_path_factory.mktemp("undisturbed") / "soak"
    driver = cluster_to_break.drive(Path("sweeps/soak.yaml"), results)
    assert driver.wait(400) == 0, driver.output
    cluster_to_break.forget()
    return results


@pytest.fixture(scope="module")
def group(fashion_mnist: Path) -> Iterator[Path]:
    """This process as the only worker of a gang; the data's folder."""
    import torch

    from orchestrator.training import engine

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine.join(0, 1, "127.0.0.1", port, use_gpu=False)
    yield fashion_mnist
    engine.leave()
