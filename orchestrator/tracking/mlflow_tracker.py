"""MLflow as a view of a results folder, fed from its Parquet parts by one background thread.

Nothing here can fail or delay a sweep: a server that is absent or slow is waited for in the thread, and all that it
missed is read from the parts when it answers, in this run, in the next one, or through `sync`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.results.location import Location
from orchestrator.tracking.address import alone, without_password
from orchestrator.tracking.cursor import Cursor, load_cursor
from orchestrator.tracking.describing import DatasetEntry
from orchestrator.tracking.points import Point, batches, flat
from orchestrator.tracking.tracker import Outcome
from orchestrator.tracking.view import View

_logger = logging.getLogger(__name__)

_METRICS_PER_BATCH = 1000  # MLflow's own limits
_PARAMS_PER_BATCH = 100
_LONGEST_WAIT_SECONDS = 60.0


def sync(results: Location, tracking_uri: str, experiment: str, timeout: float = 600.0) -> bool:
    """Rebuilds the view from the results folder, from the beginning; true when all was written.

    Runs that exist are reused, and points that are there already stay single (which MLflow finds out slowly: into an
    empty database it is several times faster). Not for a folder whose sweep is running.
    """
    Cursor(tracking_uri=without_password(tracking_uri), experiment=experiment).save(results)
    plan_file = results / "plan.json"
    plan = json.loads(plan_file.read_text()) if plan_file.exists() else {}
    tracker = MlflowTracker(results, tracking_uri, experiment)
    tracker.start(plan)
    return tracker.close(timeout)


class MlflowTracker:
    """Implements Tracker. One thread, one writer to MLflow; the driver's calls never wait for it."""

    def __init__(self, results: Location, tracking_uri: str, experiment: str, *, poll_seconds: float = 2.0) -> None:
        self._results = results.absolute()
        self._tracking_uri = tracking_uri
        self._poll_seconds = poll_seconds
        self._cursor = load_cursor(self._results, without_password(tracking_uri), experiment)
        self._closing = threading.Event()
        self._complete = threading.Event()
        self._deadline = float("inf")
        self._outcome: Outcome = "completed"
        self._thread: threading.Thread | None = None

    def start(self, plan: Mapping[str, Any], tags: Mapping[str, str] | None = None, files: Sequence[Path] = ()) -> None:
        """Begins to follow the results folder; runs for all trials of the plan are created ahead, in the thread."""
        assert self._thread is None, "a tracker starts once"
        uri = self._tracking_uri
        view = View(self._results, lambda: _MlflowWriter(open_client(uri)), uri, self._cursor, plan, tags or {}, files)
        self._thread = threading.Thread(target=self._follow, args=(view,), name="mlflow-tracker", daemon=True)
        self._thread.start()

    def run_id(self, trial_id: str) -> str | None:
        """The MLflow run of a trial, at once; None while it has none."""
        return self._cursor.runs.get(trial_id)

    def close(self, timeout: float, outcome: Outcome = "completed") -> bool:
        """Writes what can be written within `timeout` seconds, ends the sweep's run; true when all was written."""
        if self._thread is None:
            return True
        self._outcome = outcome
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout)
        if not self._complete.is_set():
            _logger.warning("MLflow lacks part of %s; it can be rebuilt from the Parquet files", self._results)
        return self._complete.is_set()

    def _follow(self, view: View) -> None:
        failures, tries_left = 0, 2
        while True:
            closing = self._closing.is_set()
            try:
                view.update(lambda: time.monotonic() > self._deadline)
                if closing:
                    view.finish(self._outcome)
                    self._complete.set()
                    return
            except Exception as error:  # noqa: BLE001  whatever MLflow raises, the sweep goes on
                if time.monotonic() < self._deadline:
                    self._report(error, first=failures == 0)
                failures, tries_left = failures + 1, tries_left - closing
                view.doubt()
            else:
                failures = 0
            if tries_left == 0 or time.monotonic() > self._deadline:
                return
            pause = min(2.0**failures, _LONGEST_WAIT_SECONDS) if failures else self._poll_seconds
            time.sleep(0.5) if closing else self._closing.wait(pause)

    def _report(self, error: Exception, first: bool) -> None:
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None and str(deeper):
            cause = deeper  # MLflow and urllib3 wrap "Connection refused" in half a page
        reason = str(cause).partition("\n")[0][:300] or type(cause).__name__
        uri = without_password(self._tracking_uri)
        if first:
            _logger.warning("MLflow at %s cannot be written (%s). The sweep goes on; retrying", uri, reason)
        else:
            _logger.debug("MLflow at %s still cannot be written (%s)", uri, reason)


class _MlflowWriter:
    """Writes in batches of the sizes that MLflow takes."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for batch in batches([Metric(*point) for point in points], _METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=batch)

    def log_params(self, run_id: str, values: Mapping[str, Any], existing: Mapping[str, str]) -> None:
        """Parameters of a run cannot change in MLflow: what an extended sweep changes becomes a tag `plan.<name>`."""
        from mlflow.entities import Param, RunTag

        current = flat(values)
        params = [Param(key, value[:6000]) for key, value in current.items() if key not in existing]
        changed = [
            RunTag(f"plan.{key}", value[:5000])
            for key, value in current.items()
            if key in existing and existing[key] != value[:6000]
        ]
        for batch in batches(params, _PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=batch)
        for batch in batches(changed, _PARAMS_PER_BATCH):
            self.client.log_batch(run_id, tags=batch)

    def show_dataset(self, run_id: str, data: DatasetEntry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=data.name, digest=data.digest, source_type="ditlaw", source=data.source)
        context = InputTag(key="mlflow.data.context", value="training")
        self.client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=[context])])

    def show_file(self, run_id: str, file: Location, folder: str | None = None) -> None:
        if isinstance(file, Path):
            self.client.log_artifact(run_id, str(file), folder)
            return
        with tempfile.TemporaryDirectory(prefix="ditlaw-mlflow-") as place:
            local = Path(place) / file.name
            local.write_bytes(file.read_bytes())
            self.client.log_artifact(run_id, str(local), folder)


def open_client(tracking_uri: str) -> Any:
    """An MLflow client, with its chatter off; a fresh SQLite database is laid out here, by one process at a time."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),  # the tracker retries by itself
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what matters is raised, and reported by the tracker
    with alone(tracking_uri):
        return MlflowClient(tracking_uri)
