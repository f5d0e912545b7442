"""Many parts into few, while others read and write, and safe against being killed at any point.

The rows of some parts are put into one new part, and only then are those deleted. So at every moment each row is in at
least one part: a killed compaction leaves rows twice, which readers drop and the next compaction removes; a reader
whose part is gone looks again; and writers only ever add. Two compactions at a time are one too many, and harmless.
Parts of earlier schemas are brought to today's on the way.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, ObjectPath
from orchestrator.results.migration import version_of
from orchestrator.results.parts import encoded, parts_of, read_parts
from orchestrator.results.schema import SCHEMA_VERSION, SCHEMAS, Kind

_logger = logging.getLogger(__name__)

ROWS = 2_000_000
"""Rows of a compacted part, about; a part with half of them is left alone."""
_INPUTS_KEY = b"ditlaw.parts"
_ROW = "row"
"""A column that is added for a moment: no table has one of that name."""
_MARK = "+"
"""In the names of compacted parts: such a name sorts right behind that of the newest part that went into it."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What became of the parts of a kind."""

    kind: Kind
    parts_before: int
    parts_after: int
    rows: int
    """Rows that were rewritten."""
    repeated: int
    """Rows that were there more than once, in all columns alike."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    path: Location
    rows: int
    version: int
    inputs: frozenset[str]


def compact(folder: Location, rows: int = ROWS) -> list[Compacted]:
    """Merge the parts of a results folder into parts of about `rows` rows; says what it did, by kind.

    Unreadable parts are reported through logging and left where they are.

    Raises:
        OSError: the folder cannot be written; nothing is lost.
    """
    return [_compact_kind(folder, kind, rows) for kind in SCHEMAS]


def is_compacted(name: str) -> bool:
    """Whether a part of this name is the work of compaction."""
    return _MARK in name


def inputs_of(path: Location) -> frozenset[str]:
    """The names of the parts whose rows compaction has put into this one; none where it is as it was written."""
    if not is_compacted(path.name):
        return frozenset()
    part = _look(path)
    return part.inputs if part is not None else frozenset()


def _compact_kind(folder: Location, kind: Kind, rows: int) -> Compacted:
    before = parts_of(folder, kind)
    with ThreadPoolExecutor(16) as pool:
        known = [part for part in pool.map(_look, before) if part is not None]
    small = [part for part in known if 2 * part.rows < rows or part.version < SCHEMA_VERSION]
    written = repeated = 0
    for group in _groups(small, rows):
        merged = _merge(folder, kind, group)
        if merged is not None:
            written, repeated = written + merged[0], repeated + merged[1]
    after = len(parts_of(folder, kind))
    return Compacted(kind=kind, parts_before=len(before), parts_after=after, rows=written, repeated=repeated)


def _groups(parts: Sequence[_Part], rows: int) -> Iterable[list[_Part]]:
    """Neighbours of about so many rows together; a single part only where its schema is old."""
    group: list[_Part] = []
    for part in [*parts, None]:
        if group and (part is None or sum(p.rows for p in group) + part.rows > rows):
            if len(group) > 1 or group[0].version < SCHEMA_VERSION:
                yield group
            group = []
        if part is not None:
            group.append(part)


def _merge(folder: Location, kind: Kind, group: Sequence[_Part]) -> tuple[int, int] | None:
    """Rows written, and repeated ones left out; None where the parts have to be left as they are."""
    paths = [part.path for part in group]
    try:
        table = read_parts(paths, kind)
    except FileNotFoundError:  # another compaction was faster
        return None
    expected = sum(part.rows for part in group)
    if len(table) != expected:
        _logger.warning(
            "%d parts of %s are left as they are: they hold %d rows, of which %d can be read",
            len(group), folder / kind, expected, len(table),
        )  # fmt: skip
        return None
    single = _without_repeats(table)
    inputs = sorted({path.name for path in paths}.union(*(part.inputs for part in group)))
    name = f"{paths[-1].name.removesuffix('.parquet').partition(_MARK)[0]}{_MARK}{secrets.token_hex(4)}.parquet"
    data = encoded(single, {_INPUTS_KEY: json.dumps(inputs).encode()}, compact=True)
    write_bytes(folder / kind / name, data)
    for path in paths:
        path.unlink(missing_ok=True)
    return len(single), len(table) - len(single)


def _without_repeats(table: pa.Table) -> pa.Table:
    """The first of rows that agree in all columns, in order: what a killed compaction left twice."""
    # Arrow groups by no lists; a row's list is its own where all that is beside it, its time included, is.
    names = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    rows = table.select(names).append_column(_ROW, pa.array(range(len(table)), pa.int64()))
    firsts = rows.group_by(names, use_threads=False).aggregate([(_ROW, "min")])
    return table.take(firsts[f"{_ROW}_min"].combine_chunks().sort())


def _look(path: Location) -> _Part | None:
    """A part's footer; None where the part is gone or damaged."""
    try:
        if isinstance(path, ObjectPath):
            with path.filesystem.open_input_file(path.key) as stream:
                metadata = pq.read_metadata(stream)
        else:
            metadata = pq.read_metadata(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        if isinstance(path, ObjectPath) and not isinstance(error, pa.ArrowException):
            raise
        _logger.warning("unreadable part %s is left where it is: %s", path, str(error).partition("\n")[0])
        return None
    schema = metadata.schema.to_arrow_schema()
    inputs = json.loads((metadata.metadata or {}).get(_INPUTS_KEY, b"[]"))
    return _Part(path=path, rows=metadata.num_rows, version=version_of(schema), inputs=frozenset(inputs))
