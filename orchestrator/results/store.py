"""The results folder: the truth of a sweep. Writers add whole Parquet parts and never touch one again.

    measurements/*.parquet  curves/*.parquet  attempts/*.parquet  plan.json  sweep.json

Any number of processes and hosts may write to one folder at the same time: a part is written under a hidden name and
renamed, and its name is its writer's alone. What a fault writes twice, readers drop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from orchestrator.results.atomic import write_bytes
from orchestrator.results.schema import OUTCOMES, SCHEMAS, Kind

_logger = logging.getLogger(__name__)

_OWNER = "sweep.json"
_LOCK = ".lock"
_LOOK_SECONDS = 0.1
"""Longest time for which somebody who only looks who holds the lock could be in the way."""


class Store:
    """Writes to one results folder. Creating a Store touches nothing; folders appear with the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()

    def append_measurements(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Adds one part of measurements, durably; returns its path, or None when there are no rows.

        Raises ValueError naming the columns that are unknown, missing, wrongly empty, or of a wrong type.
        """
        return self._append("measurements", rows)

    def append_curves(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Adds one part of training curves; as `append_measurements`."""
        return self._append("curves", rows)

    def append_attempts(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Adds one part of attempts; as `append_measurements`."""
        return self._append("attempts", rows)

    def parts(self, kind: Kind) -> list[Path]:
        """The parts of a kind, oldest first. A part never changes once it is listed."""
        return parts_of(self.folder, kind)

    def check(self, sweep_name: str) -> None:
        """Raises ValueError when the folder belongs to another sweep, or holds something that is not results."""
        self._check_kind_of_folder()
        self._check_writable()
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
        """Keeps a second driver off the folder. The lock dies with its process, however that ends.

        Raises ValueError naming the holder when another process has it, and still has it after `wait_seconds`.
        """
        self._check_kind_of_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a+") as file:
            if not _locked(file, max(wait_seconds, _LOOK_SECONDS)):
                file.seek(0)
                raise ValueError(
                    f"results folder {self.folder} is in use by {_holder(file.read())}. "
                    "Wait for it (--wait), stop it (ditlaw cancel), or choose another --results."
                )
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now().isoformat()}))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)  # before the lock goes, so that nobody reads of a holder that has left

    def holder(self) -> tuple[str, datetime | None, bool] | None:
        """Who has the lock, since when, and whether it is alive; one that died is named until the next one comes.

        None where nobody has it and the last one left in good order.
        """
        try:
            with (self.folder / _LOCK).open() as file:
                alive = not _locked(file, 0.0, fcntl.LOCK_SH)
                text = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not text and not alive:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return _holder(text), datetime.fromisoformat(json.loads(text)["since"]), alive
        return _holder(text), None, alive

    def _append(self, kind: Kind, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        if not rows:
            return None
        table = _table(kind, rows)
        sink = pa.BufferOutputStream()
        # Parts are small and many: dictionaries and statistics would cost more to write and to read than they save.
        pq.write_table(table, sink, use_dictionary=False, write_statistics=False)
        path = self.folder / kind / _part_name(str(rows[0]["trial_id"]), int(rows[0]["attempt"]))
        write_bytes(path, sink.getvalue().to_pybytes())
        return path

    def _check_writable(self) -> None:
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"results folder {self.folder} cannot be written: {nearest} does not allow it.")

    def _check_kind_of_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--results {self.folder} is a file; wanted a folder. Choose another --results.")
        entries = [] if not self.folder.exists() else [p.name for p in self.folder.iterdir() if p.name[0] != "."]
        if entries and not {_OWNER, *SCHEMAS} & set(entries):
            raise ValueError(
                f"folder {self.folder} is not a results folder: it holds {', '.join(sorted(entries)[:4])}, "
                f"and no {_OWNER}. Choose an empty or a new folder with --results."
            )


def read_measurements(folder: Path) -> pd.DataFrame:
    """All measurements, one row a (trial_id, samples): of duplicates the first that was written.

    An unreadable part is reported through logging and skipped. An empty or absent folder gives no rows, all columns.
    """
    table = _read(Path(folder), "measurements").sort_values(["created_at", "attempt"], kind="stable")
    return table.drop_duplicates(["trial_id", "samples"], keep="first").reset_index(drop=True)


def read_planned(folder: Path) -> tuple[pd.DataFrame, int]:
    """The measurements that the folder's plan.json asks for, by the names it gives them; and how many others there are.

    A spec may be edited between runs: arms and sizes renamed, recipes changed. Rows that it no longer asks for were
    measured under other conditions, and are not for the same law. Without a plan all rows count.
    """
    table = read_measurements(folder)
    try:
        trials = json.loads((Path(folder) / "plan.json").read_text())["trials"]
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


def read_curves(folder: Path) -> pd.DataFrame:
    """All training curves by (trial_id, samples): of duplicates the latest attempt. As `read_measurements`."""
    table = _read(Path(folder), "curves").sort_values(["trial_id", "samples", "attempt"], kind="stable")
    return table.drop_duplicates(["trial_id", "samples"], keep="last").reset_index(drop=True)


def read_attempts(folder: Path) -> pd.DataFrame:
    """All attempts by (trial_id, attempt): of duplicates the last that was written. As `read_measurements`."""
    table = _read(Path(folder), "attempts").drop_duplicates(["trial_id", "attempt"], keep="last")
    return table.sort_values(["started_at", "trial_id", "attempt"], kind="stable").reset_index(drop=True)


def read_parts(paths: Sequence[Path], kind: Kind, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of some parts in today's columns (null where a part lacks one), duplicates included.

    An unreadable part is reported through logging and skipped.
    """
    names = list(columns or SCHEMAS[kind].names)
    if not paths:
        return SCHEMAS[kind].empty_table().select(names)
    try:  # all at once is many times faster than one by one
        dataset = pads.dataset([str(path) for path in paths], schema=SCHEMAS[kind], format="parquet")
        return dataset.to_table(columns=names)
    except (OSError, pa.ArrowException) as error:
        if len(paths) > 1:
            return pa.concat_tables([read_parts([path], kind, names) for path in paths])
        _warn_once(paths[0], str(error).partition("\n")[0])
        return read_parts([], kind, names)


@cache
def _warn_once(path: Path, reason: str) -> None:
    """Parts are read again and again; a person needs to hear of a bad one once."""
    _logger.warning("skipped unreadable part %s (move it away to be rid of this): %s", path, reason)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people and programs, whole or not at all. Raises ValueError on NaN and infinities."""
    write_bytes(Path(path), (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def parts_of(folder: Path, kind: Kind) -> list[Path]:
    """The parts of a kind in a results folder, oldest first; none where there is no such folder."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder / kind))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / kind / name for name in names if name.endswith(".parquet") and not name.startswith((".", "_"))]


def _read(folder: Path, kind: Kind) -> pd.DataFrame:
    return read_parts(parts_of(folder, kind), kind).to_pandas()


def _table(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    schema = SCHEMAS[kind]
    got, wanted = set().union(*rows), set(schema.names)
    unknown = sorted(got - wanted)
    missing = sorted({name for row in rows for name in wanted - row.keys()})
    problems = []
    if unknown:
        problems.append(f"unknown columns {', '.join(unknown)}")
    if missing:
        problems.append(f"missing columns {', '.join(missing)}")
    if problems:
        raise ValueError(
            f"rows of {kind} have {' and '.join(problems)}; wanted exactly the {len(schema.names)} columns of "
            "orchestrator/results/schema.py. Give None where a nullable column does not apply."
        )
    columns = [_column(kind, field, [row[field.name] for row in rows]) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(kind: Kind, field: pa.Field, values: list[Any]) -> pa.Array:
    where = f"column {field.name} of {kind}"
    if not field.nullable and any(value is None for value in values):
        raise ValueError(f"{where} is None; wanted {field.type}. Only nullable columns may be empty.")
    outcomes = OUTCOMES.get(kind, ()) if field.name == "outcome" else ()
    if outcomes and (wrong := [value for value in values if value not in outcomes]):
        raise ValueError(f"{where} is {wrong[0]!r}; wanted one of {', '.join(outcomes)}.")
    if pa.types.is_timestamp(field.type) and any(isinstance(v, datetime) and v.tzinfo is None for v in values):
        raise ValueError(f"{where} has no time zone; wanted UTC. Use datetime.now(UTC).")
    if pa.types.is_integer(field.type):  # pyarrow would drop the fraction without a word
        fractions = [value for value in values if isinstance(value, float) and not value.is_integer()]
        if fractions:
            raise ValueError(f"{where} does not hold {field.type}: got {fractions[0]}. Give a whole number.")
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where} does not hold {field.type}: {error}") from error


def _part_name(trial_id: str, attempt: int) -> str:
    """A name that sorts by time and that no other writer has, now or later. Readers never take it apart."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", trial_id):
        raise ValueError(f"trial_id {trial_id!r} cannot name a file; wanted 1 to 64 letters, digits, _ and -.")
    return f"{_now():%Y%m%dT%H%M%S.%f}Z-{trial_id}-{attempt}-{secrets.token_hex(4)}.parquet"


def _locked(file: IO[str], seconds: float, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether a lock on an open file could be had within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(1.0, seconds / 5))


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _now() -> datetime:
    return datetime.now(UTC)
