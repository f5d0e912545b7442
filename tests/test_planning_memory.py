"""The memory model: what it says is held is what an attempt holds, and its peaks are those of torch's allocator."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from models.config import DiTConfig, preset
from models.cost import Precision, cost
from orchestrator.bench.memory import Case, assignment_of, attempt_of, member_of, train, trial_of
from orchestrator.planning.memory import EVALUATION_BATCH, Memory, flat_memory, memory
from orchestrator.training import engine
from orchestrator.training.evaluation import BATCH
from orchestrator.training.packing import seated, step

MODEL = DiTConfig(image_size=16, channels=4, num_classes=10, patch=2, width=128, depth=3, heads=2)
CPU = torch.device("cpu")


@pytest.fixture
def group(monkeypatch, free_port):
    """A process alone in a group without threads.

    gloo's threads may hold the tensors of a finished collective longer than the caller does, and then free them where
    the profiler sees nothing: a measured peak would hang on who came last.
    """
    init = torch.distributed.init_process_group

    def without_threads(backend, *, store, rank, world_size):
        init("fake", store=FakeStore(), rank=rank, world_size=world_size)

    monkeypatch.setattr(torch.distributed, "init_process_group", without_threads)
    torch.set_num_threads(1)
    engine.join(0, 1, "127.0.0.1", free_port, use_gpu=False)
    yield
    engine.leave()


def tensor_bytes() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (found, found.grad):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def peak_bytes(path: Path, run) -> int:
    """The most that was allocated at a time during `run`, of what it allocated itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    live: dict[int, int] = {}
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            assert address not in live, "it was freed where the profiler does not see it"
            live[address] = size
            held += size
        else:
            held -= live.pop(address, 0)  # 0: it was there before
        peak = max(peak, held)
    return peak


def modelled(case: Case) -> Memory:
    return memory(
        case.model,
        micro_batch=case.micro_batch,
        micro_steps=case.micro_steps,
        precision=case.precision,
        zero_stage=case.zero_stage,
        num_workers=1,
        activation_checkpointing=case.activation_checkpointing,
        offload=case.offload,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32", "zero_stage": 0, "micro_batch": 8},
        {"precision": "fp32", "zero_stage": 0, "micro_batch": 8, "activation_checkpointing": True},
        {"zero_stage": 1, "micro_batch": 2},
        {"zero_stage": 1, "micro_batch": 8},
        {"zero_stage": 2, "micro_batch": 4, "micro_steps": 2},
        {"zero_stage": 3, "micro_batch": 2},
        {"zero_stage": 3, "micro_batch": 8},
    ],
)
def test_the_model_says_what_an_attempt_holds_and_its_peak(group, tmp_path, options):
    """On the CPU, where DeepSpeed and autograd hold what they do on a GPU."""
    case = Case(size="small", model=MODEL, **options)
    before = tensor_bytes()
    attempt = attempt_of(case, 4, CPU, tmp_path)
    train(attempt, 2)
    own = attempt.data.images.nbytes + attempt.data.labels.nbytes
    assert modelled(case).held == pytest.approx(tensor_bytes() - before - own, rel=0.02)
    peak = peak_bytes(tmp_path / "trace.json", lambda: train(attempt, 1))
    assert modelled(case).training == pytest.approx(modelled(case).held + peak, rel=0.05)
    attempt.engine.close()


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("bf16", 1)])
def test_the_model_says_what_a_step_over_flat_buffers_holds_and_its_peak(tmp_path, precision, zero_stage):
    case = Case(size="small", model=MODEL, micro_batch=2, precision=precision, zero_stage=zero_stage)
    needed = flat_memory(MODEL, micro_batch=2, precision=precision, num_workers=1, captured=False)
    before = tensor_bytes()
    pack, (attempt,) = seated([assignment_of(trial_of(case, 4))], member_of(case, CPU, tmp_path))
    step(pack, [attempt])
    wider = 0 if precision == "fp32" else 2 * cost(MODEL).params_total  # gradients in fp32, as CPUs step
    own = attempt.data.images.nbytes + attempt.data.labels.nbytes + wider
    assert needed.held == pytest.approx(tensor_bytes() - before - own, rel=0.02)
    peak = peak_bytes(tmp_path / "trace.json", lambda: step(pack, [attempt]))
    assert needed.training == pytest.approx(needed.held + peak, rel=0.05)


def test_workers_divide_the_state_of_flat_buffers_and_a_graph_keeps_what_a_step_needs():
    def needs(**given: Any) -> Memory:
        options = {"precision": "bf16", "num_workers": 1, "captured": False, "micro_batch": 8, **given}
        return flat_memory(preset("B/2"), **options)

    params = cost(preset("B/2")).params_total
    one, four = needs(), needs(num_workers=4)
    assert one.state == 22 * params
    assert four.state == pytest.approx((2 + 16 / 4 + 4) * params, rel=1e-6)
    assert needs(precision="fp32").state == 20 * params
    graph = needs(captured=True)
    assert graph.training == one.training == graph.held
    assert graph.total == one.training + one.evaluation


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_moves_to_the_host_what_the_model_says(group, tmp_path, stage):
    """On the CPU the host is the device, so both are counted together."""
    case = Case(size="small", model=MODEL, micro_batch=2, zero_stage=stage, offload=True)
    before = tensor_bytes()
    attempt = attempt_of(case, 4, CPU, tmp_path)
    train(attempt, 2)
    held = tensor_bytes() - before - attempt.data.images.nbytes - attempt.data.labels.nbytes
    two_of_the_largest = 2 * 2 * 6 * MODEL.width**2 if stage == 2 else 0
    assert modelled(case).held + modelled(case).host + two_of_the_largest == pytest.approx(held, rel=0.02)
    attempt.engine.close()


def test_evaluation_is_of_the_batch_that_evaluation_has():
    assert EVALUATION_BATCH == BATCH


@pytest.mark.parametrize(
    ("precision", "stage", "world", "per_param"),
    [
        ("fp32", 0, 4, 20),  # weights 4, moments 8, EMA 4, measured 4
        ("fp32", 1, 1, 24),  # and a master copy
        ("bf16", 1, 1, 22),  # weights 2, master 4, moments 8, EMA 4, measured 4
        ("bf16", 1, 4, 2 + 16 / 4 + 4),
        ("bf16", 2, 4, 2 + 16 / 4 + 4),
        ("bf16", 3, 4, 2 / 4 + 16 / 4 + 4),
    ],
)
def test_state(precision: Precision, stage: int, world: int, per_param: float) -> None:
    config = preset("DiT-XL/2", learn_sigma=True)
    needed = memory(config, micro_batch=1, precision=precision, zero_stage=stage, num_workers=world)
    assert needed.state == pytest.approx(674_834_720 * per_param, rel=1e-6)


@given(
    st.sampled_from(["S/2", "XL/2"]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 64),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_what_takes_less_memory(size, stage, workers, micro_batch, offload):
    def needed(**changed) -> Memory:
        given = {"micro_batch": micro_batch, "zero_stage": stage, "num_workers": workers, "offload": offload, **changed}
        return memory(preset(size), precision="bf16", **given)

    assert needed().total >= needed(num_workers=2 * workers).state
    assert needed().total < needed(micro_batch=micro_batch + 64).total
    assert needed(activation_checkpointing=True).activations < needed().activations
    assert needed().held <= needed().training <= needed().total
    assert needed(offload=True).total <= needed(offload=False).total
    assert (needed().host > 0) == offload


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got bf16 at zero_stage 0, which keeps no fp32 master weights"):
        memory(MODEL, micro_batch=1, precision="bf16", zero_stage=0, num_workers=1)
    with pytest.raises(ValueError, match="got offload at zero_stage 0"):
        memory(MODEL, micro_batch=1, precision="fp32", zero_stage=0, num_workers=1, offload=True)
    with pytest.raises(ValueError, match="got zero_stage 4 and 1 workers; wanted a stage of 0 to 3"):
        memory(MODEL, micro_batch=1, precision="fp32", zero_stage=4, num_workers=1)
