"""A trial: everything one training trajectory needs to know, with every default resolved (no None means "choose").

Imported by planning (without torch) and by workers alike, and sent between processes as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.config import ModelConfig, Objective, Parameterization
from orchestrator.spec.identity import digest

Precision = Literal["fp32", "bf16"]
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
class PowerEma:
    """EMA whose length is a fixed share of training so far (Karras et al. 2024, arXiv 2312.02696, section 3.1)."""

    relative_std: float
    """Standard deviation of the averaging window over the time trained, in (0, 0.28)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured at a milestone, the same for every trial of a sweep."""

    loss_images: int
    """Validation images of the loss, the same ones for every trial."""
    loss_draws: int
    """Fixed (t, noise) draws of each of them."""
    sample_images: int
    """Images generated for people to look at; 0 generates none."""
    sampler: Sampler
    sampler_steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None = None
    """Times [low, high] at which guidance acts; None is everywhere."""
    seed: int = 0
    """Seed of the fixed draws; not the trial's."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """When a trial is given up as diverged: its running training loss exceeds `factor` x its lowest so far."""

    factor: float = 4.0


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
    schedule: ConstantSchedule
    ema: PowerEma
    batch_size: int
    seed: int
    precision: Precision
    zero_stage: Literal[0, 1, 2, 3]
    evaluation: Evaluation
    divergence: Divergence = field(default_factory=Divergence)

    # Names, for people.
    sweep: str
    arm: str
    size: str

    # What to do of it.
    milestones: tuple[int, ...]
    """`samples_seen` at which it is measured, ascending multiples of `batch_size`."""
    budgets: tuple[float | None, ...]
    """The FLOPs that the sweep asked for at each milestone; None where it asked for samples."""
    num_workers: int

    # What planning knows of it.
    flops_per_sample: float
    """Training FLOPs of one sample (3 x forward)."""
    params_total: int
    params_backbone: int
    params_matmul: float

    def __post_init__(self) -> None:
        assert self.milestones, "a trial has at least one milestone"
        assert list(self.milestones) == sorted(set(self.milestones)), "milestones ascend"
        assert all(m > 0 and m % self.batch_size == 0 for m in self.milestones), "milestones are whole steps"
        assert len(self.milestones) == len(self.budgets), "one budget a milestone"

    @property
    def trial_id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of what determines the result."""
        return digest(
            {
                name: getattr(self, name)
                for name in (
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
            }
        )

    def cell_id(self, milestone: int) -> str:
        """Identity of one measurement of this trajectory."""
        return digest({"trial_id": self.trial_id, "samples": milestone})

    @property
    def name(self) -> str:
        """A short name for people; nothing parses it."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.arm} {self.size} lr {self.optimizer.learning_rate:g}{seed}"

    @property
    def flops(self) -> float:
        """Training FLOPs up to the last milestone."""
        return self.flops_per_sample * self.milestones[-1]
