"""A follow-up as YAML: a whole spec without includes, with a header that says what it is for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from orchestrator.planning import followup
from orchestrator.planning.followup import Ground


def spec_text(
    ground: Ground,
    sizes: Sequence[Mapping[str, Any]],
    asked: Mapping[tuple[str, int], Mapping[float, float]],
    *,
    name: str,
    purpose: str,
    expect: Mapping[str, Any],
    header: Sequence[str],
) -> str:
    """The spec in which each (size, seed) of `asked` is measured at its budgets.

    Args:
        ground: the sweep's arm.
        sizes: as a spec lists them, smallest first; those that are not asked for are left out.
        asked: for each (size, seed) its budgets in FLOPs, and the FLOPs of the whole steps that these come to.
        name: of the follow-up.
        purpose: what it is for, in a sentence.
        expect: what its plan is to expect of the law.
        header: paragraphs of the comment above it.
    """
    budgets: dict[str, set[float]] = {}
    for (size, _), cells in asked.items():
        budgets.setdefault(size, set()).update(cells)
    listed = [size for size in sizes if size["name"] in budgets]
    spec = ground.spec(
        name,
        f"{ground.sweep.question} ({purpose})".strip(),
        listed,
        {size["name"]: sorted(budgets[size["name"]]) for size in listed},
        sorted({seed for _, seed in asked}),
        followup.seed_constraints({key: list(cells.values()) for key, cells in asked.items()}),
    )
    spec["expect"] = dict(expect)
    conditions = {"constraints": spec.pop("constraints")} if "constraints" in spec else {}
    body = _yaml(spec, flow=None, width=100)
    if conditions:  # one a line
        body += _yaml(conditions, flow=False, width=1000)
    lines = [line for paragraph in header for line in textwrap.wrap(paragraph, 98)]
    return "".join(f"# {line}\n" for line in lines) + body


def _yaml(data: Mapping[str, Any], flow: bool | None, width: int) -> str:
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width
    )


class _Dumper(yaml.SafeDumper):
    """Writes large and small floats with an exponent, as people write budgets: 2.5e+11."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if abs(value) >= 1e5:
        text = next(short for n in range(18) if float(short := f"{value:.{n}e}") == value)
        digits, _, exponent = text.partition("e")
        text = f"{digits if '.' in digits else digits + '.0'}e{exponent}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)
