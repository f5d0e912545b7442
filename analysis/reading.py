"""Files into rows: CSV with whatever delimiter, JSON, Parquet, folders of them, and our results folders."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import warnings as python_warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.magnitudes import number_of
from orchestrator.results.location import Location, entries
from orchestrator.results.store import read_planned

OURS = {"schema_version", "trial_id", "samples", "flops", "loss"}
"""Columns by which a table is known for one of ours."""

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".csv.gz", ".tsv", ".txt")
_JSON = (".jsonl", ".ndjson", ".json")
_OTHER = (".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".feather", ".npz", ".npy", ".h5", ".html")
_NAMED = "CSV, JSON lines or Parquet"
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_rows(path: Location, warnings: list[str]) -> tuple[pd.DataFrame, bool]:
    """The rows of a results folder, a CSV, JSON or Parquet file, or a folder of them; and whether they are ours.

    What had to be guessed (a delimiter, a decimal comma) is added to `warnings`.

    Raises:
        ValueError: there is no such file, or it cannot be read as one table; says what to do.
    """
    if not path.exists():
        raise ValueError(f"there is no table at {path}. Give a {_NAMED} file, a folder of them, or a results folder.")
    if path.is_dir():
        home = path.parent if path.name == "measurements" else path
        if (home / "measurements").is_dir():
            planned, others = read_planned(home)
            if others:
                warnings.append(f"{others} row{'s' * (others > 1)} not of the spec as it stands, and not used")
            return planned, True
        frame = _read_folder(path, warnings)
    else:
        frame = _read_file(path, warnings)
    return frame, is_ours(frame)


def is_ours(frame: pd.DataFrame) -> bool:
    return set(map(str, frame.columns)) >= OURS


def _read_folder(path: Location, warnings: list[str]) -> pd.DataFrame:
    files = sorted(f for f in entries(path) if f.name.lower().endswith((*_TEXT, *_JSON, *_PARQUET)))
    if not files:
        raise ValueError(f"{path} holds no {_NAMED} file and no measurements/ folder.")
    frames = [_read_file(file, warnings) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if set(frame.columns) != set(frames[0].columns):
            odd = sorted(set(frame.columns) ^ set(frames[0].columns))
            raise ValueError(
                f"{file.name} and {files[0].name} in {path} have other columns ({', '.join(odd)} only in one of them). "
                "Give one file, or give them the same columns."
            )
    return pd.concat(frames, ignore_index=True)


def _read_file(path: Location, warnings: list[str]) -> pd.DataFrame:
    name = path.name.lower()
    if name.endswith(_OTHER):
        raise ValueError(f"{path} is no {_NAMED} file. Save the table as one of these first.")
    try:
        if name.endswith(_PARQUET):
            frame = pd.read_parquet(io.BytesIO(path.read_bytes()))
        else:
            frame = _read_json(path) if name.endswith(_JSON) else _read_text(path, warnings)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} could not be read as a table: {str(error).strip()}. Repair that line.") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} could not be read as a table: {str(error).strip()}.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    repeated = [column for column, count in Counter(frame.columns).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} has the column {repeated[0]!r} more than once. Rename or remove one of them.")
    return frame


def _read_json(path: Location) -> pd.DataFrame:
    """JSON lines of one object a row; or one JSON list of such objects, or one object of equally long columns.

    Objects within a row become columns named by their path, as `config.params`.
    """
    text = _text(path)
    try:
        table = json.loads(text)
    except ValueError:
        table = [_json_row(line, k, path) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    if isinstance(table, dict) and any(isinstance(column, list) for column in table.values()):
        lengths = {name: len(column) if isinstance(column, list) else 1 for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path} holds columns of other lengths ({lengths}); wanted a value for each row.")
        return pd.DataFrame(table)
    rows = [table] if isinstance(table, dict) else table
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no rows: wanted a line for each run, as {_ROW}, or a list of such objects.")
    if not rows:
        raise ValueError(f"{path} is empty. Wanted a line for each run, as {_ROW}.")
    return pd.json_normalize(rows)


_ROW = '{"params": 1e6, "samples": 1e8, "flops": 6e14, "loss": 3.1}'


def _json_row(line: str, number: int, path: Location) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is no JSON ({error}). Repair that line.") from error


def _read_text(path: Location, warnings: list[str]) -> pd.DataFrame:
    lines = _lines(path)
    named = re.fullmatch(r'"?sep=(.)"?', lines[0].strip())  # a first line by which Excel is told the delimiter
    lines = lines[1:] if named and len(lines) > 1 else lines
    titles = _num_titles(lines)
    if titles:
        warnings.append(
            f"{titles} line{'s' * (titles > 1)} above the column names left out: {lines[0].strip(' ,;|')!r}"
        )
        lines = lines[titles:]
    delimiter = named[1] if named else _delimiter(lines, path)
    if delimiter != ("\t" if path.name.lower().endswith(".tsv") else ","):
        warnings.append(f"read with {_DELIMITERS.get(delimiter, 'spaces')} between columns")
    if delimiter == "|":  # the rule below the header of a Markdown table
        lines = [line for line in lines if not re.fullmatch(r"[\s|:-]+", line)]
    header = _fields(lines[0], delimiter)
    if all(np.isfinite(number_of(field)) for field in header):
        raise ValueError(
            f"{path} has no header: its first line holds numbers ({', '.join(header[:4])}). "
            "Add a first line of names, as params,samples,flops,loss."
        )
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise ValueError(f"{path} has the column {repeated[0]!r} more than once. Rename or remove one of them.")
    comma = delimiter in (";", "\t", "|") and any(
        re.fullmatch(r"[+-]?\d+,\d+(e[+-]?\d+)?", field, re.IGNORECASE)
        for line in lines[1:20]
        for field in _fields(line, delimiter)
    )
    if comma:
        warnings.append("commas within numbers read as decimal points")
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=delimiter,
            decimal="," if comma else ".",
            index_col=False,
            skipinitialspace=True,
            low_memory=False,
        )


def _lines(path: Location) -> list[str]:
    """The lines of a text file but for blank ones and those that begin with #."""
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError(f"{path} is empty. Wanted a line of column names and a row for each run.")
    return lines


def _text(path: Location) -> str:
    """A text file: UTF-8, or UTF-16 where it begins with that mark, as Excel's Unicode text does."""
    raw = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        import gzip

        raw = gzip.decompress(raw)
    is_wide = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if raw[:2] == b"PK" or (b"\0" in raw[:4096] and not is_wide):
        raise ValueError(f"{path} is not plain text. Save the table as CSV (UTF-8) or Parquet first.")
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def _num_titles(lines: list[str]) -> int:
    """Lines above the column names that hold one field at most, as a spreadsheet's title does."""
    for k, line in enumerate(lines[:20]):
        if any(sum(map(bool, _fields(line, delimiter))) > 1 for delimiter in _DELIMITERS):
            return k
    return 0


def _fields(line: str, delimiter: str) -> list[str]:
    if delimiter == r"\s+":
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _delimiter(lines: list[str], path: Location) -> str:
    """What stands between the columns: what the file's ending promises where the header has it, else what it has."""
    promised = "\t" if path.name.lower().endswith(".tsv") else ","
    counts = {delimiter: len(_fields(lines[0], delimiter)) - 1 for delimiter in _DELIMITERS}
    if counts[promised]:
        return promised
    best = max(counts, key=lambda delimiter: counts[delimiter])
    if counts[best]:
        return best
    words = len(lines[0].split())
    if words > 1 and all(len(line.split()) == words for line in lines[:20]):
        return r"\s+"
    return promised
