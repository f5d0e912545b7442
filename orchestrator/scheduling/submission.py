"""Sweeps as jobs of a Ray cluster: what runs there is `ditlaw run`, with this checkout's code.

The id of a submission is the sweep's name and the digest of its plan, so that submitting twice runs once: Ray takes an
id only once. When that job has ended, the next one gets the id with a number behind it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestrator.planning.plan import Plan

PACKAGES = ("orchestrator", "models", "analysis")
SPEC = "sweep.yaml"
OWNER = "ditlaw.sweep"
"""The job's metadata that names its sweep."""
STOP_SECONDS = 600
"""What a job that is stopped may take to save checkpoints, before Ray kills it (its default is 3)."""
POLL_SECONDS = 0.5
CLOSING = "\nMLflow:  "
"""What a run prints when all is saved, before it lets go of its folder; its process ends soon after."""
LEAVE_SECONDS = 60.0
"""Longest wait for Ray to see that such a process has ended."""
AGENT_SECONDS = 30.0
"""How long a head node may take to be ready for jobs after its dashboard has answered."""
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""They tell of every package that is sent."""
TOKEN_FILE = Path(".ray") / "auth_token"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submission of a sweep, as the cluster knows it."""

    submission_id: str
    sweep: str
    status: str
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        """Nothing of it runs any more."""
        return bool(JobStatus(self.status).is_terminal())


class Jobs:
    """The jobs of a cluster, by the address of its dashboard.

    Raises:
        ValueError: no dashboard answers at `address`, or it does not take this machine's token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        _knock(address)
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # which would go before `address`
                self._client = JobSubmissionClient(address, headers=_headers())
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds, down to bare RuntimeError
            raise ValueError(
                f"the dashboard at {address} does not let us in: {_first_line(error)} Give the head node's token in "
                "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and the same Ray version."
            ) from None

    def submit(self, plan: Plan, arguments: Sequence[str]) -> tuple[Job, bool]:
        """The job that runs a plan, and whether it is new.

        Args:
            plan: of which a job that has not ended is not submitted again.
            arguments: of `ditlaw run`, but for the spec and the address.
        """
        base = f"{plan.sweep.name}-{plan.digest}"
        python = f'"$(command -v {shlex.quote(sys.executable)} || command -v python3)"'
        command = shlex.join(["-m", f"{PACKAGES[0]}.cli", "run", SPEC, "--address", "auto", *arguments])
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            before = {job.submission_id: job for job in self._of(plan.sweep.name)}
            there = next((job for job in before.values() if not job.ended and not self._is_over(job)), None)
            if there is not None:
                return there, False
            name, number = base, 1
            while name in before:
                number += 1
                name = f"{base}-{number}"
            with tempfile.TemporaryDirectory(prefix="ditlaw-submit-") as folder:
                _pack(plan, Path(folder))
                environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
                try:
                    self._client.submit_job(
                        entrypoint=f"exec {python} {command}",
                        submission_id=name,
                        runtime_env={"working_dir": folder, "env_vars": environment},
                        metadata={OWNER: plan.sweep.name},
                    )
                except RuntimeError as error:
                    if "No available agent" in str(error) and time.monotonic() < deadline:
                        time.sleep(POLL_SECONDS)  # the head node has only just begun
                    elif "already exists" not in str(error):  # else somebody was quicker
                        raise ValueError(f"{self.address} did not take the job: {_first_line(error)}") from None
                    continue
            return self.job(name), True

    def job(self, submission_id: str) -> Job:
        """A job as it is now."""
        return _job(self._client.get_job_info(submission_id))

    def output(self, submission_id: str) -> str:
        """What a job has printed so far; empty while there is nothing."""
        try:
            return str(self._client.get_job_logs(submission_id))
        except RuntimeError:  # not begun yet
            return ""

    def stop(self, sweep: str, seconds: float) -> list[Job]:
        """Ask the running jobs of a sweep to save and end, and wait for them; returns them as they are then.

        Raises:
            ValueError: no job of the sweep runs.
        """
        running = [job for job in self._of(sweep) if not job.ended]
        if not running:
            raise ValueError(f"no job of sweep {sweep!r} runs on {self.address}; ray job list names all.")
        for job in running:
            self._client.stop_job(job.submission_id)
        deadline = time.monotonic() + seconds
        while True:
            now = [self.job(job.submission_id) for job in running]
            if all(job.ended for job in now) or time.monotonic() >= deadline:
                return now
            time.sleep(POLL_SECONDS)

    def _is_over(self, job: Job) -> bool:
        """Whether a job that has said its last word ends within a moment."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while CLOSING in self.output(job.submission_id) and time.monotonic() < deadline:
            if self.job(job.submission_id).ended:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _of(self, sweep: str) -> list[Job]:
        jobs = (_job(details) for details in self._client.list_jobs() if details.submission_id)
        return [job for job in jobs if job.sweep == sweep]


def _job(details: Any) -> Job:
    return Job(
        submission_id=details.submission_id,
        sweep=(details.metadata or {}).get(OWNER, ""),
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _pack(plan: Plan, folder: Path) -> None:
    """Lay out in `folder` what a job needs: the code, and the spec as one file with the files that it names."""
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    data = copy.deepcopy(plan.source.data)
    files = list(_allocations(plan, data, ()))
    if not files:
        (folder / SPEC).write_text(plan.source.text, encoding="utf-8")
        return
    for index, (expected, path) in enumerate(files):
        expected["allocation"] = f"allocation-{index}.json"
        shutil.copyfile(path, folder / expected["allocation"])
    (folder / SPEC).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _allocations(plan: Plan, value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[dict[str, Any], Path]]:
    """The mappings of a spec that name an allocation file, each with that file."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        here = (*at, key)
        if key == "allocation" and at[-1:] == ("expected",) and isinstance(item, str):
            yield value, plan.source.place(here)[0].parent / item
        else:
            yield from _allocations(plan, item, here)


def _knock(address: str) -> None:
    """Raise ValueError at once if `address` is no URL, or if nothing listens there."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"--address got {address!r}; wanted that of the cluster's dashboard, as http://HEAD:8265 (ditlaw run "
            "joins a cluster by HOST:PORT)."
        )
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no dashboard of a Ray cluster answers at {address}: {error}. Start the head node with its dashboard "
            "(ray start --head --include-dashboard true), or forward its port (ssh -L 8265:127.0.0.1:8265 HEAD)."
        ) from None


def _headers() -> dict[str, str]:
    """The token of the cluster where this machine has one, from the places in which Ray looks for it."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / TOKEN_FILE)
        with contextlib.suppress(OSError):
            token = path.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token and token.strip() else {}


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Environment variables taken away for a moment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."
