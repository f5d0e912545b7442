"""`ditlaw bench train`: training steps a second beside a plain loop and the paper's recipe, packs, and warm starts.

On a GPU: DiT-S/2 to XL/2 on 32 x 32 x 4 latents, each variant in this process. On a CPU: the quickstart's models, where
"two" is two processes of one thread each, as the quickstart's gangs run, and "plain" one process with both threads.
Rounds of the variants alternate, and medians are told, so that a busy machine is fair to all.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.cost import Precision, cost
from orchestrator.bench.baseline import bare_step, held, loaded, plain_step, reference_step
from orchestrator.bench.memory import Case, assignment_of, attempt_of, environment, member_of, trial_of
from orchestrator.bench.train_cases import (
    COMPILED,
    case_of_variant,
    cpu_cases,
    gpu_cases,
    small_case,
    trial_of_variant,
)
from orchestrator.planning.devices import GPUS, Device, host
from orchestrator.spec.datasets import PROCEDURAL
from orchestrator.training import engine
from orchestrator.training.data.source import EndlessImages
from orchestrator.training.loop import Attempt
from orchestrator.training.pack import Pack
from orchestrator.training.packing import seated
from orchestrator.training.packing import step as pack_step

Take = Callable[[], None]
"""One step."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One variant of one case."""

    case: str
    variant: str
    images_per_s: float
    width: int
    tokens: int
    """Of one batch: images times tokens an image."""
    precision: Precision
    compiled: bool
    fast: bool
    """As `Trial.fast` says of trials whose steps are this variant's."""
    flops_per_second: float
    """Training FLOP/s, 3 x forward."""
    mfu: float
    """Training FLOP/s, 3 x forward, over the device's dense peak in bf16 (of a CPU, of the cores in fp32)."""
    memory_gib: float | None
    """Peak of tensors; None where the device does not tell."""
    first_step_s: float
    """From nothing to the end of the first step."""
    again_s: float
    """The same for a second trial of the shape in the same process."""


class Bench:
    """Variants of steps on one device, by one worker of a gang; cases say of how many."""

    def __init__(self, device: torch.device, folder: Path, rank: int = 0) -> None:
        self.device, self.folder, self.rank = device, folder, rank
        self._attempts: list[Attempt] = []
        self._packs: list[Pack] = []

    def release(self) -> None:
        """Close the engines of what was made so far, which would keep their memory."""
        for attempt in self._attempts:
            attempt.engine.close()
        for pack in self._packs:
            pack.close()
        self._attempts.clear()
        self._packs.clear()

    def _attempt(self, case: Case) -> Attempt:
        self._attempts.append(attempt_of(case, 10**6, self.device, self.folder, self.rank))
        return self._attempts[-1]

    def variants(self, case: Case) -> dict[str, Callable[[], Take]]:
        """What makes each variant's step, by name."""
        made: dict[str, Callable[[], Take]] = {
            "reference": lambda: self._baseline(case, reference_step),
            "plain": lambda: self._baseline(case, plain_step),
            "deepspeed": lambda: self.alone(case),
            "without deepspeed": lambda: self._baseline(case, bare_step),
        }
        if self.device.type == "cuda":
            for name in ("graph", COMPILED, "graph in fp8"):
                made[name] = partial(self.pack, case_of_variant(case, name), 1)
        made["batches alone"] = lambda: self._batches(case)
        made["endless batches alone"] = lambda: self._batches(case, endless=True)
        return made

    def packs(self, case: Case, members: Sequence[int]) -> dict[str, Callable[[], Take]]:
        """A model alone through DeepSpeed, and packs of it; a pack of one is the same step without packing."""
        made: dict[str, Callable[[], Take]] = {"deepspeed": lambda: self.alone(case)}
        for number in (1, *members):
            made[f"pack of {number}"] = partial(self.pack, case, number)
        if self.device.type == "cuda":
            most = max(members)
            made[f"pack of {most} without graph"] = partial(self.pack, case, most, graph=False)
        return made

    def _baseline(self, case: Case, make: Callable[..., Any]) -> Take:
        member = member_of(case, self.device, self.folder)
        step = make(case.model, self.device)
        cuda = self.device.type == "cuda"
        images, labels = member.images.to(self.device), member.labels.to(self.device)
        batches = (held if cuda else loaded)(images, labels, case.micro_batch)
        return lambda: step(*next(batches))

    def alone(self, case: Case) -> Take:
        """Steps of a trial through DeepSpeed."""
        attempt = self._attempt(case)

        def take() -> None:
            attempt.step()
            attempt.samples += case.micro_batch

        return take

    def _batches(self, case: Case, endless: bool = False) -> Take:
        """What the data cost: a batch with its times and noise, and no step; of images without end drawn as well."""
        attempt = self._attempt(case)
        if endless:
            channels = min(case.model.channels, 3)
            size = {"image_size": case.model.image_size, "channels": channels}
            attempt.data = EndlessImages(replace(PROCEDURAL[0], **size), self.device)  # type: ignore[arg-type]

        def take() -> None:
            attempt.batch(attempt.samples)
            attempt.samples += case.micro_batch

        return take

    def pack(self, case: Case, members: int, graph: bool = True) -> Take:
        """Steps of so many trials together, over flat buffers; of a gang of one trial."""
        trial = replace(trial_of(case, 10**6), stepping="graph" if graph else "flat")
        assignments = [assignment_of(replace(trial, seed=seed)) for seed in range(members)]
        pack, attempts = seated(assignments, member_of(case, self.device, self.folder, self.rank))
        self._packs.append(pack)

        def take() -> None:
            pack_step(pack, attempts)
            for attempt in attempts:
                attempt.samples += case.micro_batch

        return take


def time_variants(
    case: Case,
    makers: dict[str, Callable[[], Take]],
    device: torch.device,
    seconds: float,
    release: Callable[[], None],
    rounds: int = 5,
) -> list[Figure]:
    """Each variant's median over rounds that alternate; `seconds` is what all of it may take after the first steps.

    On a GPU variants come one after the other, so that each has the memory for itself.
    """
    together = device.type != "cuda"
    figures = []
    groups = [list(makers)] if together else [[name] for name in makers]
    for names in groups:
        chosen = {name: makers[name] for name in names}
        found = _time_together(chosen, device, seconds / len(groups), release, rounds)
        for name, timed in found.items():
            members = int(name.split()[2]) if name.startswith("pack of") else 1
            images = timed.rate * case.micro_batch * members
            own = case_of_variant(case, name)
            figures.append(
                Figure(
                    case=f"{case.size} {case.micro_batch}",
                    variant=name,
                    images_per_s=images,
                    width=case.model.width,
                    tokens=case.micro_batch * cost(case.model).tokens,
                    precision=own.precision,
                    compiled=own.compiled and device.type == "cuda",
                    fast=trial_of_variant(case, name).fast and device.type == "cuda",
                    flops_per_second=images * cost(case.model).training_flops,
                    mfu=images * cost(case.model).training_flops / peak_of(device),
                    memory_gib=timed.memory_gib,
                    first_step_s=timed.first_s,
                    again_s=timed.again_s,
                )
            )
    return figures


class Timed(NamedTuple):
    """Steps a second of a variant, peak GiB, and seconds to the first step of a first and a second trial."""

    rate: float
    memory_gib: float | None
    first_s: float
    again_s: float


def _time_together(
    makers: dict[str, Callable[[], Take]],
    device: torch.device,
    seconds: float,
    release: Callable[[], None],
    rounds: int,
) -> dict[str, Timed]:
    """Rounds of all of them, one after the other."""
    steps: dict[str, Take] = {}
    first: dict[str, float] = {}
    lengths: dict[str, int] = {}
    for name, make in makers.items():
        _forget(device)
        steps[name], first[name] = _begin(make, device)
        _seconds(steps[name], 4, device)  # a compiler's second thoughts, and the capture of a graph
        once = _seconds(steps[name], 1, device)
        lengths[name] = max(2, round(seconds / len(makers) / rounds / max(once, 1e-4)))
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, length in lengths.items():
            rates[name].append(length / _seconds(steps[name], length, device))
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    steps.clear()
    again = {}
    for name, make in makers.items():
        release()
        _forget(device)
        again[name] = _begin(make, device)[1]
    release()
    return {name: Timed(statistics.median(rates[name]), memory, first[name], again[name]) for name in makers}


def _begin(make: Callable[[], Take], device: torch.device) -> tuple[Take, float]:
    """A variant after its first step, and the seconds until then."""
    began = time.perf_counter()
    take = make()
    take()
    _wait(device)
    return take, time.perf_counter() - began


def _seconds(take: Take, steps: int, device: torch.device) -> float:
    """Of some steps. Of one thread of a CPU the seconds that it was given, which other processes do not lengthen."""
    alone = device.type != "cuda" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    for _ in range(steps):
        take()
    _wait(device)
    return clock() - began


def peak_of(device: torch.device) -> float:
    """Dense peak FLOP/s of a device: bf16 of a GPU, fp32 of one core of a CPU for every thread."""
    if device.type != "cuda":
        return host().peak_fp32 * torch.get_num_threads()
    return (known_gpu(device) or GPUS["h100-80gb"]).peak_bf16


def known_gpu(device: torch.device) -> Device | None:
    """What planning calls this GPU; None where it knows none of the name."""
    name = torch.cuda.get_device_name(device).lower().replace(" ", "")
    return next((gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in name), None)


def planned_name(device: torch.device) -> str:
    """By what name sweeps call this device.

    Raises:
        ValueError: planning does not know this GPU.
    """
    if device.type != "cuda":
        return "cpu"
    if (gpu := known_gpu(device)) is None:
        name, known = torch.cuda.get_device_name(device), ", ".join(GPUS)
        raise ValueError(f"{name} is not among the devices that planning knows; wanted one of {known}")
    return gpu.name


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of the benchmark to do."""

    sizes: tuple[str, ...] = ()
    """Cases by size; empty: all."""
    steps: bool = True
    packed: bool = True
    variants: tuple[str, ...] = ()
    """Of steps, by name; empty: all."""
    members: tuple[int, ...] = (2, 4, 8)
    """Sizes of packs."""
    seconds: float = 150.0
    """All of it may take about so long; compiling comes on top."""


def run(wanted: Run, device: torch.device) -> dict[str, Any]:
    """The environment, and a row for every case and variant.

    On a CPU the baselines are timed with all threads in one process, and then every variant in as many processes of one
    thread side by side as there are threads, whose images are added up: that is how gangs run.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return {**environment(device), "rows": _rows(wanted, device)}
    rows = []
    if wanted.steps:
        whole = replace(wanted, packed=False, seconds=0.3 * wanted.seconds)
        rows = [{**row, "processes": 1, "threads": threads} for row in _rows(whole, device, ("reference", "plain"))]
    rest = replace(wanted, seconds=0.7 * wanted.seconds)
    with multiprocessing.get_context("spawn").Pool(threads) as pool:
        parts = pool.map(_on_one_thread, [rest] * threads)
    for own in zip(*parts, strict=True):
        total = {key: sum(row[key] for row in own) for key in ("images_per_s", "flops_per_second")}
        mfu = sum(row["mfu"] for row in own) / threads
        rows.append({**own[0], **total, "mfu": mfu, "processes": threads, "threads": 1})
    return {**environment(device), "rows": rows}


def _on_one_thread(wanted: Run) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return _rows(wanted, torch.device("cpu"))


def _rows(wanted: Run, device: torch.device, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Figures of every case and variant in this process."""
    cuda = device.type == "cuda"
    cases = (gpu_cases if cuda else cpu_cases)(wanted.sizes) if wanted.steps else []
    small = _small(wanted, device) if wanted.packed else []
    share = wanted.seconds / max(1, len(cases) + len(small))
    figures: list[Figure] = []
    engine.join(0, 1, "127.0.0.1", 0, use_gpu=cuda)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(device, Path(folder))
            for case in cases:
                variants = bench.variants(case)
                names = [name for name in only or variants if name in wanted.variants or not wanted.variants]
                chosen = {name: variants[name] for name in names}
                figures += time_variants(case, chosen, device, share, bench.release)
            for case in small:
                figures += time_variants(case, bench.packs(case, wanted.members), device, share, bench.release)
    finally:
        engine.leave()
    return [vars(figure) for figure in figures]


def _small(wanted: Run, device: torch.device) -> list[Case]:
    """Shapes whose packs are measured: the quickstart's on a CPU, and small latent models on a GPU."""
    if device.type != "cuda":
        return cpu_cases(wanted.sizes)
    shapes = ((64, 6, 64), (128, 6, 64), (192, 6, 256))
    found = [small_case(width, depth, tokens, 64, device) for width, depth, tokens in shapes]
    return [case for case in found if not wanted.sizes or case.size in wanted.sizes]
