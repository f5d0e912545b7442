"""Addresses that no driver can join. Joining one that works is what the tests of faults do."""

from __future__ import annotations

import pytest

from orchestrator.scheduling.ray_backend import RayBackend


def test_ray_client_is_refused_with_what_to_give_instead(tmp_path):
    with pytest.raises(ValueError, match=r"got 'ray://head:10001', which is Ray Client; wanted HOST:PORT of the head"):
        RayBackend("ray://head:10001", tmp_path, tmp_path)
