"""Placement: the first place that fits, in the stated order, one ZeRO stage a law, and refusals that help."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import DiTConfig, preset
from models.cost import cost
from orchestrator.planning import placement
from orchestrator.planning.devices import GPUS, REFERENCE, Speed, named, training_flops_per_second
from orchestrator.planning.evaluation import evaluation_seconds
from orchestrator.planning.memory import memory
from orchestrator.planning.placement import GIB, Limits, Wish, available_bytes, place, place_all, trial_seconds
from orchestrator.planning.plan import make

H100 = named("h100-80gb")
XL = Wish(name="DiT-XL/2", model=preset("XL/2"), batch_size=256)
HUGE = Wish(
    name="huge",
    model=DiTConfig(image_size=32, channels=4, num_classes=1000, patch=2, width=2048, depth=28, heads=32),
    batch_size=256,
)


def gpu(gib: float, **more):
    """A GPU with this much to plan with."""
    bytes_wanted = int(gib * GIB / (1 - placement.MARGIN)) + H100.reserve_bytes
    return dataclasses.replace(H100, name=f"gpu-{gib:g}", memory_bytes=bytes_wanted, **more)


def total(wish: Wish, **options) -> float:
    given = {"precision": "bf16", "zero_stage": 1, "num_workers": 1, **options}
    steps = wish.batch_size // (given["num_workers"] * given["micro_batch"])
    return memory(wish.model, micro_steps=steps, **given).total / GIB


def chosen(device, **limits):
    found = place(XL, precision="bf16", device=device, limits=Limits(**limits))
    return (
        found.num_workers,
        found.zero_stage,
        found.activation_checkpointing,
        found.offload,
        found.micro_batch,
    )


def test_the_largest_micro_batch_that_fits_is_taken():
    assert chosen(gpu(total(XL, micro_batch=64) + 0.01)) == (1, 1, False, False, 64)
    assert chosen(gpu(total(XL, micro_batch=64) - 0.01)) == (1, 1, False, False, 32)


def test_a_small_gang_comes_before_a_large_one_and_checkpointing_before_more_workers():
    least = total(XL, micro_batch=1)
    assert chosen(gpu(least + 0.01), max_workers=8)[:4] == (1, 1, False, False)
    assert chosen(gpu(least - 0.01), max_workers=8)[:2] == (2, 1)
    one = dataclasses.replace(XL, batch_size=64)
    full, less = (total(one, micro_batch=64, activation_checkpointing=on) for on in (False, True))
    limits = Limits(max_workers=8, micro_batch=64)
    found = place(one, precision="bf16", device=gpu((full + less) / 2), limits=limits)
    assert (found.num_workers, found.activation_checkpointing) == (1, True)


def test_offload_is_the_last_resort():
    needed = total(XL, micro_batch=1, num_workers=8, zero_stage=3)
    assert chosen(gpu(needed + 0.01), max_workers=8)[0::3] == (8, False)
    device = gpu((total(XL, micro_batch=16) + total(XL, micro_batch=16, offload=True)) / 2)
    only = {"micro_batch": 16, "activation_checkpointing": False, "max_workers": 1}
    assert chosen(device, **only) == (1, 1, False, True, 16)
    with pytest.raises(ValueError, match=r"Remedy: allow 2 workers\."):
        chosen(device, **only, offload=False)
    assert chosen(device, **{**only, "max_workers": 8})[0::3] == (2, False)
    single = dataclasses.replace(XL, batch_size=1)
    device = gpu((total(single, micro_batch=1) + total(single, micro_batch=1, offload=True)) / 2)
    with pytest.raises(ValueError, match=r"Remedy: allow offload\."):
        place(single, precision="bf16", device=device, limits=Limits(offload=False))


def test_workers_divide_the_batch_and_fill_nodes():
    wish = Wish(name="odd", model=preset("XL/2"), batch_size=48)
    for limits in (Limits(max_workers=5, zero_stage=3), Limits(max_workers=48, zero_stage=3)):
        for gib in (9.5, 10.5, 12.0, 15.0):
            try:
                found = place(wish, precision="bf16", device=gpu(gib, gpus_per_node=4), limits=limits)
            except ValueError:
                continue
            assert 48 % found.num_workers == 0
            assert found.num_workers <= 4 or found.num_workers % 4 == 0
            assert 48 // found.num_workers % found.micro_batch == 0


@given(st.sampled_from(["S/2", "B/2", "L/2", "XL/2"]), st.sampled_from(sorted(GPUS)), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_what_is_placed_fits(size, name, batch):
    device = named(name)
    found = place(
        Wish(name=size, model=preset(size), batch_size=batch), precision="bf16", device=device, limits=Limits()
    )
    again = memory(
        preset(size),
        micro_batch=found.micro_batch,
        micro_steps=batch // found.micro_batch,
        precision="bf16",
        zero_stage=found.zero_stage,
        num_workers=1,
        activation_checkpointing=found.activation_checkpointing,
        offload=found.offload,
    )
    assert found.memory == again
    assert again.total <= available_bytes(device) <= 0.9 * device.memory_bytes
    assert batch % found.micro_batch == 0


def test_what_is_fixed_stays():
    limits = Limits(num_workers=4, zero_stage=2, micro_batch=16, activation_checkpointing=True, offload=True)
    found = place(XL, precision="bf16", device=H100, limits=limits)
    assert (found.num_workers, found.zero_stage, found.micro_batch) == (4, 2, 16)
    assert found.activation_checkpointing
    assert found.offload


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(num_workers=3), r"DiT-XL/2: 3 workers cannot divide batch_size 256; wanted workers that divide"),
        (Limits(micro_batch=96), r"up to 1 workers with micro-batch 96 cannot divide batch_size 256"),
        (
            Limits(micro_batch=256, activation_checkpointing=False, offload=False),
            r"DiT-XL/2 needs \d+\.\d GiB at least \(workers 1, ZeRO-1, micro-batch 256\); h100-80gb has 70\.8 GiB with "
            r"10% left free\. Remedy: leave micro_batch open\.",
        ),
    ],
)
def test_a_refusal_says_what_is_needed_and_what_helps(limits, message):
    with pytest.raises(ValueError, match=message):
        place(XL, precision="bf16", device=H100, limits=limits)


def test_remedies():
    small = named("rtx4090-24gb")
    only = Limits(activation_checkpointing=False, offload=False)
    with pytest.raises(ValueError, match=r"Remedy: a GPU of 80 GiB, as h100-80gb\."):
        place(dataclasses.replace(HUGE, batch_size=2), precision="bf16", device=small, limits=only)
    monster = dataclasses.replace(HUGE, model=dataclasses.replace(HUGE.model, width=16384, depth=100))
    with pytest.raises(ValueError, match=r"Remedy: a smaller model, or several of these"):
        place(monster, precision="bf16", device=small, limits=only)
    full = dataclasses.replace(XL, batch_size=64)
    device = gpu((total(full, micro_batch=64) + total(full, micro_batch=64, activation_checkpointing=True)) / 2)
    limits = Limits(num_workers=1, micro_batch=64, activation_checkpointing=False, offload=False)
    with pytest.raises(ValueError, match=r"Remedy: leave micro_batch open\."):
        place(full, precision="bf16", device=device, limits=limits)
    model = dataclasses.replace(XL.model, image_size=256)
    single = dataclasses.replace(XL, model=model, batch_size=1, evaluation_batch=1)
    without, with_it = (
        total(single, micro_batch=1, evaluation_batch=1, activation_checkpointing=on) for on in (False, True)
    )
    device = gpu((without + with_it) / 2)
    with pytest.raises(ValueError, match=r"Remedy: allow activation checkpointing\."):
        place(single, precision="bf16", device=device, limits=dataclasses.replace(limits, micro_batch=None))


def test_a_law_has_one_stage():
    wishes = [dataclasses.replace(XL, name=size, model=preset(size)) for size in ("S/2", "B/2", "XL/2")]
    stage, found = place_all(wishes, precision="bf16", device=H100, limits=Limits(max_workers=8))
    assert stage == 1
    assert [place.zero_stage for place in found] == [1, 1, 1]
    tight = gpu(total(XL, micro_batch=1, num_workers=4, zero_stage=3) + 0.05)
    limits = Limits(max_workers=4, offload=False)
    stage, found = place_all(wishes, precision="bf16", device=tight, limits=limits)
    assert {place.zero_stage for place in found} == {stage} != {1}
    assert place(wishes[0], precision="bf16", device=tight, limits=limits).zero_stage == 1
    message = (
        r"no ZeRO stage of 1, 2, 3 has a place for every size and batch, and mixing stages would bend the law\. XL/2 "
        "needs"
    )
    with pytest.raises(ValueError, match=message):
        place_all(wishes, precision="bf16", device=gpu(8), limits=limits)


def test_of_the_stages_that_do_the_one_with_the_fewest_workers_is_taken():
    """Where two workers hold a model at ZeRO 3 and more are needed at ZeRO 1."""
    limits = Limits(max_workers=8, offload=False, activation_checkpointing=False)
    needs = {stage: total(HUGE, micro_batch=1, num_workers=2, zero_stage=stage) for stage in (1, 3)}
    assert needs[3] < needs[1]
    tight = gpu(needs[3] + 0.05)
    at_one = place_all([HUGE], precision="bf16", device=tight, limits=dataclasses.replace(limits, zero_stage=1))
    assert at_one[1][0].num_workers > 2
    stage, (found,) = place_all([HUGE], precision="bf16", device=tight, limits=limits)
    assert (stage, found.num_workers) == (3, 2)


def test_fp32_begins_without_zero():
    assert place(XL, precision="fp32", device=H100, limits=Limits(max_workers=8)).zero_stage == 0


def test_ten_thousand_trials_are_placed_at_once():
    models = [preset("S/2", depth=depth) for depth in range(1, 41)]
    wishes = [Wish(name=str(i), model=models[i % 40], batch_size=256) for i in range(10_000)]
    placement._fitting.cache_clear()
    began = time.process_time()
    place_all(wishes, precision="bf16", device=H100, limits=Limits(max_workers=8))
    assert time.process_time() - began < 0.5, "0.03 s on an idle core"


def test_the_workers_of_a_cpu_share_the_host():
    model = DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=64, depth=4, heads=8)
    wish = Wish(name="small", model=model, batch_size=64)
    host = dataclasses.replace(named("cpu"), memory_bytes=4 * GIB)
    found = place(wish, precision="fp32", device=host, limits=Limits(num_workers=2))
    assert (found.num_workers, found.zero_stage, found.offload) == (2, 0, False)
    with pytest.raises(ValueError, match=r"small needs 8\.\d GiB at least \(workers 16, .* cpu has 3\.1 GiB"):
        place(wish, precision="fp32", device=host, limits=Limits(num_workers=16))


def test_devices_by_name():
    assert {"h100-80gb", "h200-141gb", "a100-80gb", "a100-40gb", "a6000-48gb", "rtx4090-24gb", "l40s-48gb"} < set(GPUS)
    assert named("cpu").memory_bytes > GIB
    assert named("cpu") is named("cpu")
    with pytest.raises(
        ValueError, match=r"device 'h100' is not known; wanted one of cpu, .*; did you mean 'h100-80gb'\?"
    ):
        named("h100")
    for name, device in GPUS.items():
        gigabytes = int(name.split("-")[1].removesuffix("gb"))
        assert 0.88 * gigabytes < device.memory_bytes / GIB < 1.01 * gigabytes


def test_speeds_are_interpolated_and_say_whether_they_were_measured(monkeypatch):
    small, large = preset("S/2"), preset("XL/2")
    rows = [(384, 32 * 256, 1e14), (384, 128 * 256, 2e14), (1152, 32 * 256, 4e14)]
    speeds = tuple(Speed(precision="bf16", width=w, tokens=n, flops_per_second=rate) for w, n, rate in rows)
    measured = dataclasses.replace(H100, speeds=speeds)
    assert training_flops_per_second(measured, small, "bf16", 32, False) == (1e14, True)
    assert training_flops_per_second(measured, small, "bf16", 64, False)[0] == pytest.approx(2**0.5 * 1e14)
    assert training_flops_per_second(measured, small, "bf16", 8, False) == (1e14, False), "beyond what was measured"
    assert not training_flops_per_second(measured, preset("XL/2", width=4096, heads=64), "bf16", 64, False)[1]
    assert training_flops_per_second(measured, large, "bf16", 128, False)[0] == 4e14
    assert 1e14 < training_flops_per_second(measured, preset("B/2"), "bf16", 32, False)[0] < 4e14
    assert training_flops_per_second(measured, small, "bf16", 32, True)[0] == pytest.approx(0.75e14)
    monkeypatch.setitem(GPUS, REFERENCE, measured)
    rate, of_its_own = training_flops_per_second(named("a100-80gb"), small, "bf16", 32, False)
    assert rate == pytest.approx(1e14 * 312 / 989.4)
    assert not of_its_own
    cpu_model = DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=48, depth=2, heads=6)
    assert training_flops_per_second(named("cpu"), cpu_model, "fp32", 64, False) == (pytest.approx(22e9), True)
    assert not training_flops_per_second(named("cpu"), cpu_model, "bf16", 64, False)[1]


def test_a_step_of_a_narrow_model_takes_a_gpu_at_least_what_its_kernels_or_the_host_do():
    plan = make(Path("sweeps/studies/h100/h100_isoflop.yaml"))

    def seconds(size: str, flops: float, **changes) -> tuple[float, bool]:
        trial = next(trial for trial in plan.trials if trial.size == size)
        found, known = trial_seconds(dataclasses.replace(trial, **changes), flops, H100)
        return found - evaluation_seconds(trial, H100), known

    narrow = next(trial for trial in plan.trials if trial.size == "w32d1")
    steps = 1000 * narrow.flops_per_sample * narrow.batch_size
    assert seconds("w32d1", steps) == (pytest.approx(0.535), False)
    assert seconds("w32d1", steps, stepping="deepspeed")[0] == pytest.approx(4.7)
    swiglu = dataclasses.replace(narrow.model, mlp="swiglu")
    assert seconds("w32d1", steps, model=swiglu)[0] == pytest.approx(0.9), "torch's operations one by one"
    assert seconds("w32d1", steps, model=swiglu, compiled=True)[0] == pytest.approx(0.535)
    wide = next(trial for trial in plan.trials if trial.size == "w272d8")
    rate, _ = training_flops_per_second(H100, wide.model, "bf16", wide.batch_size, False, fast=True)
    assert seconds("w272d8", 1e15)[0] == pytest.approx(1e15 / rate)


@pytest.mark.parametrize(
    ("change", "fast"),
    [
        ({}, True),
        ({"precision": "fp8"}, True),
        ({"precision": "fp32"}, False),
        ({"stepping": "flat"}, False),
        ({"stepping": "deepspeed"}, False),
        ({"stepping": "deepspeed", "compiled": True}, True),
        ({"model": preset("B/2", positions="rope")}, False),
        ({"model": preset("B/2", positions="rope"), "compiled": True}, True),
        ({"model": preset("B/2", qk_norm=True, positions="learned", bias=False)}, True),
    ],
)
def test_a_step_is_fast_that_is_compiled_or_a_graph_of_kernels(change, fast):
    trial = make(Path("sweeps/studies/h100/h100_isoflop.yaml")).trials[0]
    model = preset("B/2")
    trial = dataclasses.replace(
        trial, model=model, flops_per_sample=cost(model).training_flops, batch_size=256, milestones=(256,),
        budgets=(None,), micro_batch=None,
    )  # fmt: skip
    assert trial.stepping == "graph"
    trial = dataclasses.replace(trial, **change)
    assert trial.fast is fast
    if trial.precision == "bf16" and trial.stepping != "flat":
        found = trial_seconds(trial, 1e18, H100)[0] - evaluation_seconds(trial, H100)
        assert found == pytest.approx(1e6 / (417.9 if fast else 195.5))


def test_a_plan_of_packs_takes_about_what_the_packs_took():
    """Seconds of one H100 from start to start: two packs of twelve at widths 1024 and 512, four at 256."""
    plan = make(Path("sweeps/studies/h100/h100_transfer.yaml"))
    planned: dict[str, float] = {}
    for pack in plan.packs:
        size = pack.trials[0].size
        planned[size] = planned.get(size, 0.0) + pack.total
    measured = {"w1024": 170.0, "w512": 75.0, "w256": 60.0}
    for size, seconds in measured.items():
        assert 1 / 1.5 < planned[size] / seconds < 1.5, size
    assert 4 * 60 < plan.makespan_hours * 3600 < 9 * 60, "it took about six minutes"
