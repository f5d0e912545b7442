"""torch.compile as trainings use it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

LARGEST_CODES = 1024
"""Shapes that one function is compiled for in a process. torch's 8 are fewer than a sweep has; beyond them it would run
uncompiled without a word."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile, for each shape that it is called with; a gang's next trial finds its code."""
    allow_many_shapes()
    return torch.compile(function, dynamic=False)


def seconds_compiling() -> float:
    """Seconds that this process has spent on compiling, all together; 0 where nothing was compiled."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # importing it takes a second, and would tell of nothing
    return 0.0 if dynamo is None else float(dynamo.calculate_time_spent()["total_wall_time"])


def allow_many_shapes() -> None:
    """Let a process keep the code of every shape of a sweep."""
    torch._dynamo.config.recompile_limit = LARGEST_CODES
    torch._dynamo.config.accumulated_recompile_limit = LARGEST_CODES
