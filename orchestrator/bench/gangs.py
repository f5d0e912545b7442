"""`ditlaw bench train --gpus N`: the same batch on one GPU and divided among N, through DeepSpeed and without.

Gangs are processes of this machine, one a GPU, joined as a sweep's are. A gang that fails or stands still ends with a
row that says so; what it had measured until then stays, so the steps that are captured as graphs come last.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.cost import cost
from orchestrator.bench.memory import Case, environment
from orchestrator.bench.train import Bench, Take, peak_of
from orchestrator.spec.trial import ZeroStage
from orchestrator.training import engine

log = logging.getLogger(__name__)

STAGES: dict[str, ZeroStage] = {"deepspeed ZeRO-1": 1, "deepspeed ZeRO-2": 2, "deepspeed ZeRO-3": 3}
VARIANTS = (*STAGES, "flat", "graph")
"""Of steps: through DeepSpeed, and over flat buffers without it, not captured and as a CUDA graph."""
ROUNDS = 5
WARM_STEPS = 4
"""After the first: a compiler's second thoughts, and the capture of a graph."""
PATIENCE = 240.0
"""Seconds for a row: the model compiled, warmed up, captured and timed."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gang:
    """What one gang measures."""

    num_gpus: int
    cases: tuple[Case, ...]
    """As one GPU has them: `micro_batch` is the whole batch."""
    variants: tuple[str, ...]
    seconds: float
    """Of timing each variant of each case."""
    cuda: bool = True

    def rows(self) -> list[tuple[Case, str]]:
        """What there will be a row of, in order."""
        return [(case, variant) for case in self.cases for variant in self.variants]


def run(cases: Sequence[Case], variants: Sequence[str], num_gpus: int, seconds: float, cuda: bool = True) -> Row:
    """The environment, and a row for every case, variant and gang, of one GPU and of `num_gpus`.

    Args:
        cases: as one GPU has them.
        variants: of VARIANTS; empty: all.
        num_gpus: of the larger gang.
        seconds: all timing may take about so long; compiling comes on top.
        cuda: on GPUs; else in processes of one thread.

    Raises:
        ValueError: there are not as many GPUs, a batch cannot be divided, or a variant is unknown.
    """
    _check(cases, variants, num_gpus, cuda)
    chosen = tuple(name for name in VARIANTS if name in variants or not variants)
    each = seconds / (2 * len(cases) * len(chosen))
    found: Row = {"gpus": num_gpus, "rows": []}
    for number in (1, num_gpus):
        gang = Gang(num_gpus=number, cases=tuple(cases), variants=chosen, seconds=each, cuda=cuda)
        where, rows = measure(gang)
        found = {**where, **found, "rows": found["rows"] + rows}
    return {**found, "rows": with_scaling(found["rows"])}


def _check(cases: Sequence[Case], variants: Sequence[str], num_gpus: int, cuda: bool) -> None:
    if cuda and torch.cuda.device_count() < num_gpus:
        raise ValueError(
            f"--gpus {num_gpus}, and torch sees {torch.cuda.device_count()}; wanted that many on this machine"
        )
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ValueError(f"no variant {unknown[0]!r} with --gpus; wanted one of {', '.join(VARIANTS)}")
    for case in cases:
        if case.micro_batch % num_gpus:
            raise ValueError(
                f"{case.size} has batches of {case.micro_batch}; wanted a number of GPUs that divides them"
            )


def measure(gang: Gang) -> tuple[Row, list[Row]]:
    """The environment and the rows of one gang; the last one has an `error` if the gang came to nothing."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [context.Process(target=_work, args=(gang, rank, port, answers.put)) for rank in range(gang.num_gpus)]
    for rank, worker in enumerate(workers):
        with seeing_one_gpu(rank):
            worker.start()
    try:
        where = _answer(answers, workers)
        rows: list[Row] = []
        for case, variant in gang.rows():
            answer = _answer(answers, workers)
            rows.append({"case": _name(case), "variant": variant, "num_gpus": gang.num_gpus, **answer})
            log.info("%s", rows[-1])
            if "error" in answer:
                break
        return ({}, rows) if "error" in where else (where, rows)
    finally:
        for worker in workers:
            worker.join(20)  # the last one may be leaving its group
            worker.kill()


def _name(case: Case) -> str:
    return f"{case.size} {case.micro_batch}"


@contextmanager
def seeing_one_gpu(rank: int) -> Iterator[None]:
    """Processes that start here see one of the GPUs that this one sees: torch looks when it is imported."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = before.split(",")[rank] if before else str(rank)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _answer(answers: Any, workers: Sequence[Any]) -> Row:
    """The next answer of a gang, or why there is none."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            answer: Row = answers.get(timeout=1.0)
            return answer
        except queue.Empty:
            if failed := [worker.exitcode for worker in workers if worker.exitcode]:
                return {"error": f"a worker ended with exit code {failed[0]}; its traceback is above"}
    return {"error": f"no answer for {PATIENCE:.0f} s"}


def _work(gang: Gang, rank: int, port: int, answer: Callable[[Row], None]) -> None:
    """One worker, in a process of its own; the first one answers."""
    if not gang.cuda:
        torch.set_num_threads(1)
    device = torch.device("cuda", 0) if gang.cuda else torch.device("cpu")
    engine.join(rank, gang.num_gpus, "127.0.0.1", port, use_gpu=gang.cuda)
    if rank == 0:
        answer(environment(device))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder), rank)
        for case, variant in gang.rows():
            row = timed(bench, case, variant, gang.num_gpus, gang.seconds)
            if rank == 0:
                answer(row)
    engine.leave()


def timed(bench: Bench, case: Case, variant: str, num_gpus: int, seconds: float) -> Row:
    """Figures of one variant's step. Collective: the workers time the same numbers of steps."""
    shared = replace(case, num_workers=num_gpus, micro_batch=case.micro_batch // num_gpus)
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    began = time.perf_counter()
    if variant in STAGES:
        take = bench.alone(replace(shared, zero_stage=STAGES[variant]))
    else:
        take = bench.pack(shared, 1, graph=variant == "graph")
    take()
    _wait(cuda)
    first = time.perf_counter() - began
    _seconds(take, WARM_STEPS, cuda)
    once = _seconds(take, 2, cuda) / 2
    length = _of_the_first(max(2, round(seconds / ROUNDS / max(once, 1e-4))), bench.device)
    step = statistics.median(_seconds(take, length, cuda) / length for _ in range(ROUNDS))
    memory = torch.cuda.max_memory_allocated(bench.device) / 2**30 if cuda else None
    bench.release()
    images = case.micro_batch / step
    return {
        "step_ms": 1e3 * step,
        "images_per_s": images,
        "mfu": images * cost(case.model).training_flops / (num_gpus * peak_of(bench.device)),
        "memory_gib": memory,
        "first_step_s": first,
        "rounds": ROUNDS,
        "steps_a_round": length,
    }


def _of_the_first(number: int, device: torch.device) -> int:
    """The first worker's number, on every worker."""
    tensor = torch.tensor([number], device=device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor)


def _seconds(take: Take, steps: int, cuda: bool) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        take()
    _wait(cuda)
    return time.perf_counter() - began


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def with_scaling(rows: Sequence[Row]) -> list[Row]:
    """The rows with `scaling`: speed over that of as many GPUs alone with the same step, and `scaling_of_best`, with
    the fastest step of one GPU. None where one of both was not measured."""
    alone = {(row["case"], row["variant"]): row["images_per_s"] for row in _sound(rows) if row["num_gpus"] == 1}
    best = {case: max(speed for (own, _), speed in alone.items() if own == case) for case, _ in alone}

    def over(row: Row, speed: float | None) -> float | None:
        return row["images_per_s"] / (row["num_gpus"] * speed) if "error" not in row and speed else None

    return [
        {
            **row,
            "scaling": over(row, alone.get((row["case"], row["variant"]))),
            "scaling_of_best": over(row, best.get(row["case"])),
        }
        for row in rows
    ]


def _sound(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "error" not in row]
