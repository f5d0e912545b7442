"""Arms and axes: every combination of the settings that a sweep asks for, as validated sections.

A variant is the sweep's `models`, `objective`, `training` and an arm's parameterization, with the arm's own keys and
one value of every axis laid over them. An axis other than the learning rate and the batch size makes arms of its own,
as `mup weight_decay=0.1`, because measurements under different settings are not of one law.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from models.config import Objective, Parameterization
from orchestrator.spec.problems import problem_of
from orchestrator.spec.recipe import Constant, Ema, PowerBatch, Training, WarmupStableDecay
from orchestrator.spec.section import Section
from orchestrator.spec.source import Location, Problem, nearest
from orchestrator.spec.sweep import Arm, Models, ObjectiveSection, ParameterizationSection, Sweep

SECTIONS = ("training", "models", "objective", "parameterization")
WITHOUT_NAME = ("learning_rate", "batch_size")
"""Axes that have a column of their own in the results, and so need not be told apart by the arm's name."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One combination of settings; only size, learning rate, seed and budget are still open."""

    label: str
    """The arm's name in the results."""
    arm: str
    """The arm of the spec."""
    parameterization: Parameterization
    models: Models
    objective: Objective
    training: Training
    axes: Mapping[str, Any]
    """The value of every axis, by its name as the spec gives it."""


class Variants:
    """Works the arms and axes of a sweep out; what cannot be is added to `problems`."""

    def __init__(self, sweep: Sweep, problems: list[Problem]) -> None:
        self._sweep, self._problems = sweep, problems
        self._cache: dict[tuple[Any, ...], Any] = {}

    def count(self) -> int:
        """How many combinations there are, learning rates included, before any is worked out."""
        return sum(
            math.prod(len(values) for values in self._axes(arm).values())
            * (1 if self._rate_axis(arm) else len(arm.learning_rate or self._sweep.training.learning_rate))
            for arm in self._sweep.arms.values()
        )

    def all(self) -> list[Variant]:
        """Every variant, arms in the order of the spec, axes in theirs, the last one fastest."""
        return [variant for name, arm in self._sweep.arms.items() for variant in self._of(name, arm)]

    def _rate_axis(self, arm: Arm) -> bool:
        return any(axis.split(".")[-1] == "learning_rate" for axis in self._axes(arm))

    def _axes(self, arm: Arm) -> dict[str, list[Any]]:
        return {**self._sweep.axes, **arm.axes}

    def _of(self, name: str, arm: Arm) -> Iterator[Variant]:
        found = {axis: self._place(name, arm, axis) for axis in self._axes(arm)}
        places = {axis: place for axis, place in found.items() if place is not None}  # the others are problems told
        axes = {axis: values for axis, values in self._axes(arm).items() if axis in places}
        for combination in itertools.product(*axes.values()):
            values = dict(zip(axes, combination, strict=True))
            variant = self._variant(name, arm, places, values)
            if variant is not None:
                yield variant

    def _variant(
        self, name: str, arm: Arm, places: Mapping[str, tuple[str, ...]], values: Mapping[str, Any]
    ) -> Variant | None:
        changes: dict[str, list[tuple[str, tuple[str, ...], Any]]] = {section: [] for section in SECTIONS}
        for axis, (section, *inner) in places.items():
            changes[section].append((axis, tuple(inner), values[axis]))
        found = {section: self._section(name, arm, section, changes[section]) for section in SECTIONS}
        if any(value is None for value in found.values()):
            return None
        extra = [
            f"{axis.split('.')[-1]}={_text(values[axis])}" for axis in values if axis.split(".")[-1] not in WITHOUT_NAME
        ]
        return Variant(label=" ".join([name, *extra]), arm=name, axes=values, **found)

    def _section(self, name: str, arm: Arm, section: str, changes: list[tuple[str, tuple[str, ...], Any]]) -> Any:
        """One section of a variant, validated; None with what is wrong with it among the problems."""
        key = (name, section, *((axis, repr(value)) for axis, _, value in changes))
        if key in self._cache:
            return self._cache[key]
        data, own = self._ground(arm, section), self._own(arm, section)
        at: Location = ("arms", name)
        data = _laid_over({section: data}, {section: own})
        if section == "training" and arm.learning_rate is not None:
            data[section]["learning_rate"] = arm.learning_rate
        for axis, inner, value in changes:
            at = ("arms", name, "axes", axis) if axis in arm.axes else ("axes", axis)
            _assign(data[section], inner, value)
        try:
            self._cache[key] = getattr(_Sections.model_validate(data), section)
        except ValidationError as error:
            self._cache[key] = None
            for detail in error.errors():
                problem = problem_of(detail, data, _Sections)
                if changes:
                    where = ".".join(map(str, problem.location))
                    problem = Problem(at, f"{where}: {problem.message}")
                else:
                    problem = Problem((*at, *problem.location), problem.message)
                self._add(problem)
        return self._cache[key]

    def _ground(self, arm: Arm, section: str) -> dict[str, Any]:
        """The sweep's own data for a section."""
        if section == "parameterization":
            return _fields(arm.parameterization)
        if section == "objective":
            return _fields(self._sweep.objective)
        value: BaseModel = getattr(self._sweep, section)
        return value.model_dump(exclude_unset=True)

    def _own(self, arm: Arm, section: str) -> dict[str, Any]:
        """What an arm lays over it."""
        own = {"training": arm.training, "models": arm.models, "objective": arm.objective}.get(section)
        return own or {}

    # The place of an axis.

    def _place(self, name: str, arm: Arm, axis: str) -> tuple[str, ...] | None:
        """The section and keys that an axis stands for, or None with the problem told."""
        known = self._known(arm)
        found = [path for path in known if path == axis] or [path for path in known if path.split(".", 1)[1] == axis]
        at: Location = ("arms", name, "axes", axis) if axis in arm.axes else ("axes", axis)
        if len(found) == 1:
            return tuple(found[0].split("."))
        if found:
            self._add(Problem(at, f"is the name of several axes; wanted one of {', '.join(found)}"))
            return None
        short = [path.split(".", 1)[1] for path in known]
        hint = nearest(axis, [*known, *short])
        message = f"is not an axis; wanted a hyperparameter of {', '.join(SECTIONS)}{hint}"
        if axis.startswith(("compute", "precision", "zero_stage", "evaluation")):
            message = "is one for a whole sweep, as mixing it would bend the law; wanted two sweeps"
        self._add(Problem(at, message))
        return None

    def _known(self, arm: Arm) -> list[str]:
        """Every axis that an arm may have, as section.key."""
        sweep = self._sweep
        schedules, batches = (Constant, WarmupStableDecay), PowerBatch
        training = [f"training.{key}" for key in Training.model_fields]
        nested = [f"training.ema.{key}" for key in Ema.model_fields]
        nested += [f"training.schedule.{key}" for kind in schedules for key in kind.model_fields if key != "name"]
        nested += [f"training.batch_size.{key}" for key in batches.model_fields]
        models = [f"models.{key}" for key in Models.model_fields if key != "sizes"]
        objective = {"name": "", **(arm.objective or {})}["name"] or sweep.objective.name
        kinds = [kind for kind in get_args(Objective) if kind.name == objective]
        objectives = [f"objective.{f.name}" for kind in kinds for f in dataclasses.fields(kind) if f.name != "name"]
        tables = [f"parameterization.{f.name}" for f in dataclasses.fields(arm.parameterization) if f.name != "name"]
        return training + nested + models + objectives + tables

    def _add(self, problem: Problem) -> None:
        if problem not in self._problems:
            self._problems.append(problem)


class _Sections(Section):
    """The sections of a variant, any of which may be validated alone."""

    training: Training | None = None
    models: Models | None = None
    objective: ObjectiveSection | None = None
    parameterization: ParameterizationSection | None = None


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _laid_over(ground: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `ground`, mappings key by key; another `name`, `rule` or `family` replaces a mapping whole."""
    result = dict(ground)
    for key, value in upper.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and _same_kind(below, value):
            value = _laid_over(below, value)
        result[key] = value
    return result


def _same_kind(ground: Mapping[str, Any], upper: Mapping[str, Any]) -> bool:
    defaults = {"family": Models.model_fields["family"].default}
    here = {tag: ground.get(tag, defaults.get(tag)) for tag in ("name", "rule", "family")}
    return all(upper.get(tag, value) == value for tag, value in here.items())


def _assign(data: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        data[key] = dict(inner) if isinstance(inner, dict) else {}
        data = data[key]
    data[keys[-1]] = value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:g}"
        if isinstance(value, float)
        else str(value.get("name", value))
        if isinstance(value, dict)
        else str(value)
    )
