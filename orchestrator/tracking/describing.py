"""How a sweep reads in MLflow: names that sort, descriptions, what a trial was trained on, the machine's load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.results.location import Location

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, in Markdown."""


class DatasetEntry(NamedTuple):
    """What MLflow shows as the dataset of a run."""

    name: str
    digest: str
    source: str


def run_names(plan: Mapping[str, Any]) -> dict[str, str]:
    """A name for each trial: arm, a number that counts the sizes from the smallest, size, learning rate, seed.

    In the alphabetical order of MLflow's list, trials of an arm stand together, from small to large.
    """
    trials = [trial for trial in plan.get("trials", ()) if trial.get("arm") and trial.get("size")]
    params = {str(t["size"]): float(t.get("params_backbone") or 0) for t in trials}
    ordered = sorted(params, key=lambda size: (params[size], size))
    width = len(str(len(ordered)))
    names: dict[str, str] = {}
    for trial in trials:
        number = f"{ordered.index(str(trial['size'])) + 1:0{width}d}"
        words = [str(trial["arm"]), f"{number}-{trial['size']}"]
        words += [f"lr {trial['learning_rate']:.2e}"] if isinstance(trial.get("learning_rate"), float) else []
        words += [f"seed {trial['seed']}"] if trial.get("seed") is not None else []
        words += [f"branch {trial['samples_start']}"] if trial.get("trunk") else []
        names[str(trial["trial_id"])] = " ".join(words)
    return names


def sweep_note(plan: Mapping[str, Any], results: Location) -> str:
    """The description of a sweep's experiment and of its parent run."""
    lines = [f"**{plan.get('question') or 'A scaling sweep by ditlaw.'}**", ""]
    cells, trials = plan.get("num_cells"), plan.get("num_trials")
    if cells and trials:
        lines.append(f"{cells} measurements from {trials} trials, {plan.get('flops_planned', 0):.3g} training FLOPs.")
    if plan.get("arms"):
        lines.append(f"Arms: {', '.join(map(str, plan['arms']))}; the report compares the first with the others.")
    lines += [
        "",
        "The parent run holds the plan, the spec, the report and its figures; each child is one trial. `eval/*` are "
        "the measurements against samples seen, `eval_by_mflop/*` the same against training compute in 10^6 FLOPs.",
        "",
        "Searches: `tags.arm = 'mup' and metrics.\"eval/loss\" < 0.3`, `tags.outcome = 'diverged'`, "
        "`tags.trial_id LIKE '3fa8%'`.",
        "",
        f"Results: `{results}`. These runs are a view of it: `ditlaw sync` writes them again.",
    ]
    return "\n".join(lines)


def trial_note(trial: Mapping[str, Any], results: Location) -> str:
    """The description of one trial's run."""
    trial_id = trial["trial_id"]
    told = f"Trial `{trial_id}`"
    if trial.get("params_backbone"):
        told += f": {trial['params_backbone']:,} parameters without embedding tables"
    if trial.get("milestones"):
        told += f", measured at {', '.join(f'{samples:,}' for samples in trial['milestones'])} samples"
    return (
        f"{told}.\n\nCheckpoints: `{results / 'checkpoints' / trial_id}`, logs: `{results / 'logs' / trial_id}`, "
        "pictures: the artifacts below `samples`."
    )


def trial_tags(trial: Mapping[str, Any], results: Location) -> dict[str, str]:
    """Tags to search trials by, and where their checkpoints are."""
    named = ("arm", "size", "parameterization", "trunk")
    tags = {name: str(trial[name]) for name in named if trial.get(name)}
    return tags | {"checkpoints": str(results / "checkpoints" / trial["trial_id"]), NOTE: trial_note(trial, results)}


def dataset_of(plan: Mapping[str, Any]) -> DatasetEntry | None:
    """The dataset of a plan, its digest that of its images; None where the plan does not say, as older ones do not."""
    name, digest = plan.get("dataset"), plan.get("dataset_digest")
    return DatasetEntry(str(name), str(digest)[:8], f"ditlaw dataset {name}") if name and digest else None


def figures(results: Location) -> Sequence[Path]:
    """The figures of the report that are files here."""
    folder = results / "figures"
    return (
        sorted(path for path in folder.iterdir() if path.is_file())
        if isinstance(folder, Path) and folder.is_dir()
        else []
    )


def machine_load(results: Location) -> Iterator[tuple[str, float]]:
    """The load of the driver's machine by MLflow's own names, which its page of system metrics shows."""
    import psutil

    memory = psutil.virtual_memory()
    yield "system/cpu_utilization_percentage", psutil.cpu_percent()
    yield "system/system_memory_usage_megabytes", memory.used / 1e6
    yield "system/system_memory_usage_percentage", memory.percent
    if isinstance(results, Path) and results.exists():
        disk = shutil.disk_usage(results)
        yield "system/disk_usage_percentage", 100 * disk.used / disk.total
        yield "system/disk_available_megabytes", disk.free / 1e6
