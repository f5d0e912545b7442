"""`ditlaw bench overhead`: what a trial costs that does nothing, beside Ray Tune and Ray Train on the same nothing.

Ours goes the whole way of a real trial: through the scheduler, a claim, a log, a Ray actor, a measurement and an
attempt's row synced to the disk, and the driver's look at the store before it believes that the trial is done.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.planning.plan import Plan, make
from orchestrator.results.logs import add_line
from orchestrator.results.schema import MEASUREMENT, SCHEMA_VERSION
from orchestrator.results.store import Store, read_attempts
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.spec.columns import planned_columns

SPEC = """\
name: overhead
models:
  patch: 14
  head_dim: 4
  sizes: [{{name: w4, width: 4, depth: 1}}]
arms: {{sp: {{parameterization: sp}}}}
training: {{batch_size: 8}}
budgets: {{samples: [8]}}
seeds: [{seeds}]
compute: {{gangs: {gangs}}}
"""
TUNE_TRIALS = 60
BUSY_SECONDS = 0.2
"""What a trial works in the second part: it sleeps so long."""


class NoopWorker:
    """A worker whose trials train nothing; everything around the training is as in a real one."""

    seconds = 0.0

    def __init__(self, results: str, data: str, threads: int, use_gpu: bool) -> None:
        self._store = Store(Path(results))

    def join(self, rank: int, world_size: int, address: str, port: int) -> None:
        """There is no process group to join."""

    def run(self, assignment: Assignment) -> tuple[str, None]:
        """Write what a trial leaves: a log, a measurement a milestone, and the attempt's row."""
        began, trial = datetime.now(UTC), assignment.trial
        if self.seconds:
            time.sleep(self.seconds)
        line = f"attempt begins in process {os.getpid()}"
        add_line(self._store.folder, trial.trial_id, assignment.attempt, line)
        self._store.append_measurements([_measurement(assignment, milestone) for milestone in assignment.milestones])
        self._store.append_attempts([_attempt(assignment, began)])
        return "completed", None

    def progress(self) -> Progress | None:
        """None: it is over before anyone asks."""
        return None

    def request_stop(self) -> None:
        """It stops by itself soon enough."""


class SleepingWorker(NoopWorker):
    """The same, after BUSY_SECONDS of work."""

    seconds = BUSY_SECONDS


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How a run of many trials went."""

    startup_seconds: float
    """From the driver's start to its first attempt."""
    periods: list[float]
    """Seconds from an attempt's begin to the next one's on the same gang."""
    busy_share: float | None
    """Of the gangs' time: in which a trial worked, while all of them were up and had work; None if they never were."""
    busy_share_with_start: float
    """The same from the first begin to the last end: the other gangs' start-up counts as idle."""


def run(trials: int = 200, busy_trials: int = 2000, gangs: int = 8, peers: bool = True) -> dict[str, Any]:
    """Time no-op trials one after the other on a warm gang, then many short ones on several gangs, then the peers.

    Returns:
        per_trial_ms (median on a warm gang), per_trial_p95_ms, startup_s (of the driver's first attempt), busy_share
        and busy_share_with_start (of the gangs' time in trials of BUSY_SECONDS, while all of them are up, and from the
        first one's begin) with busy_trials, busy_gangs, busy_trial_s and busy_period_ms (median); tune_reuse_ms
        (Ray Tune with reuse_actors, per trial) and torchtrainer_s (one TorchTrainer.fit with one worker); versions.
    """
    one = _drive("NoopWorker", trials, 1, cpus=1)
    figures: dict[str, Any] = {
        "per_trial_ms": 1e3 * statistics.median(one.periods),
        "per_trial_p95_ms": 1e3 * statistics.quantiles(one.periods, n=20)[-1],
        "startup_s": one.startup_seconds,
    }
    if busy_trials:
        many = _drive("SleepingWorker", busy_trials, gangs, cpus=gangs)
        figures |= {
            "busy_share": many.busy_share,
            "busy_share_with_start": many.busy_share_with_start,
            "busy_period_ms": 1e3 * statistics.median(many.periods),
            "busy_trials": busy_trials,
            "busy_gangs": gangs,
            "busy_trial_s": BUSY_SECONDS,
        }
    if peers:
        figures |= _peers()
    cores = len(os.sched_getaffinity(0))
    return {**figures, "trials": trials, "cores": cores, "ray": version("ray"), "python": platform.python_version()}


def _drive(worker: str, trials: int, gangs: int, cpus: int) -> Timing:
    from orchestrator.scheduling.driver import Driver
    from orchestrator.scheduling.ray_backend import RayBackend

    with tempfile.TemporaryDirectory() as folder:
        plan, results = _plan(Path(folder), trials, gangs), Path(folder) / "results"
        store = Store(results)
        store.claim(plan.sweep.name, plan.digest)
        backend = RayBackend(None, results, Path(folder), worker=f"{__name__}:{worker}", cpus=cpus)
        began = datetime.now(UTC)
        try:
            state = Driver(plan, store, backend, lambda trial_id: None, lambda snapshot: None).run()
        finally:
            backend.close()
        assert state.succeeded, state.broken
        attempts = read_attempts(results)
    gaps = attempts.sort_values("started_at").groupby("gang")["started_at"].diff().dropna().dt.total_seconds()
    return Timing(
        startup_seconds=(attempts["started_at"].min() - began).total_seconds(),
        periods=list(gaps),
        busy_share=_busy(attempts, *_all_up(attempts, gangs)),
        busy_share_with_start=_busy(attempts, attempts["started_at"].min(), attempts["ended_at"].max()) or 0.0,
    )


def _all_up(attempts: pd.DataFrame, gangs: int) -> tuple[pd.Timestamp, pd.Timestamp]:
    """When the last gang had begun, and when the first one had nothing more to do."""
    by_gang = attempts.groupby("gang")
    begun, ended = by_gang["started_at"].min(), by_gang["ended_at"].max()
    return begun.max(), ended.min() if len(begun) == gangs else begun.max()


def _busy(attempts: pd.DataFrame, begin: pd.Timestamp, end: pd.Timestamp) -> float | None:
    """The share of the gangs' time between two moments in which trials of BUSY_SECONDS worked; None if none."""
    seconds = (end - begin).total_seconds()
    if seconds <= 0:
        return None
    start = (attempts["started_at"] - begin).dt.total_seconds()
    worked = (start + BUSY_SECONDS).clip(upper=seconds) - start.clip(lower=0.0)
    return float(worked.clip(lower=0.0).sum() / (attempts["gang"].nunique() * seconds))


def _plan(folder: Path, trials: int, gangs: int) -> Plan:
    spec = folder / "overhead.yaml"
    spec.write_text(SPEC.format(seeds=", ".join(map(str, range(trials))), gangs=gangs))
    return make(spec)


def _peers() -> dict[str, float]:
    """Ray Tune and Ray Train on a trial that does nothing, on a cluster of their own that is up already."""
    import logging

    import ray

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=2, **quiet)
        try:
            return {"tune_reuse_ms": 1e3 * _tune(folder), "torchtrainer_s": _torchtrainer(folder)}
        finally:
            ray.shutdown()


def _tune(folder: str) -> float:
    """Seconds from one trial to the next on an actor that is reused: the median of TUNE_TRIALS."""
    from ray import tune

    class Noop(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"loss": 1.0, "at": time.time(), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    config = tune.TuneConfig(num_samples=TUNE_TRIALS, reuse_actors=True, max_concurrent_trials=1)
    run_config = tune.RunConfig(storage_path=folder, name="noop", verbose=0)
    tuner = tune.Tuner(Noop, param_space={"seed": tune.uniform(0, 1)}, tune_config=config, run_config=run_config)
    return float(tuner.fit().get_dataframe()["at"].sort_values().diff().median())


def _torchtrainer(folder: str) -> float:
    """Seconds of one fit with one worker that reports once."""
    import ray.train
    from ray.train.torch import TorchTrainer

    def train() -> None:
        ray.train.report({"loss": 1.0})

    began = time.perf_counter()
    TorchTrainer(
        train,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(storage_path=folder, name="noop"),
    ).fit()
    return time.perf_counter() - began


def _measurement(assignment: Assignment, milestone: int) -> dict[str, Any]:
    trial = assignment.trial
    known = {"schema_version": SCHEMA_VERSION, "loss": 1.0, "outcome": "ok", "attempt": assignment.attempt}
    cost = {"wall_seconds": 0.0, "gpu_hours": 0.0, "flops_useful": 0.0, "flops_wasted": 0.0}
    empty: dict[str, Any] = dict.fromkeys(MEASUREMENT.names)
    return empty | planned_columns(trial, milestone) | known | cost | {"created_at": datetime.now(UTC)}


def _attempt(assignment: Assignment, began: datetime) -> dict[str, Any]:
    ended = datetime.now(UTC)
    return {
        "trial_id": assignment.trial.trial_id,
        "attempt": assignment.attempt,
        "gang": assignment.gang,
        "host": platform.node(),
        "started_at": began,
        "ended_at": ended,
        "outcome": "completed",
        "reason": None,
        "samples_start": 0,
        "samples_end": assignment.trial.last,
        "flops": assignment.trial.flops,
        "wall_seconds": (ended - began).total_seconds(),
        "train_seconds": 0.0,
        "evaluation_seconds": 0.0,
        "startup_seconds": 0.0,
        "checkpoint_seconds": 0.0,
        "waited_seconds": assignment.waited_seconds,
        "compile_seconds": 0.0,
    }
