"""From cells to trials: what is the same training is trained once.

Under a constant schedule the cells that differ only in their budget are prefixes of one trajectory, so they become the
milestones of one trial. Under warmup-stable-decay each cell is a cooldown of its own, which branches off a trunk that
all of them share: the trajectory of the constant schedule, and so also that of an arm which has one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from models.config import MaskedTokens, Objective
from orchestrator.planning.cell import Cell, Target
from orchestrator.planning.placing import Key, Seat, key_of, seats
from orchestrator.spec.evaluation_cost import affordable_images
from orchestrator.spec.recipe import Training, WarmupStableDecay
from orchestrator.spec.source import Problem
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trial import (
    ConstantSchedule,
    CooldownSchedule,
    Distance,
    Evaluation,
    Optimizer,
    PowerEma,
    Schedule,
    Trial,
)


def share(sweep: Sweep, cells: Sequence[Cell], problems: list[Problem]) -> list[Trial]:
    """The trials that measure every cell once, in the order of the cells.

    Two arms (or sizes) whose cells are the same training under two names are a problem: the comparison would be of a
    thing with itself.
    """
    evaluation = _evaluation(sweep, cells)
    places = seats(sweep, cells, evaluation, problems)
    if problems:
        return []
    maker = _Maker(sweep, evaluation, places)
    trials: dict[str, Trial] = {}
    for group in _groups(cells):
        for trial in maker.trials(group):
            known = trials.get(trial.trial_id)
            if known is None:
                trials[trial.trial_id] = trial
            elif known.milestones and trial.milestones:
                names = f"{known.arm} {known.size} and {trial.arm} {trial.size}"
                message = f"{names} at learning rate {trial.optimizer.learning_rate:g} are the same training; drop one"
                problem = Problem(("arms", group[0].variant.arm), message)
                if problem not in problems:
                    problems.append(problem)
            else:
                trials[trial.trial_id] = _merged(known, trial)
    return list(trials.values())


def _evaluation(sweep: Sweep, cells: Sequence[Cell]) -> Evaluation:
    """What the spec asks for, with as many images as the largest budgets of the cells can afford where it leaves it
    open."""
    section = sweep.evaluation
    plain = Evaluation(**section.model_dump(exclude={"distance", "sampler", "sampler_steps"}), **section.walk)
    if section.distance is None:
        return plain
    fields = section.distance.model_dump()
    if fields["images"] == "auto":
        largest: dict[float, float] = {}
        for cell in cells:
            forward = cell.model.cost.forward_flops
            largest[forward] = max(largest.get(forward, 0.0), cell.target.samples)
        asked = Distance(**{**fields, "images": 0})
        fields["images"] = affordable_images(plain, asked, largest.items())
    return dataclasses.replace(plain, distance=Distance(**fields))


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ only in their budget."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        key = (id(cell.variant), cell.model.name, cell.learning_rate, cell.seed, cell.target.batch_size)
        found.setdefault(key, []).append(cell)
    return list(found.values())


def _merged(one: Trial, two: Trial) -> Trial:
    """One trajectory that is measured for one arm and is the trunk of another; named after what is measured."""
    named = one if one.milestones else two
    points = sorted({*one.branch_points, *two.branch_points})
    return dataclasses.replace(named, branch_points=tuple(points))


class _Maker:
    """Makes trials of groups of cells; parts that many trials have in common are made once."""

    def __init__(self, sweep: Sweep, evaluation: Evaluation, places: Mapping[Key, Seat]) -> None:
        self._sweep, self._evaluation, self._places = sweep, evaluation, places
        self._optimizers: dict[tuple[int, float], Optimizer] = {}
        self._emas: dict[float, PowerEma] = {}
        self._own: dict[Evaluation, Evaluation] = {}

    def _evaluation_of(self, objective: Objective) -> Evaluation:
        """The sweep's evaluation; objectives that have a sampler of their own get it, whatever the others have."""
        if objective.sampler is None:
            return self._evaluation
        own = dataclasses.replace(self._evaluation, sampler=objective.sampler)
        if isinstance(objective, MaskedTokens):
            own = dataclasses.replace(own, sampler_steps=objective.decoding_steps, guidance_interval=None)
        return self._own.setdefault(own, own)

    def trials(self, cells: Sequence[Cell]) -> list[Trial]:
        training = cells[0].variant.training
        constant = ConstantSchedule(warmup_samples=training.warmup_samples)
        if not isinstance(training.schedule, WarmupStableDecay):
            return [self._trial(cells[0], constant, [cell.target for cell in cells])]
        branches = [self._trial(cell, _cooldown(training, cell.target), [cell.target]) for cell in cells]
        points = sorted({branch.first for branch in branches})
        trunk = self._trial(cells[0], constant, [], tuple(points))
        for branch in branches:
            branch.share_identity(trunk)
        return [trunk, *branches]

    def _trial(
        self, cell: Cell, schedule: Schedule, targets: Sequence[Target], branch_points: tuple[int, ...] = ()
    ) -> Trial:
        variant, model, seat = cell.variant, cell.model, self._places[key_of(cell)]
        return Trial(
            dataset=self._sweep.dataset,
            model=model.config,
            parameterization=variant.parameterization,
            objective=variant.objective,
            optimizer=self._optimizer(cell),
            schedule=schedule,
            ema=self._ema(variant.training.ema.relative_std),
            batch_size=cell.target.batch_size,
            seed=cell.seed,
            precision=self._sweep.compute.precision,
            zero_stage=seat.zero_stage,
            evaluation=self._evaluation_of(variant.objective),
            sweep=self._sweep.name,
            arm=variant.label,
            size=model.name,
            milestones=tuple(target.samples for target in targets),
            budgets=tuple(target.budget for target in targets),
            num_workers=seat.num_workers,
            branch_points=branch_points,
            micro_batch=seat.micro_batch,
            activation_checkpointing=seat.activation_checkpointing,
            offload=seat.offload,
            stepping=seat.stepping,
            compiled=self._sweep.compute.compile,
            flops_per_sample=model.cost.training_flops,
            params_total=model.cost.params_total,
            params_backbone=model.cost.params_backbone,
            params_matmul=model.cost.params_matmul,
        )

    def _optimizer(self, cell: Cell) -> Optimizer:
        training = cell.variant.training
        key = (id(training), cell.learning_rate)
        if key not in self._optimizers:
            self._optimizers[key] = Optimizer(
                learning_rate=cell.learning_rate,
                betas=training.betas,
                eps=training.eps,
                weight_decay=training.weight_decay,
                gradient_clip=training.gradient_clip,
            )
        return self._optimizers[key]

    def _ema(self, relative_std: float) -> PowerEma:
        if relative_std not in self._emas:
            self._emas[relative_std] = PowerEma(relative_std=relative_std)
        return self._emas[relative_std]


def _cooldown(training: Training, target: Target) -> CooldownSchedule:
    assert isinstance(training.schedule, WarmupStableDecay), "only it cools down"
    assert target.branch is not None, "the grid gives every cooldown its start"
    return _schedule(training.warmup_samples, target.branch, target.samples, training.schedule.shape)


@functools.lru_cache(maxsize=4096)
def _schedule(warmup_samples: int, start: int, end: int, shape: Literal["linear", "1-sqrt"]) -> CooldownSchedule:
    """One object for all the seeds and learning rates that cool down alike: its identity is made once."""
    return CooldownSchedule(warmup_samples=warmup_samples, start=start, end=end, shape=shape)
