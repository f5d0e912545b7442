"""The whole house on two cores: a spec through real Ray, DeepSpeed, MLflow and Parquet to a fit and a report."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from listening import beyond_loopback
from safetensors.torch import load_file

from orchestrator.cli import main
from orchestrator.planning.plan import make
from orchestrator.results.location import Location, location
from orchestrator.results.schema import MEASUREMENT, SCHEMA_VERSION
from orchestrator.results.store import read_attempts, read_curves, read_measurements

pytestmark = pytest.mark.slow

SMOKE = Path("sweeps/smoke.yaml")
ABSENT = "http://127.0.0.1:9"
"""An MLflow that does not answer."""
SP, W16 = "  sp: {parameterization: sp}\n", "    - {name: w16, width: 16, depth: 1}\n"
"""Lines of the spec that smaller sweeps do without."""
DATA = ["trial_id", "cell_id", "arm", "size", "samples", "flops", "loss", "loss_train", "outcome", "reason"]
"""Columns of a measurement that must not depend on how the sweep was run."""


def ditlaw(*arguments: object, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )


def here(*arguments: object) -> Result:
    """The same in this process, which spares the imports."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table(results: Location) -> pd.DataFrame:
    return read_measurements(results).sort_values(["trial_id", "samples"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, fashion_mnist):
    """The results folder of one undisturbed run, and what it printed."""
    results = tmp_path_factory.mktemp("undisturbed") / "smoke"
    done = ditlaw("run", SMOKE, "--results", results)
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done


def test_every_cell_is_measured_once(smoke):
    results, _ = smoke
    plan = make(SMOKE)
    raw = pd.read_parquet(results / "measurements")
    assert list(raw.columns) == MEASUREMENT.names
    cells = {(trial.trial_id, samples) for trial in plan.trials for samples in trial.milestones}
    assert len(raw) == len(cells) == plan.num_cells
    assert set(zip(raw["trial_id"], raw["samples"], strict=True)) == cells
    assert set(raw["outcome"]) == {"ok"}
    assert raw["loss"].between(0.3, 2.5).all()
    assert (raw["flops_wasted"] == 0).all()
    for _, one in raw.sort_values("samples").groupby("trial_id"):
        assert one["loss"].is_monotonic_decreasing, "more training, lower loss"


def test_flops_and_tokens_are_those_of_the_model(smoke):
    results, _ = smoke
    trials = {trial.trial_id: trial for trial in make(SMOKE).trials}
    for row in table(results).itertuples():
        trial = trials[row.trial_id]
        assert row.flops == row.samples * trial.flops_per_sample
        assert abs(row.flops - row.budget_flops) <= trial.flops_per_sample * trial.batch_size / 2
        assert row.tokens == row.samples * 16
        assert row.params_total == trial.params_total


def test_a_further_trial_costs_under_a_second(smoke):
    attempts = read_attempts(smoke[0]).sort_values("started_at")
    busy = attempts["train_seconds"] + attempts["evaluation_seconds"]
    overhead = (attempts["wall_seconds"] - busy).groupby(attempts["gang"]).apply(lambda seconds: seconds.iloc[1:])
    assert len(overhead) == 4
    assert overhead.max() < 1.0
    for _, gang in attempts.groupby("gang"):
        waits = (gang["started_at"].shift(-1) - gang["ended_at"]).dropna().dt.total_seconds()
        assert waits.max() < 1.0


def test_both_gangs_worked_side_by_side(smoke):
    attempts = read_attempts(smoke[0])
    assert set(attempts["gang"]) == {"gang-0", "gang-1"}
    spans = attempts.groupby("gang").agg(begin=("started_at", "min"), end=("ended_at", "max"))
    assert spans["begin"].max() < spans["end"].min()


def test_curves_cover_every_trial(smoke):
    curves = read_curves(smoke[0])
    assert curves["trial_id"].nunique() == 6
    assert curves["loss"].notna().all()
    assert curves.groupby("trial_id")["loss"].agg(lambda loss: loss.iloc[-1] < loss.iloc[0]).all()


def test_mlflow_has_one_parent_and_a_child_a_trial_with_curves(smoke):
    import mlflow

    results, _ = smoke
    client = mlflow.MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (len(parents), len(children)) == (1, 6)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    run_ids = set(table(results)["mlflow_run_id"].dropna())
    assert run_ids <= {run.info.run_id for run in children}
    for run in children:
        curve = client.get_metric_history(run.info.run_id, "train/loss")
        final = client.get_metric_history(run.info.run_id, "eval/loss")
        assert len(curve) >= 5
        assert len(final) == 3
        measured = table(results).query("trial_id == @run.data.tags['ditlaw.trial_id']")
        assert [metric.value for metric in final] == pytest.approx(list(measured["loss"]))
        assert [metric.step for metric in final] == list(measured["samples"])
    assert any("report.html" in item.path for item in client.list_artifacts(parents[0].info.run_id))


def test_sync_shows_a_sweep_in_another_database(smoke, tmp_path):
    import mlflow

    copy = tmp_path / "copy"
    shutil.copytree(smoke[0], copy, ignore=shutil.ignore_patterns("mlflow*"))
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    done = here("sync", copy, "--tracking-uri", uri)
    assert done.exit_code == 0, done.output
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("smoke").experiment_id])
    assert len(runs) == 7
    assert here("sync", tmp_path / "absent").exit_code == 2


def test_the_report_is_one_file_with_links_and_samples(smoke):
    results, done = smoke
    page = (results / "report.html").read_text()
    assert "<svg" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1)[^"]*\.(?:js|css|png)"', page)
    assert page.count("/runs/") >= 18
    assert "µP" in page or "mup" in page
    pictures = list((results / "samples").glob("*.png"))
    assert len(pictures) == 6
    assert f"Report:  {results / 'report.html'}" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout


def test_plan_json_is_kept(smoke):
    kept = json.loads((smoke[0] / "plan.json").read_text())
    assert kept["num_cells"] == 18
    assert kept["spec"] == SMOKE.read_text()


def test_the_same_command_again_does_nothing_and_says_so(smoke):
    results, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    began = time.monotonic()
    again = ditlaw("run", SMOKE, "--results", results)
    assert time.monotonic() - began < 15
    assert again.returncode == 0
    assert "Nothing to do: all 18 measurements of smoke are in" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")} == before


def test_fit_answers_from_the_results_folder(smoke):
    done = here("fit", smoke[0], "--law", "isoflop", "--arm", "mup", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["law"] == "isoflop"
    assert len(answer["minima"]) == 3


class Running:
    """`ditlaw run` of the smoke sweep, in processes that a test may break. MLflow does not answer."""

    def __init__(self, results: Path, said: Path) -> None:
        self.results, self.said = results, said
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(SMOKE), "--results", str(results)]
        with said.open("w") as out:
            self.driver = psutil.Popen([*command, "--tracking-uri", ABSENT], stdout=out, stderr=subprocess.STDOUT)
        self.started = [self.driver]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.started += self.driver.children(recursive=True) if self.driver.is_running() else []
        for process in self.started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def until(self, measurements: int) -> None:
        """Wait for so many parts of measurements."""
        deadline = time.monotonic() + 200
        while len(list((self.results / "measurements").glob("[!.]*.parquet"))) < measurements:
            assert self.driver.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, f"no {measurements} measurements in 200 s:\n{self.state()}"
            time.sleep(0.005)

    def state(self) -> str:
        """What was said, what processes there are, and the ends of the logs."""
        there = [f"{one.pid} {one.status()} {' '.join(one.cmdline())[:80]}" for one in self.driver.children(True)]
        logs = [f"{path}:\n{path.read_text()[-600:]}" for path in sorted(self.results.glob("logs/*/*.log"))]
        return "\n".join([self.said.read_text(), *there, *logs])

    def workers(self) -> list[psutil.Process]:
        self.started += self.driver.children(recursive=True)
        return [process for process in self.started if "ray::Member" in " ".join(process.cmdline())]


def test_a_killed_worker_an_interrupt_and_a_killed_driver_lose_nothing(smoke, tmp_path):
    results = tmp_path / "smoke"
    with Running(results, tmp_path / "first.log") as first:
        first.until(1)
        workers = first.workers()
        assert len(workers) == 2
        assert not beyond_loopback(first.started), "no port is open to other machines"
        workers[0].kill()
        first.until(3)
        first.driver.send_signal(signal.SIGINT)
        first.driver.wait(timeout=60)
    said = first.said.read_text()
    assert first.driver.returncode == 130, said
    assert "The same command goes on from here." in said
    assert "Traceback" not in said
    measured = len(table(results))
    assert 3 <= measured < 16
    with Running(results, tmp_path / "second.log") as second:
        second.until(measured + 2)
        second.workers()
        second.driver.kill()
        second.driver.wait(timeout=10)
    assert measured < len(table(results)) < 18
    again = ditlaw("run", SMOKE, "--results", results, "--tracking-uri", ABSENT)
    assert again.returncode == 0, again.stdout + again.stderr
    pd.testing.assert_frame_equal(table(results)[DATA], table(smoke[0])[DATA], check_exact=True)
    assert len(pd.read_parquet(results / "measurements")) == 18, "nothing was measured twice"
    outcomes = read_attempts(results)["outcome"]
    assert {"failed", "stopped", "completed"} == set(outcomes), "the lost attempts are in the books"
    assert "MLflow has not taken everything; the results are complete without it" in again.stderr


def test_statistics_of_a_checkpoint_are_estimated_and_used(smoke, tmp_path):
    trial = make(SMOKE).trials[0]
    out, grid = tmp_path / "v3.safetensors", tmp_path / "v3.png"
    done = here(
        "solver-statistics", SMOKE, "--trial", trial.trial_id[:8], "--results", smoke[0],
        "--images", 32, "--grid", grid, "-o", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"at {trial.milestones[-1]:,} samples, over 32 images" in done.stdout
    assert grid.read_bytes().startswith(b"\x89PNG")
    assert set(load_file(out)) == {"half_log_snr", "l", "s", "b"}
    missing = here("solver-statistics", SMOKE, "--trial", "zzz", "-o", out)
    assert (missing.exit_code, "'zzz' is of 0 trials" in missing.stderr) == (2, True)


def test_two_workers_with_zero_2_give_the_same_losses(smoke, tmp_path):
    spec = tmp_path / "pair.yaml"
    text = SMOKE.read_text().replace("name: smoke", "name: pair").replace("{gangs: 2}", "{workers: 2, zero_stage: 2}")
    text = text.replace("flops: [2e8, 4e8, 8e8]", "flops: [2e8, 4e8]").replace(SP, "").replace(W16, "")
    spec.write_text(text)
    done = ditlaw("run", spec, "--results", tmp_path / "pair", "--tracking-uri", ABSENT)
    assert done.returncode == 0, done.stdout + done.stderr
    pair, one = table(tmp_path / "pair"), table(smoke[0])
    assert set(pair["num_workers"]) == {2}
    both = pair.merge(one, on=["arm", "size", "samples"], suffixes=("", "_one"))
    assert len(both) == len(pair) == 4
    assert both["loss"].to_numpy() == pytest.approx(both["loss_one"].to_numpy(), rel=2e-4)


def test_parquet_carries_its_schema_version(smoke):
    part = next((smoke[0] / "measurements").glob("*.parquet"))
    assert pq.read_schema(part).metadata[b"ditlaw.schema_version"] == str(SCHEMA_VERSION).encode()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("batch_size: 32", "batchsize: 32"), [], "training.batchsize: is not a key here"),
        (None, ["--data", "absent"], "dataset fashion-mnist is not in absent"),
        (None, ["--address", "127.0.0.1:9"], "no Ray cluster answers at '127.0.0.1:9'"),
    ],
    ids=["unknown key", "no data", "no Ray"],
)
def test_bad_input_is_refused_with_exit_2_and_nothing_written(tmp_path, fashion_mnist, change, arguments, message):
    spec = tmp_path / "spec.yaml"
    text = SMOKE.read_text()
    assert change is None or change[0] in text
    spec.write_text(text.replace(*change) if change else text)
    done = here("run", spec, "--results", tmp_path / "results", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [spec]


def test_a_results_folder_of_another_sweep_is_refused(smoke, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(SMOKE.read_text().replace("name: smoke", "name: other"))
    before = sorted(smoke[0].rglob("*"))
    done = here("run", spec, "--results", smoke[0])
    assert done.exit_code == 2
    assert "holds sweep 'smoke'; got 'other'" in done.stderr
    assert sorted(smoke[0].rglob("*")) == before


def test_on_object_storage_the_measurements_are_the_same_and_every_command_reads_them(smoke, s3, tmp_path):
    results, spec = f"{s3}/sweeps/smoke", tmp_path / "smoke.yaml"
    spec.write_text(SMOKE.read_text().replace(SP, ""))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = ditlaw("run", spec, "--results", results, "--tracking-uri", uri)
    assert done.returncode == 0, done.stdout + done.stderr
    there, trials = location(results), {trial.trial_id for trial in make(spec).trials}

    def wanted(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows["trial_id"].isin(trials)].reset_index(drop=True)

    pd.testing.assert_frame_equal(table(there)[DATA], wanted(table(smoke[0]))[DATA], check_exact=True)
    curves = ["trial_id", "samples", "flops", "loss"]
    pd.testing.assert_frame_equal(read_curves(there)[curves], wanted(read_curves(smoke[0]))[curves], check_exact=True)
    assert (read_attempts(there)["outcome"] == "completed").all()
    for kind in ("checkpoints", "samples"):
        ours = {path.name for path in (smoke[0] / kind).iterdir() if path.name.partition("-")[0] in trials}
        assert {path.name for path in (there / kind).iterdir()} == ours
    assert f"Report:  {results}/report.html" in done.stdout
    again = here("run", spec, "--results", results, "--tracking-uri", uri)
    assert again.exit_code == 0
    assert f"Nothing to do: all 9 measurements of smoke are in {results}." in again.stdout
    before = read_measurements(there)
    for command in (
        ["compact", results],
        ["fit", results, "--law", "isoflop", "--arm", "mup", "--force"],
        ["report", results, "-o", str(tmp_path / "report.html")],
    ):
        answer = here(*command)
        assert answer.exit_code == 0, answer.output
    pd.testing.assert_frame_equal(read_measurements(there), before)
    assert len([*(there / "curves").iterdir()]) == 1
    assert "<svg" in (tmp_path / "report.html").read_text()
