"""The model that a trial trains."""

from __future__ import annotations

from models.families import build
from models.float8 import use_float8
from models.parameterization import TaggedModule
from orchestrator.spec.trial import Trial


def training_model(trial: Trial) -> TaggedModule:
    """The initialised model in float32 on the CPU, which takes the kernels of `models.fused` where it can.

    With precision fp8 the maps of its blocks multiply in fp8.
    """
    model = build(trial.model, trial.parameterization, trial.seed)
    model.activation_checkpointing = trial.activation_checkpointing
    # ZeRO-3 gathers weights where a block is called, and checkpointing calls blocks again.
    model.fused = trial.zero_stage < 3 and not trial.activation_checkpointing
    if trial.precision == "fp8":
        use_float8(model)
    return model
