"""Who runs next, and where: the best job first, on a warm gang, on a new one, or once room has been made for it.

Jobs of one priority are taken from the sweep that holds least, longest first. A job whose gang does not fit gets a
reservation (EASY backfilling, Lifka 1995, "The ANL/IBM SP scheduling system"): the gangs whose end makes room for it
soonest take on only what ends before then, so that a large gang is never starved by small ones. A warm gang of the
job's own kind is waited for instead where it will be free nearly as soon.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable

from orchestrator.scheduling.capacity import NOWHERE, Allotment, Placement
from orchestrator.scheduling.neighbours import goes_first, room_left, steps_back, to_be_cleared
from orchestrator.scheduling.state import Gang, Kind, Reservation, State, Use
from orchestrator.scheduling.turn import NOTHING, Turn, within_limit


def dispatch(turn: Turn) -> None:
    """Bring gangs and work together as far as that goes now."""
    if turn.state.halted:
        _end_all_idle(turn)
        return
    _end_idle(turn)
    _give_back(turn)
    _fulfil(turn)
    blocked: list[Kind] = []
    orders = _orders(turn.state, turn.state.pools)
    while orders:
        kind = min(orders, key=orders.__getitem__)
        if _run_warm(turn, kind):
            changed: Collection[Kind] = (kind,)
        elif _start(turn, kind) or (not blocked and _reserve(turn, kind) and _fulfil(turn)):
            changed = tuple(orders)  # the sweeps' shares have changed
        else:
            blocked.append(kind)
            changed = ()
            del orders[kind]
        for other in changed:
            del orders[other]
        orders |= _orders(turn.state, changed)
    _ask_ahead(turn, blocked)


def _orders(state: State, kinds: Iterable[Kind]) -> dict[Kind, tuple[int, float, float, int]]:
    """The place in line of the best job of each kind that has no gang: priority, share of its sweep, length, rank."""
    orders = {}
    for kind in kinds:
        pool = state.pools[kind]
        key = pool.queue.key_at(0) if pool.idle else pool.uncovered
        if key is not None:
            share = state.share(kind.sweep) if len(state.use) > 1 else 0.0
            orders[kind] = (key[0], share, *key[1:])
    return orders


def _run_warm(turn: Turn, kind: Kind) -> bool:
    """Give the first job of a kind to the gang that has been idle longest."""
    pool = turn.state.pools[kind]
    idle, key = pool.idle.key_at(0), pool.queue.key_at(0)
    if idle is None or key is None:
        return False
    turn.run(turn.state.gangs[idle[1]], key)
    return True


def _start(turn: Turn, kind: Kind) -> bool:
    """Start a gang for the first job of a kind that has none, if one fits now."""
    state, reservation, pool = turn.state, turn.state.reservation, turn.state.pools[kind]
    key = pool.uncovered
    if key is None or not state.may_start:
        return False
    asked = state.gangs[state.asked] if state.asked is not None else None
    if not (asked is not None and asked.kind == kind) and not within_limit(state, kind):
        if asked is None or asked.kind.sweep != kind.sweep:
            return False
        turn.end(asked)  # what fits now goes before what may fit one day
        if not within_limit(turn.state, kind):
            return False
    avoid = reservation.nodes if reservation is not None and reservation.kind != kind else NOWHERE
    room, kept = room_left(state, -key[0])
    avoid = avoid | kept if kept else avoid
    if pool.full is not None and pool.full[0] is room and pool.full[1] == avoid:
        return False
    placement = room.place(kind.shape, avoid)
    if placement is None:
        turn.set_pool(kind, turn.state.pools[kind]._replace(full=(room, avoid)))
        return False
    turn.start(kind, placement, pool.queue[key])
    return True


def _fulfil(turn: Turn) -> bool:
    """Start the gang for which room was made, if all of it is free; forget the reservation if nobody needs it."""
    reservation = turn.state.reservation
    if reservation is None:
        return False
    if turn.state.pools[reservation.kind].uncovered is None:
        turn.drop_reservation()
    elif reservation.busy == 0:
        held = [turn.state.gangs[name] for name in reservation.gangs if name in turn.state.gangs]
        for gang in held:
            turn.end(gang)
        turn.state = turn.state._replace(reservation=None)
        return _start(turn, reservation.kind)
    return False


def _reserve(turn: Turn, kind: Kind) -> bool:
    """Have room made for the first job of a kind, unless one of its own kind's gangs will be free nearly as soon."""
    state, policy = turn.state, turn.state.policy
    pool = state.pools[kind]
    if state.reservation is not None or state.now < pool.look_again or pool.uncovered is None or not state.may_start:
        return False
    if steps_back(state, kind, state.lacking):
        return False
    patience = policy.startup_seconds + policy.patience * state.seconds_left(pool.queue[pool.uncovered])
    own = pool.ends.key_from((state.now,))  # one that is overdue says nothing of when it ends
    first = next((end for end, _ in _others(state, kind)), None)
    if first is None:
        return False
    waits = own is not None and own[0] <= max(first, state.now) + patience
    reservation = None if waits else _made_room(state, kind)
    if reservation is not None and not (own is not None and own[0] <= reservation.start + patience):
        turn.reserve(reservation)
        return True
    again = own[0] if own is not None else state.now + policy.startup_seconds
    turn.set_pool(kind, pool._replace(look_again=again))
    return False


def _others(state: State, kind: Kind) -> Iterable[tuple[float, str]]:
    """(when it is expected to be free, gang) of the gangs of other kinds, soonest first."""
    pools = [pool for other, pool in state.pools.items() if other != kind]
    idle = [((float("-inf"), name) for _, name in pool.idle) for pool in pools]
    return heapq.merge(*idle, *(pool.ends for pool in pools))


def _made_room(state: State, kind: Kind) -> Reservation | None:
    """The reservation that begins soonest: which gangs have to go, and when the last of them will be free."""
    cluster, shape = state.cluster, kind.shape
    least = cluster.least_share(shape)
    freed, visited, for_limit = NOTHING, [], []
    pending: dict[str, list[Allotment]] = {}
    tight = cluster.place(shape) is None
    for end, name in _others(state, kind):
        gang = state.gangs[name]
        visited.append(gang)
        if gang.kind.sweep == kind.sweep and not within_limit(state, kind, freed):
            freed = _plus(freed, gang)
            for_limit.append(gang)
        opened = False
        for allotment in gang.placement:
            held = pending.setdefault(allotment.node, [])
            held.append(allotment)
            if not tight or cluster.would_hold(allotment.node, held, shape) >= least:
                cluster, opened = cluster.release(tuple(pending.pop(allotment.node))), True
        if opened and within_limit(state, kind, freed) and (placement := cluster.place(shape)) is not None:
            nodes = {allotment.node for allotment in placement}
            on_nodes = [g for g in visited if g in for_limit or any(a.node in nodes for a in g.placement)]
            return _without_spare(state, kind, on_nodes, max(end, state.now))
    return None


def _without_spare(state: State, kind: Kind, gangs: list[Gang], start: float) -> Reservation:
    """The reservation by `gangs`, less those without which it comes out too; the latest to be free go first."""
    cluster, freed, needed = state.cluster, NOTHING, []
    for gang in gangs:
        cluster = cluster.release(gang.placement)
        freed = _plus(freed, gang) if gang.kind.sweep == kind.sweep else freed
    for gang in reversed(gangs):
        trial = cluster.take(gang.placement)
        less = _plus(freed, gang, -1) if gang.kind.sweep == kind.sweep else freed
        if within_limit(state, kind, less) and trial.place(kind.shape) is not None:
            cluster, freed = trial, less
        else:
            needed.append(gang)
    placement: Placement | None = cluster.place(kind.shape)
    assert placement is not None
    names = tuple(gang.name for gang in needed)
    return Reservation(kind, frozenset(allotment.node for allotment in placement), names, len(names), start)


def _plus(use: Use, gang: Gang, sign: int = 1) -> Use:
    shape = gang.kind.shape
    return Use(use.gangs + sign, use.cpus + sign * shape.cpus, use.gpus + sign * shape.gpus)


def _ask_ahead(turn: Turn, blocked: list[Kind]) -> None:
    """Ask for one gang beyond what fits, for the first job that its sweep's limits allow; take back what is not
    needed any more, and what another driver is to have first."""
    state = turn.state
    if state.asked is not None:
        gang = state.gangs[state.asked]
        if state.pools[gang.kind].uncovered is not None and not steps_back(state, gang.kind, state.neighbours):
            return
        turn.end(gang)
    if not state.policy.ahead or not state.may_start:
        return
    state = turn.state
    free = [kind for kind in blocked if not steps_back(state, kind, state.neighbours)]
    kind = next((kind for kind in free if within_limit(state, kind)), None)
    if kind is not None:
        turn.ask(kind)


def _end_idle(turn: Turn) -> None:
    """End the gangs that nothing waits for: at once where no work can come, after a while where some may."""
    state, patience = turn.state, turn.state.policy.idle_seconds
    for pool in state.pools.values():
        if not pool.idle and pool.unfinished:
            continue
        spare = len(pool.idle) - pool.unfinished
        for index, (since, name) in enumerate(itertools.islice(pool.idle, max(0, len(pool.idle) - len(pool.queue)))):
            if index >= spare and since + patience > state.now:
                break
            turn.end(turn.state.gangs[name])
        if not pool.unfinished:
            for _, name in pool.ends:  # still starting, for nothing
                turn.end(turn.state.gangs[name])


def _give_back(turn: Turn) -> None:
    """End idle gangs while another driver that goes first has no room for its own."""
    reservation = turn.state.reservation
    if reservation is not None and steps_back(turn.state, reservation.kind, turn.state.lacking):
        turn.drop_reservation()
    for claim in turn.state.lacking:
        idle = [(pool, turn.state.gangs[name]) for pool in turn.state.pools.values() for _, name in pool.idle]
        used: dict[Kind, int] = {}
        for pool, gang in idle:
            if claim.lacks is None or turn.state.cluster.place(claim.lacks) is not None:
                break
            key = pool.queue.key_at(used.get(gang.kind, 0))
            used[gang.kind] = used.get(gang.kind, 0) + 1
            in_the_way = to_be_cleared(turn.state, claim.lacks).intersection(place.node for place in gang.placement)
            if in_the_way and goes_first(turn.state, claim, None if key is None else -key[0], gang.kind.shape):
                turn.end(gang)


def _end_all_idle(turn: Turn) -> None:
    turn.drop_reservation()
    idle = [name for pool in turn.state.pools.values() for _, name in pool.idle]
    for name in idle + ([turn.state.asked] if turn.state.asked is not None else []):
        turn.end(turn.state.gangs[name])
