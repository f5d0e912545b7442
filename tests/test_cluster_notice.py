"""cluster/notice.py against metadata services on loopback that answer as AWS's and Google Cloud's do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "a-token-of-the-session"
ACTION = "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


class Metadata(ThreadingHTTPServer):
    """Both services in one; `preempted_at` is when the machine goes, `broken` how often it first fails."""

    preempted_at: datetime | None = None
    broken = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        lifetime = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._say(200, TOKEN) if self.path == "/latest/api/token" and 1 <= int(lifetime) <= 21600 else self._say(400)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        at = self.server.preempted_at
        if self.server.broken:
            self.server.broken -= 1
            self._say(503)
        elif self.path == ACTION:
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                self._say(401)
            elif at is None:
                self._say(404, "<html>no such thing</html>")
            else:
                self._say(200, json.dumps({"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}))
        elif self.path == PREEMPTED:
            allowed = self.headers["Metadata-Flavor"] == "Google"
            self._say(200 if allowed else 403, "TRUE" if at else "FALSE")

    def _say(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ray_in(folder: Path, body: str = "") -> Path:
    """A stand-in for Ray's command that writes down what it is told."""
    command = folder / "ray"
    command.write_text(f'#!/usr/bin/env bash\n{body}\nprintf "%s\\n" "$@" > {folder}/told\n')
    command.chmod(0o755)
    return command


def watching(cloud: str, metadata: Metadata, ray: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "cluster/notice.py", cloud, "--address", "10.0.0.1:6379"]
    command += ["--metadata", metadata.url, "--ray", str(ray), "--every", "0.1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"http_proxy": "http://127.0.0.1:9"})


@pytest.mark.parametrize(("cloud", "path", "seconds"), [("aws", ACTION, 119), ("gcp", PREEMPTED, 30)])
def test_a_notice_drains_the_node_and_nothing_else_does(tmp_path, metadata, cloud, path, seconds):
    metadata.broken = 1
    with watching(cloud, metadata, ray_in(tmp_path)) as watch:
        try:
            deadline = time.monotonic() + 60
            while len(metadata.asked) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert (watch.poll(), (tmp_path / "told").exists()) == (None, False), "no notice, nothing done"
            metadata.preempted_at = datetime.now(UTC) + timedelta(seconds=124)
            _, said = watch.communicate(timeout=60)
        finally:
            watch.kill()
    assert (watch.returncode, set(metadata.asked)) == (0, {path})
    assert "does not answer, and is asked on: HTTP Error 503" in said
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:5] == ["drain-node", "--address", "10.0.0.1:6379", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert told[-2] == "--deadline-remaining-seconds"
    assert int(told[-1]) == pytest.approx(seconds, abs=6)


def test_ray_is_asked_until_it_takes_the_notice(tmp_path, metadata):
    metadata.preempted_at = datetime.now(UTC)
    ray = ray_in(tmp_path, f'if mkdir {tmp_path}/once 2> /dev/null; then echo "no head" >&2; exit 1; fi')
    with watching("gcp", metadata, ray) as watch:
        _, said = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert "Ray does not drain this node: no head" in said
    assert (tmp_path / "told").exists()


def test_what_it_tells_ray_is_what_ray_takes():
    """The command is hidden from Ray's help; no cluster is needed to see which options it has."""
    from ray.scripts.scripts import drain_node

    text = Path("cluster/notice.py").read_text()
    options = {option for parameter in drain_node.params for option in parameter.opts}
    given = {"--address", "--reason", "--reason-message", "--deadline-remaining-seconds"}
    assert given <= options
    assert all(f'"{option}"' in text for option in given)
    reasons = next(parameter for parameter in drain_node.params if parameter.name == "reason").type
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons.choices
