"""What all mappings of a spec have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from orchestrator.spec.values import spread, spread_seeds

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """One mapping of the spec: unknown keys are refused, values are frozen, docstrings become editor help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true_or_false(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, which would count as 1 and 0."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name is not None else None
        if kind in (bool, Any) or bool in get_args(kind):
            return value
        found = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bool)]
        if found:
            got = str(found[0]).lower()
            raise ValueError(f"got {got}; wanted no true or false here (YAML reads yes and no as such)")
        return value


def tag_of(key: str) -> Callable[[Any], str | None]:
    """A discriminator of unions by `key`: of a mapping that is read, or of a section that is there already."""

    def find(value: Any) -> str | None:
        tag = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        return tag if isinstance(tag, str) else None

    return find


def _spread_whole(value: Any) -> Any:
    """As `spread`; what a rule gives is rounded to whole numbers, each kept once."""
    values = spread(value)
    return sorted({round(number) for number in values}) if isinstance(value, dict) else values


_RULE = {
    "type": "object",
    "properties": {
        name: {"type": "string" if name == "scale" else "number"}
        for name in ("from", "to", "count", "factor", "scale", "around", "each_side")
    },
    "additionalProperties": False,
    "description": "{from, to, count}, {from, to, factor} or {around, factor, each_side}",
}


def _schema(item: str) -> Callable[[dict[str, Any]], None]:
    def extend(schema: dict[str, Any]) -> None:
        listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
        schema["anyOf"] = [listed, {"type": item}, _RULE]

    return extend


Numbers = Annotated[
    list[PositiveFloat], Field(min_length=1, json_schema_extra=_schema("number")), BeforeValidator(spread)
]
"""Positive numbers: one, a list or a rule (`orchestrator.spec.values`)."""
Wholes = Annotated[
    list[PositiveInt], Field(min_length=1, json_schema_extra=_schema("integer")), BeforeValidator(_spread_whole)
]
"""Positive whole numbers: one, a list or a rule, whose values are rounded."""


def _seeds_schema(schema: dict[str, Any]) -> None:
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    rules = [{name: {"type": "integer", "minimum": 0} for name in names} for names in (("from", "to"), ("count",))]
    schema["anyOf"] = [
        listed,
        *(
            {"type": "object", "properties": rule, "required": list(rule), "additionalProperties": False}
            for rule in rules
        ),
    ]


Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63)]],
    Field(min_length=1, json_schema_extra=_seeds_schema),
    BeforeValidator(spread_seeds),
]
"""Seeds: a list, {from, to} or {count}."""
