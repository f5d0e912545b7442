"""The sweep language: what a user may write in a YAML spec, validated whole before anything is done with it.

Values that depend on each other across sections (a width and its heads, a budget and the cost of a step) are checked
when the grid is expanded, in `orchestrator.planning.grid`; both report through the same `SpecError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from models.config import SP, CompleteP, MuP, Objective, RectifiedFlow
from models.fid.catalog import EncoderName
from orchestrator.spec.compute import Compute
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.ladder import Ladder, Size
from orchestrator.spec.options import options_section
from orchestrator.spec.problems import problem_of
from orchestrator.spec.recipe import Training
from orchestrator.spec.section import Name, Numbers, PositiveFloat, Section, Seeds
from orchestrator.spec.source import Source, SpecError, read
from orchestrator.spec.trial import Sampler
from orchestrator.spec.values import spread

RULE_KEYS = {"from", "to", "count", "factor", "scale", "around", "each_side"}


def _sizes_kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "rule"


FamilyOptions: Any = options_section()


class Models(FamilyOptions):
    """The sizes of one model family, and the options that all of them share.

    Keys of a size override the shared ones beside `sizes`, and so does a size's preset. Options are the family's own;
    one that is not given has the family's default.
    """

    family: str = "dit"
    """Model family."""
    patch: int | None = None
    """Side of a square patch, pixels; divides the image size."""
    head_dim: int | None = Field(default=None, ge=1)
    """Size of an attention head; a size's heads are width / head_dim (µP keeps it fixed). Or give `heads` a size."""
    mlp_ratio: int | None = Field(default=None, ge=1)
    """Hidden size of the MLP over the width; a SwiGLU's is 2/3 of that to the nearest multiple of 8."""
    class_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of training labels replaced by the null class, for classifier-free guidance; default 0.1."""
    sizes: Annotated[
        Annotated[list[Size], Field(min_length=1), Tag("list")] | Annotated[Ladder, Tag("rule")],
        Discriminator(_sizes_kind),
    ]
    """The models, smallest to largest: a list, or a rule such as {rule: width, widths: [64, 128], depth: 4}."""


Axes = dict[str, Annotated[list[Any], Field(min_length=1), BeforeValidator(spread)]]


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _trainable_alone(value: Any) -> Any:
    """Refuse the objective that wants more than a spec can name."""
    named = _by_name(value)
    if isinstance(named, dict) and named.get("name") == "guidance-distillation":
        raise ValueError(
            "guidance-distillation trains a student of a teacher, and a sweep cannot name a teacher; wanted another "
            "objective here, and models.distillation.GuidanceDistillation in Python (docs/families.md shows it)"
        )
    return named


ParameterizationSection = Annotated[Annotated[SP | MuP | CompleteP, Discriminator("name")], BeforeValidator(_by_name)]
ObjectiveSection = Annotated[Annotated[Objective, Discriminator("name")], BeforeValidator(_trainable_alone)]


class Arm(Section):
    """A group of trials that is compared with the other arms; its keys override those of the sweep."""

    parameterization: ParameterizationSection = SP()
    """How initialisation and learning rates depend on width and depth: sp, {name: mup, base_width: ...} or
    {name: completep, base_width: ..., base_depth: ...}."""
    learning_rate: Numbers | None = None
    """Base learning rate, or several to sweep over; default: training.learning_rate."""
    models: dict[str, Any] = {}
    """Keys of `models` that are other in this arm, such as {qk_norm: true}, or a family with its sizes."""
    objective: Annotated[dict[str, Any], BeforeValidator(_by_name)] | None = None
    """The objective of this arm, where it is another."""
    training: dict[str, Any] = {}
    """Keys of `training` that are other in this arm, such as {schedule: constant}."""
    axes: Axes = {}
    """Axes of this arm alone, or other values for one of the sweep's."""


def _spread_by_size(value: Any) -> Any:
    """Budgets for all sizes, or a mapping from a size's name to its own."""
    if isinstance(value, dict) and not set(value) & RULE_KEYS:
        return {name: spread(budgets) for name, budgets in value.items()}
    return spread(value)


_Budgets = Annotated[
    Annotated[list[PositiveFloat], Field(min_length=1), Tag("all")]
    | Annotated[dict[str, Annotated[list[PositiveFloat], Field(min_length=1)]], Field(min_length=1), Tag("by size")],
    Discriminator(lambda value: "by size" if isinstance(value, dict) else "all"),
    BeforeValidator(_spread_by_size),
]

BudgetKind = Literal["flops", "samples", "tokens_per_param", "gpu_hours"]
BUDGET_KINDS: tuple[BudgetKind, ...] = ("flops", "samples", "tokens_per_param", "gpu_hours")


class Budgets(Section):
    """Where trials are measured: exactly one of flops, samples, tokens_per_param and gpu_hours.

    Each is a number, a list, a rule such as {from: 1e17, to: 1e19, count: 5}, or a mapping from sizes to these.
    Budgets of one configuration share one trajectory.
    """

    flops: _Budgets | None = None
    """Training FLOPs (3 x forward, 1 multiply-add = 2 FLOPs), as 1e11."""
    samples: _Budgets | None = None
    """Training samples."""
    tokens_per_param: _Budgets | None = None
    """Training tokens over the model's backbone parameters; a token is a patch."""
    gpu_hours: _Budgets | None = None
    """Hours of one `device`, turned into FLOPs at the speed that it reaches on a large model in this precision."""
    device: str | None = None
    """The device of gpu_hours, such as h100-80gb; default: compute.device."""
    max_epochs: PositiveFloat | None = None
    """Most passes over the training images that a budget may ask for; default: the dataset's own limit."""

    @property
    def kind(self) -> BudgetKind:
        """The key that is given."""
        return next(kind for kind in BUDGET_KINDS if getattr(self, kind) is not None)

    def of(self, size: str) -> list[float]:
        """The budgets of a size, in the unit of `kind`; none where sizes have their own and this one is not named."""
        values = getattr(self, self.kind)
        found: list[float] = values.get(size, []) if isinstance(values, dict) else values
        return found

    def location(self, size: str, index: int) -> tuple[str | int, ...]:
        """Where the spec gives one budget of a size."""
        by_size = isinstance(getattr(self, self.kind), dict)
        return ("budgets", self.kind, *([size] if by_size else []), index)

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [kind for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            wanted = ", ".join(BUDGET_KINDS)
            raise ValueError(f"gives {' and '.join(given) or 'no budget'}; wanted exactly one of {wanted}")
        values = getattr(self, given[0])
        for where, listed in values.items() if isinstance(values, dict) else [("", values)]:
            if len(set(listed)) != len(listed):
                of = f" of {where}" if where else ""
                raise ValueError(f"{given[0]}{of} holds the same budget twice; wanted different ones, got {listed}")
        if self.device is not None and self.gpu_hours is None:
            raise ValueError("gives a device and no gpu_hours; wanted both or neither (compute.device is where to run)")
        return self


class Distance(Section):
    """Frechet and kernel distance of generated images from the training images, at each budget that can afford it."""

    encoder: EncoderName
    """What images are compared by: fmnist-cnn comes with ditlaw; inception (which alone is called FID), dinov2 and clip
    need weights (`ditlaw encoders list` says which file goes where)."""
    images: Annotated[int, Field(ge=24, le=1_000_000)] | Literal["auto"] = "auto"
    """Images generated for each distance; auto: of 10,000, 5,000, 2,000, 1,000, 500, 250 and 100 the most that exceed
    the encoder's features and cost at most 5% of the training FLOPs of the largest budgets. The fewer, the larger the
    distance: one number for a sweep."""
    most_of_training: float = Field(default=0.5, gt=0)
    """Budgets at which this takes more than such a share of the training FLOPs up to there have no distance."""


class Evaluation(Section):
    """What is measured at each budget, with the same fixed draws for every trial."""

    loss_images: int = Field(default=2048, ge=1)
    """Validation images of the loss."""
    loss_draws: int = Field(default=1, ge=1)
    """Fixed draws of time and noise for each of them."""
    sample_images: int = Field(default=40, ge=0)
    """Images generated for the report at each trial's last budget; 0: none."""
    distance: Distance | None = None
    """Frechet distance of generated images; absent: none is measured."""
    sampler: Sampler | None = None
    """Sampler of all generated images; ddpm and sde-euler add noise (the same for every trial), the others none.
    Default: heun, or dpmpp-2m with a distance (docs/evaluation.md says why)."""
    sampler_steps: int | None = Field(default=None, ge=1)
    """Its steps; default: 20, or 10 with a distance."""
    guidance: float = Field(default=1.0, ge=1)
    """Classifier-free guidance scale of all generated images; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Times [low, high] at which guidance acts, 0 being data and 1 noise; absent: everywhere."""

    @property
    def walk(self) -> dict[str, Any]:
        """`sampler` and `sampler_steps`, as given or by default."""
        sampler, steps = ("heun", 20) if self.distance is None else ("dpmpp-2m", 10)
        return {"sampler": self.sampler or sampler, "sampler_steps": self.sampler_steps or steps}

    @model_validator(mode="after")
    def _interval(self) -> Self:
        interval = self.guidance_interval
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"guidance_interval is {list(interval)}; wanted [low, high] with 0 <= low < high <= 1")
        if interval is not None and self.guidance == 1:
            raise ValueError("guidance_interval is given with guidance 1, which is none; raise guidance or drop it")
        return self


class SurfaceLaw(Section):
    """L(N, D) = E + A N^-alpha + B D^-beta, N in backbone parameters and D in samples (Hoffmann et al. 2022)."""

    E: PositiveFloat
    """Loss that nothing takes away."""
    A: PositiveFloat
    """Coefficient of N."""
    B: PositiveFloat
    """Coefficient of D."""
    alpha: PositiveFloat
    """Exponent of N."""
    beta: PositiveFloat
    """Exponent of D."""


class Expect(Section):
    """What is taken as true to say, before anything is measured, how well the plan will know the exponents."""

    law: SurfaceLaw | None = None
    """The law; default: Chinchilla's exponents, with the optimum in the middle of the plan."""
    seed_noise: float = Field(default=0.005, ge=0, lt=1)
    """Relative standard deviation of the loss between seeds, shared by all budgets of a trial."""
    measurement_noise: float = Field(default=0.002, ge=0, lt=1)
    """Relative standard deviation between the measurements of one trial."""
    noise: str | None = None
    """Path, from the spec's folder, of a results folder that `ditlaw noise` has looked at, or of its noise.json: the
    loss's noise found there counts where seed_noise or measurement_noise is not given."""
    target_flops: PositiveFloat | None = None
    """Also say how well the best size and loss will be known at so many FLOPs."""

    @model_validator(mode="after")
    def _some_noise(self) -> Self:
        if self.seed_noise + self.measurement_noise == 0:
            raise ValueError("a law without any noise has no interval; wanted seed_noise or measurement_noise above 0")
        return self


class Sweep(Section):
    """A sweep: models x arms x axes x seeds, each measured at every budget."""

    name: Name
    """Name of the sweep; its results lie in results/<name> unless --results says otherwise."""
    question: str = ""
    """The question it answers, shown at the top of the report."""
    dataset: str = "fashion-mnist"
    """What the models learn."""
    models: Models
    """The model ladder."""
    objective: ObjectiveSection = RectifiedFlow()
    """The training objective: its name, or {name: ..., and its options}."""
    arms: dict[Name, Arm] = Field(min_length=1)
    """The groups to compare."""
    training: Training = Training()
    """The recipe."""
    axes: Axes = {}
    """Hyperparameters to sweep over, by their place in the spec: {training.weight_decay: [0, 0.1]}; of a name that
    only one section has, the name is enough: {qk_norm: [true, false]}. Values are a list or a rule."""
    constraints: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    """Conditions that a cell must meet, as "learning_rate * width <= 1 or arm == 'mup'"; others are left out. Names:
    arm, size, seed, width, depth, params, batch_size, learning_rate, samples, tokens, flops, epochs, steps,
    tokens_per_param and every axis."""
    seeds: Seeds = [0]
    """Seeds of initialisation, data order, times and noise: a list, {from: 0, to: 4} or {count: 5}."""
    budgets: Budgets
    """Where to measure."""
    evaluation: Evaluation = Evaluation()
    """What to measure."""
    compute: Compute = Compute()
    """Where to run."""
    expect: Expect = Expect()
    """What to expect of the law, for the plan's intervals; nothing of it changes a result."""

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        return dataset_named(name).name


def load(path: Path) -> tuple[Sweep, Source]:
    """Read and validate the spec at `path` with what it includes; raise SpecError with all its problems."""
    source = read(path)
    try:
        return Sweep.model_validate(source.data), source
    except ValidationError as error:
        raise SpecError(source, [problem_of(detail, source.data, Sweep) for detail in error.errors()]) from None
