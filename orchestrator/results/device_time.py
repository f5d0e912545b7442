"""Where the time of gangs went: steps of training and evaluation, or what has to be done around them.

From when a gang is asked for (the first of a run: from when the command began) every second of it is in one account:

    training     steps, with the drawing of their data and the writing down of their losses
    evaluation   losses and distances, with the images that they generate
    compiling    torch.compile, wherever it happened
    setting up   building models and optimizers of a trial, and reading its checkpoint
    saving       training that stood still for a checkpoint
    lost         attempts whose worker could not say what it did
    waiting      a gang without an attempt: its start, the end of the one before, the scheduler

What no gang was there for is not in it: the report at the end of a run, and the time between two runs. Nor are attempts
that died with their driver, of which nobody knows when.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

ACCOUNTS = ("training", "evaluation", "compiling", "setting up", "saving", "lost", "waiting")
STEPS = ("training", "evaluation")
_MEASURED = {
    "evaluation": "evaluation_seconds",
    "compiling": "compile_seconds",
    "setting up": "startup_seconds",
    "saving": "checkpoint_seconds",
}


def device_time(attempts: pd.DataFrame) -> pd.DataFrame:
    """Seconds of gangs by account, one row an attempt, or several that were trained together; columns ACCOUNTS,
    `trial_ids` and `waits_known`, whether it was recorded how long the gang had waited before.

    Args:
        attempts: as `read_attempts` gives them.
    """
    rows = [_of(together) for together in _together(attempts[attempts["gang"].notna()])]
    return pd.DataFrame(rows, columns=["trial_ids", "waits_known", *ACCOUNTS])


def share_of_steps(time: pd.DataFrame) -> float | None:
    """Training and evaluation, of all the time; None without any."""
    whole = float(time[list(ACCOUNTS)].to_numpy(dtype=float).sum())
    return float(time[list(STEPS)].to_numpy(dtype=float).sum()) / whole if whole > 0 else None


def _together(attempts: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Attempts of one gang at the same time: those of a pack."""
    for _, own in attempts.sort_values("started_at").groupby("gang", sort=False):
        ends = own["ended_at"].cummax().shift()
        yield from (part for _, part in own.groupby((own["started_at"] >= ends).cumsum()))


def _of(attempts: pd.DataFrame) -> dict[str, object]:
    whole = (attempts["ended_at"].max() - attempts["started_at"].min()).total_seconds()
    waits = attempts["waited_seconds"]
    row: dict[str, object] = {"trial_ids": tuple(attempts["trial_id"]), "waits_known": bool(waits.notna().any())}
    row |= dict.fromkeys(ACCOUNTS, 0.0) | {"waiting": float(waits.sum())}
    if attempts["train_seconds"].isna().any():
        return row | {"lost": whole}
    parts = {name: float(attempts[column].sum()) for name, column in _MEASURED.items()}
    return row | parts | {"training": max(0.0, whole - sum(parts.values()))}
