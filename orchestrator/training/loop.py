"""One attempt of a trial, from its newest checkpoint to its last milestone.

A cooldown begins with its trunk's checkpoint at the point where it branches off; a trunk saves one at each such point.

Everything random is a function of (seed, stream, samples seen), so an attempt that goes on from a checkpoint does
exactly what an undisturbed one would have done. At a milestone the checkpoint comes before the measurement: whatever
dies in between, the next attempt resumes at the milestone and measures the same weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.ema import Ema
from models.families import undrawn
from models.objectives import build_objective
from models.parameterization import parameter_groups
from orchestrator.faults import points
from orchestrator.results.outbox import AT_ONCE, Checked, Outbox, outbox_of
from orchestrator.results.patience import when_there_is_room
from orchestrator.results.schema import RUNNING
from orchestrator.results.store import Store
from orchestrator.scheduling.backend import Assignment, AttemptOutcome, Progress
from orchestrator.training.batches import batches
from orchestrator.training.checkpoint import Checkpoint, Checkpoints
from orchestrator.training.compilation import seconds_compiling
from orchestrator.training.engine import Engine, LossModule
from orchestrator.training.gang import GangMember
from orchestrator.training.measuring import Meter
from orchestrator.training.model import training_model
from orchestrator.training.pack import PackMember
from orchestrator.training.progress import Control, Counters, is_curve_step
from orchestrator.training.rows import attempt_row, curve_row, measurement_row
from orchestrator.training.schedule import rate_scale
from orchestrator.training.standing import check_standing

log = logging.getLogger(__name__)

CURVE_SECONDS = 5.0
"""Shortest time between two parts of a training curve."""
LARGEST_PAUSE_SHARE = 0.01
"""Where checkpoints leave in the background, the share of the time for which training may stand still for them."""
REPORT_SECONDS = 0.2
"""Shortest time between two reports of progress."""

Story = Generator[None, Tensor, tuple[AttemptOutcome, str | None]]


class Attempt:
    """The state of one attempt on one worker; `story` tells it.

    Args:
        assignment: what to do.
        member: the worker's standing in its gang.
        outbox: through which results are written.
        seat: its place in a pack, which then takes its steps (`training.packing`); None has an engine of its own.
        share: its part of the worker's time.
        began: seconds of `time.perf_counter` and time at which it began; default: now.
    """

    def __init__(
        self,
        assignment: Assignment,
        member: GangMember,
        outbox: Outbox = AT_ONCE,
        seat: PackMember | None = None,
        share: float = 1.0,
        began: tuple[float, datetime] | None = None,
    ) -> None:
        self.started, self.started_at = began or (time.perf_counter(), datetime.now(UTC))
        self.compiling_before = seconds_compiling()
        self.assignment, self.member = assignment, member
        self.trial = trial = assignment.trial
        # Of no method of its own: it would keep itself, and what it has on a device, until Python looks for cycles.
        standing = partial(check_standing, member.results, trial.trial_id, assignment.attempt)
        self.outbox = outbox = Checked(outbox, standing)
        self.store = Store(member.results, outbox)
        self.checkpoints = Checkpoints(member.results, trial.trial_id, keep=trial.branch_points, outbox=outbox)
        self.data = member.training_data(trial.dataset)
        self.objective = build_objective(trial.objective)
        self.measured_model = undrawn(trial.model, trial.parameterization).to(member.device).eval()
        self.measured_model.equip(member.data)
        self.meter = Meter(trial, member, self.objective, self.measured_model, outbox)
        self.micro_batch = trial.micro_batch or trial.batch_size // member.world_size
        self.share = share
        self.engine: Engine | PackMember = seat or self._own_engine()
        self.ema = Ema(self.engine.masters(), trial.ema.relative_std)
        self.samples, self.counters = 0, Counters()
        self._restore()
        self.samples_start, self.wall_before = self.samples, self.counters.wall_seconds
        self.control = Control()
        self.pending: list[Tensor] = []
        self.curve: list[dict[str, Any]] = []
        self.last_save = self.last_curve = self.last_report = time.perf_counter()
        self.train_seconds = self.evaluation_seconds = self.checkpoint_seconds = self.last_pause = 0.0
        self.startup_seconds = time.perf_counter() - self.started
        if member.rank == 0:
            self._keep(partial(self.store.append_attempts, [attempt_row(self, RUNNING, None)]))
        self._report("starting")

    def _own_engine(self) -> Engine:
        trial, device = self.trial, self.member.device
        model = training_model(trial).to(device)
        model.equip(self.member.data)
        optimizer = trial.optimizer
        return Engine(
            LossModule(model, self.objective.training_loss),
            parameter_groups(
                model, trial.parameterization, optimizer.learning_rate, optimizer.weight_decay, optimizer.eps
            ),
            optimizer,
            micro_batch=self.micro_batch,
            micro_steps=trial.micro_steps,
            precision=trial.precision,
            zero_stage=trial.zero_stage,
            offload=trial.offload,
            compiled=trial.compiled and device.type == "cuda",
        )

    def run(self) -> tuple[AttemptOutcome, str | None]:
        """Tell the whole story with steps of its own. Returns the outcome and its reason."""
        story = self.story()
        try:
            next(story)
            while True:
                story.send(self.step())
        except StopIteration as end:
            outcome: tuple[AttemptOutcome, str | None] = end.value
            return outcome

    def story(self) -> Story:
        """Train to each milestone and branch point, save, measure.

        Yields where a step is to be taken, and is sent that step's loss; returns the outcome and its reason.
        """
        milestones = self.assignment.milestones
        for stop in self._stops:
            assert self.samples <= stop, f"at {self.samples} samples, past the milestone or branch point {stop}"
            stopped = yield from self._train_until(stop)
            left = tuple(m for m in milestones if m >= stop)
            if self.counters.diverged is not None:
                self._write_diverged(left)
                return "diverged", self.counters.diverged
            if stopped or self._has_to_save(stop):
                self._save()
            if stopped:
                return "stopped", "asked to stop"
            if stop not in milestones:
                continue
            self.counters.diverged = self._measure(stop)
            if self.counters.diverged is not None:
                self._write_diverged(left)
                return "diverged", self.counters.diverged
        if not self.assignment.keep_finished and self.member.rank == 0:
            self.checkpoints.drop()
        return "completed", None

    @property
    def _stops(self) -> list[int]:
        """Where there is something left to do: unmeasured milestones and branch points without a checkpoint."""
        return sorted({*self.assignment.milestones, *self.assignment.branch_points})

    def close(self, outcome: AttemptOutcome, reason: str | None) -> None:
        """Write what is left of the curve and the attempt's row, and release the engine."""
        self._write_curve()
        if self.member.rank == 0:
            self._keep(partial(self.store.append_attempts, [attempt_row(self, outcome, reason)]))
        self.engine.close()

    # The step.

    def _train_until(self, milestone: int) -> Generator[None, Tensor, bool]:
        """Train to `milestone`, or until divergence or a request to stop; True if asked to stop."""
        began = time.perf_counter()
        batch, steps = self.trial.batch_size, self.samples // self.trial.batch_size
        stop = False
        self.control.begin(steps, began)
        while self.samples < milestone and self.counters.diverged is None and not stop:
            points.reach("step.before")
            self.pending.append((yield))
            self.samples += batch
            steps += 1
            self.member.samples = self.samples
            self.member.beat()
            points.reach("step.after", self.samples)
            if is_curve_step(steps):
                self._add_curve_point()
            if self.member.world_size == 1 or self.control.is_due(steps):
                stop = self._control(steps)
        self._settle()
        self.train_seconds += time.perf_counter() - began
        return stop and self.samples < milestone

    def step(self) -> Tensor:
        """One optimizer step; returns this worker's mean loss, not waited for. The caller advances `samples`."""
        assert isinstance(self.engine, Engine), "a pack takes the steps of its members"
        self.engine.set_rate(self.rate_scale())
        losses = []
        for micro_batch in self._micro_batches():
            loss = self._loss(micro_batch)
            points.reach("step.inside")
            self.engine.step(loss)
            losses.append(loss.detach())
        self.ema.update(self.engine.masters(), self.samples, self.samples + self.trial.batch_size)
        return torch.stack(losses).mean()

    def _micro_batches(self) -> list[tuple[Tensor, ...]]:
        """This worker's share of the batch at `samples`, in pieces of `micro_batch` samples."""
        return list(zip(*(tensor.split(self.micro_batch) for tensor in self.batch(self.samples)), strict=True))

    def _loss(self, micro_batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss of a micro-batch."""
        assert isinstance(self.engine, Engine), "a pack takes the steps of its members"
        return self.engine.forward(*micro_batch)

    def batch(self, samples: int) -> tuple[Tensor, ...]:
        """This worker's share of the batch at `samples`."""
        return batches([self.trial], [samples], self.data, self.objective, self.mine)

    @property
    def mine(self) -> slice:
        """This worker's share of a batch."""
        share = self.trial.batch_size // self.member.world_size
        return slice(self.member.rank * share, (self.member.rank + 1) * share)

    def rate_scale(self) -> float:
        """The schedule's share of the base rate for the step at `samples`."""
        return rate_scale(self.trial.schedule, self.samples, self.trial.batch_size)

    # Looking at losses, which makes the host wait for the device.

    def _settle(self) -> None:
        """Count the losses of the steps since the last look."""
        if not self.pending:
            return
        losses = self.member.mean(torch.stack(self.pending)).tolist()
        self.pending.clear()
        for loss in losses:
            self.counters.add(loss, self.trial.batch_size, self.trial.divergence.factor)

    def _add_curve_point(self) -> None:
        self._settle()
        self.curve.append(curve_row(self, self.counters.close_window()))
        now = time.perf_counter()
        if now - self.last_curve > max(CURVE_SECONDS, 0.02 * (now - self.started)):
            self._write_curve()
        if now - self.last_report > REPORT_SECONDS:
            self._report("training")

    def _control(self, steps: int) -> bool:
        """Save if it is time to; True if asked to stop."""
        least = self.assignment.checkpoint_seconds
        if self.outbox.in_background:
            least = max(least, self.last_pause / LARGEST_PAUSE_SHARE)
        due = time.perf_counter() - self.last_save > least and not self.outbox.busy
        stop, saves, apart = self.member.agree(self.member.stop.is_set(), due, self.control.steps_apart)
        self.control.agreed(steps, apart, time.perf_counter())
        if saves and not stop:
            self._settle()
            if self.counters.diverged is None:
                self._save()
        return bool(stop)

    # Milestones and checkpoints.

    def _measure(self, milestone: int) -> str | None:
        """Measure the averaged weights and write the row; why the trial has diverged here, if it has."""
        began = time.perf_counter() - seconds_compiling()
        self._report("evaluating")
        with torch.no_grad():
            for parameter, average in zip(
                self.measured_model.parameters(), self.engine.whole(self.ema.tensors), strict=True
            ):
                parameter.copy_(average)
        measured = self.meter.measure(milestone, self._keep)
        if self.member.rank == 0 and measured.failure is None:
            self._write_curve()
            row = measurement_row(self, milestone, "ok", None, measured)
            self._keep(lambda: self.store.append_measurements([row]))
        self.evaluation_seconds += time.perf_counter() - seconds_compiling() - began
        return measured.failure

    def _write_diverged(self, milestones: tuple[int, ...]) -> None:
        """A row for every milestone that the trial will not reach: divergence is a result."""
        if self.member.rank == 0:
            reason = self.counters.diverged
            rows = [measurement_row(self, m, "diverged", reason, None) for m in milestones]
            self._keep(lambda: self.store.append_measurements(rows))

    def _has_to_save(self, stop: int) -> bool:
        """Whether there is to be a checkpoint at a milestone or branch point. Collective.

        Where finished trials keep none, one is written only if a fault in the measurement would cost more than the
        time between two checkpoints.
        """
        if self.assignment.keep_finished or stop in self.trial.branch_points:
            return True
        (due,) = self.member.agree(time.perf_counter() - self.last_save > self.assignment.checkpoint_seconds)
        return bool(due)

    def _save(self) -> None:
        began = time.perf_counter()
        self._write_curve()  # first: what a checkpoint covers is not trained again
        self.counters.wall_seconds = self.wall_seconds()
        state = {}
        if self.counters.steps:
            averages = zip(self.engine.names, self.engine.whole(self.ema.tensors), strict=True)
            state = self.engine.state() | {f"ema/{n}": tensor.to("cpu", copy=True) for n, tensor in averages}
        if self.member.rank == 0 and state:
            checkpoint = Checkpoint(samples=self.samples, tensors=state, counters=self.counters.as_json())
            self._keep(lambda: self.checkpoints.save(checkpoint))
        self.last_save = time.perf_counter()
        self.last_pause = self.last_save - began
        self.checkpoint_seconds += self.last_pause

    def _restore(self) -> None:
        checkpoint = self.checkpoints.newest(at_most=self._stops[0])
        if checkpoint is None and self.trial.trunk is not None:
            checkpoint = Checkpoints(self.member.results, self.trial.trunk).at(self.trial.first)
        if checkpoint is None:
            return
        self.samples, self.counters = checkpoint.samples, Counters.from_json(checkpoint.counters)
        micro_batch = self._micro_batches()[0]
        self.engine.load_state(checkpoint.tensors, lambda: self._loss(micro_batch))
        self.engine.take_part(self.ema.tensors, {n: checkpoint.tensors[f"ema/{n}"] for n in self.engine.names})
        log.info("trial %s goes on at %d samples", self.trial.trial_id, self.samples)

    def _keep(self, write: Callable[[], object]) -> None:
        """Write something; wait while the disk is full, until asked to stop."""

        def wait(error: OSError) -> None:
            self._report("waiting for disk space")
            self.member.wait(error)

        when_there_is_room(write, wait)

    # Rows and reports.

    def wall_seconds(self) -> float:
        """Of this attempt and those before it that it goes on from."""
        return self.wall_before + time.perf_counter() - self.started

    def samples_per_second(self) -> float | None:
        """Of this attempt's training; None before the first."""
        seconds = time.perf_counter() - self.started - self.startup_seconds - self.evaluation_seconds
        return (self.samples - self.samples_start) / seconds if seconds > 0 else None

    def _write_curve(self) -> None:
        if self.member.rank == 0:
            curve = self.curve
            self._keep(lambda: self.store.append_curves(curve))
        self.curve = []
        self.last_curve = time.perf_counter()

    def _report(self, phase: Any) -> None:
        self.last_report = time.perf_counter()
        self.member.report(
            Progress(
                trial_id=self.trial.trial_id,
                attempt=self.assignment.attempt,
                phase=phase,
                samples=self.samples,
                samples_start=self.samples_start,
                loss=self.counters.running_loss,
                samples_per_second=self.samples_per_second() if phase != "starting" else None,
            )
        )


def run_attempt(assignment: Assignment, member: GangMember) -> tuple[AttemptOutcome, str | None]:
    """Run one attempt; its measurements, curve and attempt row are in the store when this returns.

    Raises whatever went wrong: the caller ends the gang, as its process group can be in any state.
    """
    with outbox_of(member.results, member.beat) as outbox:
        attempt = Attempt(assignment, member, outbox)
        points.begin(assignment.trial.trial_id, assignment.attempt, attempt.samples, member.rank)
        outcome, reason = attempt.run()
        attempt.close(outcome, reason)
    return outcome, reason
