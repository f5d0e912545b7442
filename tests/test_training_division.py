"""One model's flat buffers divided among the workers of a gang: two of them, joined through gloo, train as one does.

Both processes tell the same scenes in the same order; what the first found is then looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from orchestrator.planning.plan import make
from orchestrator.results.store import read_attempts, read_curves, read_measurements
from orchestrator.scheduling.backend import Assignment
from orchestrator.spec.trial import Trial
from orchestrator.training import engine
from orchestrator.training.division import Alone, Shares
from orchestrator.training.flat import Layout
from orchestrator.training.flat_adamw import PIECE, Pieces, Settings, pieces_of
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import run_attempt
from orchestrator.training.packing import run_pack, seated, step
from orchestrator.training.progress import CONTROL_STEPS

STEPS, CPU, LAST = 20, torch.device("cpu"), (832,)
ROUNDING = 1e-5
CLIP = 0.05
"""Less than any gradient's norm here."""
CASES = {
    "fp32": {},
    "fp32 clipped": {"clip": CLIP},
    "bf16": {"precision": "bf16", "zero_stage": 1},
    "bf16 clipped": {"precision": "bf16", "zero_stage": 1, "clip": CLIP},
}
BUGS = ("reduce", "gather", "norm")
"""Methods of a share that do nothing of what is collective about them."""
DATA = ["trial_id", "cell_id", "samples", "flops", "loss", "loss_train", "outcome", "reason", "zero_stage"]
CURVE = ["trial_id", "samples", "flops", "loss", "learning_rate"]


def small_trial(clip: float | None = None, learning_rate: float | None = None, **changes: Any) -> Trial:
    """A DiT of width 8 on 16 x 16 pixels under µP: groups with rates of their own, one of which a share cuts."""
    planned = make(Path("sweeps/smoke.yaml")).trials
    trial = next(t for t in planned if (t.arm, t.size) == ("mup", "w8"))
    rate = trial.optimizer.learning_rate if learning_rate is None else learning_rate
    optimizer = dataclasses.replace(trial.optimizer, weight_decay=0.1, gradient_clip=clip, learning_rate=rate)
    model = dataclasses.replace(trial.model, image_size=16, patch=4, channels=3)
    evaluation = dataclasses.replace(trial.evaluation, loss_images=64, sample_images=0)
    given = {"milestones": (128, 256, *LAST), "budgets": (None,) * 3, "dataset": "procedural-16", **changes}
    return dataclasses.replace(trial, model=model, optimizer=optimizer, evaluation=evaluation, **given)


def member_of(rank: int, world: int, folder: Path) -> GangMember:
    return GangMember(rank=rank, world_size=world, device=CPU, results=folder, data=folder)


def assignment(trial: Trial, attempt: int, milestones: tuple[int, ...]) -> Assignment:
    return Assignment(
        trial=trial,
        attempt=attempt,
        gang="gang-0",
        milestones=milestones,
        samples_spent=0,
        checkpoint_seconds=1e9,
        mlflow_run_id=None,
    )


def steps_of(trial: Trial, member: GangMember, steps: int = STEPS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses [steps] of the gang, and the whole state with averages."""
    pack, (attempt,) = seated([assignment(trial, 0, trial.milestones)], member)
    losses = []
    for _ in range(steps):
        losses.append(step(pack, [attempt]))
        attempt.samples += trial.batch_size
    averages = zip(pack.names, attempt.engine.whole(attempt.ema.tensors), strict=True)
    state = attempt.engine.state() | {f"ema/{name}": tensor.clone() for name, tensor in averages}
    held = sum(buffer.numel() for buffer in (pack.masters, pack.averages, *pack.moments.values()))
    return member.mean(torch.cat(losses)), state | {"held": torch.tensor(held / pack.layout.size)}


@contextmanager
def bug(name: str) -> Iterator[None]:
    """A share whose method of this name is that of a worker alone."""
    kept = getattr(Shares, name)
    setattr(Shares, name, getattr(Alone, name))
    try:
        yield
    finally:
        setattr(Shares, name, kept)


def broken(rank: int, folder: Path, name: str) -> torch.Tensor:
    with bug(name):
        return steps_of(small_trial(**CASES["fp32 clipped"]), member_of(rank, 2, folder / name), steps=8)[0]


def moves(rank: int, folder: Path) -> list[Any]:
    """One trial: alone to 128 samples, of two workers to 256, and on until the first one is asked to stop."""
    trial = small_trial()
    together = member_of(rank, 2, folder)
    if rank == 0:
        run_pack(assignment(trial, 0, (128,)), member_of(0, 1, folder))
    together.agree(True)  # the other one waits
    outcome = run_pack(assignment(trial, 1, (256,)), together)
    if rank == 0:
        together.stop.set()
    return [outcome, run_pack(assignment(trial, 2, LAST), together)]


def diverged(rank: int, folder: Path) -> Any:
    trial = small_trial(learning_rate=1e25, milestones=(384,), budgets=(None,))
    return run_pack(assignment(trial, 0, (384,)), member_of(rank, 2, folder))


def of_halves(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a share makes of a buffer in bf16, which only a compiled step has: its sum, and it gathered."""
    shares = Shares(Layout({"a": torch.Size([40])}, 1, 2), rank, 2)
    buffer = torch.arange(64.0).bfloat16() * (rank + 1)
    shares.reduce(buffer)
    own = shares.own(buffer).clone()
    buffer.zero_()
    shares.own(buffer).copy_(own)
    shares.gather(buffer)
    return own, buffer


def scenes(rank: int, folder: Path) -> dict[str, Any]:
    """What both workers do, in this order."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, options in CASES.items():
        found[name] = steps_of(small_trial(**options), member_of(rank, 2, folder / "steps"))
    for name in BUGS:
        found[f"bug in {name}"] = broken(rank, folder, name)
    found["moves"] = moves(rank, folder / "moves")
    found["diverged"] = diverged(rank, folder / "diverged")
    found["halves"] = of_halves(rank)
    return found


def join(rank: int, folder: Path) -> None:
    store = (folder / "store").as_uri()
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=180)
    )


def second_worker(folder: Path, answer: Callable[[Any], None]) -> None:
    join(1, folder)
    found = scenes(1, folder)
    answer((found["moves"], found["diverged"]))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """What the first worker found, with what the second says of it, and where."""
    folder = tmp_path_factory.mktemp("gang")
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    worker = context.Process(target=second_worker, args=(folder, answers.put))
    worker.start()
    join(0, folder)
    try:
        found = scenes(0, folder)
        found["second"] = answers.get()
        worker.join(60)
    finally:
        torch.distributed.destroy_process_group()
        worker.kill()
    assert worker.exitcode == 0
    return found, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda name: steps_of(small_trial(**CASES[name]), member_of(0, 1, folder)))


@pytest.mark.parametrize("name", CASES)
def test_two_workers_take_the_steps_of_one(told, alone, name):
    (losses, state), (expected, whole) = told[0][name], alone(name)
    half = name.startswith("bf16")
    torch.testing.assert_close(losses, expected, rtol=2e-3 if half else ROUNDING, atol=0)
    assert losses[-5:].mean() < 0.97 * losses[0]
    assert state.pop("held") * 2 == whole.pop("held") == 4.0
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema"):
        one, other = (
            torch.cat([held[key].flatten() for key in whole if of_kind(key, kind)]) for held in (state, whole)
        )
        assert (one - other).norm() <= (2e-2 if half else ROUNDING) * other.norm(), kind
    assert {key: tensor.shape for key, tensor in state.items()} == {key: t.shape for key, t in whole.items()}


def of_kind(key: str, kind: str) -> bool:
    """Whether it is a tensor of this kind; biases of keys have no gradient but rounding, which Adam makes a step of."""
    return key.startswith(f"{kind}/") and not key.endswith("qkv.bias")


def test_a_clipped_trial_is_another_one(told):
    """So that its equality to a worker alone says something."""
    assert not torch.allclose(told[0]["fp32 clipped"][0], told[0]["fp32"][0], rtol=1e-3)


@pytest.mark.parametrize("name", BUGS)
def test_a_share_that_forgets_the_others_is_found_out(told, alone, name):
    expected = alone("fp32 clipped")[0][:8]
    assert not torch.allclose(told[0][f"bug in {name}"], expected, rtol=ROUNDING)


def test_a_trial_stops_for_all_and_moves_between_gangs_and_to_deepspeed(told, tmp_path, free_port):
    """A worker alone, two, and one through DeepSpeed have measured what one undisturbed worker does."""
    found, folder = told
    trial = small_trial()
    assert found["moves"] == found["second"][0]
    assert found["moves"] == [("completed", None), ("stopped", "asked to stop")]
    stopped = read_attempts(folder / "moves").query("attempt == 2 and outcome == 'stopped'")
    (end,) = stopped["samples_end"]
    assert end % trial.batch_size == 0
    assert 256 <= end <= 256 + CONTROL_STEPS * trial.batch_size, "it was asked after 256 samples"
    engine.join(0, 1, "127.0.0.1", free_port, use_gpu=False)
    run_attempt(assignment(trial, 3, LAST), member_of(0, 1, folder / "moves"))
    engine.leave()
    run_pack(assignment(trial, 0, trial.milestones), member_of(0, 1, tmp_path))
    for columns, read in ((DATA, read_measurements), (CURVE, read_curves)):
        tables = [
            read(results)[columns].sort_values("samples", ignore_index=True) for results in (folder / "moves", tmp_path)
        ]
        pd.testing.assert_frame_equal(*tables, rtol=ROUNDING)


def test_divergence_is_the_finding_of_both(told):
    found, folder = told
    outcome, reason = found["diverged"]
    assert outcome == "diverged"
    assert found["second"][1] == (outcome, reason)
    (written,) = read_measurements(folder / "diverged")["reason"]
    assert reason.endswith(written)


def test_buffers_in_bf16_are_summed_and_gathered(told):
    own, buffer = told[0]["halves"]
    torch.testing.assert_close(own.float(), 3 * torch.arange(32.0), rtol=1e-2, atol=0)
    torch.testing.assert_close(buffer.float(), 3 * torch.arange(64.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_shares_hold_every_element_once_with_its_settings(num_workers):
    """Shares that cut parameters, and some that have none."""
    shapes = {"a": torch.Size([5, 7]), "b": torch.Size([3]), "c": torch.Size([2, 3, 400])}
    settings = [[Settings(1e-1, 0.0, 1e-8), Settings(2e-1, 0.0, 1e-8), Settings(1e-1, 0.0, 1e-8)]]
    layout = Layout(shapes, 1, num_workers)
    full = [torch.randn(shape) for shape in shapes.values()]
    joined, taken, rates = layout.zeros(CPU), layout.zeros(CPU), layout.zeros(CPU)
    for rank in range(num_workers):
        shares = Shares(layout, rank, num_workers)
        kept = shares.zeros(CPU)
        shares.write([kept], full)
        shares.own(joined).copy_(kept)
        count_pieces(pieces_of(settings, shares), shares.own(taken), shares.own(rates))
        assert sum(view.numel() for view in shares.views(kept)) <= kept.numel() == layout.share
    for tensor, back in zip(full, layout.rows(joined, 0), strict=True):
        assert torch.equal(tensor, back)
    for times, rate, number in zip(layout.rows(taken, 0), layout.rows(rates, 0), (0.1, 0.2, 0.1), strict=True):
        assert (times == 1).all()
        assert rate.unique().tolist() == pytest.approx([number])
    assert layout.size % (16 * num_workers) == 0


def test_pieces_of_a_pack_are_of_one_member_each_and_as_few_as_can_be():
    """Members that begin anywhere, and one that has fewer pieces than the other."""
    shapes = {"a": torch.Size([3]), "b": torch.Size([2, 2 * PIECE]), "c": torch.Size([16])}
    settings = [
        [Settings(rate, 0.0, 1e-8) for rate in (0.1, 0.1, 0.1)],
        [Settings(rate, 0.0, 1e-8) for rate in (0.2, 0.3, 0.4)],
    ]
    layout = Layout(shapes, 2)
    taken, rates = layout.zeros(CPU), layout.zeros(CPU)
    pieces = pieces_of(settings, Alone(layout))
    count_pieces(pieces, taken, rates)
    assert pieces.lengths.shape == (2, 1 + 4 + 1)
    for row in (0, 1):
        assert all((times == 1).all() for times in layout.rows(taken, row))
        for rate, one in zip(layout.rows(rates, row), settings[row], strict=True):
            assert rate.unique().tolist() == pytest.approx([one.learning_rate])
    alike = pieces_of([settings[0][:2]], Alone(Layout({"a": torch.Size([4, 64]), "b": torch.Size([32])}, 1)))
    assert alike.lengths.tolist() == [[4 * 64 + 32]]


def count_pieces(pieces: Pieces, taken: torch.Tensor, rates: torch.Tensor) -> None:
    """How often each element of a buffer is taken, and at which learning rate."""
    for begin, length, one in zip(
        pieces.begins.flatten(), pieces.lengths.flatten(), pieces.settings.flatten(0, 1), strict=True
    ):
        assert 0 <= begin <= begin + length <= len(taken)
        assert length <= PIECE
        taken[begin : begin + length] += 1
        rates[begin : begin + length] = one[0]
