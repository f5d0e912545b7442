"""What a sweep was last run with: versions, and the commit of the checkout. Kept beside the measurements."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.results.location import Location
from orchestrator.results.store import write_json

FILE_NAME = "environment.json"
LIBRARIES = ("ditlaw", "torch", "deepspeed", "ray", "mlflow", "numpy", "scipy", "pandas", "pyarrow")


def write_environment(folder: Location, source: Mapping[str, str]) -> None:
    """Keep versions, commit and machine of this run in the results folder; `source` is the code's own fingerprint."""
    write_json(folder / FILE_NAME, environment(source))


def environment(source: Mapping[str, str]) -> dict[str, Any]:
    """Of this process. The commit is None outside of a checkout, and ends in `+changes` where files were changed."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "code": source.get("ditlaw's code"),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *words: str) -> str:
    """What git says of the checkout; empty where there is no git, no checkout, or no answer within 5 seconds."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
