"""What results folders hold of some trials: a sweep's own, and those beside it, whose work need not be done again.

A trial's identity holds everything that determines its result, so a measurement or a checkpoint of the same trial in
another sweep of the same folder is as good as one's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.results.checkpoints import checkpoint_folders, checkpoint_name, checkpoints_folder, copy_checkpoint
from orchestrator.results.location import Location, entries
from orchestrator.results.parts import read_new
from orchestrator.results.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Measurements, as (trial_id, samples), and the samples of checkpoints by trial_id."""

    measured: frozenset[tuple[str, int]]
    checkpoints: Mapping[str, tuple[int, ...]]


def holdings(folder: Location, trial_ids: Collection[str], beside: bool = True) -> Holdings:
    """What `folder`, and the results folders `beside` it, hold of the trials. An absent folder holds nothing."""
    measured, checkpoints = _held(folder, trial_ids)
    for place in siblings(folder) if beside else []:
        with _if_readable(place):
            more, further = _held(place, known(place, trial_ids))
            measured |= more
            for trial_id, samples in further.items():
                checkpoints[trial_id] |= samples
    return Holdings(
        measured=frozenset(measured), checkpoints={key: tuple(sorted(value)) for key, value in checkpoints.items()}
    )


def siblings(folder: Location) -> list[Location]:
    """The other results folders in the same parent folder."""
    folder = folder.absolute()
    beside: list[Location] = []
    with _if_readable(folder.parent):
        if folder.parent != folder and folder.parent.is_dir():
            beside = [place for place in entries(folder.parent) if place != folder and not place.name.startswith(".")]
    found = []
    for place in beside:
        with _if_readable(place):
            if (place / "measurements").is_dir():
                found.append(place)
    return found


def known(folder: Location, trial_ids: Collection[str]) -> set[str]:
    """The trials that a results folder has heard of, by its plan and the names of its folders: no part is opened."""
    names: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # without a plan its logs tell
        names |= {str(trial["trial_id"]) for trial in json.loads((folder / "plan.json").read_text())["trials"]}
    for kind in ("logs", "checkpoints"):
        try:
            names |= {entry.name for entry in entries(folder / kind)}
        except (FileNotFoundError, NotADirectoryError):
            continue
    return names & set(trial_ids)


def adopt_measurements(store: Store, cells: Collection[tuple[str, int]]) -> int:
    """Take over the measurements of `cells` (trial_id, samples) that folders beside `store` have and it lacks, with
    their trials' curves; returns how many there were."""
    trial_ids = {trial_id for trial_id, _ in cells}
    missing = set(cells) - holdings(store.folder, trial_ids, beside=False).measured
    before = len(missing)
    for place in siblings(store.folder) if missing else []:
        with _if_readable(place):
            here = known(place, {trial_id for trial_id, _ in missing})
            if here:
                missing -= _adopt_rows(store, place, here, missing)
    return before - len(missing)


def adopt_checkpoints(store: Store, stops: Mapping[str, Sequence[int]]) -> int:
    """Take over the checkpoints in folders beside `store` that save it training; returns how many there were.

    Args:
        store: the sweep's own results.
        stops: by trial_id the samples, ascending, at which it has something left to do. The newest checkpoint at or
            below the first saves the way there, and one at a further stop (a branch point) saves the stop.
    """
    taken = 0
    for place in siblings(store.folder):
        with _if_readable(place):
            for trial_id in sorted(known(place, stops)):
                taken += _adopt_checkpoints(store.folder, place, trial_id, stops[trial_id])
    return taken


@contextlib.contextmanager
def _if_readable(place: Location) -> Iterator[None]:
    """Goes on without what this user may not read: the folder of results may be shared, and a neighbour private."""
    try:
        yield
    except PermissionError as error:
        log.warning("what is measured in %s is not taken over, as it cannot be read: %s", place, error)


def _held(place: Location, trial_ids: Collection[str]) -> tuple[set[tuple[str, int]], dict[str, set[int]]]:
    """What one results folder holds of the trials: measurements, and samples of checkpoints by trial."""
    if not trial_ids:
        return set(), {}
    rows = _rows(place, "measurements", trial_ids, ["trial_id", "samples"]).to_pydict()
    checkpoints = {t: {int(folder.name) for folder in checkpoint_folders(place, t)} for t in trial_ids}
    return set(zip(rows["trial_id"], rows["samples"], strict=True)), checkpoints


def _adopt_rows(store: Store, place: Location, trial_ids: Collection[str], missing: set[tuple[str, int]]) -> set[Any]:
    """Copy the measurements that are missing, with their trials' curves; returns their (trial_id, samples)."""
    first: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(_rows(place, "measurements", trial_ids).to_pylist(), key=lambda row: row["created_at"]):
        key = (row["trial_id"], row["samples"])
        if key in missing:
            first.setdefault(key, row)
    for trial_id in sorted({trial_id for trial_id, _ in first}):
        curve = _rows(place, "curves", [trial_id]).to_pylist()
        store.append_curves(curve)
        store.append_measurements([row for key, row in first.items() if key[0] == trial_id])
    return set(first)


def _adopt_checkpoints(folder: Location, place: Location, trial_id: str, stops: Sequence[int]) -> int:
    own = {int(f.name) for f in checkpoint_folders(folder, trial_id)}
    theirs = {int(f.name) for f in checkpoint_folders(place, trial_id)} - own
    have = max((samples for samples in own if samples <= stops[0]), default=0)
    nearer = sorted((samples for samples in theirs if have < samples <= stops[0]), reverse=True)
    taken = any(_copy(place, folder, trial_id, samples) for samples in nearer)  # up to the first that is whole
    further = sorted(samples for samples in theirs & set(stops) if samples > stops[0])
    return taken + sum(_copy(place, folder, trial_id, samples) for samples in further)


def _copy(place: Location, folder: Location, trial_id: str, samples: int) -> bool:
    """One checkpoint, whole or not at all; False where it is damaged, or gone meanwhile."""
    name = checkpoint_name(samples)
    source, target = checkpoints_folder(place, trial_id) / name, checkpoints_folder(folder, trial_id)
    try:
        copy_checkpoint(source, target / name, trial_id)
    except (OSError, ValueError) as error:
        log.warning("checkpoint %s could not be taken over: %s", source, error)
        return False
    return True


def _rows(folder: Location, kind: Any, trial_ids: Collection[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of some trials, duplicates included."""
    table = read_new(folder, kind, columns=columns).table
    return table.filter(pc.is_in(table["trial_id"], pa.array(sorted(trial_ids), pa.string())))
