"""Attempts of several trials of one shape as one: their stories side by side, their steps taken together.

A member that ends, diverges or is done leaves, and the others go on without it. What each leaves in the store is what
it would have left alone: a checkpoint of a member goes on unpacked, and the reverse; members may begin at different
samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from torch import Tensor

from models.objectives import build_objective
from orchestrator.faults import points
from orchestrator.results.outbox import AT_ONCE, Outbox, outbox_of
from orchestrator.scheduling.backend import Assignment, AttemptOutcome
from orchestrator.training.batches import batches
from orchestrator.training.gang import GangMember
from orchestrator.training.loop import Attempt, Story
from orchestrator.training.pack import Pack

Ended = tuple[AttemptOutcome, str | None]


def run_pack(assignment: Assignment, member: GangMember) -> Ended:
    """Run the attempts of an assignment with mates, or one as a pack; as `loop.run_attempt`, and all fail if one does.

    Returns "stopped" if any was asked to stop, "diverged" if all diverged, else "completed", with the reasons of those
    that diverged.
    """
    assert member.world_size == 1 or not assignment.mates, "planning packs on one worker"
    assignments = [assignment, *assignment.mates]
    with outbox_of(member.results, member.beat) as outbox:
        pack, attempts = seated(assignments, member, outbox)
        try:
            points.begin(assignment.trial.trial_id, assignment.attempt, attempts[0].samples, member.rank)
            ended = _tell(pack, attempts)
        finally:
            pack.close()
    reasons = "; ".join(
        f"{one.trial.name}: {reason}"
        for one, (outcome, reason) in zip(attempts, ended, strict=True)
        if outcome == "diverged"
    )
    outcomes = {outcome for outcome, _ in ended}
    if "stopped" in outcomes:
        return "stopped", "asked to stop"
    return ("diverged" if outcomes == {"diverged"} else "completed"), reasons or None


def seated(
    assignments: Sequence[Assignment], member: GangMember, outbox: Outbox = AT_ONCE
) -> tuple[Pack, list[Attempt]]:
    """A pack, and the attempts whose steps it takes. Collective."""
    began = time.perf_counter(), datetime.now(UTC)
    trials = [one.trial for one in assignments]
    pack = Pack(
        trials,
        build_objective(trials[0].objective),
        member.device,
        graph=trials[0].stepping == "graph",
        rank=member.rank,
        num_workers=member.world_size,
    )
    attempts = [
        Attempt(one, member, outbox, seat, share=1 / len(trials), began=None if number else began)
        for number, (one, seat) in enumerate(zip(assignments, pack.members, strict=True))
    ]
    for row, attempt in enumerate(attempts):
        pack.follow(row, attempt.ema)
    return pack, attempts


def _tell(pack: Pack, attempts: Sequence[Attempt]) -> list[Ended]:
    """Let the stories go on together until each has ended; their outcomes, in order."""
    ended: dict[int, Ended] = {}
    stories = [attempt.story() for attempt in attempts]
    told: list[Tensor | None] = [None] * len(attempts)
    inside = list(range(len(attempts)))
    while True:
        for place, loss in zip(inside, told, strict=True):
            if place not in ended and (outcome := _go_on(stories[place], loss)) is not None:
                attempts[place].close(*outcome)
                ended[place] = outcome
        left = [row for row, place in enumerate(inside) if place not in ended]
        if not left:
            return [ended[place] for place in range(len(attempts))]
        if _give_up_places(pack, len(inside), len(left)):
            pack.keep(left)
            inside = [inside[row] for row in left]
        told = list(step(pack, [attempts[place] for place in inside]).unbind())


def _give_up_places(pack: Pack, inside: int, left: int) -> bool:
    """Whether those that have ended leave the pack: at once, or where a pack of another size is to be compiled, which
    takes as long as thousands of steps, once they are half of it. Until then steps are taken for them in vain."""
    return left < inside and (not pack.compiled or 2 * left <= inside)


def step(pack: Pack, attempts: Sequence[Attempt]) -> Tensor:
    """One step of every member of a pack; their losses [M]."""
    first = attempts[0]
    samples = [attempt.samples for attempt in attempts]
    drawn = batches([attempt.trial for attempt in attempts], samples, first.data, first.objective, first.mine)
    spans = [(seen, seen + first.trial.batch_size) for seen in samples]
    return pack.step(drawn, [attempt.rate_scale() for attempt in attempts], spans)


def _go_on(story: Story, loss: Tensor | None) -> Ended | None:
    """Tell a story up to its next step; its outcome if it has ended."""
    try:
        next(story) if loss is None else story.send(loss)
    except StopIteration as end:
        outcome: Ended = end.value
        return outcome
    return None
