"""What a plan should be looked at twice for, before anything is spent on it: none of it forbids to run."""

from __future__ import annotations

import itertools

from models.fid.catalog import ENCODERS
from orchestrator.planning.placement import GIB, MARGIN, available_bytes, trial_memory
from orchestrator.planning.plan import Plan
from orchestrator.spec.ladder import IsoFlopLadder
from orchestrator.spec.trial import Trial

ROUNDING = 0.02
"""Share of a budget by which rounding to whole steps may move a measurement unmentioned."""
COARSE = 1.5
"""Power of the ratio asked for beyond which neighbouring sizes of an isoFLOP ladder are said to be far apart."""


def cautions(plan: Plan) -> list[str]:
    """A sentence or two each, with what to change."""
    found = (
        _evaluation(plan), _images(plan), _warmup(plan), _rounding(plan), _ladder(plan), _compiled(plan),
        _crowded(plan),
    )  # fmt: skip
    return [text for text in found if text is not None]


def _evaluation(plan: Plan) -> str | None:
    if not plan.flops_evaluation > plan.flops_planned > 0:
        return None
    return (
        "Evaluation costs more than training. Lower evaluation.loss_images, sample_images or sampler_steps, or measure "
        "at fewer budgets."
    )


def _images(plan: Plan) -> str | None:
    """A Frechet distance that would be mostly bias."""
    distance = plan.trials[0].evaluation.distance if plan.trials else None
    if distance is None or distance.images >= (dim := ENCODERS[distance.encoder].dim):
        return None
    return (
        f"{distance.images:,} images are fewer than {distance.encoder}'s {dim:,} features: the Frechet distance will "
        "be mostly bias. Raise evaluation.distance.images, or go by kid."
    )


def _warmup(plan: Plan) -> str | None:
    """Measurements that say more of the warmup than of the recipe."""
    early = [
        (trial, milestone)
        for trial in plan.trials
        for milestone in trial.milestones
        if milestone < 2 * trial.schedule.warmup_samples
    ]
    if not early:
        return None
    trial, samples = min(early, key=lambda one: one[1] / one[0].schedule.warmup_samples)
    warmup = trial.schedule.warmup_samples
    where = "within" if samples <= warmup else f"{samples:,} samples after the start, of which warmup takes"
    return (
        f"{_cells(len(early))} made in the warmup or before as much again was trained, the earliest {_of(trial)} "
        f"{where} {warmup:,} samples: such losses lie off the law. Lower training.warmup_samples, or drop the smallest "
        "budgets."
    )


def _rounding(plan: Plan) -> str | None:
    """Budgets that whole steps miss."""
    off = [
        (milestone * trial.flops_per_sample / budget - 1, trial, milestone, budget)
        for trial in plan.trials
        for milestone, budget in zip(trial.milestones, trial.budgets, strict=True)
        if budget is not None and abs(milestone * trial.flops_per_sample / budget - 1) > ROUNDING
    ]
    if not off:
        return None
    moved, trial, milestone, budget = max(off, key=lambda one: abs(one[0]))
    steps = milestone // trial.batch_size
    return (
        f"{_cells(len(off))} moved by more than {ROUNDING:.0%} of the budget by rounding to whole steps, most "
        f"{_of(trial)} at {budget:.3g} FLOPs: {steps:,} step{'s' * (steps != 1)}, {moved:+.1%}. Fits use the FLOPs "
        "that are spent; for sizes at equal FLOPs lower training.batch_size, or raise the budget."
    )


def _ladder(plan: Plan) -> str | None:
    """Neighbouring sizes of an isoFLOP ladder that are much farther apart than was asked."""
    rule = plan.sweep.models.sizes
    if not isinstance(rule, IsoFlopLadder) or any("sizes" in arm.models for arm in plan.sweep.arms.values()):
        return None
    apart = [
        (above[0] / below[0], budget, below[1], above[1])
        for budget, sizes in _sizes_by_budget(plan).items()
        for below, above in itertools.pairwise(sorted(sizes))
    ]
    far = [one for one in apart if one[0] > rule.ratio**COARSE]
    if not far:
        return None
    ratio, budget, below, above = max(far)
    return (
        f"Sizes of the isoFLOP ladder are up to {ratio:.2g}x apart ({below} and {above}, at {budget:.3g} FLOPs), where "
        f"a ratio of {rule.ratio:g} was asked for: widths are whole heads. Lower models.head_dim, or leave the "
        "smallest budgets out."
    )


def _sizes_by_budget(plan: Plan) -> dict[float, set[tuple[int, str]]]:
    """Parameters and names of the sizes that each budget in FLOPs measures."""
    found: dict[float, set[tuple[int, str]]] = {}
    for trial in plan.trials:
        for budget in trial.budgets:
            if budget is not None:
                found.setdefault(budget, set()).add((trial.params_backbone, trial.size))
    return found


def _compiled(plan: Plan) -> str | None:
    if not plan.sweep.compute.compile or plan.device.kind != "gpu":
        return None
    told = (
        "compute.compile is on: memory is that of training without it, which takes more (docs/memory.md), and hours "
        "leave out about half a minute of compiling for each size on each gang."
    )
    if plan.trials and all(trial.fused for trial in plan.trials):
        told += (
            " Without it these trials are graphs of kernels, within 1% as fast alone and a tenth slower in packs of "
            "small models (docs/training.md), and nothing is compiled: leave it out where starts are many."
        )
    return told


def _crowded(plan: Plan) -> str | None:
    """Packs that may not fit the device: each member holds what it holds alone."""
    if plan.sweep.compute.device is None or not plan.packs:
        return None
    on_gpu, room = plan.device.kind == "gpu", available_bytes(plan.device)
    needed = {sum(trial_memory(trial, on_gpu=on_gpu).training for trial in pack.trials): pack for pack in plan.packs}
    most = max(needed)
    if most <= room:
        return None
    pack = needed[most]
    return (
        f"A pack of {len(pack.trials)} trials of size {pack.trials[0].size} needs about {most / GIB:.1f} GiB; "
        f"{plan.device.name} has {room / GIB:.1f} GiB with {MARGIN:.0%} left free. Lower compute.packing."
    )


def _cells(number: int) -> str:
    return "1 measurement is" if number == 1 else f"{number:,} measurements are"


def _of(trial: Trial) -> str:
    return f"that of {trial.arm} {trial.size}"
