"""torch.compile as trainings use it."""

from __future__ import annotations

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


def allow_many_shapes() -> None:
    """Let a process keep the code of every shape of a sweep."""
    torch._dynamo.config.recompile_limit = LARGEST_CODES
    torch._dynamo.config.accumulated_recompile_limit = LARGEST_CODES
