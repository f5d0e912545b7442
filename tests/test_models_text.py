"""Captions: the encoder of class names, shards, and what happens to files that are not right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from models.config import SP
from models.configs.mmdit import MMDiTConfig
from models.configs.text import TextShard
from models.families import build
from models.text import encoded, read_shard, write_shard
from orchestrator.cli import main


def test_words_that_look_alike_lie_near_each_other_and_padding_is_zero() -> None:
    sequence, pooled = encoded(["shirt", "T-shirt", "trouser", ""], tokens=3, width=64)
    assert sequence.shape == (4, 3, 64)
    assert torch.equal(sequence[0, 0], sequence[1, 1])
    assert torch.equal(sequence[0, 1:], torch.zeros(2, 64))
    assert torch.equal(pooled[3], torch.zeros(64))
    assert pooled[:3].square().mean(1) == pytest.approx(torch.ones(3), rel=1e-5)
    alike, other = (torch.cosine_similarity(pooled[0], pooled[i], dim=0) for i in (1, 2))
    assert alike > other + 0.2
    assert torch.equal(encoded(["shirt"], tokens=3, width=64)[0][0], sequence[0]), "one caption does not change another"


def shard_of(folder: Path, classes: int = 10) -> TextShard:
    generator = torch.Generator().manual_seed(0)
    sequence, pooled = torch.randn(classes, 3, 8, generator=generator), torch.randn(classes, 5, generator=generator)
    return write_shard(folder / "captions.safetensors", sequence, pooled, [f"class {i}" for i in range(classes)])


def test_a_model_reads_its_shard_and_its_output_depends_on_the_caption(tmp_path: Path) -> None:
    shard = shard_of(tmp_path)
    config = MMDiTConfig.example(width=16, depth=1, head_dim=8, text=shard, zero_init=False)
    model = build(config, SP(), 0)
    with torch.no_grad():
        model.final_layer.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    x, t = torch.ones(2, 1, 8, 8), torch.full((2,), 0.5)
    model.equip(tmp_path)
    assert torch.equal(model.text_embedder.captions.sequence[:10], read_shard(shard, 10, tmp_path)[0])
    assert torch.equal(model.text_embedder.captions.sequence[10], torch.zeros(3, 8)), "the null class has no caption"
    first, second = model(x, t, torch.tensor([0, 1]))
    assert not torch.allclose(first, second, atol=1e-4)
    assert not any("captions" in name for name in model.state_dict()), "embeddings are data, not weights"


def test_shards_that_are_not_right_are_refused(tmp_path: Path) -> None:
    shard = shard_of(tmp_path)
    with pytest.raises(ValueError, match=r"no text embeddings at .*nowhere/captions.safetensors; put the file with"):
        read_shard(shard, 10, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds \{.*sequence': \[10, 3, 8\].*wanted .*'sequence': \[4, 3, 8\].*one"):
        read_shard(shard, 4, tmp_path)
    (tmp_path / "captions.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"has sha256 \w+; wanted {shard.sha256}"):
        read_shard(shard, 10, tmp_path)


def test_the_command_makes_a_shard_that_a_spec_can_name(tmp_path: Path) -> None:
    embeddings = tmp_path / "mine.safetensors"
    save_file({"sequence": torch.zeros(10, 4, 6), "pooled": torch.zeros(10, 3)}, embeddings)
    command = ["data", "captions", "fashion-mnist", str(embeddings), "--to", str(tmp_path / "out")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("text: {name: shard, file: captions-mine.safetensors, sha256: ")
    assert done.output.endswith("tokens: 4, width: 6, pooled: 3}\n")
    save_file({"sequence": torch.zeros(9, 4, 6), "pooled": torch.zeros(10, 3)}, embeddings)
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "wanted sequence [10, tokens, width] and pooled [10, size]: one caption a class" in " ".join(
        refused.output.split()
    )
