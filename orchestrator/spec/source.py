"""A YAML file with the line of every key, the files it includes, and the problems found in them.

`include: base.yaml` (or a list) takes another spec as the ground: its mappings are merged key by key with those of the
file that includes it, whose values win. Lists are replaced whole, and so are `budgets`, mappings whose `name` or `rule`
differs, and keys given as null, which are dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Location = tuple[str | int, ...]
Place = tuple[Path, int]
"""A file and a line of it, from 1."""
INCLUDE = "include"
MAX_INCLUDES = 32


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where, and what was got, wanted and can be done."""

    location: Location
    message: str


class SpecError(ValueError):
    """Every problem of a spec at once; `str()` gives one line a problem, with its file and line."""

    def __init__(self, source: Source, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(source.describe(problem) for problem in self.problems))


@dataclass(frozen=True)
class Source:
    """A parsed YAML document with what it includes: plain data, and the place of every key and item in it."""

    path: Path
    text: str
    """All of it as one YAML document: the file itself, or with includes what they come to."""
    data: Any
    places: dict[Location, Place]

    def place(self, location: Location) -> Place:
        """The file and line of `location`, or of its nearest ancestor that stands in a file."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, (self.path, 1))

    def describe(self, problem: Problem) -> str:
        """`file:line: key.path: message`."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.location).lstrip(".")
        path, line = self.place(problem.location)
        return f"{path}:{line}: {where + ': ' if where else ''}{problem.message}"


def read(path: Path) -> Source:
    """Read `path` and what it includes.

    Raises:
        SpecError: a file is not there or not YAML, files include each other in a circle, a key is given twice or is
            not text.
    """
    return _read(path, ())


def _read(path: Path, chain: tuple[Path, ...]) -> Source:
    source = _read_one(path)
    if INCLUDE not in source.data:
        return source
    included = source.data.pop(INCLUDE)
    names = included if isinstance(included, list) else [included]
    problems, grounds = [], []
    chain = (*chain, path.resolve())
    for index, name in enumerate(names):
        at: Location = (INCLUDE, index) if isinstance(included, list) else (INCLUDE,)
        if not isinstance(name, str):
            problems.append(Problem(at, f"got {name!r}; wanted the path of a YAML file, from this file's folder"))
            continue
        target = path.parent / name
        if target.resolve() in chain:
            circle = " -> ".join(file.name for file in (*chain[chain.index(target.resolve()) :], target))
            problems.append(Problem(at, f"is a circle of files that include each other: {circle}; drop one"))
        elif len(chain) > MAX_INCLUDES:
            problems.append(Problem(at, f"is more than {MAX_INCLUDES} files deep; wanted fewer"))
        elif not target.is_file():
            problems.append(Problem(at, f"got {name!r}, and there is no file {target}; wanted a path from this folder"))
        else:
            grounds.append(_read(target, chain))
    if problems:
        raise SpecError(source, problems)
    data: dict[str, Any] = {}
    places: dict[Location, Place] = {}
    for layer in (*grounds, source):
        data = _merged(data, layer.data, (), places, layer.places)
    places[()] = source.place(())
    return Source(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True), data, places)


def _merged(
    ground: dict[str, Any],
    upper: dict[str, Any],
    at: Location,
    places: dict[Location, Place],
    upper_places: dict[Location, Place],
) -> dict[str, Any]:
    """`upper` laid over `ground`; `places` is brought up to date."""
    result = dict(ground)
    for key, value in upper.items():
        here = (*at, key)
        below = ground.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and key != "budgets" and not _other_kind(below, value):
            result[key] = _merged(below, value, here, places, upper_places)
            continue
        for location in [location for location in places if location[: len(here)] == here]:
            del places[location]
        if value is None:
            result.pop(key, None)
            continue
        result[key] = value
        places |= {location: place for location, place in upper_places.items() if location[: len(here)] == here}
    return result


def _other_kind(ground: dict[str, Any], upper: dict[str, Any]) -> bool:
    """Whether two mappings are different alternatives of a union."""
    return any(tag in ground and tag in upper and ground[tag] != upper[tag] for tag in ("name", "rule"))


def _read_one(path: Path) -> Source:
    """One file by itself, its `include` not yet followed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read: {error}. Give the path of a sweep's YAML file, such as sweeps/quickstart.yaml."
        raise SpecError(Source(path, "", None, {}), [Problem((), message)]) from None
    lines: dict[Location, int] = {}
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _construct(node, (), lines, problems) if node else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        source = Source(path, text, None, {(): (path, mark.line + 1 if mark else 1)})
        raise SpecError(source, [Problem((), f"is not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise SpecError(Source(path, text, None, {}), [Problem((), f"is not YAML: {error}")]) from None
    source = Source(path, text, data, {location: (path, line) for location, line in lines.items()})
    if not isinstance(data, dict):
        kind = type(data).__name__ if data is not None else "nothing"
        problems.append(Problem((), f"holds {kind}; wanted a mapping of keys such as name, models, arms and budgets"))
    if problems:
        raise SpecError(source, problems)
    return source


def nearest(word: str, words: Iterable[str]) -> str:
    """`"; did you mean X?"` for the most similar of `words`, else `""`."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _construct(node: yaml.Node, at: Location, lines: dict[Location, int], problems: list[Problem]) -> Any:
    """`node` as plain data. Depth and size are bounded, as aliases can make a small file endless."""
    if len(at) > 32 or len(lines) > 100_000:
        if not problems or "endless" not in problems[-1].message:
            problems.append(Problem(at[:8], "is nested too deeply or endless; wanted a plain spec"))
        return None
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key_node.tag == "tag:yaml.org,2002:merge":
                problems.append(Problem(at, "holds a key that is not plain text; wanted names"))
                continue
            if key in result:
                first = lines[(*at, key)]
                lines[(*at, key)] = key_node.start_mark.line + 1
                problems.append(Problem((*at, key), f"is given twice, first on line {first}; keep one"))
                continue
            lines[(*at, key)] = key_node.start_mark.line + 1
            result[key] = _construct(value_node, (*at, key), lines, problems)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*at, index), lines, problems) for index, item in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        detail = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
        problems.append(Problem(at, f"cannot be read: {detail}"))
        return None
    finally:
        loader.dispose()
