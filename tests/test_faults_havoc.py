"""The tools that break things do break them."""

from __future__ import annotations

import errno
import random
import socket
import subprocess

import pytest

from orchestrator.faults.havoc import MuteServer, damage, fill


def test_a_mute_server_refuses_then_is_silent_and_again():
    server = MuteServer()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
        server.turn()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.settimeout(0.05)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
        server.turn()


def test_checkpoints_are_damaged_in_three_ways(tmp_path):
    ways = set()
    for seed in range(20):
        checkpoint = tmp_path / str(seed)
        checkpoint.mkdir()
        (checkpoint / "state.safetensors").write_bytes(bytes(100))
        (checkpoint / "manifest.json").write_text("{}")
        ways.add(damage(checkpoint, random.Random(seed)))
        whole = (checkpoint / "state.safetensors").read_bytes() == bytes(100)
        assert not (whole and (checkpoint / "manifest.json").exists())
    assert len(ways) == 3


def test_a_disk_is_filled_to_the_last_byte(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        fill(tmp_path / "ballast")
        with pytest.raises(OSError, match="No space left") as full:
            (tmp_path / "more").write_bytes(b"x")
        assert full.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=False)
