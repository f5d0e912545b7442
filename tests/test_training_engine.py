"""The step through DeepSpeed: equal to a plain loop at every ZeRO stage, and its state moves between stages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from orchestrator.spec.trial import Optimizer

STEPS, BATCH = 6, 8
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


def through_engine(rank: int, world: int, stage: int, steps: range, state=None, precision="fp32"):
    from orchestrator.training.engine import Engine

    model, groups = model_and_groups()
    share = BATCH // world
    engine = Engine(model, groups, OPTIMIZER, micro_batch=share, precision=precision, zero_stage=stage)

    def loss(step: int) -> torch.Tensor:
        x = batch(step)[rank * share : (rank + 1) * share]
        return (engine.forward(x).float() - 1).square().mean()

    if state is not None:
        engine.load_state(state, lambda: loss(0))
    losses = []
    for step in steps:
        here = loss(step)
        engine.set_rate(1.0)
        engine.step(here)
        losses.append(here.item())
    state = engine.state()
    engine.close()
    return losses, state


def worker(rank: int, world: int, port: int) -> dict[str, float]:
    """What one of `world` processes finds: the largest differences from the plain loop."""
    torch.set_num_threads(1)
    from orchestrator.training import engine

    engine.join(rank, world, "127.0.0.1", port, use_gpu=False)
    _, expected = plain(STEPS)
    names = [name for name, _ in model_and_groups()[0].named_parameters()]

    def error(state) -> float:
        assert int(state["step"]) == STEPS
        pairs = zip(names, expected, strict=True)
        return max(float((state[f"param/{name}"] - tensor).abs().max()) for name, tensor in pairs)

    found = {}
    middle = {}
    for stage in (0, 1, 2, 3):
        _, state = through_engine(rank, world, stage, range(STEPS))
        found[f"stage {stage}"] = error(state)
        _, middle[stage] = through_engine(rank, world, stage, range(STEPS // 2))
    for first, second in ((0, 2), (1, 3), (3, 0), (2, 2), (3, 3)):
        _, state = through_engine(rank, world, second, range(STEPS // 2, STEPS), state=middle[first])
        found[f"stage {first} then {second}"] = error(state)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_every_zero_stage_equals_a_plain_loop_and_state_moves_between_them(world, free_port):
    code = (
        "import sys, json; sys.path.insert(0, 'tests'); import test_training_engine as t\n"
        f"print('FOUND', json.dumps(t.worker(int(sys.argv[1]), {world}, {free_port})))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        answers = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, answers, strict=True):
        assert process.returncode == 0, err[-3000:]
        line = next(line for line in out.splitlines() if "FOUND" in line)
        found = json.loads(line.split("FOUND", 1)[1])
        assert len(found) == 9
        if world == 1:
            assert found["stage 0"] == 0.0, "fp32 ZeRO-0 on one worker is a plain loop, bitwise"
            assert found["stage 3 then 0"] < 1e-6
        assert max(found.values()) < 2e-6, found
