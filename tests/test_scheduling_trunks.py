"""Trunks and cooldown branches through the driver: what waits for what, what is kept, and what ends with a trunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_analysis_planted import attempt, measurement

from orchestrator.planning.plan import Plan, make
from orchestrator.results.checkpoints import checkpoint_folders, checkpoint_name, checkpoints_folder
from orchestrator.results.requests import ask
from orchestrator.results.store import Store, read_attempts, read_measurements
from orchestrator.scheduling.backend import Assignment, Progress
from orchestrator.scheduling.books import Books
from orchestrator.scheduling.driver import Driver
from orchestrator.scheduling.local_backend import LocalBackend
from orchestrator.scheduling.state import Policy, State
from orchestrator.spec.trial import Trial

SPEC = """\
name: cooled
models: {patch: 7, head_dim: 8, sizes: [{name: a, width: 16, depth: 1}]}
arms: {sp: {parameterization: sp}}
training: {batch_size: 32, schedule: {name: wsd, cooldown: 0.25}}
budgets: {samples: [640, 1280, 2560]}
"""
Act = Callable[[Assignment, int], tuple[str, str | None] | None]


class Trainer:
    """Keeps the newest two checkpoints and those at branch points, as training does, and measures at milestones."""

    def __init__(self, store: Store, act: Act) -> None:
        self.store, self.act, self.order = store, act, []
        self.seen: Progress | None = None

    def join(self, *arguments: object) -> None: ...

    def run(self, assignment: Assignment) -> tuple[str, str | None]:
        trial = assignment.trial
        self.order.append((trial, assignment.milestones, assignment.branch_points))
        have = [int(folder.name) for folder in checkpoint_folders(self.store.folder, trial.trial_id)]
        if trial.trunk is not None and not have:
            assert self.folder(trial.trunk, trial.first).is_dir(), "a branch began at nothing"
        for stop in sorted({*assignment.milestones, *assignment.branch_points}):
            ended = self.act(assignment, stop)
            if ended is not None:
                return ended
            self.folder(trial.trial_id, stop).mkdir(parents=True)
            self.seen = Progress(
                trial_id=trial.trial_id,
                attempt=assignment.attempt,
                phase="training",
                samples=stop,
                samples_start=trial.first,
                loss=None,
                samples_per_second=None,
            )
            if stop in assignment.milestones:
                row = measurement(trial.trial_id, trial.arm, "10K", 1e-3, stop, 1e9, 1.0, datetime.now(UTC))
                self.store.append_measurements([row | {"sweep": trial.sweep, "attempt": assignment.attempt}])
        return "completed", None

    def folder(self, trial_id: str, samples: int) -> Path:
        return checkpoints_folder(self.store.folder, trial_id) / checkpoint_name(samples)

    def progress(self) -> Progress | None:
        return self.seen

    def request_stop(self) -> None: ...


def go_on(assignment: Assignment, stop: int) -> None: ...


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return make(path)


@pytest.fixture
def trunk(plan: Plan) -> Trial:
    (trunk,) = (trial for trial in plan.trials if trial.branch_points)
    assert (trunk.milestones, trunk.branch_points) == ((), (480, 960, 1920))
    return trunk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def drive(plan: Plan, store: Store, act: Act = go_on) -> tuple[State, Trainer]:
    trainer = Trainer(store, act)
    backend = LocalBackend(lambda: trainer)
    driver = Driver(plan, store, backend, lambda trial_id: None, lambda snapshot: None, Policy(backoff_seconds=0.0))
    state = driver.run()
    backend.close()
    return state, trainer


def kept(store: Store, trial: Trial) -> list[int]:
    return sorted(int(folder.name) for folder in checkpoint_folders(store.folder, trial.trial_id))


def test_a_trunk_goes_first_and_only_its_newest_checkpoint_stays(plan, store, trunk):
    state, trainer = drive(plan, store)
    assert state.succeeded
    assert trainer.order[0] == (trunk, (), trunk.branch_points)
    assert [t.milestones for t, *_ in trainer.order[1:]] == [(2560,), (1280,), (640,)], "longest first"
    assert len(read_measurements(store.folder)) == plan.num_cells == 3
    assert kept(store, trunk) == [1920]
    books = Books(plan, store)
    assert (books.waiting, books.num_measured) == ([], 3)
    assert all(books.reached(trial) == trial.last for trial in plan.trials)


def test_a_branch_point_is_reported_while_the_trunk_still_runs(plan, store, trunk):
    """The trunk waits at its last branch point until the scheduler has heard of the first."""
    heard = []

    def wait(assignment: Assignment, stop: int) -> None:
        while stop == 1920 and not heard:
            time.sleep(0.01)

    trainer = Trainer(store, wait)
    backend = LocalBackend(lambda: trainer)

    def listen(snapshot) -> None:
        if snapshot.state.saved.get(trunk.trial_id) == 960:
            heard.append(set(snapshot.state.blocked.values()))

    Driver(plan, store, backend, lambda trial_id: None, listen).run()
    backend.close()
    assert heard[0] == {(trunk.trial_id, 1920)}, "only the last branch waits still"


def test_a_trunk_that_died_goes_on_for_what_its_branches_lack(plan, store, trunk):
    def die(assignment: Assignment, stop: int) -> None:
        if assignment.trial == trunk and assignment.attempt == 0 and stop == 960:
            raise RuntimeError("out of luck")

    state, trainer = drive(plan, store, die)
    assert state.succeeded
    assert [points for trial, _, points in trainer.order if trial == trunk] == [(480, 960, 1920), (960, 1920)]
    assert list(read_attempts(store.folder)["reason"]) == ["RuntimeError: out of luck"]


def test_a_trunk_is_not_trained_for_what_is_measured_or_has_begun(plan, store, trunk):
    drive(plan, store)
    *_, short = sorted((t for t in plan.trials if t.trunk), key=lambda trial: -trial.last)
    for part in (store.folder / "measurements").glob(f"*{short.trial_id}*"):
        part.unlink()
    assert Books(plan, store).waiting == [short], "its own checkpoint is there"
    for folder in checkpoint_folders(store.folder, short.trial_id):
        folder.rmdir()
    books = Books(plan, store)
    assert (books.waiting, books.needed(trunk), books.waits(short)) == ([trunk, short], (480,), True)
    assert books.to_retrain() == [trunk], "its checkpoints are past where the branch begins"
    (checkpoints_folder(store.folder, trunk.trial_id) / checkpoint_name(480)).mkdir()
    assert (books.waiting, books.to_retrain()) == ([short], [])


def test_a_diverged_trunk_ends_its_branches_as_diverged_in_the_store(plan, store, trunk):
    def diverge(assignment: Assignment, stop: int) -> tuple[str, str] | None:
        return ("diverged", "loss is nan") if assignment.trial == trunk and stop > 480 else None

    state, _ = drive(plan, store, diverge)
    assert state.succeeded
    table = read_measurements(store.folder).set_index("samples")
    assert list(table["outcome"].loc[[640, 1280, 2560]]) == ["ok", "diverged", "diverged"]
    late = table.loc[2560]
    assert late["reason"] == f"its trunk {trunk.trial_id} diverged: loss is nan"
    assert (late["flops"], late["flops_useful"]) == (2560 * trunk.flops_per_sample, 0)
    attempts = read_attempts(store.folder)
    assert list(attempts["outcome"]) == ["diverged", "diverged"]
    assert (attempts["flops"] == 0).all()
    state, trainer = drive(plan, store)
    assert (state.succeeded, trainer.order) == (True, []), "run again, there is nothing to do"


def test_a_branch_of_a_trunk_that_diverged_before_is_entered_unless_it_is_to_be_tried_anew(
    plan, store, trunk, tmp_path
):
    def diverge(assignment: Assignment, stop: int) -> tuple[str, str] | None:
        if assignment.trial.trial_id != trunk.trial_id or stop <= 480:
            return None
        end = measurement(trunk.trial_id, trunk.arm, "10K", 1e-3, 960, 1e9, None, datetime.now(UTC))
        store.append_attempts([attempt(trunk.trial_id, [end | {"reason": "loss is nan"}], end["created_at"])])
        return "diverged", "loss is nan"

    drive(plan, store, diverge)
    longer = tmp_path / "longer.yaml"
    longer.write_text(SPEC.replace("2560]", "2560, 5120]"))
    assert Books(make(longer), store).to_retrain() == []
    state, trainer = drive(make(longer), store)
    assert (state.succeeded, trainer.order) == (True, [])
    table = read_measurements(store.folder).set_index("samples")
    assert table["outcome"].to_dict() == {640: "ok", 1280: "diverged", 2560: "diverged", 5120: "diverged"}
    assert table.loc[5120, "reason"] == f"its trunk {trunk.trial_id} diverged: loss is nan"

    (late,) = (one for one in make(longer).trials if one.last == 5120)
    for part in (store.folder / "measurements").glob(f"*{late.trial_id}*"):
        part.unlink()
    ask(store.folder, "retry", [late.trial_id])
    _, trainer = drive(make(longer), store)
    assert [one.trial_id for one, *_ in trainer.order] == [trunk.trial_id, late.trial_id]


def test_a_trunk_that_is_given_up_takes_its_branches_along(plan, store, trunk):
    def fail(assignment: Assignment, stop: int) -> None:
        if assignment.trial == trunk and stop > 480:
            raise RuntimeError("bad disk")

    state, _ = drive(plan, store, fail)
    assert list(read_measurements(store.folder)["samples"]) == [640]
    assert len(state.given_up) == 3
    assert set(state.given_up.values()) == {
        "RuntimeError: bad disk",
        f"its trunk {trunk.trial_id} was given up: RuntimeError: bad disk",
    }


def test_a_branch_whose_trunk_is_nowhere_is_refused(plan, store, trunk):
    alone = Plan(plan.sweep, plan.source, tuple(trial for trial in plan.trials if trial != trunk))
    message = "begins with the checkpoint .*, which is not there, and no trial of cooled makes it; wanted one of them"
    with pytest.raises(ValueError, match=message):
        drive(alone, store)
    assert not store.folder.exists()
    for point in trunk.branch_points:
        (checkpoints_folder(store.folder, trunk.trial_id) / checkpoint_name(point)).mkdir(parents=True)
    assert drive(alone, store)[0].succeeded, "with the checkpoints it can begin"
