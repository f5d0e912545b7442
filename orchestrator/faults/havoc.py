"""The faults of a soak: each kind finds something to strike, strikes it, and sees that it was struck."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from orchestrator.faults import points
from orchestrator.faults.points import POINTS, Fault, Trace
from orchestrator.faults.rig import Driver, Rig
from orchestrator.results.checkpoints import checkpoint_folders

Kind = Literal[
    "point", "worker", "gang", "hang", "clock", "node", "drain", "driver", "head", "checkpoint", "mlflow", "disk"
]
"""point: a worker dies, or raises, at a named point; gang: all workers at once; checkpoint: the newest one of a trial
is damaged and its worker dies; mlflow: its server turns from absent to silent, or back; disk: it is full for a while.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)

FIRE_SECONDS = 15.0
"""An armed fault whose point nobody comes to in this time is taken back."""
FULL_SECONDS = 2.5
"""How long the disk is full."""
DRAIN_SECONDS = 4.0
"""From the notice to the end of a preempted node."""


class Havoc:
    """Strikes at random.

    Args:
        rig: what to strike.
        chance: the schedule.
        kinds: what may happen.
    """

    def __init__(self, rig: Rig, chance: random.Random, kinds: Sequence[Kind]) -> None:
        self.rig, self.chance, self.kinds = rig, chance, list(kinds)
        self.damaged: set[str] = set()
        """Trials of which a checkpoint was damaged since the last comparison."""
        self.server = MuteServer()
        self._strikes: dict[Kind, Callable[[Driver, Path], str | None]] = {
            "point": lambda driver, results: self._at_a_point(
                driver, "kill" if self.chance.random() < 0.8 else "raise"
            ),
            "hang": lambda driver, results: self._at_a_point(driver, self.chance.choice(["hang", "freeze"])),
            "clock": lambda driver, results: self._at_a_point(driver, "clock"),
            "worker": self._worker,
            "gang": self._gang,
            "node": self._node,
            "drain": self._drain,
            "driver": self._driver,
            "head": self._head,
            "checkpoint": self._checkpoint,
            "mlflow": self._mlflow,
            "disk": self._disk,
        }

    @property
    def tracking_uri(self) -> str:
        """Where drivers believe MLflow to be."""
        return f"http://127.0.0.1:{self.server.port}"

    def ready(self) -> bool:
        """Whether something is running that could be struck."""
        return bool(self._busy())

    def strike(self, driver: Driver, results: Path) -> tuple[Kind, str | None]:
        """One fault, and what it was in words; None if there was nothing to strike."""
        kind = self.chance.choice(self.kinds)
        return kind, self._strikes[kind](driver, results)

    def _busy(self) -> list[Trace]:
        """The attempt of each worker that is alive."""
        alive = set(self.rig.workers())
        newest = {trace.pid: trace for trace in self.rig.traces() if trace.pid in alive}
        return list(newest.values())

    def _at_a_point(self, driver: Driver, action: points.Action) -> str | None:
        point = self.chance.choice(POINTS)
        occurrence = self.chance.randint(1, 100) if point.startswith("step") else 1
        path = points.arm(self.rig.faults, Fault(point=point, action=action, occurrence=occurrence))
        deadline = time.monotonic() + FIRE_SECONDS
        while path.exists() and time.monotonic() < deadline and driver.process.poll() is None:
            time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            return None
        return f"{action} at {point}, occurrence {occurrence}"

    def _worker(self, driver: Driver, results: Path) -> str | None:
        busy = self._busy()
        if not busy:
            return None
        trace = self.chance.choice(busy)
        _kill(trace.pid)
        return f"SIGKILL of the worker of {trace.trial_id} at {trace.reached} samples"

    def _gang(self, driver: Driver, results: Path) -> str | None:
        workers = self.rig.workers()
        for pid in workers:
            _kill(pid)
        return f"SIGKILL of all {len(workers)} workers at once" if workers else None

    def _node(self, driver: Driver, results: Path) -> str | None:
        node = self.chance.choice(self.rig.nodes)
        self.rig.kill_node(node)
        self.rig.add_node()
        return "a node is gone, and another comes"

    def _drain(self, driver: Driver, results: Path) -> str | None:
        node = self.chance.choice(self.rig.nodes)
        self.rig.drain_node(node, DRAIN_SECONDS)
        self.rig.add_node()
        time.sleep(DRAIN_SECONDS)
        self.rig.kill_node(node)
        return f"notice of {DRAIN_SECONDS:g} s, then the node is gone; another comes"

    def _driver(self, driver: Driver, results: Path) -> str | None:
        if driver.process.poll() is not None:
            return None
        driver.kill()
        return "SIGKILL; the same command again"

    def _head(self, driver: Driver, results: Path) -> str | None:
        self.rig.restart_head()
        return "killed and started again"

    def _checkpoint(self, driver: Driver, results: Path) -> str | None:
        for trace in self._busy():
            with contextlib.suppress(ProcessLookupError):
                os.kill(trace.pid, signal.SIGSTOP)
                folders = [path for path in checkpoint_folders(results, trace.trial_id) if isinstance(path, Path)]
                how = damage(folders[0], self.chance) if len(folders) > 1 else None
                os.kill(trace.pid, signal.SIGKILL if how else signal.SIGCONT)
                if how:
                    self.damaged.add(trace.trial_id)
                    return f"the newest of {trace.trial_id} {how}, and its worker is killed"
        return None

    def _mlflow(self, driver: Driver, results: Path) -> str | None:
        self.server.turn()
        return f"its server {'accepts and never answers' if self.server.listening else 'refuses connections'}"

    def _disk(self, driver: Driver, results: Path) -> str | None:
        ballast = results.parents[1] / "ballast"
        fill(ballast)
        time.sleep(FULL_SECONDS)
        ballast.unlink()
        return f"full for {FULL_SECONDS:g} s"


class MuteServer:
    """A port at which nobody listens, or somebody who never answers. Nobody else gets it meanwhile."""

    def __init__(self) -> None:
        self._reservation = _bound(0)
        self.port: int = self._reservation.getsockname()[1]
        self._listener: socket.socket | None = None

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        return self._listener is not None

    def turn(self) -> None:
        """From the one to the other."""
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(128)
        else:
            self._listener.close()
            self._listener = None


def _bound(port: int) -> socket.socket:
    """A socket that shares its port with others of this process's user."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def damage(checkpoint: Path, chance: random.Random) -> str:
    """Break a finished checkpoint in one of three ways; says which."""
    state, manifest = checkpoint / "state.safetensors", checkpoint / "manifest.json"
    how = chance.choice(["is truncated", "has a flipped bit", "has lost its manifest"])
    if how == "is truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif how == "has a flipped bit":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    else:
        manifest.unlink()
    return how


def fill(ballast: Path) -> None:
    """Fill the disk, to the last byte, with one file."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
