"""`ditlaw bench coverage`: how often the 95% intervals of planted laws hold what was planted, by method and size."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy

from analysis.recipes import IntervalMethod
from analysis.uncertainty import Method
from orchestrator.bench.coverage_cases import BEYOND, NOISES, RESAMPLES, SIGMA, Case, PowerCase, SurfaceCase, cases

METHODS: tuple[Method, ...] = get_args(Method)
AUTO = "auto"
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

    def count(self, case: Case, number: int, interval: IntervalMethod) -> None:
        """One study more, of its own seed."""
        rng = np.random.default_rng([number, case.num_points, NOISES.index(case.noise)])
        began = time.process_time()
        bands = case.bands(rng, interval, number)
        self.cpu_seconds += time.process_time() - began
        self.repetitions += 1
        for name, value in case.truth.items():
            band = bands.get(name)
            self.held[name] = self.held.get(name, 0) + bool(band is not None and band[0] <= value <= band[1])

    @property
    def coverage(self) -> dict[str, float]:
        return {name: count / self.repetitions for name, count in self.held.items()}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.coverage.values())))


def run(
    repetitions: int = REPETITIONS, all_methods: int = 100, raw: Path | None = None, only: str = ""
) -> dict[str, Any]:
    """Coverage of the default in every case whose name holds `only`, and of every method in the first `all_methods`
    repetitions of laws with normal noise.

    `raw` is written after each batch; what it holds already is not run again. Studies have seeds of their own: a run
    that is cut short has the first studies of a longer one.
    """
    tallies = _read(raw)
    for start in range(0, repetitions, BATCH):
        for case in cases():
            if only not in case.name:
                continue
            _advance(case, tallies.setdefault(case.name, {}), min(start + BATCH, repetitions), all_methods)
            if raw is not None:
                raw.write_text(json.dumps(_result(tallies), indent=1) + "\n")
    return _result(tallies)


def _advance(case: Case, tallies: dict[str, Tally], until: int, all_methods: int) -> None:
    """Every method of the case up to so many repetitions."""
    compared = case.noise == "normal" and type(case) in (PowerCase, SurfaceCase)
    for method in (AUTO, *METHODS) if compared else (AUTO,):
        tally = tallies.setdefault(method, Tally()) if method == AUTO or all_methods else None
        last = until if method == AUTO else min(until, all_methods)
        for number in range(tally.repetitions if tally else last, last):
            assert tally is not None
            tally.count(case, number, method)  # type: ignore[arg-type]


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
