"""A sweep under a random schedule of faults, held against the same sweep undisturbed.

The sweep is run again and again, each time into a new folder, until as many faults have happened as were asked for.
Whatever ends a driver, the same command is given again: that is all a person would do.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.faults.comparison import cost, forgotten, problems, table, unsaved
from orchestrator.faults.havoc import KINDS, Havoc, Kind
from orchestrator.faults.rig import Driver, Rig
from orchestrator.planning.plan import Plan

CALM_SECONDS = (0.2, 2.0)
"""Between two faults."""
ROUND_SECONDS = 1200.0
"""Longest time for one sweep, disturbed as it is."""
MOST_RESTARTS = 60
"""Of the driver in one round."""


@dataclass
class Figures:
    """What a soak has found."""

    faults: Counter[str] = field(default_factory=Counter)
    """Injected, by kind."""
    rounds: int = 0
    measurements: int = 0
    """Compared with those of the undisturbed run."""
    driver_starts: int = 0
    attempts: int = 0
    problems: list[str] = field(default_factory=list)
    flops_useful: float = 0.0
    flops_wasted: float = 0.0
    worst_steps: int = 0
    """Most steps that one attempt lost: those since its last checkpoint."""
    worst_seconds: float = 0.0
    """Longest that an attempt trained without a checkpoint, before its last step."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """One flat object."""
        return {
            "faults": self.faults.total(),
            **{f"faults_{kind}": self.faults[kind] for kind in KINDS},
            "rounds": self.rounds,
            "measurements_compared": self.measurements,
            "problems": len(self.problems),
            "driver_starts": self.driver_starts,
            "attempts": self.attempts,
            "flops_useful": self.flops_useful,
            "flops_wasted": self.flops_wasted,
            "wasted_share": self.flops_wasted / max(1.0, self.flops_useful + self.flops_wasted),
            "most_steps_lost_by_an_attempt": self.worst_steps,
            "longest_seconds_without_a_checkpoint": self.worst_seconds,
            "seconds": self.seconds,
        }


class Soak:
    """Runs a sweep under faults.

    Args:
        plan: of the sweep; each round runs it whole.
        rig: the cluster to break.
        work: a folder for the results of every round.
        seed: of the schedule. What is running when a fault strikes depends on the machine's speed all the same.
        kinds: what may happen.
        say: told, in a line, of whatever happens.
        keep: told of the figures after every round.
    """

    def __init__(
        self,
        plan: Plan,
        rig: Rig,
        work: Path,
        seed: int,
        kinds: Sequence[Kind],
        say: Callable[[str], None],
        keep: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        self.plan, self.rig, self.work, self.say, self.keep = plan, rig, work, say, keep
        self.random = random.Random(seed)
        self.havoc = Havoc(rig, self.random, kinds)
        self.figures = Figures()

    def run(self, faults: int) -> Figures:
        """Until so many faults have happened and the sweep that they struck is done."""
        began = time.monotonic()
        undisturbed = self.work / "undisturbed" / self.plan.sweep.name
        self._round(undisturbed, 0)
        self.rig.forget()
        self.figures = Figures()
        while self.figures.faults.total() < faults and not self.figures.problems:
            self.figures.rounds += 1
            results = self.work / f"round-{self.figures.rounds}" / self.plan.sweep.name
            self._round(results, faults)
            self._compare(results, undisturbed)
            self.figures.seconds = time.monotonic() - began
            self.keep(self.figures)
            self.rig.forget()
        return self.figures

    def _round(self, results: Path, faults: int) -> None:
        """One whole sweep, with faults while there are any left to inject."""
        deadline, starts = time.monotonic() + ROUND_SECONDS, 0
        while True:
            driver = self._start(results)
            starts += 1
            killed = self._disturb(driver, results, faults, deadline)
            code = driver.process.wait()
            if code == 0:
                return
            if not killed:
                last = driver.output.strip().splitlines()[-1:]
                self.say(f"the driver ended with {code} ({' '.join(last)}); the same command again")
            if starts > MOST_RESTARTS or time.monotonic() > deadline:
                raise RuntimeError(f"the sweep does not come to its end in {results}; it printed:\n{driver.output}")

    def _start(self, results: Path) -> Driver:
        self.figures.driver_starts += 1
        arguments = ("--tracking-uri", self.havoc.tracking_uri)
        return self.rig.drive(self.plan.source.path, results, *arguments, MLFLOW_HTTP_REQUEST_TIMEOUT="1")

    def _disturb(self, driver: Driver, results: Path, faults: int, deadline: float) -> bool:
        """Inject faults until the driver ends; True if it was killed here."""
        while driver.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            if self.figures.faults.total() >= faults or not self.havoc.ready():
                continue
            time.sleep(self.random.uniform(*CALM_SECONDS))
            kind, what = self.havoc.strike(driver, results)
            if what is None:
                continue  # it found nothing to strike, as at the end of a sweep
            self.figures.faults[kind] += 1
            self.say(f"{self.figures.faults.total():4}/{faults}  {kind}: {what}")
            if kind == "driver":
                return True
        if driver.process.poll() is None:
            driver.kill()
        return False

    def _compare(self, results: Path, undisturbed: Path) -> None:
        figures, traces = self.figures, self.rig.traces()
        found = problems(results, undisturbed) + forgotten(traces, excused=self.havoc.damaged)
        found += unsaved(traces, 60 * self.plan.sweep.compute.checkpoint_minutes)
        spent = cost(self.plan, traces)
        figures.problems += found
        figures.measurements += len(table(results))
        figures.attempts += len(traces)
        figures.flops_useful += spent.flops_useful
        figures.flops_wasted += spent.flops_wasted
        figures.worst_steps = max(figures.worst_steps, spent.worst_steps)
        figures.worst_seconds = max(figures.worst_seconds, spent.worst_seconds)
        self.havoc.damaged.clear()
        verdict = "; ".join(found) or f"{len(table(results))} measurements as in the undisturbed run"
        self.say(f"round {figures.rounds}: {verdict}; {spent.share:.1%} of the FLOPs spent twice")
