"""The columns of a results folder, declared once.

Raise SCHEMA_VERSION when a column comes, goes or changes its meaning, and add the step to migration.py. Versions:

1   the first
2   attempts: `checkpoint_seconds`, and rows of outcome `running`, written when an attempt begins, so that one that dies
    with its driver says where it began; measurements: `flops_useful` is what the trial itself trained (it counted a
    cooldown from 0 and a diverged trial to milestones it did not reach)
3   measurements: distances of images (`fd_encoder_digest`, `fd_sd`, `kid`, `kid_subset_sd`, `fd_inf` and its interval),
    noise and times of losses (`loss_sd`, `loss_by_time`, `loss_draws`); `eval_samples` is the number of images of a
    distance (it was that of the loss's draws)
4   measurements: of clips, `fd_per_frame`, `warping_error` and `warping_error_generated`
5   attempts: `waited_seconds` and `compile_seconds`; `evaluation_seconds` is without compilation
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 5
VERSION_KEY = b"ditlaw.schema_version"
"""In the metadata of each part."""

Kind = Literal["measurements", "curves", "attempts"]

_TIME = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


MEASUREMENT = _schema(
    _required("schema_version", pa.int32()),
    _required("sweep", pa.string()),
    _required("trial_id", pa.string()),
    _required("cell_id", pa.string()),
    _required("arm", pa.string()),
    _required("family", pa.string()),
    _required("size", pa.string()),
    _required("parameterization", pa.string()),
    _required("objective", pa.string()),
    _required("learning_rate", pa.float64()),
    _required("batch_size", pa.int64()),
    _required("seed", pa.int64()),
    _required("params_total", pa.int64()),
    _required("params_backbone", pa.int64()),
    _required("params_matmul", pa.float64()),
    _required("samples", pa.int64()),
    _required("tokens", pa.int64()),
    _required("flops", pa.float64()),
    _optional("budget_flops", pa.float64()),
    _required("flops_definition", pa.string()),
    _optional("loss", pa.float64()),
    _optional("loss_train", pa.float64()),
    _optional("loss_sd", pa.float64()),
    _optional("loss_by_time", pa.list_(pa.float64())),
    _optional("loss_draws", pa.int64()),
    _optional("fid", pa.float64()),
    _optional("fd", pa.float64()),
    _optional("fd_encoder", pa.string()),
    _optional("fd_encoder_digest", pa.string()),
    _optional("fd_sd", pa.float64()),
    _optional("kid", pa.float64()),
    _optional("kid_subset_sd", pa.float64()),
    _optional("fd_inf", pa.float64()),
    _optional("fd_inf_low", pa.float64()),
    _optional("fd_inf_high", pa.float64()),
    _optional("fd_per_frame", pa.float64()),
    _optional("warping_error", pa.float64()),
    _optional("warping_error_generated", pa.float64()),
    _optional("eval_samples", pa.int64()),
    _optional("sampler", pa.string()),
    _optional("sampler_steps", pa.int64()),
    _optional("guidance", pa.float64()),
    _required("outcome", pa.string()),
    _optional("reason", pa.string()),
    _required("zero_stage", pa.int32()),
    _required("precision", pa.string()),
    _required("num_workers", pa.int32()),
    _required("attempt", pa.int32()),
    _optional("mlflow_run_id", pa.string()),
    _required("wall_seconds", pa.float64()),
    _required("gpu_hours", pa.float64()),
    _required("flops_useful", pa.float64()),
    _required("flops_wasted", pa.float64()),
    _required("created_at", _TIME),
)
"""One row a trial at a milestone. A diverged row has no loss, and a reason.

`fid` is Inception's Frechet distance and no other's; `fd` is that of the encoder named in `fd_encoder`, whose weights
`fd_encoder_digest` tells. `fd_sd`, `kid` and `fd_inf` are of that encoder, whichever it is; `loss_sd` and `fd_sd` are
the noise of other draws and other images of the same model, `fd_inf_low` to `fd_inf_high` a 95% interval.
Of clips, `fd_per_frame` is the distance of single frames, `warping_error` the mean squared error of validation clips,
denoised from the middle time, against their own flow, and `warping_error_generated` that of generated clips against
flow that is estimated from them: of the clips of which any flow is to be believed. Of latents there is neither.
`loss_by_time` has the mean losses of ten equal parts of time, from data to noise.

`wall_seconds`, `gpu_hours` (device hours: of GPUs, or of workers where there are none), `flops_useful` and
`flops_wasted` are of the whole trial up to the row: take a trial's last row, do not sum its rows.
"""

EVALUATION_COLUMNS = (
    "loss", "loss_sd", "loss_by_time", "loss_draws", "fid", "fd", "fd_encoder", "fd_encoder_digest", "fd_sd", "kid",
    "kid_subset_sd", "fd_inf", "fd_inf_low", "fd_inf_high", "fd_per_frame", "warping_error", "warping_error_generated",
    "eval_samples", "sampler", "sampler_steps", "guidance",
)  # fmt: skip
"""Columns that an evaluation fills, each of them optional."""

CURVE = _schema(
    _required("trial_id", pa.string()),
    _required("attempt", pa.int32()),
    _required("samples", pa.int64()),
    _required("flops", pa.float64()),
    _optional("loss", pa.float64()),
    _required("learning_rate", pa.float64()),
    _optional("samples_per_second", pa.float64()),
    _required("wall_seconds", pa.float64()),
)
"""One row a point of a training curve, at `samples` seen since the start of the trial."""

ATTEMPT = _schema(
    _required("trial_id", pa.string()),
    _required("attempt", pa.int32()),
    _optional("gang", pa.string()),
    _optional("host", pa.string()),
    _required("started_at", _TIME),
    _required("ended_at", _TIME),
    _required("outcome", pa.string()),
    _optional("reason", pa.string()),
    _required("samples_start", pa.int64()),
    _required("samples_end", pa.int64()),
    _required("flops", pa.float64()),
    _required("wall_seconds", pa.float64()),
    _optional("train_seconds", pa.float64()),
    _optional("evaluation_seconds", pa.float64()),
    _optional("startup_seconds", pa.float64()),
    _optional("checkpoint_seconds", pa.float64()),
    _optional("waited_seconds", pa.float64()),
    _optional("compile_seconds", pa.float64()),
)
"""One row an execution of a trial on a gang. `attempt` counts from 0 for each trial.

`checkpoint_seconds` is how long training stood still for checkpoints. `waited_seconds` is how long its gang had had no
attempt before, its start included; of attempts that are trained together the first has it. `compile_seconds` is its
share of what the worker spent on compiling meanwhile. A row of outcome `running` is replaced, for
readers, by the row of the same attempt's end.
"""

RUNNING = "running"

MEASUREMENT_OUTCOMES = ("ok", "diverged")
ATTEMPT_OUTCOMES = ("completed", "stopped", "diverged", "failed", RUNNING)

SCHEMAS: Mapping[Kind, pa.Schema] = {"measurements": MEASUREMENT, "curves": CURVE, "attempts": ATTEMPT}
OUTCOMES: Mapping[Kind, tuple[str, ...]] = {"measurements": MEASUREMENT_OUTCOMES, "attempts": ATTEMPT_OUTCOMES}
