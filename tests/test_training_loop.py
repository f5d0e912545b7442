"""The training loop: what was interrupted goes on bit for bit, shorter budgets are prefixes, divergence is a result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

from models.config import DDPM, EDM
from orchestrator.planning.plan import make
from orchestrator.results.store import read_attempts, read_curves, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.trial import Trial
from orchestrator.training import engine
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt

DATA = ["trial_id", "cell_id", "samples", "flops", "loss", "loss_train", "outcome", "reason"]
"""Columns of a measurement that must not depend on how the trial was run."""


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def group(fashion_mnist):
    import socket

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine.join(0, 1, "127.0.0.1", port, use_gpu=False)
    yield fashion_mnist
    engine.leave()


@pytest.fixture
def member(group, tmp_path):
    def make_member(name: str = "results") -> GangMember:
        return GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path / name, data=group)

    return make_member


@pytest.fixture(scope="module")
def trial() -> Trial:
    trials = make(Path("sweeps/smoke.yaml")).trials
    return next(trial for trial in trials if (trial.arm, trial.size) == ("mup", "w8"))


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
        patched.setattr("orchestrator.training.loop.validation_loss", crash)
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
    wild = dataclasses.replace(trial, optimizer=dataclasses.replace(trial.optimizer, learning_rate=rate))
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
