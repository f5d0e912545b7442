"""MLflow as a view of a results folder, fed from its Parquet parts by one background thread.

Nothing here can fail or delay a sweep: a server that is absent or slow is waited for in the thread, and all that it
missed is read from the parts when it answers, in this run, in the next one, or through `sync`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.results.compaction import inputs_of, is_compacted
from orchestrator.results.location import Location, entries
from orchestrator.results.parts import read_parts
from orchestrator.results.schema import RUNNING, SCHEMAS, Kind
from orchestrator.results.store import Store, read_attempts
from orchestrator.tracking import describing
from orchestrator.tracking.address import alone, artifact_location, ui_url, without_password
from orchestrator.tracking.cursor import Cursor, load_cursor
from orchestrator.tracking.points import (
    Point,
    attempt_points,
    batches,
    curve_points,
    flat,
    measurement_points,
    milliseconds,
)
from orchestrator.tracking.tracker import Outcome

_logger = logging.getLogger(__name__)

_METRICS_PER_BATCH = 1000  # MLflow's own limits
_PARAMS_PER_BATCH = 100
_PARTS_PER_PASS = 256
_STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST_WAIT_SECONDS = 60.0
_LOAD_SECONDS = 10.0
_TRIAL_TAG, _SWEEP_TAG = "ditlaw.trial_id", "ditlaw.sweep"


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
        view = _View(self._results, self._tracking_uri, self._cursor, plan, tags or {}, files)
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

    def _follow(self, view: _View) -> None:
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


class _View:
    """One results folder in one MLflow experiment. Every method may block and raise: the tracker's thread only."""

    def __init__(
        self,
        results: Location,
        tracking_uri: str,
        cursor: Cursor,
        plan: Mapping[str, Any],
        tags: Mapping[str, str],
        files: Sequence[Path],
    ) -> None:
        self._store = Store(results)
        self._results = results
        self._tracking_uri = tracking_uri
        self._cursor = cursor
        self._plan = plan
        self._tags = dict(tags)
        self._files: list[Location] = list(files)
        self._sweep = str(plan.get("sweep") or self._store.owner() or cursor.experiment)
        self._names = describing.run_names(plan)
        self._load_shown = time.monotonic()
        self._client: Any = None
        self._connected = False
        self._starts: dict[str, int] = {}  # trial_id -> start of its run, ms
        self._statuses: dict[str, str] = {}
        self._ended: dict[str, int] = {}  # trial_id -> its last attempt that has ended
        self._seen: dict[str, set[tuple[str, int]]] = {"curves": set(), "measurements": set()}

    def doubt(self) -> None:
        """Something failed: look again at what the server has before more is written, as it may be another one now."""
        self._connected = False

    def update(self, too_late: Callable[[], bool]) -> None:
        """Shows every part that is not shown yet."""
        if not self._connected:
            self._connect()
        for kind, show in (
            ("curves", self._show_curves),
            ("measurements", self._show_measurements),
            ("attempts", self._show_attempts),
        ):
            self._show_parts(kind, show, too_late)  # type: ignore[arg-type]
        self._show_images()
        self._show_load()

    def finish(self, outcome: Outcome) -> None:
        """Shows the report and its figures and ends the sweep's run."""
        parent = str(self._cursor.parent_run_id)
        report = self._results / "report.html"
        if report.exists():
            self._show_file(parent, report)
        for figure in describing.figures(self._results):
            self._show_file(parent, figure, "figures")
        self._client.set_tag(parent, "outcome", outcome)
        self._client.set_terminated(parent, _STATUS[outcome])

    # Runs

    def _connect(self) -> None:
        self._client = open_client(self._tracking_uri)
        cursor = self._cursor
        experiment_id = self._experiment()
        note = describing.sweep_note(self._plan, self._results)
        self._client.set_experiment_tag(experiment_id, describing.NOTE, note)
        runs = list(self._existing_runs(experiment_id))
        known = {run.data.tags[_TRIAL_TAG]: run for run in runs if _TRIAL_TAG in run.data.tags}
        parents = [run for run in runs if _TRIAL_TAG not in run.data.tags]
        found = {run.info.run_id for run in runs}
        if experiment_id != cursor.experiment_id or not {cursor.parent_run_id, *cursor.runs.values()} <= found:
            cursor.logged.clear()  # the server lost runs that had been fed: feed it again
        cursor.experiment_id = experiment_id
        cursor.runs = {trial_id: run.info.run_id for trial_id, run in known.items()}
        cursor.ui = f"{ui_url(self._tracking_uri)}/#/experiments/{experiment_id}"
        cursor.parent_run_id = self._parent(parents[0] if parents else None)
        for trial_id, run in known.items():
            self._adopt(trial_id, run)
        for trial in self._plan.get("trials", ()):
            run = known.get(trial["trial_id"])
            self._log_params(self._run(trial["trial_id"], trial), trial, run.data.params if run else {})
        self._remember_shown()
        cursor.save(self._results)
        self._connected = True

    def _experiment(self) -> str:
        name = self._cursor.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name, artifact_location=artifact_location(self._tracking_uri)))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _existing_runs(self, experiment_id: str) -> Iterator[Any]:
        """Runs of this sweep, latest first: of ghosts, the first that was made wins."""
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from (run for run in page if run.data.tags.get(_SWEEP_TAG) == self._sweep)
            token = page.token
            if not token:
                return

    def _parent(self, run: Any | None) -> str:
        tags = {**self._tags, **_origin(), _SWEEP_TAG: self._sweep}
        if run is None:
            run = self._client.create_run(self._cursor.experiment_id, tags=tags, run_name=self._sweep)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        run_id = str(run.info.run_id)
        self._client.set_tag(run_id, describing.NOTE, describing.sweep_note(self._plan, self._results))
        self._show_dataset(run_id)
        summary = {key: value for key, value in self._plan.items() if isinstance(value, str | int | float)}
        self._log_params(run_id, summary, run.data.params)
        for file in [*self._files, self._results / "plan.json"]:
            if file.exists():
                self._show_file(run_id, file)
        return run_id

    def _adopt(self, trial_id: str, run: Any) -> None:
        parent = self._cursor.parent_run_id
        if run.data.tags.get("mlflow.parentRunId") != parent:
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
        self._cursor.runs[trial_id] = run.info.run_id
        self._starts[trial_id] = run.info.start_time
        self._statuses[trial_id] = run.info.status

    def _run(self, trial_id: str, trial: Mapping[str, Any]) -> str:
        """The run of a trial, created where there is none."""
        if trial_id in self._cursor.runs:
            return self._cursor.runs[trial_id]
        names = {key: str(trial[key]) for key in ("arm", "size") if trial.get(key)}
        rate = trial.get("learning_rate") or (trial.get("optimizer") or {}).get("learning_rate")
        words = [*names.values(), *([f"lr {rate:g}"] if isinstance(rate, float) else [])]
        tags = {**self._tags, **_origin(), **names, "trial_id": trial_id, _TRIAL_TAG: trial_id, _SWEEP_TAG: self._sweep}
        tags |= describing.trial_tags({**trial, "trial_id": trial_id}, self._results)
        run = self._client.create_run(
            self._cursor.experiment_id,
            tags={**tags, "mlflow.parentRunId": self._cursor.parent_run_id},
            run_name=self._names.get(trial_id) or " ".join([*words, trial_id[:6]]),
        )
        self._show_dataset(str(run.info.run_id))
        self._adopt(trial_id, run)
        self._set_status(trial_id, "SCHEDULED")
        return str(run.info.run_id)

    def _show_dataset(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = describing.dataset_of(self._plan)
        if found is not None:
            data = Dataset(name=found.name, digest=found.digest, source_type="ditlaw", source=found.source)
            context = InputTag(key="mlflow.data.context", value="training")
            self._client.log_inputs(run_id, [DatasetInput(dataset=data, tags=[context])])

    def _show_load(self) -> None:
        """The load of this machine, now and then while the sweep runs; unlike all else it is kept nowhere else."""
        if time.monotonic() - self._load_shown < _LOAD_SECONDS:
            return
        self._load_shown = time.monotonic()
        now = int(time.time() * 1000)
        load = describing.machine_load(self._results)
        self._log_points(str(self._cursor.parent_run_id), [Point(key, value, now, 0) for key, value in load])

    def _log_params(self, run_id: str, values: Mapping[str, Any], existing: Mapping[str, str]) -> None:
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
            self._client.log_batch(run_id, params=batch)
        for batch in batches(changed, _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, tags=batch)

    # Parts

    def _follow_compaction(self) -> None:
        """A part that compaction has made of parts that were shown is shown."""
        logged = self._cursor.logged
        for kind in SCHEMAS:
            for path in self._store.parts(kind):
                inputs = inputs_of(path) if self._name(path) not in logged else frozenset()
                if inputs and all(f"{kind}/{name}" in logged or is_compacted(name) for name in inputs):
                    logged.add(self._name(path))

    def _remember_shown(self) -> None:
        self._follow_compaction()
        attempts = read_attempts(self._results)
        self._ended = {str(key): int(value) for key, value in attempts.groupby("trial_id")["attempt"].max().items()}
        kinds: tuple[Kind, ...] = ("curves", "measurements")
        for kind in kinds:
            paths = [path for path in self._store.parts(kind) if self._name(path) in self._cursor.logged]
            rows = read_parts(paths, kind, ["trial_id", "samples"]).to_pylist()
            self._seen[kind] = {(row["trial_id"], row["samples"]) for row in rows}

    def _show_parts(
        self, kind: Kind, show: Callable[[str, Sequence[Mapping[str, Any]]], None], too_late: Callable[[], bool]
    ) -> None:
        new = [path for path in self._store.parts(kind) if self._name(path) not in self._cursor.logged]
        for paths in batches(new, _PARTS_PER_PASS):
            if too_late():
                raise TimeoutError("no time is left")
            by_trial: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
            try:
                shown = read_parts(paths, kind).to_pylist()
            except FileNotFoundError:  # compacted meanwhile
                self._follow_compaction()
                return self._show_parts(kind, show, too_late)
            for row in shown:
                by_trial[row["trial_id"]].append(row)
            for trial_id, rows in by_trial.items():
                show(trial_id, rows)
            self._cursor.logged |= {self._name(path) for path in paths}
            self._cursor.save(self._results)

    def _show_curves(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        run_id = self._run(trial_id, {})
        new = self._unseen("curves", rows)
        start = self._starts[trial_id]
        self._log_points(run_id, [point for row in new for point in curve_points(row, start)])
        self._seen["curves"] |= {(trial_id, row["samples"]) for row in new}
        if max(row["attempt"] for row in rows) > self._ended.get(trial_id, -1):
            self._set_status(trial_id, "RUNNING")

    def _show_measurements(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        run_id = self._run(trial_id, rows[0])
        new = self._unseen("measurements", rows)
        self._log_points(run_id, [point for row in new for point in measurement_points(row)])
        for row in new:
            if row["reason"]:
                self._client.set_tag(run_id, "reason", row["reason"])
        self._seen["measurements"] |= {(trial_id, row["samples"]) for row in new}

    def _show_attempts(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        run_id = self._run(trial_id, {})
        rows = [row for row in rows if row["outcome"] != RUNNING]
        if not rows:
            return
        self._log_points(run_id, [point for row in rows for point in attempt_points(row)])
        last = max(rows, key=lambda row: row["attempt"])
        if last["attempt"] < self._ended.get(trial_id, -1):
            return
        self._ended[trial_id] = last["attempt"]
        self._client.set_tag(run_id, "outcome", last["outcome"])
        if last["reason"]:
            self._client.set_tag(run_id, "reason", last["reason"])
        self._statuses[trial_id] = _STATUS[last["outcome"]]
        self._client.set_terminated(run_id, _STATUS[last["outcome"]], end_time=milliseconds(last["ended_at"]))

    def _show_images(self) -> None:
        """Grids of generated samples, `samples/<trial_id>-<samples>.png`, of the measured milestones."""
        try:
            names = {path.name for path in entries(self._results / "samples")}
        except FileNotFoundError:
            return
        for trial_id, samples in sorted(self._seen["measurements"]):
            name = f"{trial_id}-{samples}.png"
            if name in names and f"samples/{name}" not in self._cursor.logged:
                self._show_file(self._cursor.runs[trial_id], self._results / "samples" / name, "samples")
                self._cursor.logged.add(f"samples/{name}")
                self._cursor.save(self._results)

    def _show_file(self, run_id: str, file: Location, folder: str | None = None) -> None:
        if isinstance(file, Path):
            self._client.log_artifact(run_id, str(file), folder)
            return
        with tempfile.TemporaryDirectory(prefix="ditlaw-mlflow-") as place:
            local = Path(place) / file.name
            local.write_bytes(file.read_bytes())
            self._client.log_artifact(run_id, str(local), folder)

    def _unseen(self, kind: Kind, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The first row of each milestone or curve point that has not been shown (a resumed attempt replays some)."""
        first = {(row["trial_id"], row["samples"]): row for row in reversed(rows)}
        return [row for key, row in sorted(first.items()) if key not in self._seen[kind]]

    def _log_points(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for batch in batches([Metric(*point) for point in points], _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=batch)

    def _set_status(self, trial_id: str, status: str) -> None:
        if self._statuses.get(trial_id) != status:
            self._client.update_run(self._cursor.runs[trial_id], status=status)
            self._statuses[trial_id] = status

    @staticmethod
    def _name(path: Location) -> str:
        return f"{path.parent.name}/{path.name}"


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


def _origin() -> dict[str, str]:
    tags = {"mlflow.source.name": "ditlaw", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags
