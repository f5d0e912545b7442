"""Parts written under earlier schemas, brought to today's: one step a version, applied one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa

from orchestrator.results.schema import SCHEMA_VERSION, SCHEMAS, VERSION_KEY, Kind

Step = Callable[[pa.Table], pa.Table]


def _attempts_1_to_2(table: pa.Table) -> pa.Table:
    """Nobody measured how long checkpoints took."""
    return table.append_column("checkpoint_seconds", pa.nulls(len(table), pa.float64()))


def _measurements_2_to_3(table: pa.Table) -> pa.Table:
    """`eval_samples` counted the draws of the loss; no distance was measured. Other new columns are null."""
    if "eval_samples" not in table.column_names or "loss_draws" in table.column_names:
        return table  # written by other hands than ours, which keep columns and forget the version
    place = table.column_names.index("eval_samples")
    draws, none = table["eval_samples"], pa.nulls(len(table), pa.int64())
    return table.set_column(place, "eval_samples", none).append_column("loss_draws", draws)


STEPS: Mapping[Kind, Mapping[int, Step]] = {
    "measurements": {2: _measurements_2_to_3},
    "curves": {},
    "attempts": {1: _attempts_1_to_2},
}
"""By kind and the version that a step starts from. Kinds whose columns stay as they are need none.

Rows of measurements keep the `schema_version` under which they were written.
"""


def version_of(schema: pa.Schema) -> int:
    """The version under which a part was written; 1 where it does not say, as a file written by other means."""
    return int((schema.metadata or {}).get(VERSION_KEY, b"1"))


def migrate(table: pa.Table, kind: Kind, version: int, steps: Mapping[Kind, Mapping[int, Step]] = STEPS) -> pa.Table:
    """A table of an earlier version in today's columns and types; null where it lacks one that no step makes.

    Raises:
        ValueError: the version is newer than this code's, which cannot know what its columns mean.
    """
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{kind} were written under schema version {version}; this ditlaw reads versions 1 to {SCHEMA_VERSION}. "
            "Update ditlaw to read them."
        )
    for step in range(version, SCHEMA_VERSION):
        table = steps[kind].get(step, _unchanged)(table)
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in SCHEMAS[kind]
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS[kind])


def _unchanged(table: pa.Table) -> pa.Table:
    return table
