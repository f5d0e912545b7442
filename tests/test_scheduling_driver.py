"""The driver: what it does when workers lie, die at the wrong moment or fail everywhere. The store decides."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sweep_folder
from test_analysis_planted import attempt, measurement
from torch import ones

from orchestrator.planning.plan import Plan, make
from orchestrator.results.checkpoints import checkpoint_name, checkpoints_folder
from orchestrator.results.location import location
from orchestrator.results.lock import LockLost
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.scheduling.books import Books
from orchestrator.scheduling.driver import Driver
from orchestrator.scheduling.local_backend import LocalBackend
from orchestrator.scheduling.state import Policy, State
from orchestrator.spec.trial import Trial
from orchestrator.tracking.recording import RecordingTracker
from orchestrator.training.checkpoint import STATE, Checkpoint, Checkpoints

Driven = tuple[State, Store, list[str]]
Act = Callable[[Assignment, int], None]


class Worker:
    """Writes the measurements that it is asked for, and does `before` or `after` each attempt what a test wants."""

    def __init__(self, store: Store, before: Act, after: Act) -> None:
        self.store, self.before, self.after, self.attempts = store, before, after, 0
        self.seen: Progress | None = None

    def join(self, *arguments: object) -> None: ...

    def run(self, assignment: Assignment) -> tuple[str, None]:
        self.attempts += 1
        for one in assignment.members:
            self.before(one, self.attempts)
            trial = one.trial
            for samples in one.milestones:
                row = measurement(trial.trial_id, trial.arm, "10K", 1e-3, samples, 1e9, 1.0, datetime.now(UTC))
                row |= {"sweep": trial.sweep, "size": trial.size, "attempt": one.attempt}
                self.store.append_measurements([row])
        self.after(assignment, self.attempts)
        return "completed", None

    def progress(self) -> Progress | None:
        return self.seen

    def request_stop(self) -> None: ...


def nothing(assignment: Assignment, attempt: int) -> None: ...


@pytest.fixture
def plan() -> Plan:
    plan = make(Path("sweeps/smoke.yaml"))
    sweep = plan.sweep.model_copy(update={"compute": plan.sweep.compute.model_copy(update={"gangs": 1})})
    return dataclasses.replace(plan, sweep=sweep)


@pytest.fixture
def drive(plan: Plan, tmp_path: Path):
    def drive(
        before: Act = nothing,
        after: Act = nothing,
        store: Store | None = None,
        plan: Plan = plan,
        reads: Store | None = None,
    ) -> Driven:
        read, notes = reads or Store(tmp_path / "results"), []
        worker = Worker(store or read, before, after)
        backend = LocalBackend(lambda: worker)
        tracker = RecordingTracker()
        tracker.start(plan.as_json())
        policy = Policy(backoff_seconds=0.0)
        driver = Driver(plan, read, backend, tracker.run_id, lambda snapshot: notes.extend(snapshot.notes), policy)
        state = driver.run()
        notes.extend(driver.snapshot().notes)
        backend.close()
        return state, read, notes

    return drive


def test_every_milestone_is_measured_once_and_a_second_run_finds_nothing_to_do(drive, plan):
    state, store, _ = drive()
    assert state.succeeded
    assert len(read_measurements(store.folder)) == plan.num_cells == 18
    books = Books(plan, store)
    assert (books.waiting, books.num_measured) == ([], 18)
    assert all(books.reached(trial) == trial.last for trial in plan.trials)


def test_a_failed_attempt_is_tried_again_and_entered(drive):
    def fail_once(assignment: Assignment, attempt: int) -> None:
        if attempt == 2:
            raise RuntimeError("out of luck")

    state, store, notes = drive(before=fail_once)
    assert state.succeeded
    attempts = read_attempts(store.folder)
    assert list(attempts["reason"]) == ["RuntimeError: out of luck"]
    assert any("failed (logs/" in note and "out of luck" in note for note in notes)


def test_a_pack_is_one_attempt_and_its_next_one_is_of_what_is_left(drive, plan):
    sizes: list[int] = []
    compute = plan.sweep.compute.model_copy(update={"packing": 2})
    packing = dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))

    def fail_in_the_first_pack(assignment: Assignment, attempt: int) -> None:
        if attempt == 1 and assignment.mates == ():  # mates are looked at one by one, the first has them
            raise RuntimeError("the worker died")

    def count(assignment: Assignment, attempt: int) -> None:
        sizes.append(len(assignment.members))

    state, store, notes = drive(before=fail_in_the_first_pack, after=count, plan=packing)
    assert state.succeeded
    assert len(read_measurements(store.folder)) == plan.num_cells == 18
    assert sizes == [1, 2, 2], "six trials of three sizes in packs of two arms; of the first one member was left"
    attempts = read_attempts(store.folder)
    assert set(attempts["reason"]) == {"RuntimeError: the worker died"}
    assert len(attempts) == 2, "both members, whatever they had measured"
    assert sum("failed (logs/" in note for note in notes) == 1, "one of them lacks nothing"
    assert drive(plan=packing)[0].succeeded


def test_trials_of_packs_are_counted_and_divergence_is_no_fault(plan, tmp_path):
    """Of three packs of two the first diverges, the second fails once, and a stop comes while one is trained."""
    store, attempts = Store(tmp_path / "results"), []
    compute = plan.sweep.compute.model_copy(update={"packing": 2})
    packing = dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))

    class Diverging(Worker):
        def run(self, assignment: Assignment) -> tuple[str, str | None]:
            attempts.append(assignment)  # a gang that failed is another worker
            if len(attempts) == 2:
                raise RuntimeError("out of luck")
            if len(attempts) == 3:
                driver.request_stop()
                wait_until(lambda: driver.snapshot().state.stopping)
            told = {"outcome": "diverged", "reason": "loss is nan", "loss": None} if len(attempts) == 1 else {}
            for one in assignment.members:
                for samples in one.milestones:
                    row = measurement(one.trial.trial_id, one.trial.arm, "10K", 1e-3, samples, 1e9, 1.0, now())
                    row |= {"sweep": one.trial.sweep, "size": one.trial.size, "attempt": one.attempt, **told}
                    self.store.append_measurements([row])
            return ("diverged" if told else "completed"), told.get("reason")

    backend, tracker = LocalBackend(lambda: Diverging(store, nothing, nothing)), RecordingTracker()
    tracker.start(packing.as_json())
    driver = Driver(packing, store, backend, tracker.run_id, lambda snapshot: None, Policy(backoff_seconds=0.0))
    state, ending = driver.run(), driver.ending()
    backend.close()
    assert (len(state.jobs), state.num_waiting) == (3, 1)
    assert (ending.to_go, ending.given_up) == (2, {})
    last = driver.snapshot()
    assert (last.faults, last.diverged) == (1, 2)


def now() -> datetime:
    return datetime.now(UTC)


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_dies_after_its_last_measurement_is_not_repeated(drive):
    def die(assignment: Assignment, attempt: int) -> None:
        raise RuntimeError("no space for the attempt's row")

    state, store, _ = drive(after=die)
    assert state.succeeded
    assert len(list((store.folder / "measurements").glob("*.parquet"))) == 18


def test_workers_that_write_elsewhere_are_found_out(drive, tmp_path):
    state, store, notes = drive(store=Store(tmp_path / "elsewhere"))
    assert not state.succeeded
    assert "do not write to the folder that the driver reads" in str(state.broken)
    assert read_measurements(store.folder).empty
    assert notes


def test_what_fails_everywhere_stops_the_sweep(drive):
    def fail(assignment: Assignment, attempt: int) -> None:
        raise RuntimeError("bad disk")

    state, store, _ = drive(before=fail)
    assert "6 attempts failed in a row, the last one: RuntimeError: bad disk" in str(state.broken)
    assert len(read_attempts(store.folder)) == 6


def test_a_driver_whose_folder_another_one_has_taken_claims_nothing_more(drive, plan, tmp_path):
    store = Store(tmp_path / "results")

    def take_over(assignment: Assignment, attempt: int) -> None:
        if attempt == 2:
            (store.folder / ".lock").write_text('{"pid": 7, "host": "far", "since": "noon"}')

    with store.lock(), pytest.raises(LockLost, match="was taken over by process 7 on far since noon"):
        drive(after=take_over, reads=store)
    assert len(list((store.folder / "logs").glob("*/*.log"))) == 2


def test_attempts_that_died_with_their_driver_are_entered(drive, plan):
    store = Store(drive()[1].folder)
    trial = plan.trials[0]
    log = store.folder / "logs" / trial.trial_id / "1.log"
    log.touch()
    point = {"trial_id": trial.trial_id, "attempt": 1, "loss": 1.0, "learning_rate": 1e-3}
    point |= {"samples_per_second": None, "wall_seconds": 1.0}
    store.append_curves([{**point, "samples": s, "flops": s * trial.flops_per_sample} for s in (64, 96, 640)])
    before = Books(plan, store).spent(trial.trial_id)
    books = Books(plan, store)
    books.close_abandoned()
    assert books.spent(trial.trial_id) - before == 640 - 64
    row = read_attempts(store.folder).query("trial_id == @trial.trial_id and attempt == 1").iloc[0]
    assert (row["outcome"], row["reason"], row["samples_end"]) == ("failed", "the driver died", 640)
    again = Books(plan, store)
    again.close_abandoned()
    assert again.spent(trial.trial_id) == books.spent(trial.trial_id), "entered once"


def test_a_trained_trial_without_checkpoints_is_named(drive, plan, tmp_path):
    _, store, _ = drive()
    trial = plan.trials[0]
    longer = dataclasses.replace(trial, milestones=(*trial.milestones, 6400), budgets=(*trial.budgets, None))
    extended = dataclasses.replace(plan, trials=(longer, *plan.trials[1:]))
    assert Books(extended, store).to_retrain() == [longer]
    (checkpoints_folder(store.folder, trial.trial_id) / checkpoint_name(trial.milestones[-1])).mkdir(parents=True)
    assert Books(extended, store).to_retrain() == []
    shorter = dataclasses.replace(trial, milestones=(32, *trial.milestones), budgets=(None, *trial.budgets))
    below = dataclasses.replace(plan, trials=(shorter, *plan.trials[1:]))
    assert Books(below, store).to_retrain() == [shorter], "its checkpoints are past what is lacking"
    compute = plan.sweep.compute.model_copy(update={"finished": "drop"})
    dropped = dataclasses.replace(below, sweep=plan.sweep.model_copy(update={"compute": compute}))
    assert Books(dropped, store).to_retrain() == [], "its spec says that none is kept"


def longer(plan: Plan, trial: Trial, *milestones: int) -> Plan:
    """The plan with further milestones of one trial."""
    asked = sorted({*trial.milestones, *milestones})
    more = dataclasses.replace(trial, milestones=tuple(asked), budgets=(None,) * len(asked))
    return dataclasses.replace(plan, trials=tuple(more if one == trial else one for one in plan.trials))


def test_what_has_diverged_before_is_entered_for_budgets_added_since_and_not_trained(plan, tmp_path):
    folder, bad = tmp_path / "results", plan.trials[0]
    sweep_folder.drive(plan, folder, lambda assignment: "diverged" if assignment.trial == bad else None)
    reached = bad.milestones[0] - 64
    end = measurement(bad.trial_id, bad.arm, "10K", 1e-3, reached, 1e9, None, datetime.now(UTC))
    Store(folder).append_attempts(
        [attempt(bad.trial_id, [end | {"reason": "training loss is nan"}], end["created_at"])]
    )
    more = longer(plan, bad, 64, reached + 32, 6400)
    books = Books(more, Store(folder))
    assert [trial.trial_id for trial in books.to_retrain()] == [bad.trial_id], "to 64 samples it came, and may again"
    beyond = longer(plan, bad, reached + 32, 6400)
    assert Books(beyond, Store(folder)).to_retrain() == []
    trained: list[str] = []
    state = sweep_folder.drive(beyond, folder, lambda assignment: trained.append(assignment.trial.trial_id))
    assert (state.succeeded, trained) == (True, [])
    rows = read_measurements(folder).query("trial_id == @bad.trial_id").set_index("samples")
    assert sorted(rows.index) == sorted({reached + 32, *bad.milestones, 6400})
    assert set(rows["outcome"]) == {"diverged"}
    assert set(rows["reason"]) == {"training loss is nan"}
    assert rows["loss"].isna().all()
    assert rows.loc[6400, "flops"] == 6400 * bad.flops_per_sample
    assert rows.loc[6400, "flops_useful"] == rows.loc[bad.milestones[0], "flops_useful"]


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_damaged_checkpoints_are_set_aside_where_a_person_says_so(plan, tmp_path, request, where, caplog):
    folder = tmp_path / "results" if where == "disk" else location(f"{request.getfixturevalue('s3')}/results")
    first, second, *_ = plan.trials
    for trial, samples, good in ((first, 32, False), (first, 64, False), (second, 32, True), (second, 64, False)):
        Checkpoints(folder, trial.trial_id).save(Checkpoint(samples=samples, tensors={"w": ones(3)}, counters={}))
        if not good:
            (checkpoints_folder(folder, trial.trial_id) / checkpoint_name(samples) / STATE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints in .* is whole.* or give --retrain"):
        Checkpoints(folder, first.trial_id).newest(at_most=100)
    books = Books(plan, Store(folder))
    assert len(books.set_damaged_aside()) == 3
    assert (books.checkpoints(first.trial_id), books.checkpoints(second.trial_id)) == ([], [32])
    assert Checkpoints(folder, first.trial_id).newest(at_most=100) is None
    assert Checkpoints(folder, second.trial_id).newest(at_most=100).samples == 32
    assert books.set_damaged_aside() == []
    assert "is set aside: its state.safetensors has 0 bytes" in caplog.text
