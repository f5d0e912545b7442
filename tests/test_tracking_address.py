"""Addresses that a person can use as they are, and that give no password away."""

from __future__ import annotations

from pathlib import Path

from orchestrator.tracking.address import artifact_location, default_tracking_uri, ui_command, ui_url, without_password


def test_a_database_is_opened_by_a_command() -> None:
    uri = default_tracking_uri(Path("/runs/my sweep"))
    assert uri == "sqlite:////runs/my sweep/mlflow.db"
    quoted = "'sqlite:////runs/my sweep/mlflow.db'"
    assert ui_command(uri) == f"mlflow ui --backend-store-uri {quoted} --host 127.0.0.1 --port 5000"
    assert ui_url(uri) == "http://127.0.0.1:5000"
    assert artifact_location(uri) == "file:///runs/my%20sweep/mlflow-artifacts"


def test_a_server_is_its_own_address() -> None:
    assert ui_command("https://me:secret@mlflow.lab:8443/x") == "https://mlflow.lab:8443/x"
    assert ui_url("http://mlflow.lab:5000") == "http://mlflow.lab:5000"
    assert artifact_location("http://mlflow.lab:5000") is None


def test_passwords_are_left_out() -> None:
    assert without_password("postgresql://me:secret@db/mlflow") == "postgresql://db/mlflow"
    assert without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
