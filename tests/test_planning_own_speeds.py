"""Tables of one's own: what the benchmark measured is what plans are made with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from models.config import preset
from orchestrator.planning.devices import GPUS, named, training_flops_per_second
from orchestrator.planning.own_speeds import FOLDER, write_figures
from orchestrator.planning.packing import members_worth
from orchestrator.planning.plan import make

ROW = {"width": 384, "tokens": 65536, "precision": "bf16", "fast": True, "mfu": 0.1}
ROWS = [
    {**ROW, "case": "S/2 256", "variant": "plain", "images_per_s": 9.0, "flops_per_second": 9e13},
    {**ROW, "case": "S/2 256", "variant": "deepspeed", "images_per_s": 10.0, "flops_per_second": 1e14},
    {**ROW, "case": "S/2 256", "variant": "graph", "images_per_s": 20.0, "flops_per_second": 2e14},
    {**ROW, "case": "S/2 256", "variant": "pack of 1", "images_per_s": 10.0, "flops_per_second": 1e14},
    {**ROW, "case": "S/2 256", "variant": "pack of 4", "images_per_s": 15.0, "flops_per_second": 1.5e14},
    {**ROW, "case": "S/2 256", "variant": "pack of 4 without graph", "images_per_s": 1.0, "flops_per_second": 1e13},
]


def test_what_is_written_is_what_plans_are_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    built_in = named("h100-80gb")
    assert built_in is GPUS["h100-80gb"]
    write_figures(tmp_path, "h100-80gb", ROWS)
    own = named("h100-80gb")
    assert own is named("h100-80gb"), "one object, as devices are keys"
    model = preset("S/2")
    assert training_flops_per_second(own, model, "bf16", 256, False, fast=True) == (2e14, True)
    slow = [training_flops_per_second(device, model, "bf16", 256, False) for device in (own, built_in)]
    assert slow[0] == slow[1], "of that kind nothing was measured anew"


def test_gains_of_packs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make(Path("sweeps/smoke.yaml")).trials[0]
    trial = dataclasses.replace(trial, model=preset("S/2"), batch_size=256, milestones=(256,), budgets=(None,))
    assert members_worth("h100-80gb", trial) == 1
    monkeypatch.setenv(FOLDER, str(tmp_path))
    write_figures(tmp_path, "h100-80gb", ROWS)
    assert members_worth("h100-80gb", trial) == 4


@pytest.mark.parametrize(("fast", "expected"), [(True, (8e13, 4 * 4096)), (False, (2e13, 4096))])
def test_the_speed_of_narrow_shapes_is_that_of_a_pack_which_fills_the_gpu(tmp_path: Path, fast, expected) -> None:
    row = {**ROW, "case": "w128", "width": 128, "tokens": 4096, "fast": fast, "images_per_s": 1.0}
    flops = {
        "deepspeed": 1e12,
        "pack of 1": 2e13,
        "pack of 2": 4e13,
        "pack of 4": 8e13,
        "pack of 4 without graph": 1e13,
    }
    rows = [{**row, "variant": variant, "flops_per_second": each} for variant, each in flops.items()]
    (found,) = json.loads(write_figures(tmp_path, "h100-80gb", rows).read_text())["speeds"]
    assert (found["flops_per_second"], found["tokens"]) == expected


def test_cores_of_a_cpu_that_worked_side_by_side_are_told_apart(tmp_path: Path) -> None:
    rows = [{**ROW, "case": "w", "variant": "deepspeed", "images_per_s": 2.0, "flops_per_second": 6e10, "processes": 2}]
    path = write_figures(tmp_path, "cpu", rows)
    assert json.loads(path.read_text())["speeds"][0]["flops_per_second"] == 3e10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no table of speeds"),
        ("{}", "is no table of speeds"),
        ('{"speeds": [{"width": 1}], "gains": []}', "a row has"),
        (
            '{"speeds": [{"precision": "bf16", "width": "x", "tokens": 1, "flops_per_second": 1.0, "fast": true}], '
            '"gains": []}',
            "width is",
        ),
        (
            '{"speeds": [], "gains": [{"width": 8, "tokens": 8, "members": 2, "gain": -1.0}]}',
            "wanted a positive number",
        ),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "h100-80gb.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        named("h100-80gb")
