"""Commands that break things on purpose: `soak`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import SPEC, data_folder, plan_of


@click.command()
@SPEC
@click.option("--faults", default=100, show_default=True, type=click.IntRange(min=1), help="How many to inject.")
@click.option("--seed", default=0, show_default=True, help="Seed of the schedule.")
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(min=1), help="Raylets of one CPU each.")
@click.option("--small-disk", is_flag=True, help="Results on a disk of 64 MB that runs full (mounts a tmpfs: root).")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file.")
def soak(spec: Path, faults: int, seed: int, nodes: int, small_disk: bool, json_path: Path | None) -> None:
    """Run SPEC under random faults, on a Ray cluster of its own on this machine; exit 1 if anything differs.

    Workers, gangs, nodes, the head and the driver die, hang, drain and come back; checkpoints rot, clocks jump, MLflow
    is absent or silent, the disk is full. The sweep is run until so many faults have struck, and each time its
    measurements must be, to the last bit, those of an undisturbed run.

    \b
    ditlaw soak sweeps/soak.yaml --faults 100 --seed 0
    """
    plan = plan_of(spec)
    with refusing():
        data_folder(plan, None)
    from orchestrator.faults.havoc import KINDS
    from orchestrator.faults.rig import Rig
    from orchestrator.faults.soak import Figures, Soak

    def keep(figures: Figures) -> None:
        if json_path is not None:  # after every round: one that is cut short keeps what it has
            json_path.write_text(json.dumps({"seed": seed, **figures.as_json()}, indent=1) + "\n")

    kinds = [kind for kind in KINDS if kind != "disk" or small_disk]
    with (
        tempfile.TemporaryDirectory(prefix="ditlaw-soak-") as folder,
        _disk(Path(folder), small_disk) as work,
        refusing(),
        Rig(Path(folder) / "rig", nodes=nodes, durable=True) as rig,
    ):
        figures = Soak(plan, rig, work, seed, kinds, click.echo, keep).run(faults)
    found = {"seed": seed, **figures.as_json()}
    click.echo(json.dumps(found))
    for problem in figures.problems:
        click.echo(problem, err=True)
    sys.exit(1 if figures.problems else 0)


@contextmanager
def _disk(folder: Path, small: bool) -> Iterator[Path]:
    """A folder for results, on a small disk of its own if so wished."""
    work = folder / "work"
    work.mkdir()
    if not small:
        yield work
        return
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(work)], capture_output=True, text=True
    )
    if done.returncode:
        with refusing():
            raise ValueError(
                f"--small-disk could not mount a tmpfs: {done.stderr.strip()}. Run as root, or without it."
            )
    try:
        yield work
    finally:
        subprocess.run(["umount", "--lazy", str(work)], check=False)
