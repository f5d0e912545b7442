"""`ditlaw bench evaluation`: checkpoints sampled under every protocol, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.bench.evaluation_judged import cheapest_faithful, judged
from orchestrator.cli import main

FASHION, PROCEDURAL = (Path(f"docs/data/evaluation_{name}.json") for name in ("fashion_mnist", "procedural"))


def row(checkpoint: int, sampler: str, fd: list[float], *, steps: int = 10, right: bool = False) -> dict[str, Any]:
    return {
        "trial_id": str(checkpoint), "samples": 64, "loss": checkpoint + 0.5, "training_flops": 1e6, "sampler": sampler,
        "steps": steps, "other_noise": right, "flops_per_image": 1e2 * steps,
        "by_images": [{"images": 100, "fd": fd, "fd_sd": 0.1}],
    }  # fmt: skip


def study(swapped: bool) -> list[dict[str, Any]]:
    """Five checkpoints of distances 1 to 5; the cheap protocol has twice that, and may exchange the last two."""
    rows = []
    for place in range(5):
        seen = {3: 4, 4: 3}.get(place, place) if swapped else place
        rows.append(row(place, "ddpm", [1.0 + place], steps=250, right=True))
        rows.append(row(place, "heun", [2.0 * (1 + place), 2.0 * (1 + seen)]))
    return rows


def test_a_protocol_is_judged_by_every_set_of_images():
    (found,) = judged(study(swapped=True))
    assert found["rank_correlation"] == pytest.approx((1 + 0.9) / 2)
    assert found["lowest_correlation"] == pytest.approx(0.9)
    assert found["loss_correlation"] == pytest.approx(0.95)
    assert found["median_ratio"] == 2
    assert found["largest_cost"] == pytest.approx(100 * 1e3 / 1e6)
    assert (found["checkpoints"], found["sets"]) == (5, 2)


def test_the_cheapest_faithful_protocol_is_named():
    assert cheapest_faithful(judged(study(swapped=True))) is None
    dear = judged(study(swapped=False))
    assert cheapest_faithful(dear) is None  # a tenth of the training
    (cheap,) = ({**entry, "largest_cost": 0.01} for entry in dear)
    assert cheapest_faithful([{**cheap, "median_cost": 1.0}, cheap]) == cheap


def test_a_study_that_was_cut_short_counts_whole_checkpoints():
    rows = [*study(swapped=False), row(9, "ddpm", [0.1], steps=250, right=True)]
    assert judged(rows)[0]["checkpoints"] == 5


def test_the_published_studies_say_what_the_page_says(tmp_path):
    """Ten steps and 2,000 images on Fashion-MNIST: faithful and cheap; on procedural images nothing is."""
    words = ["bench", "evaluation", "--again", str(FASHION), "--again", str(PROCEDURAL)]
    result = CliRunner().invoke(main, [*words, "--json", "--figure", str(tmp_path / "study.png")])
    assert result.exit_code == 0, result.output
    default = {
        entry["study"]: entry
        for entry in json.loads(result.stdout)
        if (entry["sampler"], entry["steps"], entry["images"]) == ("dpmpp-2m", 10, 2000)
    }
    assert default["fashion-mnist"]["rank_correlation"] > 0.99
    assert default["fashion-mnist"]["largest_cost"] < 0.05
    assert default["procedural-32"]["rank_correlation"] < 0.95
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(main, words)
    assert "fashion-mnist, 19 checkpoints" in table.output
    assert "No protocol has a rank correlation of 0.98" in table.output


def test_what_is_no_study_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for words, message in (
        (["--again", str(tmp_path / "other.json")], "holds no study"),
        ([], "wanted RESULTS and --spec, to sample checkpoints, or --again FILE"),
    ):
        result = CliRunner().invoke(main, ["bench", "evaluation", *words])
        assert result.exit_code == 2
        assert message in result.output.replace("\n", " ")
