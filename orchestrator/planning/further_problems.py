"""What else is wrong with a spec whose first problems keep it from being read: all is told at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.problems import problem_of
from orchestrator.spec.source import Problem, Source
from orchestrator.spec.sweep import Sweep


def further_problems(
    source: Source, problems: Sequence[Problem], of_grid: Callable[[Sweep], list[Problem]]
) -> Iterator[Problem]:
    """Problems that a spec would have once the values in `problems` are gone: of its language, round after round, and
    then of its grid, where that can be told."""
    rest, told, new = copy.deepcopy(source.data), list(problems), list(problems)
    while new:
        for problem in new:
            _drop(rest, problem.location)
        sweep = None
        try:
            sweep = Sweep.model_validate(rest)
            found = of_grid(sweep)
        except ValidationError as error:
            found = [problem_of(detail, rest, Sweep) for detail in error.errors()]
        new = [problem for problem in found if problem not in told and not _within(problem, told)]
        yield from new
        told += new
        if sweep is not None:
            return


def _drop(data: Any, location: tuple[str | int, ...]) -> None:
    """Take the value at `location` out of a tree; of a list the whole item that holds it is taken."""
    parents: list[Any] = [data]
    for part in location[:-1]:
        try:
            parents.append(parents[-1][part])
        except (KeyError, IndexError, TypeError):
            return
    for parent, part in reversed(list(zip(parents, location, strict=False))):
        if isinstance(parent, dict) and isinstance(part, str):
            parent.pop(part, None)
            return


def _within(problem: Problem, told: Sequence[Problem]) -> bool:
    """Whether it may only be there because of what was told and taken out; one of the whole spec is its own."""
    return bool(problem.location) and any(_related(problem.location, one.location) for one in told if one.location)


def _related(one: tuple[str | int, ...], two: tuple[str | int, ...]) -> bool:
    """Whether one location lies within the other, lists taken whole."""
    plain = [tuple(part for part in location if isinstance(part, str)) for location in (one, two)]
    short, long = sorted(plain, key=len)
    return long[: len(short)] == short
