"""Bad specs are refused whole: every problem with its line, what was got, wanted and can be done."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

import pytest
import yaml

from models.config import (
    DDPM,
    EDM,
    FAMILIES,
    CompleteP,
    DiTConfig,
    Interpolant,
    RectifiedFlow,
    VPrediction,
    XPrediction,
)
from models.cost import cost
from orchestrator.planning.plan import expand, make
from orchestrator.spec.evaluation_cost import sampling_passes
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
    text = GOOD.replace("batch_size: 32", "batchsize: 32, betas: [0.9]").replace("depth: 1}\narms", "depth: x}\narms")
    text = text.replace("[2e8, 4e8]", "[2e8, 3 hours]")
    assert problems(spec(text)) == [
        "7: models.sizes[1].depth: got 'x'; wanted a valid integer, unable to parse string as an integer",
        "11: training.betas: got [0.9]; wanted 2 values",
        "11: training.batchsize: is not a key here; wanted one of learning_rate, batch_size, warmup_samples, "
        "schedule, betas, eps, weight_decay, gradient_clip, ema; did you mean 'batch_size'?",
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
        ("2e8, 4e8", "2e8, 2.0001e8", "comes to the same 33 steps of size a as another budget; drop one"),
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
        (
            "  sp: {parameterization: sp}",
            "  m: {parameterization: mup}",
            "has no base_width; wanted {name: sp} or {name",
        ),
        ("name: small", "name: small\nevaluation: {sampler: eular}", "or 'dpmpp-3m'; did you mean 'euler'?"),
        ("name: small", "name: small\ndataset: fashon-mnist", "; did you mean 'fashion-mnist'?"),
        ("name: small", "name: small\ncompute: {priorities: {widht > 3: 1}}", "; did you mean 'width'?"),
        (
            "batch_size: 32",
            "batch_size: {rule: power, of: samples, coefficient: 1e300, exponent: 0.9}",
            "less than one step of size a at batch size 1000000000000000",
        ),
        ("name: small", "name: ../small", "1: name: got '../small'; wanted letters, digits"),
        ("name: small", "name: small\nname: again", "2: name: is given twice, first on line 1; keep one"),
        ("name: small", "name: small\ndataset: cifar", "dataset 'cifar' is not known; wanted one of fashion-mnist"),
        (
            "name: small",
            "name: small\ncompute: {workers: 5}",
            "a batch of 32, which 5 workers do not divide",
        ),
        ("name: small", "name: small\ncompute: {precision: bf16, zero_stage: 0}", "spurious Adam step"),
        ("name: b", "name: a", "6: models.sizes[1]: got size a a second time"),
        (
            "  sp: {parameterization: sp}",
            "  x: {parameterization: {name: mup, base_width: 8}}",
            "are the same training",
        ),
        (
            "name: a, width: 8, depth: 1",
            "name: a, preset: S/3",
            "6: models.sizes[0].preset: size a: preset 'S/3' is not known; wanted one of S/2, S/4, S/8, B/2, B/4, B/8, "
            "L/2, L/4, L/8, XL/2, XL/4, XL/8; did you mean 'S/",
        ),
        ("name: a, width: 8, depth: 1", "name: a, preset: S/8", "6: models.sizes[0]: size a: patch 8 does not divide"),
        (
            "name: a, width: 8, depth: 1",
            "name: a, preset: S/4, depth: 3",
            "6: models.sizes[0]: size a gives preset and depth; wanted preset alone, or width and depth",
        ),
        ("name: a, width: 8, depth: 1", "name: a", "6: models.sizes[0]: size a gives no width and no depth; wanted"),
        ("name: a, width: 8, depth: 1", "name: a, width: 8", "6: models.sizes[0]: size a gives no depth; wanted"),
        (
            "patch: 7\n  head_dim: 8",
            "patch: 7\n  head_dim: 2\n  positions: rope",
            "7: models.sizes[0]: size a: heads of size 2 cannot be rotated in 2-D",
        ),
        ("patch: 7", "patch: 7\n  positions: ropes", "4: models.positions: got 'ropes'; wanted 'sincos', 'learned'"),
        ("patch: 7", "patch: 7\n  qknorm: true", "4: models.qknorm: is not a key here"),
        ("patch: 7", "patch: 7\n  qk_norm: maybe", "4: models.qk_norm: got 'maybe'; wanted a valid boolean"),
        ("patch: 7", "patch: [7", "is not YAML"),
        ("batch_size: 32", "betas: [1.5, -2]", "11: training.betas[0]: got 1.5; wanted less than 1"),
        ("batch_size: 32", "eps: .inf", "11: training.eps: got inf; wanted a finite number"),
        ("batch_size: 32", "learning_rate: yes", "11: training.learning_rate: got true; wanted no true or false"),
        ("batch_size: 32", "learning_rate: [1e-3, yes]", "11: training.learning_rate: got true; wanted no true"),
        ("name: small", "name: small\nseeds: [99999999999999999999999]", "2: seeds[0]: got 9999"),
        (
            "name: small",
            "name: small\ncompute: {gangs: 100000000000}",
            "2: compute.gangs: got 100000000000",
        ),
        ("name: small", "name: small\ncompute: {cpus_per_worker: 1e-6}", "compute.cpus_per_worker: got '1e-6'; wanted"),
        ("name: small", "name: small\ncompute: {cpus_per_worker: .inf}", "compute.cpus_per_worker: got inf; wanted"),
        (
            "name: small",
            "name: small\ncompute: {gpus_per_worker: 1.5}",
            "compute.gpus_per_worker: got 1.5",
        ),
        ("name: small", "name: small\ncompute: {gpus_per_worker: 0.5, workers: 2}", "cannot share a device"),
        ("name: small", "name: small\nevaluation: {guidance: .inf}", "evaluation.guidance: got inf; wanted a finite"),
        (
            "name: small",
            "name: small\nevaluation: {loss_images: 20000}",
            "loss_images: got 20000 images",
        ),
        ("2e8, 4e8", "2e8, 1e300", "12: budgets.flops[1]: got 1e+300 flops"),
        (
            "name: small",
            "name: small\nobjective: {name: ddmp}",
            "2: objective: got 'ddmp'; wanted a name among rectified-flow, interpolant, ddpm, v-prediction, "
            "x-prediction, x-prediction-velocity-loss, edm, masked-tokens, pyramid-flow; did you mean 'ddpm'?",
        ),
        ("name: small", "name: small\nobjective: emd", "2: objective: got 'emd'; wanted a name among"),
        ("name: small", "name: small\nobjective: {path: vp}", "2: objective: got {'path': 'vp'} without a name"),
        (
            "name: small",
            "name: small\nobjective: {name: ddpm, beta: linear}",
            "2: objective.beta: is not a key here; wanted one of betas, learn_variance, name; did you mean 'betas'?",
        ),
        (
            "name: small",
            "name: small\nobjective: {name: edm, sigma_data: 0}",
            "2: objective: sigma_data is 0.0; wanted a finite number above 0",
        ),
        (
            "name: small",
            "name: small\nobjective: {name: ddpm, learn_variance: true}",
            "2: objective.learn_variance: got learn_variance with models that do not predict a variance: a, b; wanted "
            "learn_sigma",
        ),
        (
            "name: small",
            "name: small\nevaluation: {sampler: dpm-v3}",
            "2: evaluation.sampler: got 'dpm-v3'; wanted 'ddpm', 'ddim', 'euler', 'heun', 'sde-euler', 'dpmpp-2m'",
        ),
        (
            "name: small",
            "name: small\nevaluation: {guidance: 2, guidance_interval: [0.5, 0.2]}",
            "2: evaluation: guidance_interval is [0.5, 0.2]; wanted [low, high] with 0 <= low < high <= 1",
        ),
        (
            "name: small",
            "name: small\nevaluation: {guidance_interval: [0.1, 0.2]}",
            "2: evaluation: guidance_interval is given with guidance 1, which is none; raise guidance or drop it",
        ),
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


def test_a_preset_is_a_size_and_options_hold_for_all_sizes(spec):
    text = GOOD.replace("{name: b, width: 16, depth: 1}", "{name: s4, preset: S/4}").replace("[2e8, 4e8]", "[1e12]")
    text = text.replace("patch: 7", "patch: 7\n  qk_norm: true\n  positions: rope\n  block: parallel\n  mlp: swiglu")
    models = {t.size: t.model for t in make(spec(text.replace("head_dim: 8", "head_dim: 8\n  bias: false"))).trials}
    options = {"qk_norm": True, "positions": "rope", "block": "parallel", "mlp": "swiglu", "bias": False}
    of_data = {"image_size": 28, "channels": 1, "num_classes": 10}
    assert models["s4"] == DiTConfig(patch=4, width=384, depth=12, heads=6, **of_data, **options)
    assert models["a"] == DiTConfig(patch=7, width=8, depth=1, heads=1, **of_data, **options)


def test_an_option_that_a_family_lacks_is_refused_where_it_is_written(monkeypatch, spec):
    shape = ["image_size", "channels", "num_classes", "patch", "width", "depth", "heads"]
    fields = [*((name, int) for name in shape), ("zero_init", bool, True)]
    facts = {"presets": {}, "refusals": {}, "predicts": "images", "samples": "images", "resolutions": 1}
    plain = dataclasses.make_dataclass("Plain", fields, namespace=facts)
    monkeypatch.setitem(FAMILIES, "plain", plain)
    cost.register(plain, lambda config: cost(DiTConfig(**dataclasses.asdict(config))))
    text = GOOD.replace("patch: 7", "patch: 7\n  family: plain\n  zero_init: false\n  qk_norm: true")
    found = problems(spec(text))
    assert "6: models.qk_norm: is not an option of family plain; drop it, or choose another models.family" in found
    assert "zero_init: is not" not in "\n".join(found)


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        ("edm", EDM()),
        ("{name: edm, sigma_data: 0.25}", EDM(sigma_data=0.25)),
        ("{name: rectified-flow, t_distribution: logit-normal}", RectifiedFlow(t_distribution="logit-normal")),
        ("{name: interpolant, path: gvp}", Interpolant(path="gvp")),
        ("{name: ddpm, betas: cosine}", DDPM(betas="cosine")),
        ("v-prediction", VPrediction()),
        ("{name: x-prediction, path: linear}", XPrediction(path="linear")),
    ],
)
def test_every_objective_can_be_asked_for(spec, objective, wanted):
    assert {trial.objective for trial in make(spec(GOOD + f"objective: {objective}\n")).trials} == {wanted}


def test_the_cost_of_sampling_is_counted(spec):
    def passes(settings: str) -> float:
        text = GOOD + f"evaluation: {{sampler_steps: 10, {settings}}}\n"
        return sampling_passes(make(spec(text)).trials[0].evaluation)

    assert passes("sampler: heun") == 20
    assert passes("sampler: ddim") == 10
    assert passes("sampler: dpmpp-3m") == 11
    assert passes("sampler: euler, guidance: 2") == 20
    assert passes("sampler: euler, guidance: 2, guidance_interval: [0.2, 0.7]") == pytest.approx(15)


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
