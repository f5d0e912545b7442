"""Packed trials: each member's trajectory, checkpoints and measurements are those that it has alone.

Equal to rounding is what is asked for: a library may sum a batched product in another order. From width 16 on the
members of the quickstart were seen to be equal to the last bit (docs/training.md).
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from models.config import SP, CompleteP, DiTConfig, MuP
from models.families import build
from models.packed import pack
from orchestrator.results.store import read_attempts, read_curves, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.trial import CooldownSchedule, Trial
from orchestrator.training import packing
from orchestrator.training.division import Alone
from orchestrator.training.flat import Layout
from orchestrator.training.flat_adamw import EagerUpdate, Move, Settings, Work
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt
from orchestrator.training.packing import run_pack, seated

DATA = ["trial_id", "cell_id", "samples", "flops", "loss", "loss_train", "outcome", "reason", "zero_stage"]
ROUNDING = 1e-5
CURVE = ["trial_id", "samples", "flops", "loss", "learning_rate"]


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """Members that differ in all that members may: parameterization, rate, seed, decay, clipping; one diverges."""
    from orchestrator.planning.plan import make

    planned = make(Path("sweeps/smoke.yaml")).trials
    mup, sp = (next(t for t in planned if (t.arm, t.size) == (arm, "w8")) for arm in ("mup", "sp"))
    optimizer = mup.optimizer
    return [
        dataclasses.replace(mup, milestones=(128, 256), budgets=(None, None)),
        dataclasses.replace(sp, milestones=(128, 192), budgets=(None, None), seed=5),
        dataclasses.replace(
            mup,
            milestones=(256,),
            budgets=(None,),
            seed=7,
            optimizer=dataclasses.replace(optimizer, learning_rate=3e-3, weight_decay=0.1, gradient_clip=0.5),
        ),
        dataclasses.replace(
            sp,
            milestones=(128, 256),
            budgets=(None, None),
            optimizer=dataclasses.replace(optimizer, learning_rate=1e25),
        ),
    ]


def assignment(trial: Trial, attempt: int, results: Path) -> Assignment:
    measured = read_measurements(results)
    have = set(measured[measured["trial_id"] == trial.trial_id]["samples"])
    return Assignment(
        trial=trial,
        attempt=attempt,
        gang="gang-0",
        milestones=tuple(m for m in trial.milestones if m not in have),
        samples_spent=0,
        checkpoint_seconds=1e9,
        mlflow_run_id=None,
    )


def packed(trials: list[Trial], member: GangMember, attempt: int = 0):
    first, *mates = (assignment(trial, attempt, member.results) for trial in trials)
    return run_pack(dataclasses.replace(first, mates=tuple(mates)), member)


@pytest.fixture
def member(group, tmp_path):
    def make_member(name: str) -> GangMember:
        return GangMember(rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path / name, data=group)

    return make_member


@pytest.fixture(scope="module")
def alone(group, trials, tmp_path_factory) -> GangMember:
    one = GangMember(
        rank=0, world_size=1, device=torch.device("cpu"), results=tmp_path_factory.mktemp("alone"), data=group
    )
    for trial in trials:
        run_attempt(assignment(trial, 0, one.results), one)
    return one


def same(one: GangMember, other: GangMember, columns=DATA, read=read_measurements) -> None:
    tables = [read(m.results)[columns].sort_values(["trial_id", "samples"], ignore_index=True) for m in (one, other)]
    pd.testing.assert_frame_equal(*tables, rtol=ROUNDING)


def test_every_member_is_what_it_is_alone(trials, alone, member):
    together = member("together")
    outcome, reason = packed(trials, together)
    assert outcome == "completed"
    assert reason.startswith("sp w8 lr 1e+25: ")
    same(alone, together)
    same(alone, together, CURVE, read_curves)
    diverged = read_measurements(together.results).query("outcome == 'diverged'")
    assert set(diverged["trial_id"]) == {trials[3].trial_id}
    attempts = read_attempts(together.results).set_index("trial_id")
    assert attempts.loc[trials[0].trial_id, "outcome"] == "completed"
    assert attempts.loc[trials[1].trial_id, "samples_end"] == 192


def test_members_stop_and_go_on_packed_or_alone_from_different_samples(trials, alone, member, monkeypatch):
    """First one alone, stopped early; then all together, stopped; then one alone again, and the others together."""
    monkeypatch.setattr("orchestrator.training.loop.REPORT_SECONDS", 0.0)
    one = member("mixed")
    sound = trials[:3]

    def stop_at(samples: int, trial: Trial):
        def report(progress) -> None:
            if progress.phase == "training" and progress.trial_id == trial.trial_id and progress.samples >= samples:
                one.stop.set()

        return report

    one.report = stop_at(64, trials[0])
    assert run_attempt(assignment(trials[0], 0, one.results), one)[0] == "stopped"
    one.stop.clear()
    one.report = stop_at(160, trials[0])
    assert packed(sound, one, attempt=1)[0] == "stopped"
    starts = read_attempts(one.results).query("attempt == 1").set_index("trial_id")["samples_start"]
    assert starts[trials[0].trial_id] == 64
    assert starts[trials[1].trial_id] == 0
    one.stop.clear()
    one.report = lambda progress: None
    assert run_attempt(assignment(trials[2], 2, one.results), one)[0] == "completed"
    assert packed(sound[:2], one, attempt=3)[0] == "completed"
    expected = read_measurements(alone.results)[DATA].query(f"trial_id != '{trials[3].trial_id}'")
    found = read_measurements(one.results)[DATA]
    order = ["trial_id", "samples"]
    pd.testing.assert_frame_equal(
        expected.sort_values(order, ignore_index=True), found.sort_values(order, ignore_index=True), rtol=ROUNDING
    )


def test_bf16_members_follow_zero_1_alone(trials, member):
    half = [dataclasses.replace(trial, precision="bf16", zero_stage=1) for trial in trials[:3]]
    apart, together = member("apart"), member("together")
    for trial in half:
        run_attempt(assignment(trial, 0, apart.results), apart)
    packed(half, together)
    losses = [
        read_measurements(m.results).sort_values(["trial_id", "samples"])["loss"].to_numpy() for m in (apart, together)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


CONFIG = DiTConfig(image_size=8, channels=2, num_classes=3, patch=4, width=16, depth=2, heads=2, zero_init=False)
PARAMETERIZATIONS = (SP(), MuP(base_width=8), SP())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "positions": "learned"},
        {"positions": "rope", "mlp": "swiglu", "bias": False},
        {"block": "parallel"},
    ],
)
def test_packed_models_give_the_outputs_and_gradients_of_each(options):
    config = dataclasses.replace(CONFIG, **options)
    models = [build(config, p, seed) for seed, p in enumerate(PARAMETERIZATIONS)]
    for model in models:
        torch.nn.init.normal_(model.final_layer.linear.weight, generator=torch.Generator().manual_seed(1))
    stacked = pack(models)
    x, t, y = torch.randn(3, 4, 2, 8, 8), torch.rand(3, 4), torch.randint(0, 4, (3, 4))
    together = stacked(x.flatten(0, 1), t.flatten(), y.flatten())
    together.square().sum().backward()
    assert [name for name, _ in stacked.named_parameters()] == [name for name, _ in models[0].named_parameters()]
    for index, model in enumerate(models):
        alone = model(x[index], t[index], y[index])
        torch.testing.assert_close(together.view(3, 4, *alone.shape[1:])[index], alone, rtol=1e-5, atol=1e-5)
        alone.square().sum().backward()
        for parameter, own in zip(stacked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad[index], own.grad, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_packed_is_refused():
    one = build(CONFIG, SP(), 0)
    with pytest.raises(ValueError, match="wanted models of one shape"):
        pack([one, build(dataclasses.replace(CONFIG, depth=1), SP(), 0)])
    with pytest.raises(ValueError, match="multiplier of their residual branches"):
        pack([one, build(CONFIG, CompleteP(base_width=16, base_depth=1), 0)])


def test_a_pack_of_one_is_the_trial_alone_trunk_and_cooldown_too(trials, group, member):
    """What a trial on a GPU is, whose steps are CUDA graphs: its branch points, rates and checkpoints are the usual."""
    first = trials[0]
    trunk = dataclasses.replace(first, milestones=(), budgets=(), branch_points=(128,))
    schedule = CooldownSchedule(warmup_samples=first.schedule.warmup_samples, start=128, end=256)
    branch = dataclasses.replace(first, schedule=schedule, milestones=(256,), budgets=(None,))
    apart, together = member("one by one"), member("pack of one")
    for one, run in ((apart, run_attempt), (together, run_pack)):
        for trial in (trunk, branch):
            given = dataclasses.replace(assignment(trial, 0, one.results), branch_points=trial.branch_points)
            assert run(given, one) == ("completed", None)
    assert len(read_measurements(together.results)) == 1
    same(apart, together)
    same(apart, together, CURVE, read_curves)


def test_the_update_is_adamw_for_every_member_and_parameter_clipped_by_member():
    """Rates, decays, epsilons and limits that differ by member and parameter, over three steps."""
    shapes = {"a": torch.Size([5, 3]), "b": torch.Size([7])}
    settings = [[Settings(1e-2, 0.1, 1e-8), Settings(3e-3, 0.0, 1e-4)], [Settings(1e-1, 0.0, 1e-8)] * 2]
    layout, (beta1, beta2), limits = Layout(shapes, 2), (0.9, 0.99), (1.5, None)
    generator = torch.Generator().manual_seed(0)
    masters, *rest = (layout.zeros(torch.device("cpu")) for _ in range(5))
    masters.copy_(torch.randn(layout.size, generator=generator))
    gradient, first, second, averages = rest
    update = EagerUpdate(
        Work(
            settings=settings, limits=limits, betas=(beta1, beta2), division=Alone(layout), masters=masters,
            weights=masters, gradient=gradient, moments=(first, second), averages=averages,
        )
    )  # fmt: skip
    expected = [[[p.clone(), *(torch.zeros_like(p),) * 3] for p in layout.rows(masters, row)] for row in (0, 1)]
    for step in (1, 2, 3):
        gradient.copy_(torch.randn(layout.size, generator=generator))
        moves = [Move(1.0, step, 1.0 / step), Move(0.5, step + 4, 0.3)]
        for row, (rate, count, weight) in enumerate(moves):
            parts = layout.rows(gradient, row)
            norm = torch.cat([part.flatten() for part in parts]).norm()
            used = 1.0 if limits[row] is None else min(1.0, limits[row] / float(norm))
            for place, (lr, decay, eps) in enumerate(settings[row]):
                p, m, v, average = expected[row][place]
                g = used * parts[place]
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                p = p - rate * lr * decay * p
                p = p - rate * lr * (m / (1 - beta1**count)) / ((v / (1 - beta2**count)).sqrt() + eps)
                expected[row][place] = [p, m, v, average + weight * (p - average)]
        update(moves)
    for row in (0, 1):
        found = zip(*(layout.rows(kind, row) for kind in (masters, first, second, averages)), strict=True)
        for one, other in zip(found, expected[row], strict=True):
            torch.testing.assert_close(list(one), other, rtol=1e-5, atol=1e-6)


def test_places_of_the_ended_are_kept_where_each_size_is_compiled_until_they_are_half(
    trials, alone, member, monkeypatch
):
    """The fourth diverges, the second ends early: neither changes what the others find."""
    sizes, step, give_up = [], packing.step, packing._give_up_places

    def noted(pack, attempts):
        sizes.append(len(attempts))
        return step(pack, attempts)

    monkeypatch.setattr(packing, "step", noted)
    compiled = SimpleNamespace(compiled=True)
    monkeypatch.setattr(packing, "_give_up_places", lambda pack, *numbers: give_up(compiled, *numbers))
    together = member("together")
    assert packed(trials, together)[0] == "completed"
    assert set(sizes) == {4, 2}
    same(alone, together)


def test_a_pack_leaves_nothing_behind_for_the_collector_to_find(trials, member, monkeypatch):
    """On a GPU the next trial wants the memory of the one before it."""
    kept = []

    def noted(assignments, member, outbox):
        pack, attempts = seated(assignments, member, outbox)
        kept.extend(map(weakref.ref, (pack, *attempts, attempts[0].measured_model)))
        return pack, attempts

    monkeypatch.setattr(packing, "seated", noted)
    gc.collect()
    gc.disable()
    try:
        packed(trials[:2], member("left"))
        assert [type(one()).__name__ for one in kept] == ["NoneType"] * 4
    finally:
        gc.enable()


def test_what_generates_is_compiled_once_whatever_signs_of_life_are_given(trials, member):
    one = member("measured")
    _, (attempt,) = seated([assignment(trials[0], 0, one.results)], one)
    graphs, generator = [], attempt.meter.generator
    monitored = torch.compile(
        attempt.measured_model.forward, dynamic=False, backend=lambda graph, _: graphs.append(graph) or graph
    )
    generator._model = monitored
    before = one.beats
    generator.images(0, 64)
    assert one.beats > before + 1
    assert len(graphs) == 1
