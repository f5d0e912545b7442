"""Addresses that no driver can join. Joining one that works is what the tests of faults do."""

from __future__ import annotations

import pytest

from orchestrator.scheduling import ray_backend
from orchestrator.scheduling.ray_backend import RayBackend


def test_ray_client_is_refused_with_what_to_give_instead(tmp_path):
    with pytest.raises(ValueError, match=r"got 'ray://head:10001', which is Ray Client; wanted HOST:PORT of the head"):
        RayBackend("ray://head:10001", tmp_path, tmp_path)


class BusyRay:
    """`ray.init` of a machine on which so many starts time out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, timeouts: int) -> None:
        self.left, self.tries = timeouts, 0
        monkeypatch.setattr(ray_backend.ray, "init", self.init)
        monkeypatch.setattr(ray_backend.ray, "shutdown", lambda: None)

    def init(self, **options: object) -> None:
        self.tries += 1
        self.left -= 1
        if self.left >= 0:
            raise Exception("The current node timed out during startup.")


def test_a_start_that_times_out_is_tried_again(monkeypatch):
    busy = BusyRay(monkeypatch, timeouts=2)
    ray_backend._connect(None, 2)
    assert busy.tries == 3


def test_a_machine_on_which_ray_never_starts_is_said(monkeypatch):
    BusyRay(monkeypatch, timeouts=9)
    with pytest.raises(ValueError, match=r"Ray did not start on this machine in 3 tries: .*timed out during startup"):
        ray_backend._connect(None, 2)
