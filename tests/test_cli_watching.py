"""`ditlaw status` and `ditlaw logs`: what they say of results folders as drivers leave them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from sweep_folder import drive, smoke
from test_analysis_planted import attempt

from orchestrator.best_losses import BestLosses, leaders, lowest
from orchestrator.cli import main
from orchestrator.console import CALM_SECONDS, LiveView
from orchestrator.results.store import Store
from orchestrator.scheduling.backend import Progress
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.status import StatusReader
from orchestrator.status_view import best_table


def ditlaw(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "smoke"


def test_a_complete_sweep(folder):
    plan = smoke()
    drive(plan, folder)
    status = json.loads(ditlaw("status", folder, "--json").output)
    assert (status["state"], status["sweep"], status["digest"]) == ("complete", "smoke", plan.digest)
    assert status["counts"] == {"done": 6, "diverged": 0, "failed": 0, "running": 0, "blocked": 0, "waiting": 0}
    assert status["cells_measured"] == status["num_cells"] == 18
    assert status["flops_done"] == pytest.approx(plan.flops_planned)
    assert status["eta_seconds"] is None
    best = {(row["arm"], row["budget_flops"]): row["size"] for row in status["best"]}
    assert best == {(arm, budget): "w8" for arm in ("mup", "sp") for budget in (2e8, 4e8, 8e8)}
    shown = ditlaw("status", folder).output
    assert "smoke: complete" in shown
    assert "\x1b" not in shown, "calm where there is no terminal"


def test_a_trial_out_of_retries_is_named_with_its_reason(folder):
    plan = smoke()
    bad = plan.trials[0].trial_id
    state = drive(plan, folder, lambda assignment: "bad disk" if assignment.trial.trial_id == bad else None)
    assert list(state.given_up) == [bad]
    status = StatusReader(folder).read()
    failed = next(trial for trial in status.trials if trial.trial_id == bad)
    assert (failed.state, failed.failures, failed.attempts) == ("failed", 3, 3)
    assert failed.reason == "RuntimeError: bad disk"
    assert status.state == "stopped"
    assert [fault.attempt for fault in status.faults] == [0, 1, 2]
    shown = ditlaw("status", folder).output
    assert "RuntimeError: bad disk" in shown
    assert "5 done, 1 failed of 6" in shown


def test_an_attempt_runs_while_its_driver_holds_the_folder(folder):
    plan, store = smoke(), Store(folder)
    drive(plan, folder, lambda assignment: "bad disk" if assignment.trial == plan.trials[0] else None)
    trial = plan.trials[0]
    (folder / "logs" / trial.trial_id / "3.log").touch()
    point = {"trial_id": trial.trial_id, "attempt": 3, "loss": 1.25, "learning_rate": 1e-3, "wall_seconds": 1.0}
    points = [{**point, "samples": s, "flops": 1.0, "samples_per_second": 100.0} for s in (32, 64)]
    with store.lock():
        store.append_curves(points)
        status = StatusReader(folder).read()
        now = next(found for found in status.trials if found.trial_id == trial.trial_id)
        assert (status.state, now.state, now.samples, now.loss) == ("running", "running", 64, 1.25)
        assert (status.samples_per_second or 0) > 0
        assert (status.eta_seconds or 0) > 0
        assert now.mfu == status.mfu == pytest.approx(100 * trial.flops_per_sample / plan.peak(trial))
        assert "process" in str(status.driver)
    assert StatusReader(folder).read().state == "stopped"


def test_best_losses_are_those_of_the_status_and_each_part_is_read_once(folder):
    plan = smoke()
    drive(plan, folder)
    best = BestLosses(folder)
    assert best.read() == best.read() == list(StatusReader(folder).read().best)


def test_the_view_of_a_run_tells_speed_best_loss_and_faults_in_a_line(folder):
    plan = smoke()
    state, trial = drive(plan, folder), plan.trials[0]
    progress = Progress(
        trial_id=trial.trial_id,
        attempt=0,
        phase="training",
        samples=64,
        samples_start=0,
        loss=1.25,
        samples_per_second=100.0,
    )
    out = StringIO()
    snapshot = Snapshot(
        state=state,
        trials={known.trial_id: known for known in plan.trials},
        progress={"gang-0": progress},
        flops_done=5e8,
        flops_planned=1e9,
        seconds=10.0,
        flops_here=5e8,
        seconds_left=10.0,
        packs={},
        notes=["gang-0 was lost: node gone"],
        faults=1,
        diverged=3,
    )
    with LiveView(Console(file=out, width=40), BestLosses(folder).read, {trial.trial_id: plan.peak(trial)}) as view:
        view._last_line = -CALM_SECONDS
        view.listen(snapshot)
    told = out.getvalue()
    assert "! gang-0 was lost: node gone" in told
    assert re.search(r"\(50%\), 0.1 GFLOP/s \(MFU \d+%\), about 10 s left, best [\d.]+ at 8e\+08 FLOPs", told)
    assert re.search(r" at 8e\+08 FLOPs \((mup|sp) w8\)", told)
    assert "3 diverged, 1 fault" in told
    assert len(told.splitlines()) == 1 + 1 + len(state.done), "no line is broken where nobody sees a terminal"
    packs = dict.fromkeys(state.jobs, (plan.trials[0], plan.trials[1]))
    screen = StringIO()
    with LiveView(Console(file=screen, width=120, force_terminal=True)) as view:
        view.listen(replace(snapshot, packs=packs, faults=2))
    assert "12 trials done, 0 running, 0 waiting; 3 diverged; 2 faults" in screen.getvalue()


OBJECTIVES = pd.DataFrame(
    [("a", "flow", 1e9, 0.9), ("a", "flow", 2e9, 0.5), ("b", "flow", 2e9, 0.4), ("c", "edm", 2e9, 0.1),
     ("c", "edm", 2e9, 0.2), ("d", "flow", 2e9, 0.6)],
    columns=["arm", "objective", "budget_flops", "loss"],
).assign(trial_id="t", size="w8", samples=64, outcome="ok")  # fmt: skip


def test_losses_of_different_objectives_are_never_held_against_each_other():
    best = lowest(OBJECTIVES)
    assert [(row.objective, row.budget_flops, row.arm, row.loss) for row in best] == [
        ("flow", 1e9, "a", 0.9), ("edm", 2e9, "c", 0.1), ("flow", 2e9, "a", 0.5), ("flow", 2e9, "b", 0.4),
        ("flow", 2e9, "d", 0.6),
    ]  # fmt: skip
    assert [(row.objective, row.arm, row.loss) for row in leaders(best)] == [("edm", "c", 0.1), ("flow", "b", 0.4)]
    out = StringIO()
    Console(file=out, width=80).print(best_table(best))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0] == ["of", "different", "objectives,", "which", "do", "not", "compare"]
    assert [lines[1], lines[4]] == [["edm"], ["flow"]]
    assert [line[2] for line in lines if "FLOPs" in line] == ["c", "a", "a", "b", "d"]
    out = StringIO()
    Console(file=out, width=80).print(best_table([row for row in best if row.objective == "flow"]))
    assert "flow" not in out.getvalue()


def test_a_packs_gang_is_counted_once(folder):
    """Its members have each its whole time in their rows, and a part of its speed."""
    plan, store, began = smoke(), Store(folder), datetime(2026, 1, 1, tzinfo=UTC)
    drive(plan, folder)
    before = StatusReader(folder).read()
    row = {"wall_seconds": 3600.0, "samples": 64, "flops": 1.0, "outcome": "ok", "reason": None}
    rows = [attempt(trial.trial_id, [row], began) | {"gang": "g", "attempt": 7} for trial in plan.trials[:3]]
    rows.append(rows[0] | {"attempt": 8, "started_at": began + timedelta(hours=1), "wall_seconds": 1800.0})
    rows.append(rows[0] | {"attempt": 9, "gang": "other"})
    store.append_attempts(rows)
    assert StatusReader(folder).read().device_hours - before.device_hours == pytest.approx(1 + 0.5 + 1)


def test_a_driver_that_died_is_told_from_one_that_stopped(folder):
    drive(smoke(), folder, lambda assignment: "bad disk")
    (folder / ".lock").write_text('{"pid": 1, "host": "gone", "since": "2026-01-01T00:00:00+00:00"}')
    status = StatusReader(folder).read()
    assert (status.state, status.driver) == ("died", "process 1 on gone since 2026-01-01T00:00:00+00:00")


def test_watching_ends_with_the_driver(folder):
    drive(smoke(), folder)
    lines = ditlaw("status", folder, "--watch").output.splitlines()
    assert [line.rpartition(", ")[0] for line in lines] == ["smoke complete; 6 done of 6; 18/18 measured"]
    assert json.loads(ditlaw("status", folder, "--watch", "--json").output)["state"] == "complete"


def test_logs_of_a_trial_its_attempts_and_all(folder):
    plan = smoke()
    drive(plan, folder)
    trial = plan.trials[0]
    one = ditlaw("logs", folder, trial.trial_id[:8])
    assert one.output == f"attempt 0 of {trial.name}\n"
    assert ditlaw("logs", folder, trial.name, "--attempt", 0, "--follow").output == one.output
    everything = ditlaw("logs", folder).output
    assert everything.count("==> ") == 6
    missing = ditlaw("logs", folder, trial.trial_id, "--attempt", 7)
    assert (missing.exit_code, "has no attempt 7; it has 0." in missing.output) == (2, True)
    unknown = ditlaw("logs", folder, "zzz")
    assert (unknown.exit_code, "'zzz' is of 0 trials" in unknown.output) == (2, True)


@pytest.mark.parametrize("command", [["status"], ["logs"], ["cancel"], ["retry"], ["report"], ["sync"]])
@pytest.mark.parametrize("name", ["../../etc", "..", "a/../../b", "no-such-sweep"])
def test_names_lead_nowhere_but_below_results(tmp_path, monkeypatch, command, name):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    done = ditlaw(*command, name)
    assert done.exit_code == 2
    assert "wanted a results folder" in done.output
