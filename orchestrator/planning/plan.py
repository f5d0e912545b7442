"""The plan of a sweep: its trials in the order they run, and what they cost. No torch, no Ray: it answers at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.planning import makespan
from orchestrator.planning.devices import GPUS, REFERENCE, Device, host, named
from orchestrator.planning.further_problems import further_problems
from orchestrator.planning.grid import Grid
from orchestrator.planning.pack_times import PackTime, pack_times
from orchestrator.planning.packing import packs_of
from orchestrator.planning.placement import checkpoint_bytes, state_bytes, trial_seconds
from orchestrator.planning.recipes import recipes
from orchestrator.planning.sharing import share
from orchestrator.spec.compute import Compute
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.evaluation_cost import distances, evaluation_flops
from orchestrator.spec.identity import digest_text
from orchestrator.spec.problems import problem_of
from orchestrator.spec.source import Problem, Source, SpecError, read
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trial import Trial

MEASUREMENT_BYTES = 12_000
"""Bytes of one measurement's Parquet part file, with its share of the training curve."""


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep, longest first, and what they cost."""

    sweep: Sweep
    source: Source
    trials: tuple[Trial, ...]
    starts: Mapping[str, int] = field(default_factory=dict)
    """Samples from which stored trials go on, by trial_id."""
    cells_measured: int = 0
    """Cells that are in the results already; `trials` are those that lack some."""
    flops_measured: float = 0.0
    """Training FLOPs that need not be spent, because their results are there."""

    @cached_property
    def digest(self) -> str:
        """Identity of the work: of the trials and their milestones, whatever the spec's layout or comments."""
        work = sorted((trial.trial_id, trial.milestones) for trial in self.trials if trial.milestones)
        return digest_text(json.dumps(work, separators=(",", ":")))  # of text and whole numbers this is canonical

    @cached_property
    def num_cells(self) -> int:
        """Measurements to make."""
        return sum(len(trial.milestones) for trial in self.trials)

    @property
    def arms(self) -> list[str]:
        """The arms that are told apart in the results, in the order of the spec."""
        order = {name: rank for rank, name in enumerate(self.sweep.arms)}
        found = {trial.arm for trial in self.trials}
        return sorted(found, key=lambda arm: (order.get(arm, order.get(arm.split(" ")[0], len(order))), arm))

    @cached_property
    def flops_separate(self) -> float:
        """Training FLOPs if every cell were a run of its own."""
        return sum(trial.flops_per_sample * sum(trial.milestones) for trial in self.trials)

    @cached_property
    def flops_planned(self) -> float:
        """Training FLOPs that will be spent: budgets share trajectories and trunks, and stored trials go on."""
        return sum(self.flops(trial) for trial in self.trials)

    @cached_property
    def flops_evaluation(self) -> float:
        """FLOPs of all evaluations."""
        return sum(evaluation_flops(trial) for trial in self.trials)

    def start(self, trial: Trial) -> int:
        """Samples at which a trial begins: 0, where it branches off, or its newest checkpoint."""
        return max(trial.first, self.starts.get(trial.trial_id, 0))

    def flops(self, trial: Trial) -> float:
        """Training FLOPs of a trial from there on."""
        return trial.flops_per_sample * max(0, trial.last - self.start(trial))

    def seconds(self, trial: Trial) -> float:
        """Estimated seconds of `trial` on a gang, evaluation included; of a member of a pack, its share of them."""
        return self._seconds[trial.trial_id]

    def seconds_of(self, packs: Sequence[tuple[Trial, ...]]) -> list[float]:
        """Estimated seconds on a gang of each of some packs, which need not be those of the plan."""
        packed = iter(pack_times([pack for pack in packs if len(pack) > 1], self.device, self.device_seconds))
        return [
            next(packed).total / self.devices_per_worker if len(pack) > 1 else self._alone[pack[0].trial_id]
            for pack in packs
        ]

    @cached_property
    def packs(self) -> list[PackTime]:
        """The packs of several trials, as `ditlaw run` will form them; seconds as in `device_seconds`."""
        return self.packs_under(self.sweep.compute, self.device, self.device_seconds)

    def packs_under(self, compute: Compute, device: Device, alone: Mapping[str, tuple[float, bool]]) -> list[PackTime]:
        """The same under another compute section or on another device, where trials alone take `alone`."""
        if compute.packing == "off":
            return []
        return pack_times((pack for pack in packs_of(compute, self.trials) if len(pack) > 1), device, alone)

    @cached_property
    def device_seconds(self) -> dict[str, tuple[float, bool]]:
        """Seconds of each trial alone if its workers had one device each, and whether the speed was measured, by
        trial_id."""
        return {trial.trial_id: trial_seconds(trial, self.flops(trial), self.device) for trial in self.trials}

    @cached_property
    def device(self) -> Device:
        """What trials run on: the device that the spec names, else the reference GPU or this host."""
        compute = self.sweep.compute
        if compute.device is not None:
            return named(compute.device)
        return GPUS[REFERENCE] if compute.gpus_per_worker else host()

    @property
    def gangs(self) -> int:
        """Gangs that run side by side: as many as the spec asks for, and its limit of GPUs allows."""
        compute = self.sweep.compute
        if compute.max_gpus is None or not compute.gpus_per_worker:
            return compute.gangs
        widest = max((trial.num_workers for trial in self.trials), default=1) * compute.gpus_per_worker
        return max(1, min(compute.gangs, int(compute.max_gpus / widest + 1e-9)))

    @cached_property
    def _alone(self) -> dict[str, float]:
        """Seconds of each trial alone, by trial_id."""
        share = self.devices_per_worker
        return {trial_id: seconds / share for trial_id, (seconds, _) in self.device_seconds.items()}

    @cached_property
    def _seconds(self) -> dict[str, float]:
        """Seconds of each trial, or its share of its pack's."""
        share = self.devices_per_worker
        members = (pair for pack in self.packs for pair in zip(pack.trials, pack.seconds, strict=True))
        return self._alone | {trial.trial_id: seconds / share for trial, seconds in members}

    @property
    def devices_per_worker(self) -> float:
        """GPUs of a worker, or cores where there are none."""
        compute = self.sweep.compute
        return min(1.0, compute.gpus_per_worker) if self.device.kind == "gpu" else compute.cpus_per_worker

    def longest_first(self) -> Plan:
        """The same plan in the order in which its trials start."""
        ordered = dataclasses.replace(self, trials=tuple(makespan.by_length(self.trials, self._alone)))
        vars(ordered).update(_alone=self._alone, device_seconds=self.device_seconds)  # whatever the order
        return ordered

    @property
    def gpu_hours(self) -> float:
        """Estimated hours of devices (GPUs, of which a worker may have a part; or CPU workers where there are none)."""
        devices = self.sweep.compute.gpus_per_worker or 1.0
        return devices * sum(self.seconds(trial) * trial.num_workers for trial in self.trials) / 3600

    @cached_property
    def makespan_hours(self) -> float:
        """Estimated hours from start to end: longest first, each to the gang that is free soonest."""
        return self.makespans_on([self.gangs])[0]

    def makespans_on(self, gangs: Sequence[int]) -> list[float]:
        """As `makespan_hours`, on other numbers of gangs."""
        if self.sweep.compute.packing != "auto":
            trials, seconds = self._firsts(self.packs)
            return [each / 3600 for each in makespan.makespans(trials, gangs, seconds)]
        placed = ((number, *self._firsts(self._packs_on(number))) for number in gangs)
        return [makespan.makespans(trials, [number], seconds)[0] / 3600 for number, trials, seconds in placed]

    def _packs_on(self, gangs: int) -> list[PackTime]:
        """The packs of a sweep that asks for so many gangs: none of them is left without work for a larger pack."""
        if gangs == self.gangs:
            return self.packs
        compute = self.sweep.compute.model_copy(update={"gangs": gangs, "max_gpus": None})
        return self.packs_under(compute, self.device, self.device_seconds)

    def _firsts(self, packs: Sequence[PackTime]) -> tuple[Sequence[Trial], makespan.Seconds]:
        """Trials alone and the first of each pack in the order in which they start, and how long each takes."""
        if not packs:
            return self.trials, self._alone
        seconds = self._alone | {pack.trials[0].trial_id: pack.total / self.devices_per_worker for pack in packs}
        others = {trial.trial_id for pack in packs for trial in pack.trials[1:]}
        return makespan.by_length([trial for trial in self.trials if trial.trial_id not in others], seconds), seconds

    @cached_property
    def makespan_bound_hours(self) -> float:
        """Hours that no order of the trials beats on as many gangs."""
        trials, seconds = self._firsts(self.packs)
        return makespan.lower_bound(trials, self.gangs, seconds) / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all trials' checkpoints; where finished trials keep none, of the largest on all gangs at a time."""
        if self.sweep.compute.finished == "keep":
            return sum(map(checkpoint_bytes, self.trials))
        packs = (sum(map(checkpoint_bytes, pack)) for pack in packs_of(self.sweep.compute, self.trials))
        return sum(sorted(packs, reverse=True)[: self.gangs])

    @property
    def results_bytes(self) -> int:
        """Bytes of measurements and curves."""
        return self.num_cells * MEASUREMENT_BYTES

    def remaining(self, measured: Collection[tuple[str, int]], checkpoints: Mapping[str, Sequence[int]]) -> Plan:
        """The plan of what is not measured yet.

        Args:
            measured: (trial_id, samples) of the measurements that are there.
            checkpoints: samples of the checkpoints that are there, by trial_id.
        """
        lacking = {t.trial_id: [m for m in t.milestones if (t.trial_id, m) not in measured] for t in self.trials}
        points: dict[str, set[int]] = {}
        for trial in self.trials:
            stored = checkpoints.get(trial.trial_id, ())
            if trial.trunk is not None and lacking[trial.trial_id] and not stored:
                points.setdefault(trial.trunk, set()).add(trial.first)
        trials, starts = [], {}
        for trial in self.trials:
            have = checkpoints.get(trial.trial_id, ())
            needed = sorted(points.get(trial.trial_id, set()) - set(have))
            if not (lacking[trial.trial_id] or needed):
                continue
            keep = [
                (m, b) for m, b in zip(trial.milestones, trial.budgets, strict=True) if m in lacking[trial.trial_id]
            ]
            trials.append(
                dataclasses.replace(
                    trial,
                    milestones=tuple(m for m, _ in keep),
                    budgets=tuple(b for _, b in keep),
                    branch_points=tuple(needed),
                )
            )
            usable = [samples for samples in have if samples <= min([m for m, _ in keep] + needed)]
            starts[trial.trial_id] = max(usable, default=0)
        rest = Plan(
            self.sweep,
            self.source,
            tuple(trials),
            {key: value for key, value in starts.items() if value},
            cells_measured=self.num_cells - sum(map(len, lacking.values())),
        )
        return dataclasses.replace(rest, flops_measured=self.flops_planned - rest.flops_planned)

    def as_json(self) -> dict[str, Any]:
        """The plan as `ditlaw plan --json` prints it and `plan.json` keeps it."""
        compute = self.sweep.compute
        return {
            "sweep": self.sweep.name,
            "question": self.sweep.question,
            "dataset": str(self.sweep.dataset),
            "dataset_digest": dataset_named(self.sweep.dataset).digest,
            "digest": self.digest,
            "num_cells": self.num_cells,
            "num_trials": len(self.trials),
            "cells_measured": self.cells_measured,
            "flops_measured": self.flops_measured,
            "flops_separate": self.flops_separate,
            "flops_planned": self.flops_planned,
            "flops_evaluation": self.flops_evaluation,
            "gpu_hours": self.gpu_hours,
            "makespan_hours": self.makespan_hours,
            "makespan_bound_hours": self.makespan_bound_hours,
            "checkpoint_bytes": self.checkpoint_bytes,
            "results_bytes": self.results_bytes,
            "arms": self.arms,
            "recipes": recipes(self.trials),
            "gangs": compute.gangs,
            "retries": compute.retries,
            **({} if compute.packing == "off" else {"packs": [self._pack_json(pack) for pack in self.packs]}),
            "trials": [self._trial_json(trial) for trial in self.trials],
            "spec_path": str(self.source.path),
            "spec": self.source.text,
        }

    def peak(self, trial: Trial) -> float:
        """FLOP/s that the trial's gang could reach at most on the plan's device: what MFU is a share of."""
        compute = self.sweep.compute
        units = compute.gpus_per_worker if self.device.kind == "gpu" else compute.cpus_per_worker
        return self.device.peak(trial.precision) * units * trial.num_workers

    def _pack_json(self, pack: PackTime) -> dict[str, Any]:
        share = self.devices_per_worker
        return {
            "trials": [trial.trial_id for trial in pack.trials],
            "seconds": pack.total / share,
            "seconds_alone": pack.alone / share,
            "gain_measured": pack.measured,
        }

    def _trial_json(self, trial: Trial) -> dict[str, Any]:
        compute, start = self.sweep.compute, self.start(trial)
        return {
            "trial_id": trial.trial_id,
            "name": trial.name,
            "arm": trial.arm,
            "size": trial.size,
            "parameterization": trial.parameterization.name,
            "learning_rate": trial.optimizer.learning_rate,
            "seed": trial.seed,
            "batch_size": trial.batch_size,
            "params_total": trial.params_total,
            "params_backbone": trial.params_backbone,
            "flops_per_sample": trial.flops_per_sample,
            "milestones": list(trial.milestones),
            "budgets": list(trial.budgets),
            "trunk": trial.trunk,
            "branch_points": list(trial.branch_points),
            "samples_start": start,
            "flops": trial.flops_per_sample * max(0, trial.last - start),
            "flops_evaluation": evaluation_flops(trial),
            "distances": list(distances(trial)),
            "seconds": self.seconds(trial),
            "state_bytes": state_bytes(trial),
            "gang": {
                "workers": trial.num_workers,
                "cpus_per_worker": compute.cpus_per_worker,
                "gpus_per_worker": compute.gpus_per_worker,
                "zero_stage": trial.zero_stage,
                "precision": trial.precision,
            },
            "peak_flops_per_second": self.peak(trial),
        }


def make(path: Path) -> Plan:
    """Plan the spec at `path`.

    Raises:
        SpecError: every problem of it, those of its language and those of its grid alike.
    """
    source = read(path)
    try:
        sweep = Sweep.model_validate(source.data)
    except ValidationError as error:
        problems = [problem_of(detail, source.data, Sweep) for detail in error.errors()]
        further = further_problems(source, problems, lambda sweep: _trials(sweep, source)[1])
        raise SpecError(source, [*problems, *further]) from None
    trials = expand(sweep, source)
    return Plan(sweep, source, tuple(trials)).longest_first()


def expand(sweep: Sweep, source: Source) -> list[Trial]:
    """The trials of `sweep` in the order of the spec; raise SpecError with everything that cannot be."""
    trials, problems = _trials(sweep, source)
    if problems:
        raise SpecError(source, problems)
    return trials


def _trials(sweep: Sweep, source: Source) -> tuple[list[Trial], list[Problem]]:
    grid = Grid(sweep, source)
    trials = share(sweep, grid.cells, grid.problems)
    return trials, _in_order(grid.problems, source)


def _in_order(problems: Sequence[Problem], source: Source) -> list[Problem]:
    """As the file goes."""
    return sorted(problems, key=lambda problem: source.place(problem.location)[1])
