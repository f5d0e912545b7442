"""Object storage that goes and comes back under a driver: the sweep waits for it, and measures what it would have."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer
from rich.console import Console
from sweep_folder import Worker, smoke

from orchestrator.best_losses import BestLosses
from orchestrator.cli import running
from orchestrator.cli.running import INBOX_SECONDS, _Inbox
from orchestrator.console import LiveView
from orchestrator.results.location import ObjectPath, location
from orchestrator.results.requests import ask, requests_of
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling import driver as driving
from orchestrator.scheduling import ray_backend
from orchestrator.scheduling.backend import Assignment, GangShape
from orchestrator.scheduling.driver import Driver
from orchestrator.scheduling.local_backend import LocalBackend
from orchestrator.scheduling.ray_backend import RayBackend
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.state import Policy, State


class Storage:
    """An S3 server on loopback that can go, and come back with what it held."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()
        self.address = f"http://127.0.0.1:{self._port}"

    def go(self) -> None:
        self._server.stop()
        self._server._server.server_close()  # else its port still accepts connections, and never answers

    def come_back(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    storage = Storage()
    for name, value in (
        ("AWS_ENDPOINT_URL", storage.address),
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    yield storage
    storage._server.stop()


def bucket(storage: Storage, name: str) -> ObjectPath:
    urlopen(Request(f"{storage.address}/{name}", method="PUT"), timeout=10).close()
    folder = location(f"s3://{name}/sweep")
    assert isinstance(folder, ObjectPath)
    return folder


def drive(
    folder: ObjectPath, answer: Callable[[Assignment], str | None], listen: Callable[[Snapshot], None], trials: int
) -> State:
    """The smoke sweep's first trials, their workers in threads."""
    plan = smoke()
    plan = dataclasses.replace(plan, trials=plan.trials[:trials])
    store = Store(folder)
    backend = LocalBackend(lambda: Worker(store, answer))
    driver = Driver(plan, store, backend, lambda trial_id: None, listen, Policy(backoff_seconds=0.0))
    state = driver.run()
    backend.close()
    return state


def test_a_driver_waits_for_storage_that_is_away_when_an_attempt_ends(storage: Storage) -> None:
    folder, went, waits = bucket(storage, "outage-driver"), [], []

    def answer(assignment: Assignment) -> str | None:
        if not went:  # its gang dies, and storage with it: the driver has to enter that
            went.append(assignment)
            storage.go()
            return "worker lost"
        return None

    def listen(snapshot: Snapshot) -> None:
        if told := [note for note in snapshot.notes if "the sweep waits for" in note]:
            waits.extend(told)
            storage.come_back()

    state = drive(folder, answer, listen, trials=2)
    assert state.succeeded
    assert len(read_measurements(folder)) == 6
    assert read_attempts(folder)["outcome"].tolist() == ["failed"]
    assert len(waits) == 1
    assert waits[0].startswith(f"the sweep waits for {folder}: ")


@pytest.mark.parametrize("every", [3, 5])
def test_a_driver_survives_that_any_of_its_requests_fails(storage: Storage, monkeypatch, every: int) -> None:
    """Of the driver's own requests every third or fifth one is refused, whichever that is."""
    folder, asked, failed = bucket(storage, f"outage-{every}"), 0, []
    monkeypatch.setattr(driving, "AGAIN_SECONDS", 0.0)
    armed = False

    def shaky(method):
        def request(path: ObjectPath, *arguments, **options):
            nonlocal asked
            if armed and threading.current_thread() is threading.main_thread():
                asked += 1
                if asked % every == 0:
                    failed.append(method.__name__)
                    raise OSError("AWS Error NETWORK_CONNECTION during anything")
            return method(path, *arguments, **options)

        return request

    for name in ("_info", "_listing", "write_bytes", "unlink"):
        monkeypatch.setattr(ObjectPath, name, shaky(getattr(ObjectPath, name)))

    def answer(assignment: Assignment) -> str | None:
        nonlocal armed
        armed = True
        return "worker lost" if assignment.attempt == 0 else None

    state = drive(folder, answer, lambda snapshot: None, trials=2)
    assert state.succeeded
    armed = False
    assert len(read_measurements(folder)) == 6
    assert read_attempts(folder)["outcome"].tolist() == ["failed"] * 2
    assert {"write_bytes", "_listing"} <= set(failed)


def test_a_person_who_asks_to_stop_does_not_wait_for_ever(storage: Storage, monkeypatch) -> None:
    """As long as workers wait for it at their end, and no longer."""
    folder, gone = bucket(storage, "outage-stop"), []
    monkeypatch.setattr(driving, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(driving, "PATIENCE_SECONDS", 0.5)
    drivers: list[Driver] = []

    def refused(*arguments: object, **options: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during anything")

    def answer(assignment: Assignment) -> str | None:
        gone.append(time.monotonic())
        monkeypatch.setattr(ObjectPath, "_listing", refused)
        return "worker lost"

    def listen(snapshot: Snapshot) -> None:
        if gone:
            drivers[0].request_stop()

    plan, store = smoke(), Store(folder)
    backend = LocalBackend(lambda: Worker(store, answer))
    drivers.append(Driver(plan, store, backend, lambda trial_id: None, listen))
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        drivers[0].run()
    assert 0.5 <= time.monotonic() - gone[0] < 10
    backend.close()


def test_what_is_asked_during_an_outage_is_heard_after_it(storage: Storage, monkeypatch) -> None:
    folder, said = bucket(storage, "outage-inbox"), []

    class Listening:
        stops = 0

        def request_stop(self) -> None:
            self.stops += 1

    monkeypatch.setattr(running, "AWAY_SECONDS", 0.0)
    inbox, driver = _Inbox(folder, said.append), Listening()
    ask(folder, "stop")
    best = BestLosses(folder)
    storage.go()
    time.sleep(INBOX_SECONDS)
    inbox.look(driver)  # type: ignore[arg-type]
    assert driver.stops == 0
    view = LiveView(Console(quiet=True), best.read)
    view._look()
    with pytest.raises(OSError, match="AWS Error"):
        requests_of(folder)
    storage.come_back()
    deadline = time.monotonic() + 10
    while not driver.stops and time.monotonic() < deadline:
        inbox.look(driver)  # type: ignore[arg-type]
        time.sleep(0.1)
    assert driver.stops == 1


def test_while_the_driver_stands_still_nobody_is_called_silent(monkeypatch) -> None:
    backend = RayBackend.__new__(RayBackend)  # without a cluster
    shape = GangShape(workers=1, cpus_per_worker=1.0, gpus_per_worker=0.0)
    gang = ray_backend._Gang(shape=shape, group=None, waits_for="attempt")  # type: ignore[arg-type]
    backend._gangs, backend._events, backend._hang_seconds, backend._start_seconds = {"gang-0": gang}, [], 60.0, 60.0
    clock = backend._listened_at = 1000.0
    monkeypatch.setattr(ray_backend.time, "monotonic", lambda: clock)
    clock += 300.0  # storage held it up
    backend._look_for_hangs()
    assert backend._events == []
    for _ in range(60):
        clock += 1.0
        backend._look_for_hangs()
    assert [event.reason for event in backend._events] == ["no sign of life for 61 s (compute.hang_minutes)"]
