"""Power-function EMA of the weights (Karras et al. 2024, arXiv 2312.02696, section 3.1).

The averaging window is a fixed share of training so far, so one setting suits every budget and a shorter run is a
prefix of a longer one. Progress is in samples, so the average does not depend on the batch size but for its grain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST_RELATIVE_STD = 1 / math.sqrt(12)
"""Relative standard deviation of gamma = 0, the plain average over all of training."""


def gamma_of(relative_std: float) -> float:
    """The exponent gamma >= 0 whose window has this standard deviation relative to the time trained.

    Solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) of section 3.1; the right side falls in gamma.

    Raises:
        ValueError: `relative_std` is outside (0, 1 / sqrt(12)).
    """
    if not 0.0 < relative_std < LARGEST_RELATIVE_STD:
        raise ValueError(f"relative_std is {relative_std}; wanted above 0 and below {LARGEST_RELATIVE_STD:.4f}")
    low, high = 0.0, 1.0 / relative_std  # sigma_rel < 1 / (gamma + 2), hence gamma < 1 / sigma_rel
    while (middle := (low + high) / 2) not in (low, high):
        variance = (middle + 1) / ((middle + 2) ** 2 * (middle + 3))
        low, high = (middle, high) if variance > relative_std**2 else (low, middle)
    return middle


class Ema:
    """A float32 average of parameters with weight proportional to (samples seen)^gamma.

    Args:
        params: the parameters to follow; copied.
        relative_std: width of the window relative to the training so far, in (0, 1 / sqrt(12)).

    Raises:
        ValueError: `relative_std` is out of range.
    """

    def __init__(self, params: Sequence[Tensor], relative_std: float) -> None:
        self.relative_std = relative_std
        self.gamma = gamma_of(relative_std)
        self.tensors: list[Tensor] = [p.detach().to(torch.float32, copy=True) for p in params]

    @torch.no_grad()
    def update(self, params: Sequence[Tensor], samples_before: int, samples_after: int) -> None:
        """Take in the parameters after a step that went from `samples_before` to `samples_after` samples seen.

        beta = (1 - dt/t)^(gamma + 1) of section 3.1 with t in samples. The first update (from 0) copies the parameters.

        Raises:
            ValueError: the samples do not increase from at least 0.
        """
        if not 0 <= samples_before < samples_after:
            raise ValueError(f"samples go from {samples_before} to {samples_after}; wanted an increase from at least 0")
        if samples_before == 0:
            torch._foreach_copy_(self.tensors, list(params))
            return
        beta = (samples_before / samples_after) ** (self.gamma + 1)
        torch._foreach_lerp_(self.tensors, [p.detach().float() for p in params], 1 - beta)

    def state_dict(self) -> dict[str, Any]:
        """The average and its setting; tensors are not copied."""
        return {"relative_std": self.relative_std, "tensors": self.tensors}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved average.

        Raises:
            ValueError: it is of another window or of other parameters.
        """
        if state["relative_std"] != self.relative_std:
            raise ValueError(f"saved EMA has relative_std {state['relative_std']}; wanted {self.relative_std}")
        saved, wanted = [list(s.shape) for s in state["tensors"]], [list(s.shape) for s in self.tensors]
        if saved != wanted:
            raise ValueError(f"saved EMA has tensors of shapes {saved}; wanted {wanted}")
        torch._foreach_copy_(self.tensors, list(state["tensors"]))
