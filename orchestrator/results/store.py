"""The results folder: the truth of a sweep. Writers add whole Parquet parts and never touch one again.

    measurements/*.parquet  curves/*.parquet  attempts/*.parquet  plan.json  sweep.json

Any number of processes and hosts may write to one folder at the same time: a part appears whole, and its name is its
writer's alone. What a fault writes twice, readers drop. The folder may be a prefix on object storage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from orchestrator.faults import points
from orchestrator.results import lock
from orchestrator.results.atomic import write_bytes
from orchestrator.results.location import Location, ObjectPath, entries
from orchestrator.results.outbox import AT_ONCE, Outbox
from orchestrator.results.parts import encoded, parts_of, read_new
from orchestrator.results.schema import OUTCOMES, RUNNING, SCHEMAS, Kind

_logger = logging.getLogger(__name__)

_OWNER = "sweep.json"


class Store:
    """Writes to one results folder. Creating a Store touches nothing; folders appear with the first write.

    `outbox` writes the parts: at once, or in the background and in order.
    """

    def __init__(self, folder: Location, outbox: Outbox = AT_ONCE) -> None:
        self.folder = folder.absolute()
        self._outbox = outbox
        self._still_mine: lock.Check = _unlocked

    def append_measurements(self, rows: Sequence[Mapping[str, Any]]) -> Location | None:
        """Adds one part of measurements, durably; returns its path, or None when there are no rows.

        Raises ValueError naming the columns that are unknown, missing, wrongly empty, or of a wrong type.
        """
        path = self._append("measurements", rows, "measurement.write")
        points.reach("measurement.written")
        return path

    def append_curves(self, rows: Sequence[Mapping[str, Any]]) -> Location | None:
        """Adds one part of training curves; as `append_measurements`."""
        return self._append("curves", rows)

    def append_attempts(self, rows: Sequence[Mapping[str, Any]]) -> Location | None:
        """Adds one part of attempts; as `append_measurements`."""
        return self._append("attempts", rows)

    def parts(self, kind: Kind) -> list[Location]:
        """The parts of a kind, oldest first. A part never changes once it is listed."""
        return parts_of(self.folder, kind)

    def check(self, sweep_name: str) -> None:
        """Raises ValueError where nothing can be written to the folder, and as `check_owner`."""
        if isinstance(self.folder, ObjectPath):  # can it be reached at all?
            self.check_writable()
            self.check_owner(sweep_name)
        else:
            self.check_owner(sweep_name)
            self.check_writable()

    def check_owner(self, sweep_name: str) -> None:
        """Raises ValueError when the folder belongs to another sweep, or holds something that is not results.

        One that is not there belongs to nobody.
        """
        self._check_kind_of_folder()
        owner = self.owner()
        if owner is not None and owner != sweep_name:
            raise ValueError(
                f"results folder {self.folder} holds sweep {owner!r}; got {sweep_name!r}. "
                f"Choose another --results, or rename the sweep back to {owner!r} to extend it."
            )

    def claim(self, sweep_name: str, sweep_digest: str) -> None:
        """Makes the folder this sweep's, after `check`. The same sweep with an edited spec extends it."""
        self.check(sweep_name)
        write_json(self.folder / _OWNER, {"sweep": sweep_name, "digest": sweep_digest})

    def owner(self) -> str | None:
        """Name of the sweep that the folder belongs to; None where no sweep has claimed it yet."""
        path = self.folder / _OWNER
        try:
            return str(json.loads(path.read_text())["sweep"])
        except FileNotFoundError:
            names = read_measurements(self.folder)["sweep"].unique()
            return str(names[0]) if len(names) else None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); wanted the owner of the results, "
                '{"sweep": NAME, "digest": DIGEST}. Write the name of the sweep there, or delete the file.'
            ) from error

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Keeps a second driver off the folder. The lock goes with its process, however that ends.

        On object storage it goes a minute later, and a process that has been silent for that long may lose it: its
        next write raises LockLost. Raises ValueError naming the holder when another process has it, and still has it
        after `wait_seconds`.
        """
        self._check_kind_of_folder()
        with lock.held(self.folder, wait_seconds) as still_mine:
            self._still_mine = still_mine
            try:
                yield
            finally:
                self._still_mine = _unlocked

    def check_lock(self, sure: bool = False) -> None:
        """Raises LockLost where this process had the lock and has lost it; `sure` as in `lock.Check`."""
        self._still_mine(sure)

    def holder(self) -> tuple[str, datetime | None, bool] | None:
        """Who has the lock, since when, and whether it is alive; one that died is named until the next one comes.

        None where nobody has it and the last one left in good order.
        """
        return lock.holder(self.folder)

    def _append(
        self, kind: Kind, rows: Sequence[Mapping[str, Any]], point: points.Point | None = None
    ) -> Location | None:
        if not rows:
            return None
        self._still_mine()
        data = encoded(_table(kind, rows))
        path = self.folder / kind / _part_name(str(rows[0]["trial_id"]), int(rows[0]["attempt"]))
        self._outbox.put(partial(write_bytes, path, data, point), len(data))
        return path

    def check_writable(self) -> None:
        """Raises ValueError where nothing can be written to the folder."""
        if isinstance(self.folder, ObjectPath):
            probe = self.folder / f".probe-{secrets.token_hex(4)}"
            try:
                probe.write_bytes(b"")
                probe.unlink()
            except OSError as error:
                raise ValueError(
                    f"results at {self.folder} cannot be written: {error}. Check the bucket, the credentials and "
                    "AWS_ENDPOINT_URL, or choose another --results."
                ) from error
            return
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"results folder {self.folder} cannot be written: {nearest} does not allow it.")

    def _check_kind_of_folder(self) -> None:
        there = self.folder.exists()
        if there and not self.folder.is_dir():
            raise ValueError(f"--results {self.folder} is a file; wanted a folder. Choose another --results.")
        names = [path.name for path in entries(self.folder) if path.name[0] != "."] if there else []
        if names and not {_OWNER, *SCHEMAS, lock.PREFIX} & set(names):
            raise ValueError(
                f"folder {self.folder} is not a results folder: it holds {', '.join(names[:4])}, "
                f"and no {_OWNER}. Choose an empty or a new folder with --results."
            )


def read_measurements(folder: Location) -> pd.DataFrame:
    """All measurements, one row a (trial_id, samples): of duplicates the first that was written.

    An unreadable part is reported through logging and skipped. An empty or absent folder gives no rows, all columns.
    """
    table = _read(folder, "measurements").sort_values(["created_at", "attempt"], kind="stable")
    return table.drop_duplicates(["trial_id", "samples"], keep="first").reset_index(drop=True)


def read_planned(folder: Location) -> tuple[pd.DataFrame, int]:
    """The measurements that the folder's plan.json asks for, by the names it gives them; and how many others there are.

    A spec may be edited between runs: arms and sizes renamed, recipes changed. Rows that it no longer asks for were
    measured under other conditions, and are not for the same law. Without a plan all rows count.
    """
    table = read_measurements(folder)
    try:
        trials = json.loads((folder / "plan.json").read_text())["trials"]
        wanted = {(t["trial_id"], samples): (t["arm"], t["size"]) for t in trials for samples in t["milestones"]}
    except FileNotFoundError:
        return table, 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("plan.json of %s cannot be read, so all rows count: %s", folder, error)
        return table, 0
    keys = list(zip(table["trial_id"], table["samples"], strict=True))
    kept = table[pd.Series([key in wanted for key in keys], dtype=bool)].reset_index(drop=True)
    names = [wanted[key] for key in keys if key in wanted]
    kept["arm"], kept["size"] = [arm for arm, _ in names], [size for _, size in names]
    return kept, len(table) - len(kept)


def read_curves(folder: Location) -> pd.DataFrame:
    """All training curves by (trial_id, samples): of duplicates the latest attempt. As `read_measurements`."""
    table = _read(folder, "curves").sort_values(["trial_id", "samples", "attempt"], kind="stable")
    return table.drop_duplicates(["trial_id", "samples"], keep="last").reset_index(drop=True)


def read_attempts(folder: Location, running: bool = False) -> pd.DataFrame:
    """All attempts by (trial_id, attempt): of duplicates the one that ended last. As `read_measurements`.

    With `running` also those that have begun and not ended, as far as the folder knows; they have outcome `running`.
    """
    table = _read(folder, "attempts")
    table["begun"] = table["outcome"] == RUNNING
    table = table.sort_values(["begun", "ended_at"], ascending=[False, True], kind="stable")
    table = table.drop_duplicates(["trial_id", "attempt"], keep="last")
    kept = table if running else table[~table["begun"]]
    order = ["started_at", "trial_id", "attempt"]
    return kept.drop(columns="begun").sort_values(order, kind="stable").reset_index(drop=True)


def write_json(path: Location, value: Any) -> None:
    """Writes JSON for people and programs, whole or not at all. Raises ValueError on NaN and infinities."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _read(folder: Location, kind: Kind) -> pd.DataFrame:
    return read_new(folder, kind).table.to_pandas()


def _table(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table, all columns converted at once: that is several times faster than one by one."""
    schema = SCHEMAS[kind]
    names = frozenset(schema.names)
    if not all(names == row.keys() for row in rows):
        _refuse_columns(kind, rows)
    for column in _checked(kind):
        _check(kind, column, [row[column.name] for row in rows])
    try:
        columns = pa.array(rows, type=pa.struct(list(schema))).flatten()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _misfit(kind, rows) or error from None
    for field, values in zip(schema, columns, strict=True):
        if values.null_count and not field.nullable:
            raise ValueError(
                f"column {field.name} of {kind} is None; wanted {field.type}. Only nullable columns may be empty."
            )
    return pa.Table.from_arrays(columns, schema=schema)


def _refuse_columns(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError that names what is too much and too little, in any row."""
    schema = SCHEMAS[kind]
    got, wanted = set().union(*rows), set(schema.names)
    unknown = sorted(got - wanted)
    missing = sorted({name for row in rows for name in wanted - row.keys()})
    problems = []
    if unknown:
        problems.append(f"unknown columns {', '.join(unknown)}")
    if missing:
        problems.append(f"missing columns {', '.join(missing)}")
    raise ValueError(
        f"rows of {kind} have {' and '.join(problems)}; wanted exactly the {len(schema.names)} columns of "
        "orchestrator/results/schema.py. Give None where a nullable column does not apply."
    )


class _Checked(NamedTuple):
    """A column in which pyarrow would take what is wrong."""

    name: str
    type: pa.DataType
    is_time: bool
    is_whole: bool
    outcomes: Sequence[str]


@cache
def _checked(kind: Kind) -> Sequence[_Checked]:
    columns = [
        _Checked(
            name=field.name,
            type=field.type,
            is_time=pa.types.is_timestamp(field.type),
            is_whole=pa.types.is_integer(field.type),
            outcomes=OUTCOMES.get(kind, ()) if field.name == "outcome" else (),
        )
        for field in SCHEMAS[kind]
    ]
    return [column for column in columns if column.is_time or column.is_whole or column.outcomes]


def _check(kind: Kind, column: _Checked, values: Sequence[Any]) -> None:
    where = f"column {column.name} of {kind}"
    if column.outcomes and (wrong := [v for v in values if v not in column.outcomes and v is not None]):
        raise ValueError(f"{where} is {wrong[0]!r}; wanted one of {', '.join(column.outcomes)}.")
    if column.is_time and any(isinstance(v, datetime) and v.tzinfo is None for v in values):
        raise ValueError(f"{where} has no time zone; wanted UTC. Use datetime.now(UTC).")
    if column.is_whole and set(map(type, values)) != {int}:  # pyarrow would drop the fraction without a word
        fractions = [value for value in values if isinstance(value, float) and not value.is_integer()]
        if fractions:
            raise ValueError(f"{where} does not hold {column.type}: got {fractions[0]}. Give a whole number.")


def _misfit(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> ValueError | None:
    """Which column does not hold what it was given."""
    for field in SCHEMAS[kind]:
        try:
            pa.array([row[field.name] for row in rows], type=field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            return ValueError(f"column {field.name} of {kind} does not hold {field.type}: {error}")
    return None


def _part_name(trial_id: str, attempt: int) -> str:
    """A name that sorts by time and that no other writer has, now or later. Readers never take it apart."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", trial_id):
        raise ValueError(f"trial_id {trial_id!r} cannot name a file; wanted 1 to 64 letters, digits, _ and -.")
    return f"{_now():%Y%m%dT%H%M%S.%f}Z-{trial_id}-{attempt}-{secrets.token_hex(4)}.parquet"


def _unlocked(sure: bool = False) -> None:
    """A store without the lock has none to lose."""


def _now() -> datetime:
    return datetime.now(UTC)
