"""Rows that a person takes back: kept in retracted/, out of the table, for a diverged trial is to be tried again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.results.atomic import write_bytes
from orchestrator.results.parts import parts_of, read_parts
from orchestrator.results.store import Store

FOLDER = "retracted"


def retract_diverged(store: Store, trial_ids: Sequence[str]) -> list[str]:
    """Take back the diverged rows of trials, and of the branches that diverged with them; returns all their ids.

    A part is moved whole. Rows of it that stay are written to a new part before.
    """
    trials = json.loads((store.folder / "plan.json").read_text())["trials"]
    branches = [str(trial["trial_id"]) for trial in trials if trial["trunk"] in trial_ids]
    wanted, found = {*trial_ids, *branches}, set()
    target = store.folder / FOLDER / "measurements"
    for part in store.parts("measurements"):
        rows = read_parts([part], "measurements").to_pylist()
        stale = [row for row in rows if row["trial_id"] in wanted and row["outcome"] == "diverged"]
        stale = [row for row in stale if row["trial_id"] in trial_ids or _with_trunk(row["reason"], trial_ids)]
        if not stale:
            continue
        store.append_measurements([row for row in rows if row not in stale])
        write_bytes(target / part.name, part.read_bytes())
        part.unlink()
        found |= {row["trial_id"] for row in stale}
    return [trial_id for trial_id in dict.fromkeys([*trial_ids, *branches]) if trial_id in found]


def retracted(store: Store) -> set[str]:
    """The trials of which rows were taken back: what other sweeps hold of them is not taken over again."""
    parts = parts_of(store.folder / FOLDER, "measurements")
    return set(read_parts(parts, "measurements", ["trial_id"]).to_pydict()["trial_id"])


def _with_trunk(reason: str | None, trunks: Sequence[str]) -> bool:
    return any(trunk in (reason or "") for trunk in trunks)
