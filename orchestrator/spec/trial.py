"""A trial: everything one training trajectory needs to know, with every default resolved (no None means "choose").

Imported by planning (without torch) and by workers alike, and sent between processes as JSON.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

from models.config import Objective, Parameterization
from models.configs.base import ModelConfig
from models.fid.catalog import EncoderName
from orchestrator.spec.identity import ADDED_LATER, canonical_json, digest, digest_text

Precision = Literal["fp32", "bf16", "fp8"]
ZeroStage = Literal[0, 1, 2, 3]
Stepping = Literal["deepspeed", "flat", "graph"]
"""DeepSpeed, or without it over flat buffers (`training.pack`), or the latter as one CUDA graph."""
Sampler = Literal["ddpm", "ddim", "euler", "heun", "sde-euler", "dpmpp-2m", "dpmpp-3m"]
"""The samplers of `models.samplers` that need nothing but the model: not dpm-v3, which needs statistics of it."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW. `learning_rate` is the base rate; a parameterization turns it into one rate per parameter group."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    """Largest global gradient norm; None does not clip."""


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """Linear warmup over `warmup_samples`, then constant: every shorter budget is a prefix of a longer one."""

    warmup_samples: int
    name: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class CooldownSchedule:
    """Warmup-stable-decay (Hägele et al. 2024, arXiv 2405.18392): the constant schedule up to `start`, then down to
    zero at `end`. Up to `start` it is the trajectory of the constant schedule, its trunk, from which it branches."""

    warmup_samples: int
    start: int
    """Samples at which the cooldown begins: the state of the trunk there is where this trial begins."""
    end: int
    """Samples at which the rate is zero; the trial's one milestone."""
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Rate over the cooldown's share x in [0, 1]: 1 - x, or 1 - sqrt(x)."""
    name: Literal["wsd"] = "wsd"

    def __post_init__(self) -> None:
        assert self.warmup_samples <= self.start < self.end, "warmup, trunk and cooldown follow each other"


Schedule = ConstantSchedule | CooldownSchedule


@dataclass(frozen=True, kw_only=True)
class PowerEma:
    """EMA whose length is a fixed share of training so far (Karras et al. 2024, arXiv 2312.02696, section 3.1)."""

    relative_std: float
    """Standard deviation of the averaging window over the time trained, in (0, 0.28)."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How generated images are compared with the training images, the same for every trial of a sweep."""

    encoder: EncoderName
    images: int
    """Images generated at a milestone."""
    most_of_training: float = 0.5
    """Milestones at which generating and encoding them takes more than this share of the training FLOPs up to there
    have no distance."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured at a milestone, the same for every trial of a sweep."""

    loss_images: int
    """Validation images of the loss, the same ones for every trial."""
    loss_draws: int
    """Fixed (t, noise) draws of each of them."""
    sample_images: int
    """Images generated for people to look at; 0 generates none."""
    sampler: Sampler | Literal["parallel-decoding", "pyramid"]
    """That of the sweep, unless the objective has one of its own; parallel decoding has the steps of its objective."""
    sampler_steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None = None
    """Times [low, high] at which guidance acts; None is everywhere."""
    seed: int = 0
    """Seed of the fixed draws; not the trial's."""
    distance: Distance | None = field(default=None, metadata=ADDED_LATER)
    """None measures no distance of images."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """When a trial is given up as diverged: its running training loss exceeds `factor` x its lowest so far."""

    factor: float = 4.0


DETERMINANTS = (
    "dataset",
    "model",
    "parameterization",
    "objective",
    "optimizer",
    "schedule",
    "ema",
    "batch_size",
    "seed",
    "precision",
    "zero_stage",
    "evaluation",
    "divergence",
)
"""The fields of a trial that determine its result."""
_SHARED = tuple(name for name in DETERMINANTS if name != "schedule")
_BEFORE = tuple(name for name in sorted(DETERMINANTS) if name < "schedule")
_AFTER = tuple(name for name in sorted(DETERMINANTS) if name > "schedule")
"""The others in the order of their names, as canonical JSON has them."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training trajectory.

    `trial_id` is the identity of the trajectory and of how it is measured. Milestones are not in it (a longer budget
    continues the same trajectory), nor are names (`sweep`, `arm`, `size`) or where it runs (`num_workers`).
    """

    # What determines the result.
    dataset: str
    model: ModelConfig
    parameterization: Parameterization
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    ema: PowerEma
    batch_size: int
    seed: int
    precision: Precision
    zero_stage: ZeroStage
    evaluation: Evaluation
    divergence: Divergence = Divergence()

    # Names, for people.
    sweep: str
    arm: str
    size: str

    # What to do of it.
    milestones: tuple[int, ...]
    """`samples_seen` at which it is measured, ascending multiples of `batch_size`; a trunk may have none."""
    budgets: tuple[float | None, ...]
    """The FLOPs that the sweep asked for at each milestone; None where it asked for samples."""
    num_workers: int
    branch_points: tuple[int, ...] = ()
    """`samples_seen` at which cooldowns branch off: checkpoints that are kept until those are measured."""
    micro_batch: int | None = None
    """Samples of one forward and backward pass on one worker; None is all of its share of the batch."""
    activation_checkpointing: bool = False
    """Blocks keep only their input and are computed again in the backward pass."""
    offload: bool = False
    """Optimizer state and master weights lie in the memory of the host (ZeRO-Offload)."""
    stepping: Stepping = "deepspeed"
    """By what its steps are taken on GPUs."""
    compiled: bool = False
    """The step runs through torch.compile where that pays: on a GPU, but for ZeRO 3."""

    # What planning knows of it.
    flops_per_sample: float
    """Training FLOPs of one sample (3 x forward)."""
    params_total: int
    params_backbone: int
    params_matmul: float

    def __post_init__(self) -> None:
        assert self.milestones or self.branch_points, "a trial has a milestone or a branch point"
        for stops in (self.milestones, self.branch_points):
            assert list(stops) == sorted(set(stops)), "milestones and branch points ascend"
            assert all(stop > 0 and stop % self.batch_size == 0 for stop in stops), "they are whole steps"
        assert len(self.milestones) == len(self.budgets), "one budget a milestone"
        if isinstance(self.schedule, CooldownSchedule):
            assert self.milestones == (self.schedule.end,), "a cooldown is measured at its end"
            assert not self.branch_points, "nothing branches off a cooldown"

    @cached_property
    def trial_id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of what determines the result."""
        return self._identity_with(canonical_json(self.schedule))

    def _identity_with(self, schedule: str) -> str:
        """trial_id as it is under the schedule of this canonical JSON."""
        before, after = self._around_schedule
        return digest_text(before + schedule + after)

    @cached_property
    def _around_schedule(self) -> tuple[str, str]:
        """Canonical JSON of what determines the result, before the schedule's and after it."""
        before = "".join(f'"{name}":{canonical_json(getattr(self, name))},' for name in _BEFORE)
        after = "".join(f',"{name}":{canonical_json(getattr(self, name))}' for name in _AFTER)
        return "{" + before + '"schedule":', after + "}"

    def cell_id(self, milestone: int) -> str:
        """Identity of one measurement of this trajectory."""
        return digest({"trial_id": self.trial_id, "samples": milestone})

    @property
    def name(self) -> str:
        """A short name for people; nothing parses it."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.arm} {self.size} lr {self.optimizer.learning_rate:g}{seed}"

    @cached_property
    def trunk(self) -> str | None:
        """trial_id of the trajectory whose checkpoint at `schedule.start` this one begins with; None for others."""
        if not isinstance(self.schedule, CooldownSchedule):
            return None
        return self._identity_with(_constant_text(self.schedule.warmup_samples))

    def share_identity(self, trunk: Trial) -> None:
        """Take from the trunk that this trial branches off the trunk's identity, and what of it is the same: working it
        out again takes most of the time of planning many branches."""
        assert _determinants(self) == _determinants(trunk), "a branch differs in its schedule"
        vars(self)["_around_schedule"] = trunk._around_schedule
        vars(self)["trunk"] = trunk.trial_id

    @cached_property
    def first(self) -> int:
        """Samples at which its own work begins: where it branches off, else 0."""
        return self.schedule.start if isinstance(self.schedule, CooldownSchedule) else 0

    @cached_property
    def last(self) -> int:
        """Samples at which it ends: the last milestone or branch point."""
        return max((*self.milestones[-1:], *self.branch_points[-1:]))

    @property
    def fused(self) -> bool:
        """On a GPU its steps are a graph of the kernels of `models.fused`."""
        return self.stepping == "graph" and self.precision != "fp32" and self.model.fusable

    @property
    def fast(self) -> bool:
        """On a GPU its steps are compiled or a graph of kernels, which are about as fast: plans know them apart from
        those of torch's operations one by one."""
        return self.compiled or self.fused

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes of an optimizer step on one worker."""
        return self.batch_size // (self.num_workers * self.micro_batch) if self.micro_batch else 1

    @property
    def flops(self) -> float:
        """Training FLOPs of its own: from where it begins to where it ends."""
        return self.flops_per_sample * (self.last - self.first)


_determinants = operator.attrgetter(*_SHARED)
"""What determines a trial's result, but for the schedule."""


@cache
def _constant_text(warmup_samples: int) -> str:
    """Canonical JSON of the schedule of a trunk."""
    return canonical_json(ConstantSchedule(warmup_samples=warmup_samples))
