"""How the trials of a plan are trained and measured, as `plan.json` keeps it for the methods of a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.spec.trial import CooldownSchedule, Trial


def recipes(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """The distinct recipes, each with the arms that train by it; learning rates and batches are each trial's own."""
    found: list[dict[str, Any]] = []
    arms: list[list[str]] = []
    for trial in trials:
        recipe = _recipe(trial)
        if recipe not in found:
            found.append(recipe)
            arms.append([])
        mine = arms[found.index(recipe)]
        if trial.arm not in mine:
            mine.append(trial.arm)
    return [{"arms": names, **recipe} for names, recipe in zip(arms, found, strict=True)]


def _recipe(trial: Trial) -> dict[str, Any]:
    optimizer, schedule = trial.optimizer, trial.schedule
    return {
        "optimizer": "AdamW",
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "gradient_clip": optimizer.gradient_clip,
        "warmup_samples": schedule.warmup_samples,
        "schedule": schedule.name,
        "cooldown": schedule.shape if isinstance(schedule, CooldownSchedule) else None,
        "ema_relative_std": trial.ema.relative_std,
        "loss_images": trial.evaluation.loss_images,
        "loss_draws": trial.evaluation.loss_draws,
    }
