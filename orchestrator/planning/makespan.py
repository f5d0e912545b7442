"""How long trials take side by side: longest first, branches after their trunk's checkpoint; and no plan can be faster
than the lower bound."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from orchestrator.spec.trial import Trial

Seconds = Mapping[str, float]
"""How long each trial takes, by trial_id."""
NEGLIGIBLE = 0.005
"""Share of a makespan."""
Branches = dict[int, list[tuple[float, int]]]
"""By the rank of a trunk: seconds after its start, and the rank of a branch that may start then."""


def by_length(trials: Sequence[Trial], seconds: Seconds) -> list[Trial]:
    """Longest first, a trunk counting the branch that ends last: it holds that up."""
    longest: dict[str, float] = {}
    for trial in trials:
        if trial.trunk is not None:
            longest[trial.trunk] = max(longest.get(trial.trunk, 0.0), seconds[trial.trial_id])
    return sorted(trials, key=lambda t: (-seconds[t.trial_id] - longest.get(t.trial_id, 0.0), t.trial_id))


def makespans(trials: Sequence[Trial], gangs: Sequence[int], seconds: Seconds) -> list[float]:
    """Seconds from start to end on each number of gangs, which take the first of `trials` that may start.

    No order takes longer than the work spread evenly and the longest trunk with its last branch together (Graham 1969),
    so where the latter is next to nothing of it the former is given, and no gang is followed.
    """
    took = [seconds[trial.trial_id] for trial in trials]
    roots, branches = _branches(trials, took)
    total, longest = sum(took), _longest(took, branches)
    return [
        total / number if longest <= NEGLIGIBLE * total / number else _makespan(took, roots, branches, number)
        for number in gangs
    ]


def _makespan(took: Sequence[float], roots: Sequence[int], branches: Branches, gangs: int) -> float:
    ready = list(roots)  # in order, and so a heap
    idle, now, end = gangs, 0.0, 0.0
    events: list[tuple[float, int, int | None]] = []  # time, order, the rank of a branch that may start; None: an end
    order = 0
    while ready or events:
        while idle and ready:
            rank = heapq.heappop(ready)
            idle -= 1
            order += 1
            heapq.heappush(events, (now + took[rank], order, None))
            for after, branch in branches.get(rank, ()):
                order += 1
                heapq.heappush(events, (now + after, order, branch))
        now, _, released = heapq.heappop(events)
        if released is None:
            idle += 1
            end = now
        else:
            heapq.heappush(ready, released)
    return end


def lower_bound(trials: Sequence[Trial], gangs: int, seconds: Seconds) -> float:
    """Seconds that no order beats: all work spread evenly, or the longest trunk with its last branch."""
    took = [seconds[trial.trial_id] for trial in trials]
    return max(sum(took) / gangs, _longest(took, _branches(trials, took)[1]))


def _longest(took: Sequence[float], branches: Branches) -> float:
    """The longest trial, or part of a trunk with the branch that follows it."""
    chains = (after + took[branch] for waiting in branches.values() for after, branch in waiting)
    return max(max(took, default=0.0), max(chains, default=0.0))


def _branches(trials: Sequence[Trial], took: Sequence[float]) -> tuple[list[int], Branches]:
    """Ranks of the trials that may start at once, and what waits for a trunk among them."""
    ranks = {trial.trial_id: rank for rank, trial in enumerate(trials)}
    roots: list[int] = []
    branches: Branches = {}
    for rank, trial in enumerate(trials):
        trunk = ranks.get(trial.trunk) if trial.trunk is not None else None
        if trunk is None:
            roots.append(rank)
        else:
            after = _share_before(trial, trials[trunk]) * took[trunk]
            branches.setdefault(trunk, []).append((after, rank))
    return roots, branches


def _share_before(branch: Trial, trunk: Trial) -> float:
    """Share of the trunk's time after which the branch may start."""
    return max(0.0, (branch.first - trunk.first) / (trunk.last - trunk.first))
