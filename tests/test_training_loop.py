"""The training loop: what was interrupted goes on bit for bit, shorter budgets are prefixes, divergence is a result."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pandas as pd
import pytest
import torch

from models.config import DDPM, EDM
from orchestrator.planning.plan import make
from orchestrator.results.checkpoints import checkpoint_folders, checkpoints_folder
from orchestrator.results.logs import log_of
from orchestrator.results.store import Store, read_attempts, read_curves, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.trial import ConstantSchedule, CooldownSchedule, Trial
from orchestrator.training import gang
from orchestrator.training.checkpoint import Checkpoints
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt
from orchestrator.training.schedule import rate_scale
from orchestrator.training.standing import Superseded

DATA = ["trial_id", "cell_id", "samples", "flops", "loss", "loss_train", "outcome", "reason"]
"""Columns of a measurement that must not depend on how the trial was run."""


class Crash(Exception):
    pass


@pytest.fixture
def member(group, tmp_path):
    def make_member(name: str = "results") -> GangMember:
        return GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path / name, data=group)

    return make_member


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Of the smoke sweep, with half its budgets."""
    trials = make(Path("sweeps/smoke.yaml")).trials
    trial = next(trial for trial in trials if (trial.arm, trial.size) == ("mup", "w8"))
    milestones = (trial.batch_size * 16, *trial.milestones[:2])
    return dataclasses.replace(trial, milestones=milestones, budgets=tuple(budget / 2 for budget in trial.budgets))


def assignment(trial: Trial, member: GangMember, attempt: int = 0, seconds: float = 1e9) -> Assignment:
    measured = set(read_measurements(member.results)["samples"])
    return Assignment(
        trial=trial,
        attempt=attempt,
        gang="gang-0",
        milestones=tuple(m for m in trial.milestones if m not in measured),
        samples_spent=0,
        checkpoint_seconds=seconds,
        mlflow_run_id=None,
    )


def measured(member: GangMember) -> pd.DataFrame:
    return read_measurements(member.results)[DATA]


def at_sample(samples: int, act):
    """A `report` that acts at the first report at or past `samples` of training."""

    def report(progress) -> None:
        if progress.phase == "training" and progress.samples >= samples:
            act()

    return report


@pytest.fixture(scope="module")
def undisturbed(group, trial, tmp_path_factory):
    whole = GangMember(
        rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path_factory.mktemp("whole"), data=group
    )
    assert run_attempt(assignment(trial, whole), whole) == ("completed", None)
    return whole


def same_curves(one: GangMember, other: GangMember) -> None:
    columns = ["samples", "flops", "loss", "learning_rate"]
    pd.testing.assert_frame_equal(
        read_curves(one.results)[columns], read_curves(other.results)[columns], check_exact=True
    )


def test_an_attempt_that_was_replaced_writes_nothing_more(trial, member, monkeypatch):
    monkeypatch.setattr("orchestrator.training.loop.REPORT_SECONDS", 0.0)
    late = member("late")
    log = log_of(late.results, trial.trial_id, 1)
    log.parent.mkdir(parents=True)

    late.report = at_sample(trial.milestones[0], log.touch)  # the driver gives it up, and begins attempt 1
    with pytest.raises(Superseded, match="attempt 0 has been taken for dead and replaced"):
        run_attempt(assignment(trial, late), late)
    assert len(measured(late)) <= 1
    points_at = [int(folder.name) for folder in checkpoint_folders(late.results, trial.trial_id)]
    assert points_at in ([], [trial.milestones[0]])


def checkpoints_seen(member: GangMember, trial: Trial, job: Assignment, monkeypatch) -> list[int]:
    seen: list[int] = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, one: (seen.append(one.samples), save(self, one))[1])
    assert run_attempt(job, member) == ("completed", None)
    return seen


def test_a_trial_that_keeps_no_checkpoints_measures_the_same_and_writes_none_in_vain(
    trial, member, undisturbed, monkeypatch
):
    bare = member("bare")
    job = dataclasses.replace(assignment(trial, bare), keep_finished=False)

    assert checkpoints_seen(bare, trial, job, monkeypatch) == []
    pd.testing.assert_frame_equal(measured(bare), measured(undisturbed), check_exact=True)
    assert not checkpoint_folders(bare.results, trial.trial_id)


def test_a_long_one_writes_checkpoints_and_drops_them_when_it_is_measured(trial, member, undisturbed, monkeypatch):
    long = member("long")
    job = dataclasses.replace(assignment(trial, long, seconds=0), keep_finished=False)

    assert set(trial.milestones) <= set(checkpoints_seen(long, trial, job, monkeypatch))
    pd.testing.assert_frame_equal(measured(long), measured(undisturbed), check_exact=True)
    folder = checkpoints_folder(long.results, trial.trial_id)
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_waited_for_and_costs_no_step(trial, member, undisturbed, monkeypatch):
    """From the row of its beginning on."""
    full = member("full")

    def sometimes(append):
        fails = iter(range(3))

        def appended(store: Store, rows: list) -> object:
            if next(fails, None) is not None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return append(store, rows)

        return appended

    for name in ("append_measurements", "append_attempts"):
        monkeypatch.setattr(Store, name, sometimes(getattr(Store, name)))
    monkeypatch.setattr(gang, "AGAIN_SECONDS", 0.01)
    phases = []
    full.report = lambda progress: phases.append(progress.phase)
    assert run_attempt(assignment(trial, full), full) == ("completed", None)
    assert phases.count("waiting for disk space") == 6
    assert phases[:3] == ["waiting for disk space"] * 3
    pd.testing.assert_frame_equal(measured(full), measured(undisturbed), check_exact=True)


def test_every_step_and_evaluation_batch_is_a_sign_of_life(trial, undisturbed):
    assert undisturbed.beats >= trial.milestones[-1] // trial.batch_size + len(trial.milestones)


def test_every_milestone_is_measured_once_and_learning_happens(undisturbed, trial):
    table = measured(undisturbed)
    assert list(table["samples"]) == list(trial.milestones)
    assert table["loss"].is_monotonic_decreasing
    assert 0.5 < table["loss"].iloc[-1] < 1.3
    assert (undisturbed.results / "samples" / f"{trial.trial_id}-{trial.milestones[-1]}.png").exists()
    curve = read_curves(undisturbed.results)
    assert curve["samples"].iloc[-1] > 0.9 * trial.milestones[-1]
    attempt = read_attempts(undisturbed.results).iloc[0]
    assert (attempt["outcome"], attempt["samples_end"]) == ("completed", trial.milestones[-1])


@pytest.mark.parametrize("where", [0.2, 0.6])
def test_a_stopped_trial_goes_on_bit_for_bit(undisturbed, member, trial, monkeypatch, where):
    monkeypatch.setattr("orchestrator.training.loop.REPORT_SECONDS", 0.0)
    here = member()
    here.report = at_sample(int(where * trial.milestones[-1]), here.stop.set)
    assert run_attempt(assignment(trial, here), here) == ("stopped", "asked to stop")
    assert len(measured(here)) < len(trial.milestones)
    here.stop.clear()
    here.report = lambda progress: None
    assert run_attempt(assignment(trial, here, attempt=1), here) == ("completed", None)
    pd.testing.assert_frame_equal(measured(here), measured(undisturbed), check_exact=True)
    same_curves(here, undisturbed)
    attempts = read_attempts(here.results)
    assert attempts["samples_end"].iloc[0] == attempts["samples_start"].iloc[1], "nothing is trained twice"


def test_a_crashed_trial_goes_on_bit_for_bit(undisturbed, member, trial, monkeypatch):
    monkeypatch.setattr("orchestrator.training.loop.REPORT_SECONDS", 0.0)
    here = member()

    def crash() -> None:
        raise Crash

    for attempt, samples in enumerate((0.1, 0.5, 0.9)):
        here.report = at_sample(int(samples * trial.milestones[-1]), crash)
        with pytest.raises(Crash):
            run_attempt(assignment(trial, here, attempt, seconds=0.02), here)
    here.report = lambda progress: None
    run_attempt(assignment(trial, here, attempt=3), here)
    pd.testing.assert_frame_equal(measured(here), measured(undisturbed), check_exact=True)


def test_a_crash_between_checkpoint_and_measurement_loses_neither(undisturbed, member, trial, monkeypatch):
    here = member()

    def crash(*arguments) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.training.measuring.validation_losses", crash)
        with pytest.raises(Crash):
            run_attempt(assignment(trial, here), here)
    assert measured(here).empty
    run_attempt(assignment(trial, here, attempt=1), here)
    pd.testing.assert_frame_equal(measured(here), measured(undisturbed), check_exact=True)


def test_a_shorter_budget_is_a_prefix_and_a_longer_one_continues(undisturbed, member, trial):
    here = member()
    short = dataclasses.replace(trial, milestones=trial.milestones[:1], budgets=trial.budgets[:1])
    assert short.trial_id == trial.trial_id
    run_attempt(assignment(short, here), here)
    pd.testing.assert_frame_equal(measured(here), measured(undisturbed).iloc[:1], check_exact=True)
    run_attempt(assignment(trial, here, attempt=1), here)
    pd.testing.assert_frame_equal(measured(here), measured(undisturbed), check_exact=True)
    assert read_attempts(here.results)["samples_start"].iloc[1] == trial.milestones[0]


@pytest.mark.parametrize("rate", [1.0, 1e4, 1e12])
def test_divergence_is_a_result_with_its_reason(member, trial, rate):
    """Also where the loss stays finite and comes down again from 1e5: no law may be fitted to that."""
    here = member()
    later = dataclasses.replace(trial, milestones=trial.milestones[1:], budgets=trial.budgets[1:])
    wild = dataclasses.replace(later, optimizer=dataclasses.replace(trial.optimizer, learning_rate=rate))
    outcome, reason = run_attempt(assignment(wild, here), here)
    assert outcome == "diverged"
    assert "training loss" in reason
    table = measured(here)
    assert list(table["samples"]) == list(wild.milestones)
    assert set(table["outcome"]) == {"diverged"}
    assert table["loss"].isna().all()
    assert set(table["reason"]) == {reason}


def test_the_seed_changes_the_result(undisturbed, member, trial):
    here = member()
    other = dataclasses.replace(trial, seed=1, milestones=trial.milestones[:1], budgets=trial.budgets[:1])
    run_attempt(assignment(other, here), here)
    assert measured(here)["loss"].iloc[0] != measured(undisturbed)["loss"].iloc[0]


@pytest.mark.parametrize(
    ("objective", "sampler", "learn_sigma"),
    [(EDM(), "dpmpp-3m", False), (DDPM(learn_variance=True), "ddpm", True)],
)
def test_other_objectives_train_and_sample_the_same_twice(member, trial, objective, sampler, learn_sigma):
    evaluation = dataclasses.replace(
        trial.evaluation, sampler=sampler, sampler_steps=4, guidance=1.5, guidance_interval=(0.2, 0.8)
    )
    other = dataclasses.replace(
        trial,
        objective=objective,
        model=dataclasses.replace(trial.model, learn_sigma=learn_sigma),
        evaluation=evaluation,
    )
    tables, pictures = [], []
    for name in ("first", "second"):
        here = member(name)
        assert run_attempt(assignment(other, here), here) == ("completed", None)
        tables.append(measured(here))
        pictures.append((here.results / "samples" / f"{other.trial_id}-{other.milestones[-1]}.png").read_bytes())
    assert tables[0]["loss"].is_monotonic_decreasing
    assert len(tables[0]) == len(other.milestones)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert pictures[0] == pictures[1]


def test_bf16_through_zero_1_learns_as_fp32_does(undisturbed, member, trial):
    here = member()
    half = dataclasses.replace(trial, precision="bf16", zero_stage=1)
    run_attempt(assignment(half, here), here)
    assert measured(here)["loss"].to_numpy() == pytest.approx(measured(undisturbed)["loss"].to_numpy(), rel=0.03)


def test_weights_that_one_step_ruins_are_not_a_measurement(member, trial):
    """The last training loss is finite, and the update after it is not."""
    here = member()
    wild = dataclasses.replace(trial, optimizer=dataclasses.replace(trial.optimizer, learning_rate=1e25))
    wild = dataclasses.replace(wild, milestones=(32, 64), budgets=(None, None))
    assert run_attempt(assignment(wild, here), here)[0] == "diverged"
    table = measured(here)
    assert list(table["outcome"]) == ["diverged", "diverged"]
    assert table["loss"].isna().all()


# Trunks and cooldowns.


@pytest.fixture(scope="module")
def cooldown(tmp_path_factory) -> list[Trial]:
    """A trunk and its two cooldowns, in that order."""
    path = tmp_path_factory.mktemp("wsd") / "spec.yaml"
    path.write_text(
        Path("sweeps/smoke.yaml").read_text().replace("batch_size: 32", "batch_size: 32\n  schedule: {name: wsd}")
    )
    trials = [trial for trial in make(path).trials if (trial.arm, trial.size) == ("mup", "w8")]
    return sorted(trials, key=lambda trial: (trial.trunk is not None, trial.last))[:3]


def run_trunk(trunk: Trial, member: GangMember) -> None:
    work = dataclasses.replace(assignment(trunk, member), milestones=(), branch_points=trunk.branch_points)
    assert run_attempt(work, member) == ("completed", None)


def test_a_cooldown_continues_its_trunk_bit_for_bit(member, cooldown, monkeypatch):
    trunk, *branches = cooldown
    assert not trunk.milestones
    assert [branch.trunk for branch in branches] == [trunk.trial_id] * 2
    shared, alone = member("shared"), member("alone")
    run_trunk(trunk, shared)
    assert not len(read_measurements(shared.results))
    for branch in branches:
        assert run_attempt(dataclasses.replace(assignment(branch, shared), milestones=branch.milestones), shared)
    monkeypatch.setattr(Checkpoints, "at", lambda self, samples: None)  # each from the start, without a trunk
    for branch in branches:
        run_attempt(dataclasses.replace(assignment(branch, alone), milestones=branch.milestones), alone)
    pd.testing.assert_frame_equal(measured(shared), measured(alone), check_exact=True)
    attempts = read_attempts(shared.results).set_index("trial_id")
    for branch in branches:
        assert attempts.loc[branch.trial_id, "samples_start"] == branch.first
        assert attempts.loc[branch.trial_id, "flops"] == branch.flops


def test_an_interrupted_cooldown_goes_on_from_its_own_checkpoint(member, cooldown, monkeypatch):
    monkeypatch.setattr("orchestrator.training.loop.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.training.loop.is_curve_step", lambda steps: True)
    trunk, branch, _ = cooldown
    plain, broken = member("plain"), member("broken")
    for one in (plain, broken):
        run_trunk(trunk, one)
    run_attempt(dataclasses.replace(assignment(branch, plain), milestones=branch.milestones), plain)

    half = branch.first + (branch.last - branch.first) // 2
    broken.report = at_sample(half, broken.stop.set)
    work = dataclasses.replace(assignment(branch, broken), milestones=branch.milestones)
    outcome, _ = run_attempt(work, broken)
    assert outcome == "stopped"
    broken.stop.clear()
    broken.report = lambda progress: None
    run_attempt(dataclasses.replace(work, attempt=1), broken)
    pd.testing.assert_frame_equal(measured(plain), measured(broken), check_exact=True)
    assert read_attempts(broken.results)["samples_start"].max() > branch.first


def test_a_cooldown_without_its_trunk_says_so(member, cooldown):
    _, branch, _ = cooldown
    one = member()
    with pytest.raises(ValueError, match=r"with which the trial begins, is not there"):
        run_attempt(dataclasses.replace(assignment(branch, one), milestones=branch.milestones), one)


def test_a_trunk_keeps_what_branches_off_it_and_may_be_measured(member, trial):
    first, *_, last = trial.milestones
    points = tuple(range(32, first, 64))
    assert len(points) > 2
    trunk, one = dataclasses.replace(trial, branch_points=points), member()
    work = dataclasses.replace(assignment(trunk, one), branch_points=points)
    assert run_attempt(work, one) == ("completed", None)
    assert list(measured(one)["samples"]) == list(trial.milestones)
    kept = {int(folder.name) for folder in checkpoint_folders(one.results, trial.trial_id)}
    assert kept == {*points, *trial.milestones[-2:]}
    assert last in kept


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("1-sqrt", 1 - 0.5**0.5)])
def test_a_cooldown_falls_from_its_trunks_rate_to_nothing(shape, half):
    schedule = CooldownSchedule(warmup_samples=64, start=640, end=960, shape=shape)
    rates = {samples: rate_scale(schedule, samples, 32) for samples in range(0, 960, 32)}
    assert rates[0] == 0.5
    assert {rates[samples] for samples in range(32, 672, 32)} == {1.0}
    assert rates[800] == pytest.approx(half)
    falling = [rates[samples] for samples in range(640, 960, 32)]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < 0.11
    trunk = ConstantSchedule(warmup_samples=64)
    assert all(rates[s] == rate_scale(trunk, s, 32) for s in range(0, 640, 32))
