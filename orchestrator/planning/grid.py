"""From a sweep to its cells: every combination, its batch size and samples, and everything that cannot be.

A cell is (variant, size, learning rate, seed, budget); `orchestrator.planning.sharing` makes trials of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from models.config import DDPM, objective_label
from models.fid.catalog import ENCODERS
from orchestrator.planning.budget import batch_size_of, cooldown_start, flops_of_hours, steps_of_flops, steps_of_samples
from orchestrator.planning.cell import Cell, Target
from orchestrator.planning.constraints import Constraints
from orchestrator.planning.devices import named
from orchestrator.planning.sizes import Ladder, SizedModel, Sizing
from orchestrator.planning.variants import Variant, Variants
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.recipe import Training, WarmupStableDecay
from orchestrator.spec.source import Location, Problem, Source, nearest
from orchestrator.spec.sweep import Sweep

MAX_CELLS = 1_000_000


class Grid:
    """The cells of a sweep; what cannot be is in `problems`, all of it."""

    def __init__(self, sweep: Sweep, source: Source) -> None:
        self._sweep, self._source = sweep, source
        self.problems: list[Problem] = []
        self._targets: dict[tuple[int, str, int], list[Target]] = {}
        self._ladders: list[tuple[Any, Ladder]] = []
        self.cells = self._cells()

    def _cells(self) -> list[Cell]:
        sweep, variants = self._sweep, Variants(self._sweep, self.problems)
        constraints = Constraints(sweep, self._refuse)
        self._check_seeds()
        if self._too_many(variants.count() * len(sweep.seeds)):
            return []
        if not self._device_is_known() or not self._encoder_fits():
            return []
        found = variants.all()
        self._check(found)
        each = sum(
            len(self._targets_of(variant, model)) * len(variant.training.learning_rate)
            for variant in found
            for model in self._ladder(variant).models
        )
        if self._too_many(each * len(sweep.seeds)):
            return []
        cells = constraints.kept(list(self._all(found)))
        for target in dict.fromkeys(cell.target for cell in cells):
            if target.problem is not None:
                self._refuse(target.problem.location, target.problem.message)
        return [] if self.problems else cells

    def _all(self, variants: Sequence[Variant]) -> Iterator[Cell]:
        for variant in variants:
            for model in self._ladder(variant).models:
                targets = self._targets_of(variant, model)
                for rate in variant.training.learning_rate:
                    for seed in self._sweep.seeds:
                        for target in targets:
                            yield Cell(variant, model, rate, seed, target)

    def _too_many(self, cells: int) -> bool:
        if cells > MAX_CELLS:
            message = f"asks for {cells:,} cells or more; wanted at most {MAX_CELLS:,}. Shorten an axis."
            self.problems.append(Problem((), message))
        return cells > MAX_CELLS

    # Sizes and budgets.

    def _ladder(self, variant: Variant) -> Ladder:
        for models, ladder in self._ladders:
            if models is variant.models or models == variant.models:
                return ladder
        own = "sizes" in self._sweep.arms[variant.arm].models
        at: Location = ("arms", variant.arm, "models") if own else ("models",)
        sizing = Sizing(variant.models, dataset_named(self._sweep.dataset), self._source, self.problems, at)
        ladder = sizing.ladder(self._common_flops)
        self._ladders.append((variant.models, ladder))
        return ladder

    @cached_property
    def _common_flops(self) -> list[float] | None:
        """The budgets in FLOPs, where they are such and the same for all sizes."""
        budgets = self._sweep.budgets
        values = getattr(budgets, budgets.kind)
        if isinstance(values, dict) or budgets.kind not in ("flops", "gpu_hours"):
            return None
        return [self._flops(value) for value in values]

    def _flops(self, value: float) -> float:
        """A budget of flops or gpu_hours in FLOPs."""
        budgets, compute = self._sweep.budgets, self._sweep.compute
        if budgets.kind == "flops":
            return value
        name = budgets.device or compute.device
        assert name is not None, "checked before"
        return flops_of_hours(value, named(name), compute.precision)

    def _targets_of(self, variant: Variant, model: SizedModel) -> list[Target]:
        """Where `model` is measured under a variant's recipe, ascending in samples."""
        key = (id(variant.training), model.name, id(variant.models))
        if key not in self._targets:
            ladder = self._ladder(variant)
            found: list[tuple[Target, Location]] = []
            for index, budget in enumerate(self._sweep.budgets.of(model.name)):
                if ladder.around is not None and model.name not in ladder.around(self._flops(budget)):
                    continue
                at = self._sweep.budgets.location(model.name, index)
                found.append((self._target(variant.training, model, budget, at), at))
            self._targets[key] = self._apart(model, found)
        return self._targets[key]

    def _target(self, training: Training, model: SizedModel, budget: float, at: Location) -> Target:
        kind, per_sample = self._sweep.budgets.kind, model.cost.training_flops
        flops = self._flops(budget) if kind in ("flops", "gpu_hours") else None
        if flops is not None:
            samples = flops / per_sample
        else:
            samples = budget if kind == "samples" else budget * model.params / model.cost.tokens
        batch = batch_size_of(training.batch_size, samples, samples * per_sample)
        steps = steps_of_flops(flops, per_sample, batch) if flops is not None else steps_of_samples(samples, batch)
        branch = None
        if isinstance(training.schedule, WarmupStableDecay):
            branch = cooldown_start(steps, training.schedule.cooldown) * batch
        wrong = self._wrong(training, model, steps, batch, branch)
        asked = f"got {budget:g} {kind.replace('_', ' ')}, "
        return Target(steps * batch, batch, flops, branch, Problem(at, asked + wrong) if wrong else None)

    def _wrong(self, training: Training, model: SizedModel, steps: int, batch: int, branch: int | None) -> str | None:
        """What is wrong with so many steps, if anything."""
        data, samples, workers = dataset_named(self._sweep.dataset), steps * batch, self._sweep.compute.workers
        if steps == 0:
            in_flops = self._sweep.budgets.kind in ("flops", "gpu_hours")
            need = f"{model.cost.training_flops * batch:.3g} FLOPs" if in_flops else f"{batch} samples"
            return (
                f"less than one step of size {model.name} at batch size {batch}; wanted at least {need}. Raise the "
                "budget, lower training.batch_size or drop the size."
            )
        if samples >= 2**53:
            return f"{samples:.3g} samples of size {model.name}; wanted less than 2^53"
        epochs, most = data.epochs(samples), self._sweep.budgets.max_epochs or data.max_epochs
        if epochs > most:
            return (
                f"{epochs:,.0f} passes over the {data.train_images:,} images of {data.name} with size {model.name}; "
                f"wanted at most {most:g}. Lower the budget, drop the size or raise budgets.max_epochs."
            )
        if branch is not None and not 0 < max(1, training.warmup_samples) <= branch < samples:
            schedule = training.schedule
            assert isinstance(schedule, WarmupStableDecay), "only they branch"
            return (
                f"{steps} steps of size {model.name}: no step is left between a warmup of {training.warmup_samples} "
                f"samples and a cooldown of {schedule.cooldown:.0%}; wanted a larger budget, a shorter warmup or a "
                "smaller batch"
            )
        if workers != "auto" and batch % workers:
            return f"a batch of {batch}, which {workers} workers do not divide; wanted compute.workers to divide it"
        micro, share = self._sweep.compute.micro_batch, batch // (1 if workers == "auto" else workers)
        if micro != "auto" and workers != "auto" and share % micro:
            return f"{share} samples a worker, which micro-batches of {micro} do not divide; wanted a divisor of it"
        return None

    def _apart(self, model: SizedModel, found: Sequence[tuple[Target, Location]]) -> list[Target]:
        """The targets of a size in order; two budgets that come to the same steps are a problem."""
        seen: set[tuple[int, int]] = set()
        apart = []
        for target, at in found:
            key = (target.samples, target.batch_size)
            if key in seen and target.problem is None:
                steps = target.samples // target.batch_size
                message = f"comes to the same {steps} steps of size {model.name} as another budget; drop one"
                target = target._replace(problem=Problem(at, message))
            seen.add(key)
            apart.append(target)
        return sorted(apart, key=lambda target: (target.samples, target.batch_size))

    # The sweep as a whole.

    def _check(self, variants: Sequence[Variant]) -> None:
        sweep, data = self._sweep, dataset_named(self._sweep.dataset)
        if sweep.evaluation.loss_images > data.validation_images:
            asked, have = sweep.evaluation.loss_images, data.validation_images
            message = f"got {asked} images; {sweep.dataset} has {have} for validation. Lower it, or raise loss_draws."
            self._refuse(("evaluation", "loss_images"), message)
        names = set()
        for variant in variants:
            ladder = self._ladder(variant)
            names |= {model.name for model in ladder.models}
            self._check_variance(variant, ladder)
            self._check_prediction(variant, ladder)
            self._check_samples(variant, ladder)
        self._check_sizes_of_budgets(names)

    def _device_is_known(self) -> bool:
        """Whether budgets in GPU-hours have a device."""
        budgets = self._sweep.budgets
        if budgets.kind != "gpu_hours":
            return True
        name = budgets.device or self._sweep.compute.device
        if name is None:
            self._refuse(("budgets", "gpu_hours"), "are of no device; wanted budgets.device or compute.device")
            return False
        try:
            named(name)
        except ValueError as error:
            self._refuse(("budgets", "device") if budgets.device else ("compute", "device"), str(error))
            return False
        return True

    def _encoder_fits(self) -> bool:
        """Whether the encoder of the distances is of what the dataset holds."""
        distance, data = self._sweep.evaluation.distance, dataset_named(self._sweep.dataset)
        if distance is None:
            return True
        if data.space == "latents":
            told = f"encoders see pixels, and dataset {data.name} holds latents; wanted no distance, or other data"
            self._refuse(("evaluation", "distance"), told)
            return False
        if ENCODERS[distance.encoder].samples == data.samples:
            return True
        others = ", ".join(name for name, facts in ENCODERS.items() if facts.samples == data.samples)
        self._refuse(
            ("evaluation", "distance", "encoder"),
            f"got {distance.encoder}, which is of {ENCODERS[distance.encoder].samples}, for dataset {data.name}, which "
            f"holds {data.samples}; wanted one of {others}",
        )
        return False

    def _check_prediction(self, variant: Variant, ladder: Ladder) -> None:
        """Tokens and images are predicted by models, and trained by objectives, of their own."""
        wanted = variant.objective.predicts
        if any(model.config.predicts != wanted for model in ladder.models):
            message = (
                f"got objective {variant.objective.name}, which trains models that predict {wanted}, with family "
                f"{variant.models.family}, which predicts {ladder.models[0].config.predicts}; wanted another of the two"
            )
            own = self._sweep.arms[variant.arm]
            inside = ("arms", variant.arm) if own.objective is not None or own.models else ()
            key = "objective" if own.objective is not None or not own.models else "models"
            self._refuse((*inside, key), message)

    def _check_samples(self, variant: Variant, ladder: Ladder) -> None:
        """Some objectives are of clips alone, and of models that take several resolutions."""
        objective = variant.objective
        at: Location = ("objective",)
        if self._sweep.arms[variant.arm].objective is not None:
            at = ("arms", variant.arm, *at)
        for model in ladder.models:
            if objective.samples not in (None, model.config.samples):
                self._refuse(
                    at,
                    f"{objective_label(objective)} is of {objective.samples}, and family "
                    f"{variant.models.family} of {model.config.samples}; wanted another of the two",
                )
            elif objective.needs_flow and not dataset_named(self._sweep.dataset).has_flow:
                self._refuse(
                    at,
                    f"{objective_label(objective)} asks for optical flow, and dataset {self._sweep.dataset} holds "
                    "latents, of which there is none; wanted no consistency, or clips of pixels",
                )
            elif objective.resolutions != model.config.resolutions:
                self._refuse(
                    at,
                    f"{objective_label(objective)} trains models of {objective.resolutions} levels, and size "
                    f"{model.name} has {model.config.resolutions}; wanted models.levels: {objective.resolutions}",
                )

    def _check_variance(self, variant: Variant, ladder: Ladder) -> None:
        """A learned variance needs the channels to learn it in."""
        if not (isinstance(variant.objective, DDPM) and variant.objective.learn_variance):
            return
        without = [model.name for model in ladder.models if not getattr(model.config, "learn_sigma", False)]
        if not without:
            return
        message = (
            f"got learn_variance with models that do not predict a variance: {', '.join(without)}; wanted learn_sigma "
            "of the models, or no learn_variance"
        )
        own = self._sweep.arms[variant.arm].objective is not None
        self._refuse((*(("arms", variant.arm) if own else ()), "objective", "learn_variance"), message)

    def _check_sizes_of_budgets(self, names: set[str]) -> None:
        values = getattr(self._sweep.budgets, self._sweep.budgets.kind)
        for name in values if isinstance(values, dict) and names else ():
            if name not in names:
                at = ("budgets", self._sweep.budgets.kind, name)
                self._refuse(at, f"is not a size; wanted one of {', '.join(sorted(names))}{nearest(name, names)}")

    def _check_seeds(self) -> None:
        seen: set[int] = set()
        for index, seed in enumerate(self._sweep.seeds):
            if seed in seen:
                self._refuse(("seeds", index), f"got seed {seed} a second time; wanted each once")
            seen.add(seed)

    def _refuse(self, location: Location, message: str) -> None:
        problem = Problem(location, message)
        if problem not in self.problems:
            self.problems.append(problem)
