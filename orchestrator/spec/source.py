"""A YAML file with the line of every key, and the problems found in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Location = tuple[str | int, ...]


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
    """A parsed YAML document: plain data, and the line (from 1) of every key and item in it."""

    path: Path
    text: str
    data: Any
    lines: dict[Location, int]

    def line(self, location: Location) -> int:
        """The line of `location`, or of its nearest ancestor that stands in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def describe(self, problem: Problem) -> str:
        """`file:line: key.path: message`."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.location).lstrip(".")
        return f"{self.path}:{self.line(problem.location)}: {where + ': ' if where else ''}{problem.message}"


def read(path: Path) -> Source:
    """Read `path`; raise SpecError for text that is not YAML, duplicate keys or keys that are not text."""
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
        source = Source(path, text, None, {(): mark.line + 1 if mark else 1})
        raise SpecError(source, [Problem((), f"is not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise SpecError(Source(path, text, None, {}), [Problem((), f"is not YAML: {error}")]) from None
    source = Source(path, text, data, lines)
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
