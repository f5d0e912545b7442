"""How long trials take side by side: longest first, branches after their trunk's checkpoint; and no plan can be faster
than the lower bound."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from orchestrator.spec.trial import Trial

Seconds = Callable[[Trial], float]


def by_length(trials: Sequence[Trial], seconds: Seconds) -> list[Trial]:
    """Longest first, a trunk counting the branch that ends last: it holds that up."""
    longest: dict[str, float] = {}
    for trial in trials:
        if trial.trunk is not None:
            longest[trial.trunk] = max(longest.get(trial.trunk, 0.0), seconds(trial))
    return sorted(trials, key=lambda t: (-seconds(t) - longest.get(t.trial_id, 0.0), t.trial_id))


def makespan(trials: Sequence[Trial], gangs: int, seconds: Seconds) -> float:
    """Seconds from start to end on `gangs` gangs that take the first of `trials` that may start."""
    here = {trial.trial_id for trial in trials}
    ready = [(rank, trial) for rank, trial in enumerate(trials) if trial.trunk not in here]
    waiting: dict[str, list[tuple[int, Trial]]] = {}
    for rank, trial in enumerate(trials):
        if trial.trunk in here:
            waiting.setdefault(str(trial.trunk), []).append((rank, trial))
    heapq.heapify(ready)
    idle, now, end = gangs, 0.0, 0.0
    events: list[tuple[float, int, int, Trial | None]] = []  # time, order, rank, a branch that may start; None: an end
    order = 0
    while ready or events:
        while idle and ready:
            _, trial = heapq.heappop(ready)
            idle -= 1
            order += 1
            heapq.heappush(events, (now + seconds(trial), order, 0, None))
            for rank, branch in waiting.pop(trial.trial_id, []):
                order += 1
                share = (branch.first - trial.first) / (trial.last - trial.first)
                heapq.heappush(events, (now + max(0.0, share) * seconds(trial), order, rank, branch))
        now, _, rank, released = heapq.heappop(events)
        if released is None:
            idle += 1
            end = now
        else:
            heapq.heappush(ready, (rank, released))
    return end


def lower_bound(trials: Sequence[Trial], gangs: int, seconds: Seconds) -> float:
    """Seconds that no order beats: all work spread evenly, or the longest trunk with its last branch."""
    trunks = {trial.trial_id: trial for trial in trials}
    chains = [0.0]
    for trial in trials:
        trunk = trunks.get(trial.trunk) if trial.trunk is not None else None
        before = seconds(trunk) * (trial.first - trunk.first) / (trunk.last - trunk.first) if trunk is not None else 0.0
        chains.append(max(0.0, before) + seconds(trial))
    return max(sum(seconds(trial) for trial in trials) / gangs, *chains)
