"""Canonical JSON and the identities made from it.

An identity is the SHA-256 of what determines a result, and of nothing else. Two values that mean the same give the
same text (key order and tuple or list do not matter; 1.0 and 1 differ, as fields are typed); anything without one
stable text is refused, because an identity that changes between processes would silently run work twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

_KEPT = "_canonical_json"
ADDED_LATER = {"added_later": True}
"""Metadata of a dataclass's field that came when there were results already."""
_NEVER = object()
"""Equal to no value of a field."""


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, shortest floats that round-trip.

    A dataclass is a mapping of its fields and of "" to its class name, so that two alternatives never look alike; the
    text of a frozen one is worked out once an object and kept with it. A field declared `added_later` is left out
    while it has its default, which must mean what its absence meant: identities from before it stay as they were.

    Raises:
        TypeError: a value has no stable text, such as a set or an object.
        ValueError: a number is not finite.
    """
    if (kept := getattr(value, _KEPT, None)) is not None:
        return str(kept)
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"an identity cannot hold the number {value}")
        return float.__repr__(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"an identity cannot hold a dict with keys other than str: {value!r}")
        return mapping_json({key: canonical_json(item) for key, item in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_dataclass(value)
    raise TypeError(f"an identity cannot hold a {type(value).__name__}: {value!r}")


def _of_dataclass(value: Any) -> str:
    later = _added_later(value.__class__)
    texts = {
        name: canonical_json(item)
        for name in _field_names(value.__class__)
        if (item := getattr(value, name)) != later.get(name, _NEVER)
    }
    text = mapping_json({"": _quoted(type(value).__name__), **texts})
    if value.__dataclass_params__.frozen:
        object.__setattr__(value, _KEPT, text)
    return text


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _added_later(kind: Any) -> dict[str, Any]:
    """The defaults of the fields that were added later, by name."""
    return {field.name: field.default for field in dataclasses.fields(kind) if field.metadata.get("added_later")}


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def mapping_json(texts: Mapping[str, str]) -> str:
    """`canonical_json` of a mapping of which the texts of the values are known."""
    return "{" + ",".join([f"{_quoted(name)}:{texts[name]}" for name in sorted(texts)]) + "}"


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `canonical_json(value)`."""
    return digest_text(canonical_json(value), length)


def digest_text(text: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
