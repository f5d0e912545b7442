"""Where checkpoints lie, which the driver needs to know without reading one."""

from __future__ import annotations

from pathlib import Path


def checkpoints_folder(results: Path, trial_id: str) -> Path:
    """The folder of a trial's checkpoints."""
    return results / "checkpoints" / trial_id


def checkpoint_name(samples: int) -> str:
    """The folder name of a checkpoint at `samples` seen; names sort as samples do."""
    return f"{samples:015d}"


def checkpoint_folders(results: Path, trial_id: str) -> list[Path]:
    """Finished checkpoints of a trial, newest first, valid or not."""
    folder = checkpoints_folder(results, trial_id)
    if not folder.is_dir():
        return []
    return sorted((f for f in folder.iterdir() if f.name.isdigit() and f.is_dir()), reverse=True)
