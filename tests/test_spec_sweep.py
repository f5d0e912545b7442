"""Bad specs are refused whole: every problem with its line, what was got, wanted and can be done."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from models.config import CompleteP
from orchestrator.planning.grid import expand
from orchestrator.planning.plan import make
from orchestrator.spec.source import SpecError
from orchestrator.spec.sweep import Sweep, load

GOOD = """\
name: small
models:
  patch: 7
  head_dim: 8
  sizes:
    - {name: a, width: 8, depth: 1}
    - {name: b, width: 16, depth: 1}
arms:
  mup: {parameterization: {name: mup, base_width: 8}}
  sp: {parameterization: sp}
training: {batch_size: 32}
budgets: {flops: [2e8, 4e8]}
"""


@pytest.fixture
def spec(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(SpecError) as refused:
        make(path)
    return [line.removeprefix(f"{path}:") for line in str(refused.value).splitlines()]


def test_a_good_spec_loads_with_budgets_as_numbers(spec):
    sweep, _ = load(spec(GOOD))
    assert sweep.budgets.flops == [2e8, 4e8]  # PyYAML reads 2e8 as text
    assert sweep.arms["sp"].parameterization.name == "sp"


def test_every_problem_is_told_with_its_line(spec):
    text = GOOD.replace("batch_size: 32", "batchsize: 32, betas: [1]").replace("depth: 1}\narms", "depth: x}\narms")
    text = text.replace("[2e8, 4e8]", "[2e8, 3 hours]")
    assert problems(spec(text)) == [
        "7: models.sizes[1].depth: got 'x'; wanted a valid integer, unable to parse string as an integer",
        "11: training.betas: got [1]; wanted 2 values",
        "11: training.batchsize: is not a key here; wanted one of learning_rate, batch_size, warmup_samples, betas, "
        "eps, weight_decay, gradient_clip, ema; did you mean 'batch_size'?",
        "12: budgets.flops[1]: got '3 hours'; wanted a valid number, unable to parse string as a number",
    ]


def test_completep_is_a_parameterization_of_a_sweep(spec):
    text = "{parameterization: {name: completep, base_width: 8, base_depth: 2}}"
    sweep, source = load(spec(GOOD.replace("{parameterization: sp}", text)))
    assert sweep.arms["sp"].parameterization == CompleteP(base_width=8, base_depth=2)
    ids = {trial.parameterization.name: trial.trial_id for trial in expand(sweep, source)}
    assert len(set(ids.values())) == len(ids) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width: 16", "width: 20", "7: models.sizes[1].width: got width 20, which heads of size 8 do not divide"),
        ("patch: 7", "patch: 5", "6: models.sizes[0]: size a: patch 5 does not divide image_size 28"),
        ("2e8, 4e8", "1e6, 4e8", "12: budgets.flops[0]: got 1e+06 flops, less than one step of size a"),
        ("2e8, 4e8", "2e8, 2.0001e8", "the same 33 steps of size a as another budget"),
        ("flops: [2e8, 4e8]", "flops: [2e8], samples: [3]", "gives flops and samples; wanted exactly one"),
        ("flops: [2e8, 4e8]", "flops: []", "12: budgets.flops: is empty; wanted at least one"),
        ("  sp: {parameterization: sp}", "  sp: {parameterization: {name: ntk}}", "wanted {name: sp} or {name: mup"),
        (
            "  sp: {parameterization: sp}",
            "  sp: {parameterization: {name: ntk}}",
            "or {name: completep, base_width: ..., base_depth: ...}",
        ),
        (
            "  sp: {parameterization: sp}",
            "  sp: {parameterization: {name: completep, base_width: 8, base_depth: 0}}",
            "base_depth is 0; wanted at least 1",
        ),
        (
            "  sp: {parameterization: sp}",
            "  sp: {parameterization: {name: completep, base_width: 8}}",
            "arms.sp.parameterization.base_depth: is missing; wanted a value",
        ),
        ("name: small", "name: ../small", "1: name: got '../small'; wanted letters, digits"),
        ("name: small", "name: small\nname: again", "2: name: is given twice, first on line 1; keep one"),
        ("name: small", "name: small\ndataset: cifar", "dataset 'cifar' is not known; wanted one of fashion-mnist"),
        ("name: small", "name: small\ncompute: {workers: 5}", "5 workers, which do not divide training.batch_size 32"),
        ("name: small", "name: small\ncompute: {precision: bf16, zero_stage: 0}", "spurious Adam step"),
        ("name: b", "name: a", "6: models.sizes[1]: got size a a second time"),
        (
            "  sp: {parameterization: sp}",
            "  x: {parameterization: {name: mup, base_width: 8}}",
            "are the same training",
        ),
        ("patch: 7", "patch: [7", "is not YAML"),
        ("patch: 7", "patch: !!python/name:os.system x", "3: models.patch: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(spec, old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new)
    if old == "name: b":
        text = text.replace("    - {name: a, width: 8, depth: 1}\n", "    - {name: a, width: 8, depth: 1}\n", 1)
        message = message.replace("6: models", "7: models")
    assert message in "\n".join(problems(spec(text)))


def test_a_spec_that_refers_to_itself_is_refused(spec):
    assert "nested too deeply" in "\n".join(problems(spec("name: a\nmodels: &m {sizes: *m}\n")))


def test_an_absent_file_is_named(tmp_path):
    assert "cannot be read" in "\n".join(problems(tmp_path / "absent.yaml"))


def test_the_schema_describes_every_field():
    schema = Sweep.model_json_schema()
    fields = [
        (name, field, value)
        for name, definition in {"Sweep": schema, **schema["$defs"]}.items()
        if "additionalProperties" in definition and definition["additionalProperties"] is False
        for field, value in definition["properties"].items()
    ]
    undescribed = [f"{name}.{field}" for name, field, value in fields if not {"description", "const"} & set(value)]
    assert len(fields) > 30
    assert not undescribed


@pytest.mark.parametrize("path", sorted(Path("sweeps").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_plans(path):
    planned = make(path)
    assert planned.num_cells == sum(len(trial.milestones) for trial in planned.trials) > 0
    assert planned.sweep.name == yaml.safe_load(path.read_text())["name"] == path.stem
