"""The options of every model family as keys of a spec's `models` section, read off the families."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from functools import reduce
from operator import or_
from typing import Any, get_type_hints

from pydantic import Field, create_model

from models.config import FAMILIES
from models.configs.base import DATA_FIELDS, ModelConfig
from orchestrator.spec.section import Section

SIZE_FIELDS = ("width", "depth", "heads", "patch")
"""Fields that the sizes give."""


def option_fields(family: type[ModelConfig]) -> list[dataclasses.Field[Any]]:
    """The fields of a family that a user chooses for all sizes."""
    return [f for f in dataclasses.fields(family) if f.name not in (*DATA_FIELDS, *SIZE_FIELDS)]


def options_section() -> Any:
    """A section with one key for every option of any family; an absent one is the family's own default."""
    found: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    for name, family in FAMILIES.items():
        for option in option_fields(family):
            found.setdefault(option.name, {})[name] = option
    docs = {name: _docstrings(family) for name, family in FAMILIES.items()}
    hints = {name: get_type_hints(family) for name, family in FAMILIES.items()}
    fields: dict[str, Any] = {}
    for key, families in found.items():
        kinds = list(dict.fromkeys(hints[name][key] for name in families))
        told = dict.fromkeys(docs[name][key] for name in families)
        said = " ".join(told) + " " + _defaults(families)
        fields[key] = (reduce(or_, [*kinds, None]), Field(default=None, description=said))
    return create_model("FamilyOptions", __base__=Section, **fields)


def _defaults(families: dict[str, dataclasses.Field[Any]]) -> str:
    """The families that have an option, with their defaults."""
    told = [
        name if option.default is dataclasses.MISSING else f"{name} (default {option.default!r})"
        for name, option in families.items()
    ]
    return f"Families: {', '.join(told)}."


def _docstrings(family: type[ModelConfig]) -> dict[str, str]:
    """The strings that follow the fields of a class and of its bases, by field."""
    docs: dict[str, str] = {}
    for kind in reversed(family.__mro__):
        if kind is object or not issubclass(kind, ModelConfig):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[field.target.id] = " ".join(str(after.value.value).split())
    return docs
