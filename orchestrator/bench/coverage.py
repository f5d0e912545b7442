"""`ditlaw bench coverage`: how often the 95% intervals of planted laws hold what was planted, by method and size."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy

from analysis.recipes import IntervalMethod
from analysis.uncertainty import Method
from orchestrator.bench.coverage_cases import BEYOND, NOISES, RESAMPLES, SIGMA, Case, PowerCase, SurfaceCase, cases
from orchestrator.results.atomic import write_bytes

METHODS: tuple[Method, ...] = get_args(Method)
AUTO: IntervalMethod = "auto"
REPETITIONS = 500
BATCH = 10
"""Repetitions of one case before the next has its turn: a run that is cut short has done all cases alike."""
AIM = (0.92, 0.98)


@dataclass
class Tally:
    """What one method's intervals have done in one case so far."""

    held: dict[str, int] = field(default_factory=dict)
    repetitions: int = 0
    cpu_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """The studies of another tally of the same case and method."""
        for name, count in other.held.items():
            self.held[name] = self.held.get(name, 0) + count
        self.repetitions += other.repetitions
        self.cpu_seconds += other.cpu_seconds

    @property
    def coverage(self) -> dict[str, float]:
        return {name: count / self.repetitions for name, count in self.held.items()}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.coverage.values())))


@dataclass(frozen=True)
class Batch:
    """Studies `start` to `stop` (not included) of a case by one method; each has a seed of its own."""

    case: Case
    method: IntervalMethod
    start: int
    stop: int

    def tally(self) -> Tally:
        began = time.process_time()
        held = dict.fromkeys(self.case.truth, 0)
        for number in range(self.start, self.stop):
            rng = np.random.default_rng([number, self.case.num_points, NOISES.index(self.case.noise)])
            bands = self.case.bands(rng, self.method, number)
            for name, value in self.case.truth.items():
                band = bands.get(name)
                held[name] += bool(band is not None and band[0] <= value <= band[1])
        return Tally(held, self.stop - self.start, time.process_time() - began)


def run(
    repetitions: int = REPETITIONS,
    all_methods: int = 100,
    raw: Path | None = None,
    only: str = "",
    processes: int = 1,
) -> dict[str, Any]:
    """Coverage of the default in every case whose name holds `only`, and of every method in the first `all_methods`
    repetitions of power laws and surfaces.

    `raw` is written after each batch; what it holds already is not run again. Studies have seeds of their own: a run
    that is cut short has the first studies of a longer one, and any number of processes makes the same figures.
    """
    tallies = _read(raw)
    batches = list(_missing(tallies, repetitions, all_methods, only))
    with _mapping(processes) as mapped:
        for batch, tally in zip(batches, mapped(Batch.tally, batches), strict=True):
            tallies.setdefault(batch.case.name, {}).setdefault(batch.method, Tally()).add(tally)
            if raw is not None:
                write_bytes(raw, (json.dumps(_result(tallies), indent=1) + "\n").encode())
    return _result(tallies)


def _missing(tallies: dict[str, dict[str, Tally]], repetitions: int, all_methods: int, only: str) -> Iterator[Batch]:
    """The studies that are not there yet, a batch of each case in turn."""
    chosen = [case for case in cases() if only in case.name]
    for start in range(0, repetitions, BATCH):
        for case in chosen:
            for method in (AUTO, *METHODS) if isinstance(case, PowerCase | SurfaceCase) else (AUTO,):
                done = tallies.get(case.name, {}).get(method, Tally()).repetitions
                stop = min(start + BATCH, repetitions if method == AUTO else all_methods)
                if max(start, done) < stop:
                    yield Batch(case, method, max(start, done), stop)


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterable[Tally]]]:
    """A map whose results come in order: in this process, or over others of one thread each."""
    if processes == 1:
        yield map
        return
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with get_context("spawn").Pool(processes) as pool:
        yield pool.imap


def _read(raw: Path | None) -> dict[str, dict[str, Tally]]:
    """What a file of raw figures holds; nothing where there is none."""
    if raw is None or not raw.exists():
        return {}
    table = json.loads(raw.read_text())["table"]
    return {case: {method: Tally(**tally) for method, tally in methods.items()} for case, methods in table.items()}


def _result(tallies: dict[str, dict[str, Tally]]) -> dict[str, Any]:
    used = sum(tally.cpu_seconds for methods in tallies.values() for tally in methods.values())
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    about = {"resamples": RESAMPLES, "sigma": SIGMA, "beyond": BEYOND, "cpu_seconds": used, **versions}
    return {**about, "table": {case: {m: asdict(t) for m, t in methods.items()} for case, methods in tallies.items()}}


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Mean coverage over what a case has intervals of, `<case>: <method>`."""
    figures: dict[str, Any] = {"cpu_seconds": result["cpu_seconds"]}
    for case, methods in result["table"].items():
        figures |= {f"{case}: {method}": Tally(**tally).mean for method, tally in methods.items()}
    return figures


def write_tables(result: dict[str, Any], page: Path) -> None:
    """Write the tables between their marks, `<!-- table: NAME -->` and `<!-- end -->`, in a page of text.

    That of all methods is left as it is where they were not measured.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    tables = {"default": default_table(result)}
    if any(set(METHODS) <= set(methods) for methods in result["table"].values()):
        tables["methods"] = methods_table(result)
    for name, table in tables.items():
        before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(
                f"{page} has no '<!-- table: {name} -->' with an '<!-- end -->' below it to write between."
            )
        text = f"{before}{mark}{table}{end}{after}"
    page.write_text(text)


def _planned(result: dict[str, Any]) -> Iterator[tuple[Case, dict[str, Tally]]]:
    for case in cases():
        if case.name in result["table"]:
            yield case, {method: Tally(**tally) for method, tally in result["table"][case.name].items()}


def default_table(result: dict[str, Any]) -> str:
    """Of the default in every case, as Markdown; what lies outside the aim is set in bold."""
    rows = ["| case (law, noise, points) | runs | method | mean | each | studies |", "|---|---|---|---|---|---|"]
    for case, tallies in _planned(result):
        tally = tallies[AUTO]
        each = ", ".join(f"{name} {_shown(value)}" for name, value in tally.coverage.items())
        runs = int(case.trials().max()) + 1
        rows.append(f"| {case.name} | {runs} | {case.default} | {_shown(tally.mean)} | {each} | {tally.repetitions} |")
    return "\n".join(rows) + "\n"


def _shown(value: float) -> str:
    text = f"{value:.3f}".removeprefix("0")
    return text if AIM[0] <= value <= AIM[1] else f"**{text}**"


def methods_table(result: dict[str, Any]) -> str:
    """Of every method where all were measured, the mean over what a case has intervals of, as Markdown."""
    rows = [f"| case | {' | '.join(METHODS)} | studies |", "|---|" + "---|" * (len(METHODS) + 1)]
    means = []
    for case, tallies in _planned(result):
        if not set(METHODS) <= set(tallies):
            continue
        means.append([tallies[method].mean for method in METHODS])
        rows.append(f"| {case.name} | {' | '.join(map(_shown, means[-1]))} | {tallies['pairs'].repetitions} |")
    if means:
        rows.append(f"| **all** | {' | '.join(map(_shown, np.mean(means, axis=0)))} | |")
    return "\n".join(rows) + "\n"
