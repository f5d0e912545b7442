"""How much measurements scatter: between seeds, between the milestones of one trial, and between images of one model.

The first two are what `expect.seed_noise` and `expect.measurement_noise` of a sweep mean, as relative standard
deviations; the last is the part of it that other validation draws or other generated images would bring about.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

QUANTITIES = {"loss": "loss_sd", "fd": "fd_sd", "fid": "fd_sd"}
"""What is measured, and the column of its sampling error."""
ALIKE = ["arm", "size", "parameterization", "objective", "learning_rate", "batch_size"]
"""Trials that agree in these, and are measured at the same samples, differ in their seed alone."""


@dataclass(frozen=True, kw_only=True)
class NoiseEstimate:
    """Relative standard deviations of one quantity; None where the table does not tell."""

    quantity: str
    seed: float | None
    """Between trials that differ in their seed, shared by all milestones of a trial."""
    measurement: float | None
    """Between the milestones of a trial, beyond what its seed explains."""
    sampling: float | None
    """Of other draws or images of the same model: the median of the rows' own estimates."""
    degrees_of_freedom: int
    """Seeds beyond the first of each group: below about 5 the estimates are rough."""


def estimate_noise(frame: pd.DataFrame) -> list[NoiseEstimate]:
    """The noise of every quantity that the measurements have.

    Logs are an effect of configuration and milestone, one of the trial and a rest: a two-way layout within each
    configuration, whose mean squares are pooled over configurations (Searle, Casella & McCulloch 1992, chapter 4).
    """
    rows = frame[frame["outcome"] == "ok"] if "outcome" in frame else frame
    return [_of(rows, quantity) for quantity in QUANTITIES if quantity in rows and rows[quantity].notna().any()]


def _of(rows: pd.DataFrame, quantity: str) -> NoiseEstimate:
    rows = rows[rows[quantity] > 0]
    between = within = 0.0
    freedom_between = freedom_within = 0
    milestones = []
    for _, group in rows.groupby([name for name in ALIKE if name in rows], dropna=False):
        table = group.pivot_table(index="seed", columns="samples", values=quantity).dropna(axis=1)
        if table.shape[0] < 2 or table.shape[1] < 1:
            continue
        values: NDArray[np.float64] = np.log(table.to_numpy(dtype=float))
        rest = values - values.mean(axis=0)
        effect = rest.mean(axis=1)
        seeds, columns = values.shape
        between += columns * float(np.square(effect).sum())
        within += float(np.square(rest - effect[:, None]).sum())
        freedom_between += seeds - 1
        freedom_within += (seeds - 1) * (columns - 1)
        milestones.append(columns)
    seed = measurement = None
    if freedom_between and freedom_within:
        mean_square = within / freedom_within
        measurement = math.sqrt(mean_square)
        seed = math.sqrt(max(0.0, between / freedom_between - mean_square) / float(np.mean(milestones)))
    elif freedom_between:
        seed = math.sqrt(between / freedom_between)
    own = QUANTITIES[quantity]
    sampling = float((rows[own] / rows[quantity]).median()) if own in rows and rows[own].notna().any() else None
    return NoiseEstimate(
        quantity=quantity, seed=seed, measurement=measurement, sampling=sampling, degrees_of_freedom=freedom_between
    )


def stored_noise(path: Path, quantity: str = "loss") -> NoiseEstimate:
    """What `ditlaw noise` kept in a results folder, or in this file.

    Raises:
        ValueError: it is not there, or does not tell of the noise between seeds.
    """
    file = path / "noise.json" if path.is_dir() else path
    remedy = "Run `ditlaw noise` on results with several seeds."
    try:
        entries = json.loads(file.read_text())["relative_sd"]
        estimates = [NoiseEstimate(**entry) for entry in entries if entry["quantity"] == quantity]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no noise ({error!r}); wanted what `ditlaw noise` writes. {remedy}") from None
    if not estimates or estimates[0].seed is None:
        raise ValueError(f"{file} does not tell how much the {quantity} scatters between seeds. {remedy}")
    return estimates[0]
