"""Speeds and gains measured on one's own devices: files that `ditlaw bench train --table` writes and planning reads.

They lie in the folder $DITLAW_SPEEDS, one a device, named as the device is in a sweep. A kind of speed (precision,
fast or not: `Trial.fast`) that a file has replaces the built-in ones of that kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = "DITLAW_SPEEDS"
"""The environment variable that names the folder."""
SPEED = {"precision": str, "width": int, "tokens": int, "flops_per_second": float, "fast": bool}
GAIN = {"width": int, "tokens": int, "members": int, "gain": float}


def own_figures(device: str) -> dict[str, list[dict[str, Any]]]:
    """What was measured on this device: `speeds` (fields of `devices.Speed`) and `gains` (of `packing.Gain`).

    Raises:
        ValueError: there is a file, and it is none that the benchmark wrote.
    """
    folder = os.environ.get(FOLDER)
    path = Path(folder) / f"{device}.json" if folder else None
    if path is None or not path.exists():
        return {"speeds": [], "gains": []}
    try:
        found = json.loads(path.read_text())
        return {
            "speeds": [_row(row, SPEED) for row in found["speeds"]],
            "gains": [_row(row, GAIN) for row in found["gains"]],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no table of speeds: {error!r}; wanted one that `ditlaw bench train --table` wrote. Write it "
            f"again, or take it out of ${FOLDER}."
        ) from error


def write_figures(folder: Path, device: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the table of a device from the benchmark's rows; returns its path.

    A trial's speed is that of its graph where there is one, else of its step through DeepSpeed, of one worker; gains
    are over a pack of one. Shapes of which fast packs were measured are so narrow that a graph alone is bound by its
    kernels' number, which `LEAST_STEP_SECONDS` says: theirs is the speed of the largest pack, at its tokens.
    """
    speeds, gains = [], []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["variant"]: row for row in rows if row["case"] == case}
        chosen = next((own[name] for name in ("graph", "pack of 1", "deepspeed") if name in own), None)
        packs = _packs(own)
        if chosen is own.get("pack of 1") and chosen is not None and chosen["fast"] and packs:
            name, members = max(packs.items(), key=lambda pack: pack[1])
            chosen = {**own[name], "tokens": members * own[name]["tokens"]}
        if chosen is not None:
            each = chosen["flops_per_second"] / chosen.get("processes", 1)
            speeds.append({**{key: chosen[key] for key in SPEED}, "flops_per_second": each})
        gains += _gains(own)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device}.json"
    path.write_text(json.dumps({"speeds": speeds, "gains": gains}, indent=1) + "\n")
    return path


def _gains(own: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the packs of a case over a pack of one; `own` are its rows by variant."""
    packs = _packs(own)
    if "pack of 1" not in own:
        return []
    one = own["pack of 1"]["images_per_s"]
    return [
        {"width": row["width"], "tokens": row["tokens"], "members": packs[name], "gain": row["images_per_s"] / one}
        for name, row in own.items()
        if name in packs
    ]


def _packs(own: Mapping[str, Any]) -> dict[str, int]:
    """The members of the packs of several among a case's variants."""
    sizes = {name: name.removeprefix("pack of ") for name in own if name.startswith("pack of ")}
    return {name: int(size) for name, size in sizes.items() if size.isdigit() and size != "1"}


def _row(row: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    if set(row) != set(fields):
        raise ValueError(f"a row has {sorted(row)}; wanted {sorted(fields)}")
    wrong = [key for key, kind in fields.items() if not isinstance(row[key], (kind, int) if kind is float else kind)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}; wanted {fields[wrong[0]].__name__}")
    for key in ("width", "tokens", "members", "flops_per_second", "gain"):
        if key in row and not 0 < row[key] < float("inf"):
            raise ValueError(f"{key} is {row[key]!r}; wanted a positive number")
    return dict(row)
