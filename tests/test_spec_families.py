"""What a spec may say of each family: options that make no sense together are refused with the reason and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.configs.flux import FluxConfig
from models.configs.masked import MaskedConfig
from models.configs.text import ClassNames
from models.configs.unet import UNetConfig
from orchestrator.planning.plan import make
from orchestrator.spec.source import SpecError
from orchestrator.spec.sweep import Sweep

HEAD = """name: families
models:
  family: {family}
{options}
  sizes: [{{name: small, width: 32, depth: 3}}]
arms: {{one: {{}}}}
budgets: {{samples: 640}}
{rest}
"""


def spec(tmp_path: Path, family: str, options: str, rest: str = "") -> Path:
    lines = "\n".join(f"  {line}" for line in options.splitlines())
    path = tmp_path / "sweep.yaml"
    path.write_text(HEAD.format(family=family, options=lines, rest=rest))
    return path


def model(path: Path) -> object:
    (trial,) = make(path).trials
    return trial.model


def problems(path: Path) -> str:
    with pytest.raises(SpecError) as error:
        make(path)
    return str(error.value)


def test_families_take_their_own_options(tmp_path: Path) -> None:
    unet = model(spec(tmp_path, "unet", "multipliers: [1, 2]\nattention: [14]\nhead_dim: 8\ngroups: 8"))
    assert isinstance(unet, UNetConfig)
    assert (unet.multipliers, unet.attention, unet.head_dim, unet.depth) == ((1, 2), (14,), 8, 3)
    flux = model(spec(tmp_path, "flux", "patch: 4\nhead_dim: 8\nguidance: true\ntext: {name: class-names, tokens: 2}"))
    assert isinstance(flux, FluxConfig)
    assert (flux.text, flux.heads, flux.class_names[0]) == (ClassNames(tokens=2), 4, "T-shirt")
    masked = model(spec(tmp_path, "masked", "patch: 4\nhead_dim: 8", "objective: masked-tokens"))
    assert isinstance(masked, MaskedConfig)
    assert masked.codebook == "fashion-mnist-p4-c512.safetensors"


@pytest.mark.parametrize(
    ("family", "options", "rest", "message"),
    [
        (
            "unet",
            "head_dim: 8\npositions: rope",
            "",
            "5: models.positions: is not an option of family unet: a U-Net",
        ),
        ("unet", "head_dim: 8\npatch: 4", "", "5: models.patch: is not an option of family unet: a U-Net convolves"),
        ("unet", "groups: 24", "", "4: models.groups: are 24, which do not divide the 32 channels of a level"),
        (
            "unet",
            "multipliers: [1, 2, 2, 2]",
            "",
            "4: models.multipliers: are of 4 levels, and image_size 28 ca",
        ),
        (
            "mmdit",
            "patch: 4\nhead_dim: 8",
            "",
            "family mmdit is conditioned on text, and no embeddings of it are",
        ),
        (
            "dit",
            "patch: 4\nhead_dim: 8\ntext: {name: class-names}",
            "",
            "6: models.text: is not an option of family",
        ),
        (
            "flux",
            "patch: 4\nhead_dim: 8\nqk_norm: false",
            "",
            "6: models.qk_norm: is not an option of family flux: i",
        ),
        ("uvit", "patch: 4\nhead_dim: 8\nmlp_ratio: 0", "", "6: models.mlp_ratio: got 0; wanted greater than or equal"),
        (
            "jit",
            "patch: 7\nhead_dim: 8\ncontext_start: 4",
            "",
            "6: models.context_start: is 4; wanted at most the",
        ),
        (
            "flux",
            "patch: 4\nhead_dim: 8\nguidance: true\ntext: {name: class-names}",
            "objective: guidance-distillation",
            "11: objective: guidance-distillation trains a student of a teacher, and a sweep cannot name a teacher",
        ),
        (
            "masked",
            "patch: 7\nhead_dim: 8",
            "objective: masked-tokens",
            "6: models.sizes[0]: size small: codebook_sha256 is not given, and no fashion-mnist-p7-c512.safetensors",
        ),
        (
            "uvit",
            "patch: 4\nhead_dim: 8\nfrequency_size: 64",
            "",
            "6: models.frequency_size: is not an option of family uvit: its time is a token",
        ),
        ("masked", "patch: 4\nhead_dim: 8", "", "objective rectified-flow, which trains models that predict images"),
        ("dit", "patch: 4\nhead_dim: 8", "objective: masked-tokens", "masked-tokens, which trains models that predict"),
    ],
)
def test_what_makes_no_sense_together_is_refused(
    tmp_path: Path, family: str, options: str, rest: str, message: str
) -> None:
    assert message in problems(spec(tmp_path, family, options, rest))


def test_another_family_of_an_arm_takes_no_options_of_the_sweeps(tmp_path: Path) -> None:
    path = spec(tmp_path, "dit", "patch: 4\nhead_dim: 8\nqk_norm: true")
    arm = "{models: {family: unet, head_dim: 8, groups: 8, sizes: [{name: u, width: 16, depth: 1}]}}"
    path.write_text(path.read_text().replace("arms: {one: {}}", f"arms: {{one: {{}}, two: {arm}}}"))
    assert {type(trial.model).__name__ for trial in make(path).trials} == {"DiTConfig", "UNetConfig"}


def test_the_schema_describes_the_options_of_every_family() -> None:
    properties = Sweep.model_json_schema()["$defs"]["Models"]["properties"]
    assert {"multipliers", "conditioning", "singles_per_double", "bottleneck", "codes", "text"} <= set(properties)
    assert [name for name, described in properties.items() if not described.get("description")] == []
    assert "unet (default (1, 2, 2))" in properties["multipliers"]["description"]


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*_cpu.yaml")), ids=str)
def test_a_sweep_for_cpus_has_a_large_one_beside_it(path: Path) -> None:
    assert path.with_name(path.name.replace("_cpu", "")).is_file()
