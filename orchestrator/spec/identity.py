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
from functools import lru_cache
from typing import Any


def canonical(value: Any) -> Any:
    """`value` as plain JSON types; a dataclass gains its class name, so that two alternatives never look alike."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"an identity cannot hold the number {value}")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"an identity cannot hold a dict with keys other than str: {value!r}")
        return {key: canonical(item) for key, item in value.items()}
    raise TypeError(f"an identity cannot hold a {type(value).__name__}: {value!r}")


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, shortest floats that round-trip."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


_KEPT = "_canonical_json"


def text_of(value: Any) -> str:
    """`canonical_json(value)`; of a frozen dataclass worked out once an object and kept with it."""
    if isinstance(value, str):
        return _quoted(value)
    if type(value) is int:
        return str(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return canonical_json(value)
    kept: str | None = value.__dict__.get(_KEPT)
    if kept is None:
        kept = canonical_json(value)
        object.__setattr__(value, _KEPT, kept)
    return kept


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def mapping_json(texts: Mapping[str, str]) -> str:
    """`canonical_json` of a mapping of which the texts of the values are known."""
    return "{" + ",".join(f"{_quoted(name)}:{texts[name]}" for name in sorted(texts)) + "}"


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `canonical_json(value)`."""
    return digest_text(canonical_json(value), length)


def digest_text(text: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
