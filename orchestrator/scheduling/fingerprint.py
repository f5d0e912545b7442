"""What a process would compute with: its code and the versions that can change a result or a file."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "deepspeed", "numpy", "safetensors", "pyarrow")
PACKAGES = ("orchestrator", "models")

Fingerprint = Mapping[str, str]


def fingerprint() -> Fingerprint:
    """Of this process: versions by name, and a digest of ditlaw's own source. Nothing heavy is imported."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "ditlaw's code": _source()}
    for library in LIBRARIES:
        try:
            # Without what comes after a plus: a driver without a GPU may have another build of the same version.
            found[library] = version(library).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def differences(driver: Fingerprint, worker: Fingerprint) -> str:
    """Where two processes differ, in words; empty where they do not. The driver may lack what only workers need."""
    return ", ".join(
        f"{name} {worker.get(name, 'missing')} against {driver[name]} here"
        for name in driver
        if worker.get(name) != driver[name]
    )


def _source() -> str:
    """12 hexadecimal digits of the SHA-256 of all Python files of the packages."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
