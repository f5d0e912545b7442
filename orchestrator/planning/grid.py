"""From a sweep to its trials: every default resolved, every impossibility found, budgets shared.

A cell is (arm, size, learning rate, seed, budget). Under a constant learning rate the cells that differ only in budget
are prefixes of one trajectory, so they become the milestones of one trial.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.config import DDPM, FAMILIES, ModelConfig, preset_fields
from models.cost import Cost, cost
from orchestrator.planning.budget import steps_of_flops, steps_of_samples
from orchestrator.spec.datasets import DATASETS
from orchestrator.spec.source import Location, Problem, Source, SpecError, nearest
from orchestrator.spec.sweep import Models, Size, Sweep
from orchestrator.spec.trial import ConstantSchedule, Evaluation, Optimizer, PowerEma, Trial

MAX_CELLS = 1_000_000


@dataclass(frozen=True)
class SizedModel:
    """A size of the spec as an architecture, with its cost."""

    name: str
    config: ModelConfig
    cost: Cost


def expand(sweep: Sweep, source: Source) -> list[Trial]:
    """The trials of `sweep` in the order of the spec; raise SpecError with everything that cannot be."""
    problems: list[Problem] = []
    models = [model for index, size in enumerate(sweep.models.sizes) if (model := _model(sweep, index, size, problems))]
    problems += _twice("size", [size.name for size in sweep.models.sizes], ("models", "sizes"))
    problems += _twice("seed", list(sweep.seeds), ("seeds",))
    problems += _workers(sweep)
    problems += _validation_images(sweep)
    problems += _variance(sweep, models)
    milestones = {model.name: _milestones(sweep, model, problems) for model in models}
    if not problems:
        cells = _num_cells(sweep)
        if cells > MAX_CELLS:
            problems.append(Problem((), f"asks for {cells:,} cells; wanted at most {MAX_CELLS:,}. Shorten an axis."))
    if problems:
        raise SpecError(source, problems)
    trials = [
        _trial(sweep, arm, model, rate, seed, milestones[model.name]) for arm, model, rate, seed in _axes(sweep, models)
    ]
    if repeated := _repeated(trials):
        raise SpecError(source, repeated)
    return trials


def _num_cells(sweep: Sweep) -> int:
    budgets = sweep.budgets.flops or sweep.budgets.samples or []
    rates = sum(len(arm.learning_rate or sweep.training.learning_rate) for arm in sweep.arms.values())
    return rates * len(sweep.models.sizes) * len(sweep.seeds) * len(budgets)


def _axes(sweep: Sweep, models: list[SizedModel]) -> Iterator[tuple[str, SizedModel, float, int]]:
    for name, arm in sweep.arms.items():
        rates = arm.learning_rate or sweep.training.learning_rate
        for model, rate, seed in itertools.product(models, rates, sweep.seeds):
            yield name, model, rate, seed


def _model(sweep: Sweep, index: int, size: Size, problems: list[Problem]) -> SizedModel | None:
    """The architecture of one size, or None with what is wrong with it among `problems`."""
    at: Location = ("models", "sizes", index)
    if sweep.models.family not in FAMILIES:
        if index == 0:
            known = nearest(sweep.models.family, FAMILIES)
            message = f"got {sweep.models.family!r}; wanted one of {', '.join(sorted(FAMILIES))}{known}"
            problems.append(Problem(("models", "family"), message))
        return None
    family, data = FAMILIES[sweep.models.family], DATASETS[sweep.dataset]
    options = _options(sweep.models, family, problems if index == 0 else [])
    shape = _shape(sweep.models, family, size, at, problems)
    if shape is None:
        return None
    try:
        config = family(
            image_size=data.image_size, channels=data.channels, num_classes=data.num_classes, **shape, **options
        )
    except ValueError as error:
        problems.append(Problem(at, f"size {size.name}: {error}"))
        return None
    return SizedModel(size.name, config, cost(config))


def _options(models: Models, family: type[ModelConfig], problems: list[Problem]) -> dict[str, Any]:
    """The options of the spec that the family has; those that were written and that it has not are problems."""
    known = {field.name for field in dataclasses.fields(family)}
    options = {key: value for key, value in models if key not in ("family", "patch", "head_dim", "sizes")}
    for key in options:
        if key in models.model_fields_set and key not in known:
            message = f"is not an option of family {models.family}; drop it, or choose another models.family"
            problems.append(Problem(("models", key), message))
    return {key: value for key, value in options.items() if key in known}


def _shape(
    models: Models, family: type[ModelConfig], size: Size, at: Location, problems: list[Problem]
) -> Mapping[str, Any] | None:
    """patch, width, depth and heads of a size, or None with what is wrong with it among `problems`."""
    if size.preset is not None:
        try:
            return preset_fields(family, size.preset)
        except ValueError as error:
            problems.append(Problem((*at, "preset"), f"size {size.name}: {error}"))
            return None
    assert size.width is not None, "the sweep's validation wants a preset, or width and depth"
    assert size.depth is not None, "the sweep's validation wants a preset, or width and depth"
    heads = _heads(models, size, size.width, at, problems)
    patch = size.patch or models.patch
    if patch is None:
        problems.append(Problem(at, f"size {size.name} has no patch; give `patch` here or beside `sizes`"))
    if heads is None or patch is None:
        return None
    return {"patch": patch, "width": size.width, "depth": size.depth, "heads": heads}


def _heads(models: Models, size: Size, width: int, at: Location, problems: list[Problem]) -> int | None:
    if size.heads is not None:
        return size.heads
    if models.head_dim is None:
        problems.append(Problem(at, f"size {size.name} has no heads; give `heads` here or `head_dim` beside `sizes`"))
        return None
    if width % models.head_dim:
        step = math.lcm(models.head_dim, 4)
        below = max(step, width // step * step)
        message = (
            f"got width {width}, which heads of size {models.head_dim} do not divide; wanted a multiple of "
            f"head_dim and of 4, such as {below} or {below + step}, or another models.head_dim"
        )
        problems.append(Problem((*at, "width"), message))
        return None
    return width // models.head_dim


def _workers(sweep: Sweep) -> list[Problem]:
    batch, workers = sweep.training.batch_size, sweep.compute.workers
    if batch % workers == 0:
        return []
    message = f"got {workers} workers, which do not divide training.batch_size {batch}; wanted a divisor of it"
    return [Problem(("compute", "workers"), message)]


def _variance(sweep: Sweep, models: list[SizedModel]) -> list[Problem]:
    """A learned variance needs the channels to learn it in."""
    without = [model.name for model in models if not model.config.learn_sigma]
    if not (isinstance(sweep.objective, DDPM) and sweep.objective.learn_variance) or not without:
        return []
    message = (
        f"got learn_variance with models that do not predict a variance: {', '.join(without)}; wanted learn_sigma "
        "of the models, or no learn_variance"
    )
    return [Problem(("objective", "learn_variance"), message)]


def _validation_images(sweep: Sweep) -> list[Problem]:
    have, asked = DATASETS[sweep.dataset].validation_images, sweep.evaluation.loss_images
    if asked <= have:
        return []
    message = f"got {asked} images; {sweep.dataset} has {have} for validation. Lower it, or raise loss_draws."
    return [Problem(("evaluation", "loss_images"), message)]


def _milestones(sweep: Sweep, model: SizedModel, problems: list[Problem]) -> dict[int, float | None]:
    """`samples_seen` -> the budget in FLOPs that it stands for (None where samples were asked for)."""
    batch, per_sample = sweep.training.batch_size, model.cost.training_flops
    kind: Literal["flops", "samples"] = "flops" if sweep.budgets.flops is not None else "samples"
    found: dict[int, float | None] = {}
    for index, budget in enumerate(sweep.budgets.flops or sweep.budgets.samples or []):
        at: Location = ("budgets", kind, index)
        steps = steps_of_flops(budget, per_sample, batch) if kind == "flops" else steps_of_samples(int(budget), batch)
        if steps == 0:
            need = f"{per_sample * batch:.3g} FLOPs" if kind == "flops" else f"{batch} samples"
            message = (
                f"got {budget:g} {kind}, less than one step of size {model.name} at batch size {batch}; wanted at "
                f"least {need}. Raise the budget, lower training.batch_size or drop the size."
            )
            problems.append(Problem(at, message))
        elif steps * batch >= 2**53:
            message = f"got {budget:g} {kind}, {steps * batch:.3g} samples of size {model.name}; wanted less than 2^53"
            problems.append(Problem(at, message))
        elif steps * batch in found:
            message = f"got {budget:g} {kind}, the same {steps} steps of size {model.name} as another budget; drop one"
            problems.append(Problem(at, message))
        else:
            found[steps * batch] = budget if kind == "flops" else None
    return dict(sorted(found.items()))


def _trial(
    sweep: Sweep, arm: str, model: SizedModel, learning_rate: float, seed: int, milestones: dict[int, float | None]
) -> Trial:
    training, evaluation, compute = sweep.training, sweep.evaluation, sweep.compute
    return Trial(
        dataset=sweep.dataset,
        model=model.config,
        parameterization=sweep.arms[arm].parameterization,
        objective=sweep.objective,
        optimizer=Optimizer(
            learning_rate=learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            gradient_clip=training.gradient_clip,
        ),
        schedule=ConstantSchedule(warmup_samples=training.warmup_samples),
        ema=PowerEma(relative_std=training.ema.relative_std),
        batch_size=training.batch_size,
        seed=seed,
        precision=compute.precision,
        zero_stage=compute.zero_stage if compute.zero_stage is not None else (0 if compute.precision == "fp32" else 1),
        evaluation=Evaluation(**evaluation.model_dump()),
        sweep=sweep.name,
        arm=arm,
        size=model.name,
        milestones=tuple(milestones),
        budgets=tuple(milestones.values()),
        num_workers=compute.workers,
        flops_per_sample=model.cost.training_flops,
        params_total=model.cost.params_total,
        params_backbone=model.cost.params_backbone,
        params_matmul=model.cost.params_matmul,
    )


def _twice(what: str, values: Sequence[str | int], at: Location) -> list[Problem]:
    seen: set[str | int] = set()
    problems = []
    for index, value in enumerate(values):
        if value in seen:
            problems.append(Problem((*at, index), f"got {what} {value} a second time; wanted each once"))
        seen.add(value)
    return problems


def _repeated(trials: list[Trial]) -> list[Problem]:
    """Two arms (or sizes) that are the same trial under two names: the comparison would compare it with itself."""
    first: dict[str, Trial] = {}
    problems = []
    for trial in trials:
        twin = first.setdefault(trial.trial_id, trial)
        if twin is not trial:
            names = f"{twin.arm} {twin.size} and {trial.arm} {trial.size}"
            message = f"{names} at learning rate {trial.optimizer.learning_rate:g} are the same training; drop one"
            problems.append(Problem(("arms", trial.arm), message))
    return problems
