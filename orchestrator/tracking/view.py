"""One results folder as MLflow shows it: a parent run for the sweep, a run a trial, and what has been shown of each.

What is shown comes from the Parquet parts and the plan; how it is written is the writer's business.
"""

from __future__ import annotations

import contextlib
import getpass
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.results.compaction import inputs_of, is_compacted
from orchestrator.results.location import Location, entries
from orchestrator.results.parts import read_parts
from orchestrator.results.schema import RUNNING, SCHEMAS, Kind
from orchestrator.results.store import Store, read_attempts
from orchestrator.tracking import describing
from orchestrator.tracking.address import artifact_location, ui_url
from orchestrator.tracking.cursor import Cursor
from orchestrator.tracking.points import Point, attempt_points, batches, curve_points, measurement_points, milliseconds
from orchestrator.tracking.tracker import Outcome

_GRIDS = ("png", "gif", "mp4")
"""Suffixes of grids: of images, and of clips."""
_PARTS_PER_PASS = 256
_STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LOAD_SECONDS = 10.0
TRIAL_TAG, SWEEP_TAG = "ditlaw.trial_id", "ditlaw.sweep"


class Writer(Protocol):
    """Writes into runs of a server; every method may block and raise."""

    client: Any
    """The server's own client, for runs, tags and experiments."""

    def log_points(self, run_id: str, points: Sequence[Point]) -> None: ...
    def log_params(self, run_id: str, values: Mapping[str, Any], existing: Mapping[str, str]) -> None: ...
    def show_dataset(self, run_id: str, data: describing.DatasetEntry) -> None: ...
    def show_file(self, run_id: str, file: Location, folder: str | None = None) -> None: ...


class View:
    """One results folder in one MLflow experiment. Every method may block and raise: the tracker's thread only."""

    def __init__(
        self,
        results: Location,
        connect: Callable[[], Writer],
        tracking_uri: str,
        cursor: Cursor,
        plan: Mapping[str, Any],
        tags: Mapping[str, str],
        files: Sequence[Path],
    ) -> None:
        self._store = Store(results)
        self._results = results
        self._connect_writer, self._tracking_uri = connect, tracking_uri
        self._cursor = cursor
        self._plan = plan
        self._tags = dict(tags)
        self._files: list[Location] = list(files)
        self._sweep = str(plan.get("sweep") or self._store.owner() or cursor.experiment)
        self._names = describing.run_names(plan)
        self._load_shown = time.monotonic()
        self._writer: Writer
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
            self._writer.show_file(parent, report)
        for figure in describing.figures(self._results):
            self._writer.show_file(parent, figure, "figures")
        self._client.set_tag(parent, "outcome", outcome)
        self._client.set_terminated(parent, _STATUS[outcome])

    # Runs

    def _connect(self) -> None:
        self._writer = self._connect_writer()
        self._client = self._writer.client
        cursor = self._cursor
        experiment_id = self._experiment()
        note = describing.sweep_note(self._plan, self._results)
        self._client.set_experiment_tag(experiment_id, describing.NOTE, note)
        runs = list(self._existing_runs(experiment_id))
        known = {run.data.tags[TRIAL_TAG]: run for run in runs if TRIAL_TAG in run.data.tags}
        parents = [run for run in runs if TRIAL_TAG not in run.data.tags]
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
            self._writer.log_params(self._run(trial["trial_id"], trial), trial, run.data.params if run else {})
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
            yield from (run for run in page if run.data.tags.get(SWEEP_TAG) == self._sweep)
            token = page.token
            if not token:
                return

    def _parent(self, run: Any | None) -> str:
        tags = {**self._tags, **_origin(), SWEEP_TAG: self._sweep}
        if run is None:
            run = self._client.create_run(self._cursor.experiment_id, tags=tags, run_name=self._sweep)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        run_id = str(run.info.run_id)
        self._client.set_tag(run_id, describing.NOTE, describing.sweep_note(self._plan, self._results))
        self._show_dataset(run_id)
        summary = {key: value for key, value in self._plan.items() if isinstance(value, str | int | float)}
        self._writer.log_params(run_id, summary, run.data.params)
        for file in [*self._files, self._results / "plan.json"]:
            if file.exists():
                self._writer.show_file(run_id, file)
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
        tags = {**self._tags, **_origin(), **names, "trial_id": trial_id, TRIAL_TAG: trial_id, SWEEP_TAG: self._sweep}
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
        if (found := describing.dataset_of(self._plan)) is not None:
            self._writer.show_dataset(run_id, found)

    def _show_load(self) -> None:
        """The load of this machine, now and then while the sweep runs; unlike all else it is kept nowhere else."""
        if time.monotonic() - self._load_shown < _LOAD_SECONDS:
            return
        self._load_shown = time.monotonic()
        now = int(time.time() * 1000)
        load = describing.machine_load(self._results)
        self._writer.log_points(str(self._cursor.parent_run_id), [Point(key, value, now, 0) for key, value in load])

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
        self._writer.log_points(run_id, [point for row in new for point in curve_points(row, start)])
        self._seen["curves"] |= {(trial_id, row["samples"]) for row in new}
        if max(row["attempt"] for row in rows) > self._ended.get(trial_id, -1):
            self._set_status(trial_id, "RUNNING")

    def _show_measurements(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        run_id = self._run(trial_id, rows[0])
        new = self._unseen("measurements", rows)
        self._writer.log_points(run_id, [point for row in new for point in measurement_points(row)])
        for row in new:
            if row["reason"]:
                self._client.set_tag(run_id, "reason", row["reason"])
        self._seen["measurements"] |= {(trial_id, row["samples"]) for row in new}

    def _show_attempts(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        run_id = self._run(trial_id, {})
        rows = [row for row in rows if row["outcome"] != RUNNING]
        if not rows:
            return
        self._writer.log_points(run_id, [point for row in rows for point in attempt_points(row)])
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
        """Grids of generated samples, `samples/<trial_id>-<samples>.<suffix>`, of the measured milestones."""
        try:
            names = {path.name for path in entries(self._results / "samples")}
        except FileNotFoundError:
            return
        for trial_id, samples in sorted(self._seen["measurements"]):
            for name in (f"{trial_id}-{samples}.{suffix}" for suffix in _GRIDS):
                if name in names and f"samples/{name}" not in self._cursor.logged:
                    self._writer.show_file(self._cursor.runs[trial_id], self._results / "samples" / name, "samples")
                    self._cursor.logged.add(f"samples/{name}")
                    self._cursor.save(self._results)

    def _unseen(self, kind: Kind, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The first row of each milestone or curve point that has not been shown (a resumed attempt replays some)."""
        first = {(row["trial_id"], row["samples"]): row for row in reversed(rows)}
        return [row for key, row in sorted(first.items()) if key not in self._seen[kind]]

    def _set_status(self, trial_id: str, status: str) -> None:
        if self._statuses.get(trial_id) != status:
            self._client.update_run(self._cursor.runs[trial_id], status=status)
            self._statuses[trial_id] = status

    @staticmethod
    def _name(path: Location) -> str:
        return f"{path.parent.name}/{path.name}"


def _origin() -> dict[str, str]:
    tags = {"mlflow.source.name": "ditlaw", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags
