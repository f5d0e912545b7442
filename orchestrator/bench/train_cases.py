"""What `ditlaw bench train` times: models at their batches, and what each variant of their steps is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from models.config import preset
from models.configs.dit import DiTConfig
from orchestrator.bench.memory import Case, trial_of
from orchestrator.spec.trial import Trial

COMPILED = "graph, compiled"
QUICKSTART_WIDTHS = (16, 24, 32, 48, 64, 96)


def gpu_cases(sizes: Sequence[str]) -> list[Case]:
    """The published sizes at the batches of docs/training.md, in bf16 at ZeRO-1."""
    batches = {"S/2": 256, "B/2": 256, "L/2": 128, "XL/2": 128}
    wanted = [name for name in batches if not sizes or name in sizes]
    return [Case(size=name, model=preset(name), micro_batch=batches[name]) for name in wanted]


def cpu_cases(sizes: Sequence[str]) -> list[Case]:
    """The quickstart's widths."""
    found = []
    for width in QUICKSTART_WIDTHS:
        model = DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=width, depth=2, heads=width // 8)
        found.append(Case(size=f"w{width}", model=model, micro_batch=64, precision="fp32", zero_stage=0))
    return [case for case in found if not sizes or case.size in sizes]


def small_case(width: int, depth: int, tokens: int, batch: int, device: torch.device) -> Case:
    """A small model on 4-channel latents, as packs are made of."""
    name, side = f"w{width}-d{depth}-n{tokens}", 2 * round(tokens**0.5)
    model = DiTConfig(image_size=side, channels=4, num_classes=10, patch=2, width=width, depth=depth, heads=width // 32)
    if device.type != "cuda":
        return Case(size=name, model=model, micro_batch=batch, precision="fp32", zero_stage=0)
    return Case(size=name, model=model, micro_batch=batch)


def case_of_variant(case: Case, name: str) -> Case:
    """The case as a variant of its steps has it."""
    case = replace(case, compiled=True) if name == COMPILED else case
    return replace(case, precision="fp8") if name == "graph in fp8" else case


def trial_of_variant(case: Case, name: str) -> Trial:
    """A trial of the case that a GPU takes the variant's steps of."""
    case = case_of_variant(case, name)
    graph = name.startswith(("graph", "pack of ")) and not name.endswith("without graph")
    return replace(trial_of(case, 1), stepping="graph" if graph else "deepspeed")
