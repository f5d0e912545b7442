"""The section of a sweep that says where its trials run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.expression import parse
from orchestrator.spec.section import PositiveFloat, Section
from orchestrator.spec.source import nearest

PRIORITY_NAMES = frozenset(
    {"arm", "size", "seed", "width", "depth", "params", "batch_size", "learning_rate", "samples", "flops"}
)
"""What a condition of compute.priorities may ask of a trial (`orchestrator.planning.priorities`)."""


class Compute(Section):
    """Where trials run. Nothing here changes a result, but zero_stage and precision, which are one for a sweep."""

    gangs: int = Field(default=1, ge=1, le=100_000)
    """Groups of workers that run trials side by side: the most that the sweep holds at once."""
    max_gpus: PositiveFloat | None = None
    """Most GPUs that the sweep holds at once; default: as many as its gangs use."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Of all its trials, where several sweeps share a cluster: what is free goes to the highest first."""
    priorities: dict[str, Annotated[int, Field(ge=-1000, le=1000)]] = {}
    """Which trials go first: a condition, as "arm == 'mup'", and what it adds to the priority of the trials that meet
    it; without any the longest go first. Names: arm, size, seed, width, depth, params, batch_size, learning_rate,
    samples, flops."""
    device: str | None = None
    """The device trials run on, such as h100-80gb or cpu (`ditlaw plan` lists them): gives memory and speed."""
    workers: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = 1
    """Workers of a gang; they split the batch. auto: the fewest in whose memory a trial fits."""
    max_workers: int = Field(default=64, ge=1, le=100_000)
    """Most workers of a gang where they are chosen."""
    cpus_per_worker: float = Field(default=1, ge=0.01, le=10_000)
    """CPUs of a worker; also its threads."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """GPUs of a worker: 0, 1, or a fraction by which gangs of one worker share a device."""
    precision: Literal["fp32", "bf16", "fp8"] = "fp32"
    """Arithmetic of the training step; master weights are fp32. fp8 is bf16 whose blocks multiply in 8 bits, of DiTs of
    a width that 16 divides: faster from DiT-L on (docs/training.md)."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; default 0 for fp32, and 1 for bf16 and fp8 (where 0 is refused)."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples of one forward and backward pass on a worker, which divides its share of the batch; auto: the most that
    fit the device, or all of them where no device is named."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only the inputs of blocks and compute them again in the backward pass; auto: where a trial fits no other
    way."""
    offload: bool = False
    """Keep master weights and optimizer state in the memory of the host (ZeRO-Offload)."""
    compile: bool = False
    """Train through torch.compile, on GPUs at ZeRO 0 to 2: faster steps after a minute of compiling, results that
    differ by rounding, and less memory than the plan says."""
    graphs: bool | Literal["auto", "uncaptured"] = "auto"
    """Take each step, where it is whole, without DeepSpeed over flat buffers and as one CUDA graph, or (uncaptured)
    without a graph; auto: as graphs where a trial has one GPU. Results differ by rounding, and a graph holds the memory
    of a step during evaluations too."""
    packing: Annotated[int, Field(ge=2, le=1024)] | Literal["auto", "off"] = "off"
    """Train trials of one shape as one stacked model: at most so many together, or auto: as many as were measured to
    pay on the device. Their results are those that they have alone, to rounding."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Longest time between checkpoints; every budget makes one too."""
    finished: Literal["keep", "drop"] = "keep"
    """Checkpoints of trials that are measured: keep the newest, so that longer budgets go on from them, or drop them,
    and do not write any at a budget that comes within `checkpoint_minutes` of the last one."""
    hang_minutes: PositiveFloat = 10.0
    """A gang that gives no sign of life for so long (no step, no batch of an evaluation) is replaced."""
    retries: int = Field(default=2, ge=0, le=1000)
    """Failed attempts of a trial in a row, without a new checkpoint in between, that are tried again. Lost and drained
    nodes do not count."""
    backoff_seconds: float = Field(default=5.0, ge=0)
    """Wait before the first retry; each further one waits twice as long."""
    recycle_after: Annotated[int, Field(ge=1)] | None = None
    """Attempts after which a gang is replaced by fresh processes; absent: never."""

    @property
    def stage(self) -> Literal[0, 1, 2, 3]:
        """The ZeRO stage as given, or the default of the precision."""
        if self.zero_stage is not None:
            return self.zero_stage
        return 0 if self.precision == "fp32" else 1

    @field_validator("packing", mode="before")
    @classmethod
    def _off(cls, packing: object) -> object:
        return "off" if packing is False else packing  # what YAML makes of off

    @field_validator("priorities")
    @classmethod
    def _conditions(cls, priorities: dict[str, int]) -> dict[str, int]:
        for text in priorities:
            if unknown := sorted(parse(text).names - PRIORITY_NAMES):
                known = ", ".join(sorted(PRIORITY_NAMES))
                close = nearest(unknown[0], PRIORITY_NAMES)
                raise ValueError(f"{text!r} names {unknown[0]!r}; wanted names among {known}{close}")
        return priorities

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.workers == "auto" and self.device is None:
            raise ValueError("workers auto needs to know the memory: wanted a device, such as h100-80gb, or a number")
        if self.precision != "fp32" and self.zero_stage == 0:
            raise ValueError(
                f"precision {self.precision} with zero_stage 0 takes a spurious Adam step in DeepSpeed and bends the "
                "law; wanted zero_stage 1, 2 or 3, or precision fp32"
            )
        gpus = self.gpus_per_worker * (1 if self.workers == "auto" else self.workers)
        if self.max_gpus is not None and self.max_gpus < gpus:
            raise ValueError(
                f"max_gpus {self.max_gpus:g} is less than one gang has: {gpus:g}; wanted max_gpus of at least that, or "
                "fewer workers"
            )
        if self.workers != 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"workers {self.workers} with gpus_per_worker {self.gpus_per_worker:g}: the workers of a gang cannot "
                "share a device; wanted gpus_per_worker 0 or 1, or one worker"
            )
        return self
