"""States as safetensors: what comes back is what went in, and other threads run meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from safetensors.torch import load

from orchestrator.training.state_bytes import DTYPES, state_bytes


def test_tensors_of_every_type_and_shape_come_back():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{name}/µ": torch.randn(3, 5, generator=generator).to(dtype) for dtype, name in DTYPES.items()}
    tensors |= {"step": torch.tensor(7), "empty": torch.zeros(0, 4), "turned": torch.randn(4, 3, generator=generator).T}
    back = load(bytes(state_bytes(tensors)))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_type_that_no_state_has_is_refused():
    with pytest.raises(TypeError, match=r"tensor flags of a checkpoint is torch\.bool; wanted one of"):
        state_bytes({"flags": torch.tensor([True])})


def test_other_threads_run_while_a_state_is_put_together():
    """The interpreter's lock is asked for all the time; with the library's own `save` it is held throughout."""
    tensors = {str(number): torch.zeros(2**20) for number in range(40)}
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    state_bytes(tensors)
    ended = time.perf_counter()
    done.set()
    thread.join()
    inside = [at for at in ticks if began < at < ended]
    assert len(inside) >= 2, f"in {ended - began:.3f} s"
