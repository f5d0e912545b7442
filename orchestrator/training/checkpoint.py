"""Checkpoints of a trial: full fp32 state in safetensors, complete or absent.

A checkpoint is a folder `<trial>/<samples>` with `state.safetensors` and `manifest.json`. It is written under a hidden
name, synced, and renamed; it counts only if its manifest names this trial and its checksum agrees.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from orchestrator.results.atomic import sync_folder, write_bytes
from orchestrator.results.checkpoints import checkpoint_folders, checkpoint_name, checkpoints_folder

log = logging.getLogger(__name__)

KEEP = 2
STATE, MANIFEST = "state.safetensors", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trial's state at `samples`: tensors by name, and the counters of its loop."""

    samples: int
    tensors: dict[str, Tensor]
    counters: dict[str, Any]


class Checkpoints:
    """The checkpoints of one trial below `<results>/checkpoints`.

    The newest KEEP stay, and those at the samples in `keep`, off which others will branch.
    """

    def __init__(self, results: Path, trial_id: str, keep: Collection[int] = ()) -> None:
        self.trial_id, self.keep = trial_id, {checkpoint_name(samples) for samples in keep}
        self.results, self.folder = results, checkpoints_folder(results, trial_id)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint so that it is there whole or not at all, then drop those that are not kept."""
        final = self.folder / checkpoint_name(checkpoint.samples)
        if final.exists() and self._read(final) is not None:
            return
        for abandoned in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = self.folder / f".{final.name}.{secrets.token_hex(4)}"
        temporary.mkdir(parents=True)
        state = save(checkpoint.tensors)
        manifest = {
            "trial_id": self.trial_id,
            "samples": checkpoint.samples,
            "counters": checkpoint.counters,
            "files": {STATE: {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}},
        }
        write_bytes(temporary / STATE, state)
        write_bytes(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in self._folders()[KEEP:]:
            if old != final and old.name not in self.keep:
                shutil.rmtree(old, ignore_errors=True)

    def at(self, samples: int) -> Checkpoint:
        """The checkpoint at exactly `samples`, from which another trial branches off.

        Raises:
            ValueError: it is not there or not whole. Training the trunk again would silently spend its compute twice.
        """
        folder = self.folder / checkpoint_name(samples)
        checkpoint = self._read(folder) if folder.is_dir() else None
        if checkpoint is None:
            what = "is not whole" if folder.is_dir() else "is not there"
            raise ValueError(
                f"the checkpoint {folder}, with which the trial begins, {what}. Restore it from a backup, or delete "
                f"{self.folder} to train its trunk again from the start."
            )
        return checkpoint

    def newest(self, at_most: int) -> Checkpoint | None:
        """The newest whole checkpoint of at most `at_most` samples; None if the trial has to start at 0.

        That is so where it has no checkpoint, or where all are past `at_most` (a budget was added below what has been
        trained, and what it needs is gone).

        Raises:
            ValueError: there are checkpoints and none is whole. Starting again at 0 would silently spend the compute
                twice, so a person decides.
        """
        folders = self._folders()
        past = 0
        for folder in folders:
            if (checkpoint := self._read(folder)) is None:
                continue
            if checkpoint.samples <= at_most:
                return checkpoint
            past += 1
        if past:
            log.warning("trial %s: checkpoints are past %d samples; it starts again", self.trial_id, at_most)
            return None
        if folders:
            raise ValueError(
                f"none of the {len(folders)} checkpoints in {self.folder} is whole; wanted at least one. Restore one "
                "from a backup, or delete that folder to train the trial again from the start."
            )
        return None

    def _folders(self) -> list[Path]:
        """Folders of finished checkpoints, newest first."""
        return checkpoint_folders(self.results, self.trial_id)

    def _read(self, folder: Path) -> Checkpoint | None:
        """The checkpoint in `folder`, or None (with a warning) if anything about it is wrong."""
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest["trial_id"] != self.trial_id:
                raise ValueError(f"is of trial {manifest['trial_id']}")
            state = (folder / STATE).read_bytes()
            if hashlib.sha256(state).hexdigest() != manifest["files"][STATE]["sha256"]:
                raise ValueError("has another checksum than its manifest says")
            return Checkpoint(samples=manifest["samples"], tensors=load(state), counters=manifest["counters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is skipped: %s", folder, error)
            return None
