"""A sweep as its driver knows it, for whoever shows it: at a moment, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.scheduling.backend import Progress
from orchestrator.scheduling.state import State
from orchestrator.spec.trial import Trial


@dataclass
class Snapshot:
    """The sweep at a moment, for whoever shows it."""

    state: State
    trials: dict[str, Trial]
    packs: dict[str, tuple[Trial, ...]]
    """What the scheduler's jobs are made of, by the trial under whose name it knows them."""
    progress: dict[str, Progress]
    """By gang."""
    flops_done: float
    flops_planned: float
    seconds: float
    """Since the driver began."""
    flops_here: float
    """Training FLOPs done since the driver began."""
    seconds_left: float | None = None
    """Until all is done; None before anything has been trained here."""
    notes: list[str] = field(default_factory=list)
    """What a person should hear once: retries, lost gangs, what diverged."""
    faults: int = 0
    """Gangs that were lost and attempts that failed since the driver began; a gang lost in an attempt is one."""
    diverged: int = 0
    """Trials of the plan that have diverged, before the driver began too."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a driver ended, by trials, of which a job of the scheduler may be several."""

    state: State
    given_up: Mapping[str, str]
    """Trials that lack something and failed too often, by trial_id, with the last reason."""
    to_go: int
    """Trials that lack something and were not given up."""


def counted(number: int, noun: str) -> str:
    """As people say it: 1 trial, 2 trials."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
