"""Tracking addresses: where a view is kept, and how a person opens it."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.results.location import Location, ObjectPath


def default_tracking_uri(results: Location) -> str:
    """The SQLite database inside the results folder; for results on object storage, in the current folder."""
    folder = Path.cwd() if isinstance(results, ObjectPath) else results.absolute()
    return f"sqlite:///{folder / 'mlflow.db'}"


def ui_url(tracking_uri: str) -> str:
    """Where the user interface answers: the server itself or, for a database, where `ui_command` opens it."""
    return without_password(tracking_uri) if tracking_uri.startswith("http") else "http://127.0.0.1:5000"


def ui_command(tracking_uri: str, mlflow: str = "mlflow") -> str:
    """The shell command that opens the user interface of a database; for a server, its address.

    `mlflow` is the program, with its path where the shell would not find it.
    """
    if tracking_uri.startswith("http"):
        return ui_url(tracking_uri)
    store = shlex.quote(without_password(tracking_uri))
    return f"{shlex.quote(mlflow)} ui --backend-store-uri {store} --host 127.0.0.1 --port 5000"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of an SQLite database; None for anything else."""
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


def artifact_location(tracking_uri: str) -> str | None:
    """The folder beside an SQLite database, as a file URI; None elsewhere, since a server knows its own."""
    database = sqlite_path(tracking_uri)
    return None if database is None else (database.absolute().parent / "mlflow-artifacts").as_uri()


def without_password(uri: str) -> str:
    """The address without user and password, fit to be stored and shown."""
    parts = urlsplit(uri)
    if parts.username is None and parts.password is None:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextlib.contextmanager
def alone(tracking_uri: str) -> Iterator[None]:
    """Processes that lay out one SQLite database at the same time fail: one after the other."""
    database = sqlite_path(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
