"""Checkpoints of a trial: full fp32 state in safetensors, complete or absent.

A checkpoint is a folder `<trial>/<samples>` with `state.safetensors` and `manifest.json`, which has the sizes and
checksums of its files. It counts only if the manifest names this trial and they agree. On a file system it is written
under a hidden name, synced, and renamed; on object storage the manifest goes up last. `newest.json` beside the
checkpoints points to the one that was saved last, so that its loss does not go unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from orchestrator.faults import points
from orchestrator.results.atomic import sync_folder, write_bytes
from orchestrator.results.checkpoints import (
    MANIFEST,
    POINTER,
    checkpoint_folders,
    checkpoint_name,
    checkpoints_folder,
    drop_checkpoint,
    has_checkpoint,
    read_checkpoint,
)
from orchestrator.results.location import Location, ObjectPath
from orchestrator.results.outbox import AT_ONCE, Outbox
from orchestrator.training.state_bytes import state_bytes

log = logging.getLogger(__name__)

KEEP = 2
STATE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trial's state at `samples`: tensors by name, and the counters of its loop."""

    samples: int
    tensors: dict[str, Tensor]
    counters: dict[str, Any]


class Checkpoints:
    """The checkpoints of one trial below `<results>/checkpoints`.

    The newest KEEP whole ones stay, and those at the samples in `keep`, off which others will branch. `outbox` writes
    them: at once, or in the background and in order, which is why `save` wants tensors that nobody changes any more.
    """

    def __init__(self, results: Location, trial_id: str, keep: Collection[int] = (), outbox: Outbox = AT_ONCE) -> None:
        self.trial_id, self.keep = trial_id, {checkpoint_name(samples) for samples in keep}
        self.results, self.folder = results, checkpoints_folder(results, trial_id)
        self.outbox = outbox
        self._refused: set[str] = set()
        """Names of those that were read and found damaged."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint so that it is there whole or not at all, then drop those that are not kept."""
        size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        self.outbox.put(partial(self._write, checkpoint), size)

    def drop(self) -> None:
        """Delete those off which nothing branches, once all that was handed in before is written."""
        self.outbox.put(self._drop)

    def at(self, samples: int) -> Checkpoint:
        """The checkpoint at exactly `samples`, from which another trial branches off.

        Raises:
            ValueError: it is not there or not whole. Training the trunk again would silently spend its compute twice.
        """
        folder = self.folder / checkpoint_name(samples)
        there = has_checkpoint(self.results, self.trial_id, samples)
        checkpoint = self._read(folder) if there else None
        if checkpoint is None:
            what = "is not whole" if there else "is not there"
            raise ValueError(
                f"the checkpoint {folder}, with which the trial begins, {what}. Restore it from a backup, or give "
                "--retrain to train its trunk again from where it can be."
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
        self._check_pointer(folders)
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
                "from a backup, or give --retrain to train the trial again from the start."
            )
        return None

    def _write(self, checkpoint: Checkpoint) -> None:
        final = self.folder / checkpoint_name(checkpoint.samples)
        state = state_bytes(checkpoint.tensors)
        manifest = {
            "trial_id": self.trial_id,
            "samples": checkpoint.samples,
            "counters": checkpoint.counters,
            "files": {STATE: {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}},
        }
        files: dict[str, bytes | memoryview] = {STATE: state, MANIFEST: json.dumps(manifest, indent=1).encode()}
        if isinstance(final, ObjectPath):
            if not has_checkpoint(self.results, self.trial_id, checkpoint.samples) or self._read(final) is None:
                for name, data in files.items():  # the manifest last: with it the checkpoint counts
                    write_bytes(final / name, data)
        elif not final.exists() or self._read(final) is None:
            self._write_folder(final, files)
        write_bytes(self.folder / POINTER, json.dumps({"newest": final.name}).encode())
        self._refused.discard(final.name)
        for old in self._spare(final.name):
            drop_checkpoint(old)

    def _spare(self, newest: str) -> list[Location]:
        """What need not be kept once `newest` is whole: older ones than the last KEEP, and the damaged ones, which
        are no use to fall back on. Those past it are of further budgets."""
        folders = self._folders()
        damaged = [folder for folder in folders if folder.name in self._refused]
        whole = [folder for folder in folders if folder not in damaged and folder.name <= newest]
        return [folder for folder in (*whole[KEEP:], *damaged) if folder.name not in self.keep]

    def _drop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / POINTER).unlink()  # first: a pointer says that a checkpoint is to be here
        for folder in self._folders():
            if folder.name not in self.keep:
                drop_checkpoint(folder)

    def _write_folder(self, final: Path, files: dict[str, bytes | memoryview]) -> None:
        folder = final.parent
        for abandoned in folder.glob(".*") if folder.is_dir() else ():
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = folder / f".{final.name}.{secrets.token_hex(4)}"
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(temporary / name, data, "checkpoint.write" if name == STATE else None)
        shutil.rmtree(final, ignore_errors=True)
        points.reach("checkpoint.rename")
        temporary.rename(final)
        sync_folder(folder)
        points.reach("checkpoint.saved", int(final.name))

    def _check_pointer(self, folders: Sequence[Location]) -> None:
        """Say so where the checkpoint that was saved last is gone: what follows repeats work."""
        try:
            saved = str(json.loads((self.folder / POINTER).read_bytes())["newest"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); the checkpoints that are there count", self.folder / POINTER, error)
            return
        if saved not in {folder.name for folder in folders}:
            log.warning("checkpoint %s, the last that was saved, is gone", self.folder / saved)

    def _folders(self) -> Sequence[Location]:
        """Folders of finished checkpoints, newest first."""
        return checkpoint_folders(self.results, self.trial_id)

    def _read(self, folder: Location) -> Checkpoint | None:
        """The checkpoint in `folder`, or None (with a warning) if anything about it is wrong.

        Object storage that does not answer says nothing about the checkpoint: that is raised, as OSError.
        """
        try:
            manifest, files = read_checkpoint(folder, self.trial_id)
            return Checkpoint(samples=manifest["samples"], tensors=load(files[STATE]), counters=manifest["counters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if (
                isinstance(folder, ObjectPath)
                and isinstance(error, OSError)
                and not isinstance(error, FileNotFoundError)
            ):
                raise
            log.warning("checkpoint %s is skipped: %s", folder, error)
            self._refused.add(folder.name)
            return None
