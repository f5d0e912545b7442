"""Tells Ray when the cloud is about to take this machine away: neither Ray nor its cluster launcher asks.

    python cluster/notice.py aws|gcp --address HEAD:6379

It asks the machine's metadata service until that has a notice (AWS two minutes ahead, Google Cloud thirty seconds), has
Ray drain this node, and ends. The driver then starts nothing here, and what runs here saves and goes on elsewhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
EVERY_SECONDS = {"aws": 5.0, "gcp": 1.0}
"""AWS asks for five seconds; of Google Cloud's thirty, each counts."""
GCP_SECONDS = 30.0
ANSWER_SECONDS = 5.0
DRAIN_SECONDS = 20.0
"""How long one call of Ray's command line may take, imports and all."""

log = logging.getLogger("notice")


def main() -> int:
    parser = argparse.ArgumentParser(description="Has Ray drain this node when the cloud gives notice.")
    parser.add_argument("cloud", choices=sorted(METADATA))
    parser.add_argument("--address", required=True, help="Ray's head, as HOST:PORT")
    parser.add_argument("--metadata", help="URL of the metadata service; default: the cloud's")
    parser.add_argument(
        "--ray", default=Path(sys.executable).with_name("ray"), help="Ray's command; default: beside python"
    )
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="between two looks; default: as the cloud advises"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    metadata = arguments.metadata or METADATA[arguments.cloud]
    seconds = wait_for_notice(arguments.cloud, metadata, arguments.every or EVERY_SECONDS[arguments.cloud])
    return 0 if drain(str(arguments.ray), arguments.address, seconds) else 1


def wait_for_notice(cloud: str, metadata: str, every: float) -> float:
    """How many seconds are left, once the metadata service says that they are numbered."""
    look = {"aws": aws_seconds_left, "gcp": gcp_seconds_left}[cloud]
    answers = True
    while True:
        try:
            seconds = look(metadata)
            answers = True
        except (OSError, ValueError, KeyError) as error:
            if answers:
                log.warning("the metadata service at %s does not answer, and is asked on: %s", metadata, error)
            seconds, answers = None, False
        if seconds is not None:
            log.info("this machine goes in %.0f seconds", seconds)
            return seconds
        time.sleep(every)


def aws_seconds_left(metadata: str) -> float | None:
    """Until a spot instance is interrupted; None while nobody says so. IMDSv2 wants a token of the session."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{metadata}/latest/api/token", lifetime, "PUT")
    try:
        notice = _ask(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    at = datetime.fromisoformat(json.loads(notice)["time"])
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def gcp_seconds_left(metadata: str) -> float | None:
    """Until a spot VM that is preempted goes, at most; None while it is not."""
    said = _ask(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_SECONDS if said.strip() == "TRUE" else None


def drain(ray: str, address: str, seconds: float) -> bool:
    """Whether Ray took this node for one that goes in so many seconds; it is asked until then."""
    deadline = time.monotonic() + seconds
    environment = {**os.environ, "RAY_ADDRESS": address}  # by which it finds the node that it runs on
    while True:
        left = max(0.0, deadline - time.monotonic())
        command = [ray, "drain-node", "--address", address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "the cloud's notice", "--deadline-remaining-seconds", str(round(left))]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False, env=environment
            )
            said = (done.stderr or done.stdout).strip()
            if done.returncode == 0:
                log.info("Ray drains this node")
                return True
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        log.warning("Ray does not drain this node: %s", said)
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with direct.open(request, timeout=ANSWER_SECONDS) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    sys.exit(main())
