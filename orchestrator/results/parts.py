"""The Parquet parts of a results folder: listing and reading them, whatever else happens to the folder meanwhile.

A part never changes. It goes only when compaction has put its rows into another part, so a reader whose part is gone
looks at the folder again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from orchestrator.results.location import Location, ObjectPath, entries
from orchestrator.results.migration import migrate, version_of
from orchestrator.results.schema import SCHEMA_VERSION, SCHEMAS, Kind

_logger = logging.getLogger(__name__)

_FORMAT = pads.ParquetFileFormat()
_LOOKS = 20
"""How often a reader looks again at a folder that is being compacted."""
_FEW = 8
"""Parts up to which opening each by itself is faster."""
_REQUESTS = 16
"""Objects that are opened at the same time."""


class Reading(NamedTuple):
    """Rows, and the parts they came from."""

    table: pa.Table
    parts: list[Location]


def parts_of(folder: Location, kind: Kind, seen: Collection[str] = ()) -> list[Location]:
    """The parts of a kind in a results folder, oldest first, but for those names; none where there is no folder."""
    try:
        paths = entries(folder / kind, seen)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in paths if path.name.endswith(".parquet") and not path.name.startswith((".", "_"))]


def read_new(folder: Location, kind: Kind, seen: Collection[str] = (), columns: Sequence[str] | None = None) -> Reading:
    """The rows of the parts whose names are not among `seen`, in today's columns, duplicates included.

    A driver asks after every trial: what it costs has to grow with what is new, not with what is there.

    An unreadable part is reported through logging and skipped; it is among the parts. Rows that compaction has moved
    meanwhile are read from where they are now: none is missed, some may have been in a part seen before.

    Raises:
        OSError: object storage does not answer. What it holds is not known then.
        ValueError: a part is of a newer schema.
    """
    for look in range(_LOOKS):
        parts = parts_of(folder, kind, seen)
        try:
            return Reading(read_parts(parts, kind, columns), parts)
        except FileNotFoundError:
            _logger.debug("parts of %s moved while they were read (look %d)", folder, look + 1)
    raise OSError(f"{folder / kind} is being compacted faster than it can be read; try again")


def read_parts(paths: Sequence[Location], kind: Kind, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of some parts, as `read_new`. Raises FileNotFoundError where one is gone."""
    names = list(columns or SCHEMAS[kind].names)
    if not paths:
        return SCHEMAS[kind].empty_table().select(names)
    here = [path for path in paths if isinstance(path, Path)]
    try:  # many at once are many times faster than one by one
        return _read_few(here, kind, names) if len(here) == len(paths) <= _FEW else _read_together(paths, kind, names)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        if len(paths) > 1:
            return pa.concat_tables([read_parts([path], kind, names) for path in paths])
        return _read_alone(paths[0], kind, names, error)


def _read_few(paths: Sequence[Path], kind: Kind, names: list[str]) -> pa.Table:
    """A few parts of this machine, one by one: for them a dataset costs several times what they do."""
    wanted = pa.schema([SCHEMAS[kind].field(name) for name in names], metadata=SCHEMAS[kind].metadata)
    return pa.concat_tables([_read_one(path, kind, names, wanted) for path in paths])


def _read_one(path: Path, kind: Kind, names: list[str], wanted: pa.Schema) -> pa.Table:
    with pq.ParquetFile(path, pre_buffer=False) as file:  # buffers are filled by another thread, which takes longer
        schema = file.schema_arrow
        if version_of(schema) == SCHEMA_VERSION and all(map(schema.names.__contains__, names)):
            table = file.read(names, use_threads=False).select(names)
            return table if table.schema.equals(wanted) else table.cast(wanted)
        return migrate(file.read(use_threads=False), kind, version_of(schema)).select(names)


def _read_together(paths: Sequence[Location], kind: Kind, names: list[str]) -> pa.Table:
    first, filesystem = paths[0], None
    if isinstance(first, ObjectPath):
        filesystem = first.filesystem
    keys = [path.key if isinstance(path, ObjectPath) else str(path) for path in paths]
    dataset = pads.dataset(keys, schema=SCHEMAS[kind], format=_FORMAT, filesystem=filesystem)
    fragments = list(dataset.get_fragments())
    current: list[Any] = []
    older: dict[tuple[int, str], tuple[pa.Schema, list[Any]]] = {}
    for fragment, schema in zip(fragments, _schemas(fragments, filesystem is not None), strict=True):
        if (version := version_of(schema)) == SCHEMA_VERSION:
            current.append(fragment)
        else:  # parts of one version are read and brought up to date together
            plain = schema.remove_metadata()
            older.setdefault((version, plain.to_string()), (plain, []))[1].append(fragment)
    if not older:
        return dataset.to_table(columns=names)
    tables = []
    for (version, _), (schema, parts) in sorted(older.items()):
        whole = pads.FileSystemDataset(parts, schema, _FORMAT, filesystem or dataset.filesystem).to_table()
        tables.append(migrate(whole, kind, version).select(names))
    kept = pads.FileSystemDataset(current, SCHEMAS[kind], _FORMAT, filesystem or dataset.filesystem)
    # Earlier versions are earlier parts, and order decides between duplicates.
    return pa.concat_tables([*tables, kept.to_table(columns=names)])


def _schemas(fragments: Sequence[Any], remote: bool) -> list[pa.Schema]:
    if not remote:
        return [fragment.physical_schema for fragment in fragments]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(lambda fragment: fragment.physical_schema, fragments))


def _read_alone(path: Location, kind: Kind, names: list[str], error: Exception) -> pa.Table:
    """One part that could not be read: it is damaged, unless object storage fails to say so."""
    if isinstance(path, ObjectPath):
        data = path.read_bytes()
        try:
            whole = pq.read_table(pa.BufferReader(data))
            return migrate(whole, kind, version_of(whole.schema)).select(names)
        except (OSError, pa.ArrowException) as damage:
            error = damage
    _warn_once(path, str(error).partition("\n")[0])
    return SCHEMAS[kind].empty_table().select(names)


@cache
def _warn_once(path: Location, reason: str) -> None:
    """Parts are read again and again; a person needs to hear of a bad one once."""
    _logger.warning("skipped unreadable part %s (move it away to be rid of this): %s", path, reason)


def encoded(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None, compact: bool = False) -> bytes:
    """A table as the bytes of a part.

    Parts are small and many: dictionaries, statistics and a second copy of the schema cost more to write and to read
    than they save. Compacted parts are large and few: there it is the other way round.
    """
    sink = pa.BufferOutputStream()
    kept = {**(table.schema.metadata or {}), **(metadata or {})}
    if compact:
        pq.write_table(table.replace_schema_metadata(kept), sink, compression="zstd")
    else:
        with pq.ParquetWriter(
            sink, table.schema, store_schema=False, use_dictionary=False, write_statistics=False
        ) as file:
            file.write_table(table)
            file.add_key_value_metadata({key.decode(): value.decode() for key, value in kept.items()})
    return bytes(sink.getvalue())
