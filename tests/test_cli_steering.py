"""`ditlaw cancel` and `ditlaw retry`, and a driver's side of them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from sweep_folder import drive, smoke

from orchestrator.cli import Commands, main
from orchestrator.cli.running import STOP_SIGNALS, _Inbox, _interrupt, _on_stop_signals
from orchestrator.results.requests import Fresh, ask, drop_stops, requests_of, retried_at
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling import scheduler
from orchestrator.scheduling.backend import AttemptEnded, GangReady, GangShape, Node
from orchestrator.scheduling.books import DRIVER_DIED, NODE_LOST, failures_in
from orchestrator.scheduling.capacity import Cluster
from orchestrator.scheduling.scheduler import RetryRequested
from orchestrator.scheduling.state import Job, Kind, Policy, RunTrial, State, opening
from orchestrator.status import StatusReader


def ditlaw(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "smoke"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_anything_runs_leaves_with_130(number):
    @click.group(cls=Commands)
    def commands() -> None: ...

    @commands.command()
    def begin() -> None:
        with _on_stop_signals(_interrupt):
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = signal.getsignal(number)
    done = CliRunner().invoke(commands, ["begin"])
    assert (done.exit_code, done.output) == (130, "Interrupted.\n")
    assert signal.getsignal(number) == before


class Recorder:
    """Stands in for a driver."""

    def __init__(self) -> None:
        self.stopped, self.retried = False, []

    def request_stop(self) -> None:
        self.stopped = True

    def request_retry(self, trials: tuple[str, ...]) -> None:
        self.retried += trials


def test_cancel_asks_the_driver_and_waits_for_it(folder, monkeypatch):
    drive(smoke(), folder)
    monkeypatch.setattr("orchestrator.cli.running.INBOX_SECONDS", 0.0)
    driver, ready = Recorder(), threading.Event()

    def work() -> None:
        with Store(folder).lock():
            inbox = _Inbox(folder, lambda line: None)
            ready.set()
            deadline = time.monotonic() + 20
            while not driver.stopped and time.monotonic() < deadline:
                inbox.look(driver)
                time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(10)
    done = ditlaw("cancel", folder, "--wait", 20)
    thread.join(timeout=20)
    assert driver.stopped
    assert done.exit_code == 0
    assert done.output.endswith("Stopped. The same command goes on from here.\n")
    assert "Nothing to cancel" in ditlaw("cancel", folder).output


def test_a_stop_is_for_the_driver_of_its_time_and_a_retry_stays(folder):
    ask(folder, "stop")
    asked = ask(folder, "retry", ["b", "a"])
    (folder / "requests" / "zzz.json").write_text("{}")
    assert [request.kind for request in requests_of(folder)] == ["stop", "retry"]
    drop_stops(folder)
    assert requests_of(folder) == [asked]
    assert retried_at(folder) == {name: Fresh(at=asked.at, attempts=0) for name in "ab"}
    driver, inbox = Recorder(), _Inbox(folder, lambda line: None)
    inbox._looked = 0.0
    inbox.look(driver)
    assert (driver.stopped, driver.retried) == (False, []), "what came before the driver is in its books"


def test_failed_trials_get_a_fresh_count_and_are_measured(folder):
    plan = smoke()
    bad = plan.trials[0].trial_id

    def fail(assignment):
        return "bad disk" if assignment.trial.trial_id == bad else None

    drive(plan, folder, fail)
    again = drive(plan, folder, fail)
    assert len(read_attempts(folder).query("trial_id == @bad")) == 4, "the same command tries it once more"
    assert list(again.given_up) == [bad]
    done = ditlaw("retry", folder)
    assert done.exit_code == 0, done.output
    assert "1 trial of smoke with a fresh count of retries. The next ditlaw run" in done.output
    assert StatusReader(folder).read().counts["waiting"] == 1
    drive(plan, folder, fail)
    assert len(read_attempts(folder).query("trial_id == @bad")) == 7
    assert drive(plan, folder).succeeded
    assert StatusReader(folder).read().state == "complete"
    assert "Nothing to retry: no trial of smoke has failed." in ditlaw("retry", folder).output


def test_diverged_trials_are_tried_again_only_where_named(folder):
    plan = smoke()
    bad, name = plan.trials[0].trial_id, plan.trials[0].name
    drive(plan, folder, lambda assignment: "diverged" if assignment.trial.trial_id == bad else None)
    assert StatusReader(folder).read().counts["diverged"] == 1
    assert "Nothing to retry" in ditlaw("retry", folder).output
    assert len(read_measurements(folder)) == 18
    with Store(folder).lock():
        held = ditlaw("retry", folder, bad[:8])
        assert (held.exit_code, "cancel it before" in held.output) == (2, True)
    done = ditlaw("retry", folder, name)
    assert done.exit_code == 0, done.output
    assert len(read_measurements(folder)) == 15
    assert len(list((folder / "retracted" / "measurements").iterdir())) == 3, "kept, out of the table"
    assert drive(plan, folder).succeeded
    assert set(read_measurements(folder)["outcome"]) == {"ok"}
    finished = ditlaw("retry", folder, bad)
    assert (finished.exit_code, f"{name}) is done; wanted one" in finished.output) == (2, True)


def test_the_count_of_failures_comes_from_the_store():
    numbers = itertools.count()

    def row(outcome: str, start: int, end: int, reason: str = "x") -> dict:
        known = {"attempt": next(numbers), "started_at": datetime(2026, 1, 1, tzinfo=UTC)}
        return {"outcome": outcome, "samples_start": start, "samples_end": end, "reason": reason, **known}

    fresh = [row("failed", 0, 0), row("failed", 0, 30)]
    assert failures_in(fresh, 0, None) == 2
    assert failures_in([*fresh, row("stopped", 0, 40)], 40, None) == 0
    assert failures_in([row("stopped", 0, 40), *fresh], 40, None) == 0, "in the order of their numbers"
    behind = datetime(2025, 1, 1, tzinfo=UTC)  # the clock of who asked, against that of the workers
    assert failures_in(fresh, 0, Fresh(at=behind, attempts=2)) == 0
    assert failures_in([*fresh, row("failed", 0, 30)], 0, Fresh(at=behind, attempts=2)) == 1
    assert failures_in(fresh, 0, Fresh(at=behind.replace(year=2027), attempts=None)) == 0, "as earlier versions asked"
    assert failures_in([*fresh, row("failed", 0, 70), row("failed", 64, 70)], 64, None) == 2, "from its checkpoint on"
    assert failures_in([*fresh, row("failed", 0, 9, DRIVER_DIED), row("failed", 0, 9, f"{NODE_LOST}: x")], 0, None) == 2


def given_up() -> tuple[State, str]:
    kind = Kind("s", GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=0))
    branch = Job(trial_id="branch", kind=kind, waits_for=("t", 64))
    state = opening(
        [Job(trial_id="t", kind=kind), branch, Job(trial_id="u", kind=kind)],
        Cluster.of([Node(name="n", cpus=1)]),
        policy=Policy(backoff_seconds=0.0, max_failures=2),
        failures={"t": 9},
    )
    state, _ = scheduler.begin(state)
    gang = next(iter(state.gangs))
    state, actions = scheduler.step(state, GangReady(gang=gang))
    assert RunTrial(gang, "t") in actions
    ended = AttemptEnded(gang=gang, trial_id="t", attempt=0, outcome="failed", reason="x")
    return scheduler.step(state, ended)[0], gang


def test_a_trial_without_retries_left_is_tried_once_and_given_up_with_its_branch():
    state, _ = given_up()
    assert set(state.given_up) == {"t", "branch"}


def test_a_retry_brings_back_a_trial_and_its_branch():
    state, _ = given_up()
    state, _ = scheduler.step(state, RetryRequested("t"))
    assert not state.given_up
    assert set(state.waiting) == {"t", "branch", "u"}
    assert dict(state.blocked.items()) == {"branch": ("t", 64)}
    same, actions = scheduler.step(state, RetryRequested("unknown"))
    assert (same, actions) == (state, [])


def test_a_lock_is_waited_for(folder):
    drive(smoke(), folder)
    ready = threading.Event()

    def hold() -> None:
        with Store(folder).lock():
            ready.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(10)
    with pytest.raises(ValueError, match="is in use by process"), Store(folder).lock():
        pass
    with Store(folder).lock(wait_seconds=20):
        pass
    thread.join()
