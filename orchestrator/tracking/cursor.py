"""How far the view of a results folder has got: `mlflow.json`, written by the tracker alone, read by anyone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

from orchestrator.results.location import Location
from orchestrator.results.store import write_json

_logger = logging.getLogger(__name__)

FILE_NAME = "mlflow.json"


@dataclass(kw_only=True)
class Cursor:
    """Which runs show which trials, and which parts have been shown."""

    tracking_uri: str
    """Without passwords."""
    experiment: str
    experiment_id: str | None = None
    parent_run_id: str | None = None
    runs: dict[str, str] = field(default_factory=dict)
    """trial_id to run id."""
    logged: set[str] = field(default_factory=set)
    """Parts and images already shown, as paths relative to the results folder."""
    ui: str = ""
    """Address of the user interface."""

    def save(self, results: Location) -> None:
        """Writes the cursor, whole or not at all."""
        write_json(results / FILE_NAME, {**vars(self), "logged": sorted(self.logged)})


def load_cursor(results: Location, tracking_uri: str, experiment: str) -> Cursor:
    """The cursor of the folder where it is for this server and experiment; else a fresh one, at the beginning."""
    fresh = Cursor(tracking_uri=tracking_uri, experiment=experiment)
    try:
        stored = json.loads((results / FILE_NAME).read_text())
        cursor = Cursor(**{**stored, "logged": set(stored["logged"])})
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("%s cannot be read (%s); MLflow is fed from the beginning", results / FILE_NAME, error)
        return fresh
    return cursor if (cursor.tracking_uri, cursor.experiment) == (tracking_uri, experiment) else fresh
