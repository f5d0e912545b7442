"""One turn of the scheduler: a state in the making and the actions so far, with what keeps its indices in step."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.scheduling.capacity import Placement
from orchestrator.scheduling.state import (
    Action,
    Gang,
    Kind,
    Limit,
    Pool,
    QueueKey,
    Reservation,
    RunTrial,
    StartGang,
    State,
    StopGang,
    Use,
)

NOTHING = Use()
_NO_LIMIT = Limit()


class Turn:
    """Starts at a state and ends at another; every value on the way is immutable, so the first one stays as it was."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.actions: list[Action] = []

    # Jobs.

    def queue(self, trial_id: str) -> None:
        """A job can begin now."""
        job = self.state.jobs[trial_id]
        pool = self.state.pools[job.kind]
        key = (-job.priority, -job.length, self.state.ranks[trial_id])
        self.set_pool(job.kind, pool._replace(queue=pool.queue.set(key, trial_id)))

    def retire(self, trial_id: str) -> None:
        """A job has ended, one way or the other."""
        kind = self.state.jobs[trial_id].kind
        pool = self.state.pools[kind]
        self.set_pool(kind, pool._replace(unfinished=pool.unfinished - 1))
        failures = self.state.failures.without(trial_id)
        self.state = self.state._replace(blocked=self.state.blocked.without(trial_id), failures=failures)

    def revive(self, trial_id: str) -> None:
        """A job that was given up is to be done after all; it waits for its trunk where that has not ended."""
        job = self.state.jobs[trial_id]
        pool = self.state.pools[job.kind]
        self.set_pool(job.kind, pool._replace(unfinished=pool.unfinished + 1))
        waits = job.waits_for is not None and job.waits_for[0] not in self.state.done
        if job.waits_for is not None and waits and not self.state.saved.get(trial_id, 0):
            self.state = self.state._replace(blocked=self.state.blocked.set(trial_id, job.waits_for))
        else:
            self.queue(trial_id)

    def fitting(self, kind: Kind, seconds: float) -> QueueKey | None:
        """The first job of a kind that takes no longer than `seconds`."""
        queue = self.state.pools[kind].queue
        key = queue.key_at(0)
        while key is not None:
            priority = key[0]
            key = queue.key_from((priority, -seconds))
            if key is None or key[0] == priority:
                return key
        return None

    def set_pool(self, kind: Kind, pool: Pool) -> None:
        """Put a pool in the place of the one that was."""
        self.state = self.state._replace(pools={**self.state.pools, kind: pool})

    # Gangs.

    def start(self, kind: Kind, placement: Placement, job: str) -> None:
        """Start a gang for a job that fits now; the one that was asked for ahead, if it is of this kind."""
        state = self.state
        asked = state.gangs[state.asked] if state.asked is not None else None
        ends = state.now + state.policy.startup_seconds + state.seconds_left(job)
        if asked is not None and asked.kind == kind:
            self.replace(asked, asked._replace(status="starting", placement=placement, ends=ends, since=state.now))
            self.state = self.state._replace(asked=None)
        else:
            self._name(Gang("", kind, "starting", placement, ends, state.now))

    def ask(self, kind: Kind) -> None:
        """Ask for a gang whose resources are not there yet."""
        name = self._name(Gang("", kind, "asked", (), 0.0, self.state.now))
        self.state = self.state._replace(asked=name)

    def run(self, gang: Gang, key: QueueKey) -> None:
        """Give a gang the job at `key` of its kind's queue."""
        pool = self.state.pools[gang.kind]
        trial_id = pool.queue[key]
        self.set_pool(gang.kind, pool._replace(queue=pool.queue.without(key)))
        now = self.state.now
        ends = now + self.state.seconds_left(trial_id)
        self.replace(gang, gang._replace(status="busy", ends=ends, since=now, served=gang.served + 1))
        self.state = self.state._replace(running=self.state.running.set(gang.name, trial_id))
        self.actions.append(RunTrial(gang.name, trial_id))

    def free(self, gang: Gang) -> None:
        """A gang has nothing to do: it ends, makes room for the reservation, or waits for work."""
        state, policy = self.state, self.state.policy
        worn = policy.recycle_after is not None and gang.served >= policy.recycle_after
        if gang.leaving or worn or state.halted:
            self.end(gang)
        elif gang.reserved:
            assert state.reservation is not None
            key = self.fitting(gang.kind, state.reservation.start - state.now)
            if key is None and not gang.served:  # the job for which it was started is counted in the reservation
                key = state.pools[gang.kind].queue.key_at(0)
            if key is not None:
                self.run(gang, key)
            else:
                self.replace(gang, gang._replace(status="held", since=state.now))
        else:
            self.replace(gang, gang._replace(status="idle", since=state.now))

    def end(self, gang: Gang) -> None:
        """Stop a gang."""
        self.replace(gang, None)
        if self.state.asked == gang.name:
            self.state = self.state._replace(asked=None)
        self.actions.append(StopGang(gang.name))

    def replace(self, old: Gang | None, new: Gang | None) -> None:
        """Put `new` in the place of `old` in every index; None is no gang."""
        gang = new or old
        assert gang is not None
        state, reservation = self.state, self.state.reservation
        pool = _filed(_filed(state.pools[gang.kind], old, -1), new, 1)
        gangs = state.gangs.without(gang.name) if new is None else state.gangs.set(gang.name, new)
        before, after = old.placement if old else (), new.placement if new else ()
        cluster = state.cluster if before == after else state.cluster.release(before).take(after)
        if old is not None and old.reserved and old.status != "held" and (new is None or new.status == "held"):
            assert reservation is not None
            reservation = reservation._replace(busy=reservation.busy - 1)
        use = state.use if old and new else _counted(state.use, gang, 1 if new else -1)
        self.state = state._replace(
            pools={**state.pools, gang.kind: pool}, gangs=gangs, cluster=cluster, reservation=reservation, use=use
        )

    def _name(self, gang: Gang) -> str:
        gang = gang._replace(name=f"gang-{self.state.gangs_named}")
        self.state = self.state._replace(gangs_named=self.state.gangs_named + 1)
        self.replace(None, gang)
        self.actions.append(StartGang(gang.name, gang.kind.shape))
        return gang.name

    # The reservation.

    def reserve(self, reservation: Reservation) -> None:
        """Let its gangs make room; the idle ones are held at once."""
        self.state = self.state._replace(reservation=reservation)
        for name in reservation.gangs:
            gang = self.state.gangs[name]._replace(reserved=True)
            self.replace(self.state.gangs[name], gang)
            if gang.status == "idle":
                self.replace(gang, gang._replace(status="held"))

    def drop_reservation(self) -> None:
        """Let its gangs go on as before."""
        reservation = self.state.reservation
        if reservation is None:
            return
        for name in reservation.gangs:
            gang = self.state.gangs.get(name)
            if gang is not None:
                status = "idle" if gang.status == "held" else gang.status
                self.replace(gang._replace(reserved=False), gang._replace(reserved=False, status=status))
        self.state = self.state._replace(reservation=None)


def _filed(pool: Pool, gang: Gang | None, sign: int) -> Pool:
    """A pool with a gang added to its indices (sign 1), or taken out of them (-1)."""
    if gang is None:
        return pool
    if gang.status == "idle":
        key = gang.since, gang.name
        return pool._replace(idle=pool.idle.set(key, None) if sign > 0 else pool.idle.without(key))
    if gang.status not in ("busy", "starting"):
        return pool
    key = gang.ends, gang.name
    ends = pool.ends.set(key, None) if sign > 0 else pool.ends.without(key)
    return pool._replace(ends=ends, starting=pool.starting + sign * (gang.status == "starting"))


def _counted(use: Mapping[str, Use], gang: Gang, sign: int) -> dict[str, Use]:
    """What the sweeps hold, after a gang has come (1) or gone (-1)."""
    sweep, shape = gang.kind
    held = use[sweep]
    gangs = held.gangs + sign
    more = Use(gangs, held.cpus + sign * shape.cpus, held.gpus + sign * shape.gpus)
    return {**use, sweep: more if gangs else NOTHING}


def within_limit(state: State, kind: Kind, freed: Use = NOTHING) -> bool:
    """Whether a sweep may hold one gang of this kind more, after giving back what is `freed`."""
    limit, use = state.limits.get(kind.sweep, _NO_LIMIT), state.use[kind.sweep]
    gpus = kind.shape.gpus
    return (limit.gangs is None or use.gangs - freed.gangs < limit.gangs) and (
        limit.gpus is None or use.gpus - freed.gpus + gpus <= limit.gpus + 1e-9
    )
