"""The sweep language: what a user may write in a YAML spec, validated whole before anything is done with it.

Values that depend on each other across sections (a width and its heads, a budget and the cost of a step) are checked
when the grid is expanded, in `orchestrator.planning.grid`; both report through the same `SpecError`.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from models.config import SP, Block, CompleteP, MlpKind, MuP, Objective, Positions, RectifiedFlow
from orchestrator.spec.datasets import DATASETS
from orchestrator.spec.source import Location, Problem, Source, SpecError, nearest, read
from orchestrator.spec.trial import Sampler

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LearningRates = Annotated[
    list[PositiveFloat],
    Field(min_length=1),
    BeforeValidator(
        lambda value: value if isinstance(value, list) else [value], json_schema_input_type=float | list[float]
    ),
]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """One mapping of the spec: unknown keys are refused, values are frozen, docstrings become editor help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true_or_false(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, which would count as 1 and 0."""
        if info.field_name is not None and cls.model_fields[info.field_name].annotation is not bool:
            found = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, bool)]
            if found:
                got = str(found[0]).lower()
                raise ValueError(f"got {got}; wanted no true or false here (YAML reads yes and no as such)")
        return value


class Size(Section):
    """One model of the ladder: a published `preset`, or `width` and `depth`."""

    name: Name
    """Name of the size in tables and plots."""
    preset: str | None = None
    """A published size of the family with its patch, such as S/2 or XL/4; gives width, depth, heads and patch."""
    width: int | None = Field(default=None, ge=1)
    """Size of the residual stream."""
    depth: int | None = Field(default=None, ge=1)
    """Transformer blocks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; or give `head_dim` for all sizes."""
    patch: int | None = None
    """Side of a square patch, pixels."""

    @model_validator(mode="after")
    def _preset_or_shape(self) -> Self:
        given = [key for key in ("width", "depth", "heads", "patch") if getattr(self, key) is not None]
        if self.preset is not None and given:
            raise ValueError(
                f"size {self.name} gives preset and {', '.join(given)}; wanted preset alone, or width and depth"
            )
        if self.preset is None and not {"width", "depth"} <= set(given):
            missing = [key for key in ("width", "depth") if key not in given]
            raise ValueError(
                f"size {self.name} gives no {' and no '.join(missing)}; wanted width and depth, or a preset"
            )
        return self


class Models(Section):
    """The sizes of one model family, and the options that all of them share.

    Keys of a size override the shared ones beside `sizes`, and so does a size's preset.
    """

    family: str = "dit"
    """Model family."""
    patch: int | None = None
    """Side of a square patch, pixels; divides the image size."""
    head_dim: int | None = Field(default=None, ge=1)
    """Size of an attention head; a size's heads are width / head_dim (µP keeps it fixed). Or give `heads` a size."""
    mlp_ratio: int = Field(default=4, ge=1)
    """Hidden size of the MLP over the width; a SwiGLU's is 2/3 of that to the nearest multiple of 8."""
    class_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training labels replaced by the null class, for classifier-free guidance."""
    zero_init: bool = True
    """adaLN-Zero: blocks start as the identity."""
    qk_norm: bool = False
    """RMS norm of queries and keys over each head, with a learned gain."""
    positions: Positions = "sincos"
    """sincos: fixed, added to the tokens; learned: a table added to the tokens; rope: queries and keys are rotated by
    row and column, which needs heads of a multiple of 4."""
    block: Block = "serial"
    """serial: attention, then the MLP (6 adaLN vectors); parallel: both on one norm with one gate (3 vectors)."""
    mlp: MlpKind = "gelu"
    """gelu: two matrices around a GELU; swiglu: gated, three matrices of 2/3 of the hidden size."""
    bias: bool = True
    """Biases of the attention's and the MLP's linear maps."""
    learn_sigma: bool = False
    """Predict a second set of channels, the learned variance of DDPM."""
    sizes: list[Size] = Field(min_length=1)
    """The models, smallest to largest."""


class Arm(Section):
    """A group of trials that is compared with the other arms; its keys override `training`."""

    parameterization: Annotated[
        Annotated[SP | MuP | CompleteP, Discriminator("name")],
        BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    ] = SP()
    """How initialisation and learning rates depend on width and depth: sp, {name: mup, base_width: ...} or
    {name: completep, base_width: ..., base_depth: ...}."""
    learning_rate: LearningRates | None = None
    """Base learning rate, or a list to sweep over; default: training.learning_rate."""


class Ema(Section):
    """Power-function EMA (Karras et al. 2024): its length is a fixed share of the training so far."""

    relative_std: float = Field(default=0.1, gt=0, lt=0.28)
    """Standard deviation of the averaging window, as a share of the samples seen."""


class Training(Section):
    """The recipe shared by every trial."""

    learning_rate: LearningRates = [1e-3]
    """Base learning rate of AdamW (at base_width under µP), or a list to sweep over."""
    batch_size: int = Field(default=256, ge=1)
    """Samples a step, over all workers."""
    warmup_samples: int = Field(default=0, ge=0)
    """Samples of linear warmup; the rate is constant afterwards."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Adam's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    gradient_clip: PositiveFloat | None = None
    """Largest global gradient norm; absent: no clipping."""
    ema: Ema = Ema()
    """Averaging of the weights that are measured."""


class Budgets(Section):
    """Where trials are measured; exactly one of the keys. Budgets of one configuration share one trajectory."""

    flops: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Training FLOPs (3 x forward, 1 multiply-add = 2 FLOPs), as 1e11."""
    samples: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)] | None = None
    """Training samples."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("flops", "samples") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"gives {' and '.join(given) or 'no budget'}; wanted exactly one of flops, samples")
        values = getattr(self, given[0])
        if len(set(values)) != len(values):
            raise ValueError(f"{given[0]} holds the same budget twice; wanted different ones, got {values}")
        return self


class Evaluation(Section):
    """What is measured at each budget, with the same fixed draws for every trial."""

    loss_images: int = Field(default=2048, ge=1)
    """Validation images of the loss."""
    loss_draws: int = Field(default=1, ge=1)
    """Fixed draws of time and noise for each of them."""
    sample_images: int = Field(default=40, ge=0)
    """Images generated for the report at each trial's last budget; 0: none."""
    sampler: Sampler = "heun"
    """Sampler of the generated images; ddpm and sde-euler add noise (the same for every trial), the others none."""
    sampler_steps: int = Field(default=20, ge=1)
    """Its steps."""
    guidance: float = Field(default=1.0, ge=1)
    """Classifier-free guidance scale; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Times [low, high] at which guidance acts, 0 being data and 1 noise; absent: everywhere."""

    @model_validator(mode="after")
    def _interval(self) -> Self:
        interval = self.guidance_interval
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"guidance_interval is {list(interval)}; wanted [low, high] with 0 <= low < high <= 1")
        if interval is not None and self.guidance == 1:
            raise ValueError("guidance_interval is given with guidance 1, which is none; raise guidance or drop it")
        return self


class Compute(Section):
    """Where trials run. Nothing here changes a result, but zero_stage and precision, which are one for a sweep."""

    gangs: int = Field(default=1, ge=1, le=100_000)
    """Groups of workers that run trials side by side."""
    workers: int = Field(default=1, ge=1, le=100_000)
    """Workers of a gang; they split the batch."""
    cpus_per_worker: float = Field(default=1, ge=0.01, le=10_000)
    """CPUs of a worker; also its threads."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """GPUs of a worker: 0, 1, or a fraction by which gangs of one worker share a device."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the training step; master weights are fp32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; default 0 for fp32 and 1 for bf16 (0 with bf16 is refused)."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Longest time between checkpoints; every budget makes one too."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 with zero_stage 0 takes a spurious Adam step in DeepSpeed and bends the law; "
                "wanted zero_stage 1, 2 or 3, or precision fp32"
            )
        if self.workers > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"workers {self.workers} with gpus_per_worker {self.gpus_per_worker:g}: the workers of a gang cannot "
                "share a device; wanted gpus_per_worker 0 or 1, or one worker"
            )
        return self


class Sweep(Section):
    """A sweep: models x arms x learning rates x seeds, each measured at every budget."""

    name: Name
    """Name of the sweep; its results lie in results/<name> unless --results says otherwise."""
    question: str = ""
    """The question it answers, shown at the top of the report."""
    dataset: str = "fashion-mnist"
    """What the models learn."""
    models: Models
    """The model ladder."""
    objective: Annotated[
        Annotated[Objective, Discriminator("name")],
        BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    ] = RectifiedFlow()
    """The training objective: its name, or {name: ..., and its options}."""
    arms: dict[Name, Arm] = Field(min_length=1)
    """The groups to compare."""
    training: Training = Training()
    """The recipe."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)] = [0]
    """Seeds of initialisation, data order, times and noise."""
    budgets: Budgets
    """Where to measure."""
    evaluation: Evaluation = Evaluation()
    """What to measure."""
    compute: Compute = Compute()
    """Where to run."""

    @model_validator(mode="after")
    def _known_dataset(self) -> Self:
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset {self.dataset!r} is not known; wanted one of {', '.join(sorted(DATASETS))}")
        return self


def load(path: Path) -> tuple[Sweep, Source]:
    """Read and validate the spec at `path`; raise SpecError with all its problems."""
    source = read(path)
    try:
        return Sweep.model_validate(source.data), source
    except ValidationError as error:
        raise SpecError(source, [_problem(detail, source.data) for detail in error.errors()]) from None


def _problem(detail: ErrorDetails, data: Any) -> Problem:
    """A pydantic error as a Problem: location as in the file, and what was got, wanted and can be done."""
    location = _in_file(detail["loc"], data)
    got, kind = detail["input"], detail["type"]
    if kind == "extra_forbidden" or kind == "unexpected_keyword_argument":
        known = _fields(location[:-1], data)
        wanted = f"; wanted one of {', '.join(known)}" if known else ""
        return Problem(location, f"is not a key here{wanted}{nearest(str(location[-1]), known)}")
    if kind == "missing" and isinstance(got, list):
        return Problem(location, f"got {_short(got)}; wanted {1 + int(detail['loc'][-1])} values")
    if kind in ("missing", "missing_argument"):
        return Problem(location, "is missing; wanted a value")
    if kind == "string_pattern_mismatch":
        wanted = "letters, digits, '.', '_' and '-' (64 at most), a letter or digit first"
        return Problem(location, f"got {_short(got)}; wanted {wanted}")
    if kind in ("union_tag_not_found", "union_tag_invalid") and location[:1] == ("objective",):
        return _unknown_objective(location, got)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        alternatives = (
            "{name: sp} or {name: mup, base_width: ...} or {name: completep, base_width: ..., base_depth: ...}"
        )
        return Problem(location, f"got {_short(got)}; wanted {alternatives}")
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return Problem(location, message)
    if kind == "too_short":
        return Problem(location, "is empty; wanted at least one")
    wanted = re.sub(r"^(Input|Value) should (be )?", "", message)
    return Problem(location, f"got {_short(got)}; wanted {wanted}")


def _unknown_objective(location: Location, got: Any) -> Problem:
    """An objective without a name, or with one that nothing has."""
    known = [kind.name for kind in get_args(Objective)]
    name = got.get("name") if isinstance(got, dict) else got
    wanted = f"wanted a name among {', '.join(known)}"
    if name is None:
        return Problem(location, f"got {_short(got)} without a name; {wanted}")
    return Problem(location, f"got {_short(name)}; {wanted}{nearest(str(name), known)}")


def _in_file(loc: tuple[int | str, ...], data: Any) -> Location:
    """`loc` without the union tags and type names that pydantic puts between a file's own keys."""
    location: list[int | str] = []
    for index, part in enumerate(loc):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(loc) - 1 or isinstance(data, list) or not isinstance(data, dict):
            continue
        elif part == data.get("name"):
            continue  # the tag of a union, of which a whole alternative is wrong
        location.append(part)
    return tuple(location)


def _fields(location: Location, data: Any) -> list[str]:
    """The keys that the language knows in the mapping at `location`."""
    kind: Any = Sweep
    for part in location:
        fields = getattr(kind, "model_fields", {})
        kind = fields[part].annotation if part in fields else _item(kind)
        data = data[part]
        kind = _section(kind, data)
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return list(names)


def _item(kind: Any) -> Any:
    arguments = get_args(kind)
    return arguments[-1] if arguments else None


def _section(kind: Any, data: Any) -> Any:
    """Strip Annotated and choose the alternative of a union by its `name`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if isinstance(data, list):
        return kind
    if get_origin(kind) in (Union, types.UnionType):
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        named = [c for c in choices if isinstance(data, dict) and getattr(c, "name", None) == data.get("name")]
        return (named or choices)[0]
    return kind


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
