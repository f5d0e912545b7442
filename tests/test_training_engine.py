"""The step through DeepSpeed: equal to a plain loop at every ZeRO stage, and its state moves between stages."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from models.config import SP, DiTConfig, RectifiedFlow
from models.families import build
from models.objectives import build_objective
from orchestrator.spec.trial import Optimizer
from orchestrator.training import engine

STEPS, BATCH = 4, 8
OPTIMIZER = Optimizer(learning_rate=1e-2, weight_decay=0.1)


def model_and_groups():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))
    named = list(model.named_parameters())
    groups = [
        {"name": kind, "lr": rate, "weight_decay": decay, "eps": eps, "params": params, "names": names}
        for kind, rate, decay, eps, dims in (("matrix", 1e-2, 0.1, 1e-3, 2), ("vector", 3e-2, 0.0, 1e-8, 1))
        for names, params in [zip(*[(n, p) for n, p in named if p.ndim == dims], strict=True)]
    ]
    return model, [{**group, "params": list(group["params"])} for group in groups]


def batch(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(step))


def plain(steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """The same training without DeepSpeed, on the whole batch."""
    model, groups = model_and_groups()
    settings = [{k: g[k] for k in ("params", "lr", "weight_decay", "eps")} for g in groups]
    adamw = torch.optim.AdamW(settings, betas=OPTIMIZER.betas, fused=True)
    losses = []
    for step in range(steps):
        loss = (model(batch(step)) - 1).square().mean()
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()]


def through_engine(rank: int, world: int, stage: int, steps: range, state=None, micro_steps=1, offload=False):
    model, groups = model_and_groups()
    share = BATCH // world
    micro_batch = share // micro_steps
    held = engine.Engine(
        model,
        groups,
        OPTIMIZER,
        micro_batch=micro_batch,
        micro_steps=micro_steps,
        precision="fp32",
        zero_stage=stage,
        offload=offload,
    )

    def losses(step: int) -> Iterator[torch.Tensor]:
        for x in batch(step)[rank * share : (rank + 1) * share].split(micro_batch):
            yield (held.forward(x).float() - 1).square().mean()

    if state is not None:
        held.load_state(state, lambda: next(losses(0)))
    for step in steps:
        held.set_rate(1.0)
        for loss in losses(step):
            held.step(loss)
    state = held.state()
    released = weakref.ref(model)
    held.close()
    del held, model, groups, losses, loss
    gc.collect()
    assert released() is None, "the gang's next trial wants the memory"
    return state


def compared(rank: int, world: int) -> dict[str, float]:
    """What one of `world` processes finds: the largest differences from the plain loop; what goes on elsewhere was in
    micro-batches, and of ZeRO-2 and 3 offloaded."""
    torch.set_num_threads(1)
    _, expected = plain(STEPS)
    names = [name for name, _ in model_and_groups()[0].named_parameters()]

    def error(state) -> float:
        assert int(state["step"]) == STEPS
        pairs = zip(names, expected, strict=True)
        return max(float((state[f"param/{name}"] - tensor).abs().max()) for name, tensor in pairs)

    found = {}
    middle = {}
    for stage in (0, 1, 2, 3):
        found[f"stage {stage}"] = error(through_engine(rank, world, stage, range(STEPS)))
        middle[stage] = through_engine(rank, world, stage, range(STEPS // 2), micro_steps=4, offload=stage > 1)
    for first, second in ((0, 2), (1, 3), (3, 0), (2, 2), (3, 3)):
        options = {"micro_steps": 2, "offload": True} if first == second else {}
        state = through_engine(rank, world, second, range(STEPS // 2, STEPS), state=middle[first], **options)
        found[f"stage {first} then {second}"] = error(state)
    return found


def test_every_zero_stage_equals_a_plain_loop_and_state_moves_between_them(free_port):
    engine.join(0, 1, "127.0.0.1", free_port, use_gpu=False)
    found = compared(0, 1)
    engine.leave()
    assert len(found) == 9
    assert found["stage 0"] == 0.0, "fp32 ZeRO-0 on one worker is a plain loop, bitwise"
    assert found["stage 3 then 0"] < 1e-6
    assert max(found.values()) < 2e-6, found


def test_two_workers_equal_it_too(free_port):
    code = (
        "import gc, sys, json; sys.path.insert(0, 'tests'); import test_training_engine as t\n"
        f"rank = int(sys.argv[1]); t.engine.join(rank, 2, '127.0.0.1', {free_port}, use_gpu=False)\n"
        "t.through_engine(rank, 2, 0, range(1)); gc.freeze()\n"
        "print('HEAVY', sorted({'mlflow', 'torch._dynamo'} & sys.modules.keys()))\n"
        "print('FOUND', json.dumps(t.compared(rank, 2)))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, answers, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert "HEAVY []" in out, "what no step needs would double the start of every worker"
        line = next(line for line in out.splitlines() if "FOUND" in line)
        found = json.loads(line.split("FOUND", 1)[1])
        assert len(found) == 9
        assert max(found.values()) < 2e-6, found


def test_offload_without_master_weights_is_refused():
    model, groups = model_and_groups()
    with pytest.raises(
        ValueError, match="offload with zero_stage 0, which keeps no master weights apart; wanted stage 1"
    ):
        engine.Engine(model, groups, OPTIMIZER, micro_batch=1, precision="fp32", zero_stage=0, offload=True)


def test_activation_checkpointing_changes_no_bit():
    torch.set_num_threads(1)
    config = DiTConfig(image_size=8, channels=1, num_classes=3, patch=2, width=32, depth=3, heads=4, zero_init=False)
    model = build(config, SP(), 0)
    x, noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([0, 1, 2, 3])
    found = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        loss = build_objective(RectifiedFlow()).loss(model, x, y, t, noise).mean()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(kept, computed_again) for kept, computed_again in zip(*found, strict=True))


@pytest.mark.parametrize("changes", [{"micro_batch": 2}, {"micro_batch": 4, "activation_checkpointing": True}])
def test_a_trial_in_micro_batches_is_the_same_trial(changes, free_port, tmp_path):
    """The draws of a step are those of the whole batch, so only the order of additions differs."""
    from orchestrator.bench.memory import attempt_of, cases, train  # not in the processes of the test above

    torch.set_num_threads(1)
    engine.join(0, 1, "127.0.0.1", free_port, use_gpu=False)
    (whole, *_) = cases(cuda=False)
    trials = [dataclasses.replace(whole, micro_batch=8), dataclasses.replace(whole, **changes)]
    trials[1] = dataclasses.replace(trials[1], micro_steps=8 // trials[1].micro_batch)
    found = []
    for case in trials:
        attempt = attempt_of(case, 4, torch.device("cpu"), tmp_path)
        losses = train(attempt, 4)
        found.append((attempt.trial.trial_id, torch.stack(losses), attempt.engine.parameters()))
        attempt.engine.close()
    engine.leave()
    (one_id, one_losses, one), (other_id, other_losses, other) = found
    assert one_id == other_id
    assert torch.allclose(one_losses, other_losses, rtol=1e-6)
    # A gradient that is zero but for rounding moves Adam's first step by up to the learning rate.
    assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) < 1e-4
