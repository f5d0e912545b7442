"""A results folder with a planted law, written through the store, and whether fits find what was planted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.results.schema import EVALUATION_COLUMNS
from orchestrator.results.store import Store, read_measurements

SIZES = {"10K": 10e3, "25K": 25e3, "60K": 60e3, "150K": 150e3, "500K": 500e3}
BUDGETS = (2.5e10, 5e10, 1e11, 2e11, 4e11)
TOKENS = 49
ALPHA, BETA = 0.30, 0.35
N_EXPONENT = BETA / (ALPHA + BETA)


def flops_per_sample(params: float) -> float:
    return 3 * 2 * TOKENS * params


def planted_loss(params: float, samples: float) -> float:
    """E + A/N^alpha + B/D^beta with N* = 60K at 1e11 FLOPs."""
    A = 0.05 * 60e3**ALPHA
    B = 0.05 * ALPHA / BETA * (1e11 / flops_per_sample(60e3)) ** BETA
    return float(0.15 + A / params**ALPHA + B / samples**BETA)


def write_results(
    folder: Path,
    *,
    arms: tuple[str, ...] = ("muP", "SP"),
    sizes: tuple[str, ...] = tuple(SIZES),
    budgets: tuple[float, ...] = BUDGETS,
    rates: tuple[float, ...] = (1e-3, 4e-3),
    noise: float = 0.003,
    diverge: bool = True,
    seed: int = 0,
) -> Path:
    """A sweep of `arms` x `sizes` x `rates`, one trial each with a milestone a budget; SP at 500K and 4e-3 diverges."""
    rng = np.random.default_rng(seed)
    store, trials = Store(folder), []
    start = datetime(2026, 11, 1, tzinfo=UTC)
    for number, (arm, size, rate) in enumerate((a, s, r) for a in arms for s in sizes for r in rates):
        trial_id = f"{number:016x}"
        params, penalty = SIZES[size], 0.0 if arm == "muP" else 0.02 * (SIZES[size] / 60e3) ** 0.2
        best = 1e-3 if arm == "muP" or SIZES[size] > 100e3 else 4e-3
        rows = []
        for k, budget in enumerate(budgets):
            samples = max(64, round(budget / flops_per_sample(params) / 64) * 64)
            gone = diverge and arm == "SP" and size == "500K" and rate == 4e-3 and k >= 2
            loss = planted_loss(params, samples) * (1 + penalty + (0.01 if rate != best else 0.0))
            loss *= float(np.exp(noise * rng.standard_normal()))
            rows.append(measurement(trial_id, arm, size, rate, samples, budget, None if gone else loss, start))
        store.append_measurements(rows)
        store.append_curves(curve(trial_id, rate, rows))
        store.append_attempts([attempt(trial_id, rows, start + timedelta(seconds=number * 40))])
        trials.append({"trial_id": trial_id, "size": size, "parameterization": arm.lower(), "arm": arm})
        trials[-1] |= {"name": f"{arm} {size} lr {rate:g}", "milestones": [r["samples"] for r in rows]}
        trials[-1] |= {"flops": rows[-1]["flops"], "gang": 0}
    plan: dict[str, Any] = {
        "sweep": "planted",
        "question": "Which size is best at each budget, and does muP beat SP?",
        "spec": "name: planted\nbudgets: {flops: [2.5e10, 4e11]}\n",
        "arms": list(arms),
        "num_cells": len(trials) * len(budgets),
        "num_trials": len(trials),
        "flops_separate": float(len(trials) * sum(budgets)),
        "flops_planned": float(len(trials) * max(budgets)),
        "gpu_hours": 0.4,
        "trials": trials,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def measurement(
    trial_id: str, arm: str, size: str, rate: float, samples: int, budget: float, loss: float | None, start: datetime
) -> dict[str, Any]:
    seconds = budget / 1e10
    return dict.fromkeys(EVALUATION_COLUMNS) | {
        "schema_version": 1,
        "sweep": "planted",
        "trial_id": trial_id,
        "cell_id": f"{trial_id[-8:]}{samples:08x}",
        "arm": arm,
        "family": "dit",
        "size": size,
        "parameterization": arm.lower(),
        "objective": "flow",
        "learning_rate": rate,
        "batch_size": 64,
        "seed": 0,
        "params_total": int(SIZES[size] * 1.2),
        "params_backbone": int(SIZES[size]),
        "params_matmul": SIZES[size],
        "samples": samples,
        "tokens": samples * TOKENS,
        "flops": flops_per_sample(SIZES[size]) * samples,
        "budget_flops": budget,
        "flops_definition": "3 x forward, multiply-add = 2",
        "loss": loss,
        "loss_train": loss,
        "outcome": "ok" if loss is not None else "diverged",
        "reason": None if loss is not None else "training loss 9.1 exceeded 4 x its lowest 0.31",
        "zero_stage": 1,
        "precision": "fp32",
        "num_workers": 1,
        "attempt": 0,
        "wall_seconds": seconds,
        "gpu_hours": seconds / 3600,
        "flops_useful": flops_per_sample(SIZES[size]) * samples,
        "flops_wasted": 0.0,
        "created_at": start + timedelta(seconds=seconds),
        "mlflow_run_id": None,
    }


def curve(trial_id: str, rate: float, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = rows[-1]
    samples = np.unique(np.geomspace(64, last["samples"], 60).astype(int))
    return [
        {
            "trial_id": trial_id,
            "attempt": 0,
            "samples": int(s),
            "flops": last["flops"] * float(s) / last["samples"],
            "loss": planted_loss(last["params_backbone"], float(s)),
            "learning_rate": rate,
            "samples_per_second": 900.0,
            "wall_seconds": last["wall_seconds"] * float(s) / last["samples"],
        }
        for s in samples
    ]


def attempt(trial_id: str, rows: list[dict[str, Any]], start: datetime) -> dict[str, Any]:
    last = rows[-1]
    return {
        "trial_id": trial_id,
        "attempt": 0,
        "gang": "gang-0",
        "host": "host-0",
        "started_at": start,
        "ended_at": start + timedelta(seconds=last["wall_seconds"]),
        "outcome": "completed" if last["outcome"] == "ok" else "diverged",
        "reason": last["reason"],
        "samples_start": 0,
        "samples_end": last["samples"],
        "flops": last["flops"],
        "wall_seconds": last["wall_seconds"],
        "train_seconds": last["wall_seconds"] * 0.9,
        "evaluation_seconds": last["wall_seconds"] * 0.1,
        "startup_seconds": 0.0,
        "checkpoint_seconds": None,
        "waited_seconds": 1.0,
        "compile_seconds": 0.0,
    }


def test_the_planted_sweep_is_read_back_whole(tmp_path: Path) -> None:
    frame = read_measurements(write_results(tmp_path / "results"))
    assert len(frame) == 2 * len(SIZES) * 2 * len(BUDGETS)
    assert (frame["outcome"] == "diverged").sum() == 3
