"""What pydantic finds wrong with a spec, in the words and places of the spec's own file."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from models.config import Objective
from orchestrator.spec.source import Location, Problem, nearest


def problem_of(detail: ErrorDetails, data: Any, root: type[BaseModel]) -> Problem:
    """A pydantic error as a Problem: location as in the file, and what was got, wanted and can be done."""
    location = _in_file(detail["loc"], data)
    got, kind = detail["input"], detail["type"]
    if kind == "extra_forbidden" or kind == "unexpected_keyword_argument":
        known = _fields(location[:-1], data, root)
        wanted = f"; wanted one of {', '.join(known)}" if known else ""
        return Problem(location, f"is not a key here{wanted}{nearest(str(location[-1]), known)}")
    if kind == "missing" and isinstance(got, list):
        return Problem(location, f"got {_short(got)}; wanted {1 + int(detail['loc'][-1])} values")
    if kind in ("missing", "missing_argument"):
        key = str(detail["loc"][-1])
        if location[-1:] == (key,):
            return Problem(location, "is missing; wanted a value")
        ways = _ALTERNATIVES.get(str(location[-1]) if location else "", "a mapping with it")
        return Problem(location, f"has no {key}; wanted {ways}")
    if kind == "string_pattern_mismatch":
        wanted = "letters, digits, '.', '_' and '-' (64 at most), a letter or digit first"
        return Problem(location, f"got {_short(got)}; wanted {wanted}")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_alternative(location, got, detail)
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return Problem(location, message)
    if kind == "too_short":
        return Problem(location, "is empty; wanted at least one")
    wanted = re.sub(r"^(Input|Value) should (be )?", "", message)
    close = nearest(str(got), re.findall(r"'([^']+)'", message)) if kind == "literal_error" else ""
    return Problem(location, f"got {_short(got)}; wanted {wanted}{close}")


_ALTERNATIVES = {
    "parameterization": "{name: sp} or {name: mup, base_width: ...} or {name: completep, base_width: ..., "
    "base_depth: ...}",
    "sizes": "a list of sizes, or a mapping with a rule among width, depth, aspect, isoflop",
    "schedule": "constant or {name: wsd, cooldown: ...}",
}


def _unknown_alternative(location: Location, got: Any, detail: ErrorDetails) -> Problem:
    """A mapping without the name (or rule) that says which alternative it is, or with one that nothing has."""
    key = "rule" if isinstance(got, dict) and "rule" in got else "name"
    name = got.get(key) if isinstance(got, dict) else got
    if location[-1:] != ("objective",):
        known = re.findall(r"'(\w[\w-]*)'", str(detail.get("ctx", {}).get("expected_tags", "")))
        wanted = _ALTERNATIVES.get(str(location[-1]), f"a {key} among {', '.join(known)}")
        return Problem(location, f"got {_short(got)}; wanted {wanted}{nearest(str(name), known)}")
    known = [kind.name for kind in get_args(Objective)]
    if name is None:
        return Problem(location, f"got {_short(got)} without a name; wanted a name among {', '.join(known)}")
    wanted = f"wanted a name among {', '.join(known)}"
    return Problem(location, f"got {_short(name)}; {wanted}{nearest(str(name), known)}")


def _in_file(loc: tuple[int | str, ...], data: Any) -> Location:
    """`loc` without the union tags and type names that pydantic puts between a file's own keys."""
    location: list[int | str] = []
    for index, part in enumerate(loc):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(loc) - 1 or isinstance(data, list) or not isinstance(data, dict):
            continue
        elif part == data.get("name"):
            continue  # the tag of a union, of which a whole alternative is wrong
        location.append(part)
    return tuple(location)


def _fields(location: Location, data: Any, root: type[BaseModel]) -> list[str]:
    """The keys that the language knows in the mapping at `location`."""
    kind: Any = root
    for part in location:
        fields = getattr(kind, "model_fields", {})
        kind = fields[part].annotation if part in fields else _item(kind)
        data = data[part]
        kind = _section(kind, data)
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return list(names)


def _item(kind: Any) -> Any:
    arguments = get_args(kind)
    return arguments[-1] if arguments else None


def _section(kind: Any, data: Any) -> Any:
    """Strip Annotated and choose the alternative of a union by its `name`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if isinstance(data, list):
        return kind
    if get_origin(kind) in (Union, types.UnionType):
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        named = [c for c in choices if isinstance(data, dict) and getattr(c, "name", None) == data.get("name")]
        return (named or choices)[0]
    return kind


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
