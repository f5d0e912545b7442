"""Rows that no one law describes: those of other FLOP definitions, precisions, samplers or encoders do not mix."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.columns import plain


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that must be one thing in all rows of a fit."""

    what: str
    names: tuple[str, ...]
    """Names of its column, as `columns.plain` gives them, tried in turn."""
    of: tuple[str, ...] = ("loss", "fid", "fd")
    """The quantities whose value depends on it."""


CONDITIONS = (
    Condition(what="FLOP definitions", names=("flops_definition", "flop_definition")),
    Condition(what="objectives", names=("objective",)),
    Condition(what="datasets", names=("dataset", "dataset_name")),
    Condition(what="FD encoders", names=("fd_encoder", "encoder"), of=("fid", "fd")),
    Condition(what="weights of FD encoders", names=("fd_encoder_digest",), of=("fid", "fd")),
    Condition(what="samplers", names=("sampler",), of=("fid", "fd")),
    Condition(what="numbers of sampler steps", names=("sampler_steps", "sampling_steps"), of=("fid", "fd")),
    Condition(what="guidance scales", names=("guidance", "guidance_scale", "cfg", "cfg_scale"), of=("fid", "fd")),
    Condition(what="numbers of evaluated samples", names=("eval_samples", "fid_samples"), of=("fid", "fd")),
)
PRECISION = "precision classes"


def conditions_of(raw: pd.DataFrame) -> pd.DataFrame:
    """The conditions a table records, one column each (named by `what`), as text; "not given" where a row has none."""
    columns = {plain(str(name)): name for name in raw.columns}
    found = {}
    for condition in CONDITIONS:
        name = next((columns[n] for n in condition.names if n in columns), None)
        if name is not None and raw[name].notna().any():
            found[condition.what] = raw[name].map(lambda v: "not given" if pd.isna(v) else f"{v}")
    if "precision" in columns:
        stages = raw[columns["zero_stage"]] if "zero_stage" in columns else pd.Series(pd.NA, index=raw.index)
        found[PRECISION] = pd.Series(
            [precision_class(p, s) for p, s in zip(raw[columns["precision"]], stages, strict=True)], index=raw.index
        )
    return pd.DataFrame(found, index=raw.index)


def precision_class(precision: object, zero_stage: object) -> str:
    """The arithmetic of a run: fp32 at any ZeRO stage, or half precision with or without fp32 master weights.

    ZeRO 1, 2 and 3 keep fp32 masters and agree with one another; ZeRO-0 with bf16 does not.
    """
    if precision is None or pd.isna(precision):  # type: ignore[call-overload]
        return "not given"
    name = str(precision).lower()
    if name in ("fp32", "float32", "32") or zero_stage is None or pd.isna(zero_stage):  # type: ignore[call-overload]
        return name
    return f"{name} with{'out' if float(str(zero_stage)) == 0 else ''} fp32 masters"


def mixed(conditions: pd.DataFrame, quantity: str) -> list[str]:
    """What the rows mix that the quantity depends on, as `samplers (ddim: 12 rows, heun: 8 rows)`."""
    wanted = [c.what for c in CONDITIONS if quantity in c.of] + [PRECISION]
    sentences = []
    for what in wanted:
        counts = conditions[what].value_counts() if what in conditions else pd.Series(dtype=int)
        if len(counts) > 1:
            kinds = ", ".join(f"{kind}: {count} row{'s' * (count > 1)}" for kind, count in counts.head(6).items())
            sentences.append(f"{what} ({kinds}{', ...' if len(counts) > 6 else ''})")
    return sentences


def refuse_mixed(conditions: pd.DataFrame, quantity: str, force: bool) -> list[str]:
    """Nothing to say where the rows are alike; with `force` the warnings that they are not.

    Raises:
        ValueError: they are not alike, and `force` is off.
    """
    found = mixed(conditions, quantity)
    if not found:
        return []
    if not force:
        raise ValueError(
            f"the rows mix {'; '.join(found)}: one law does not describe them. Select rows of one kind "
            "(--arm, or a table of them alone), or fit them together all the same with --force."
        )
    return [f"forced: fitted together although the rows mix {text}" for text in found]
