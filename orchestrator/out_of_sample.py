"""The sweep that puts a prediction to the test: the arm's recipe at the predicted budget, at the size that it names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.follow_up import arm_measurements, best_rate, measured_cells, spec_of
from orchestrator.follow_up_spec import spec_text
from orchestrator.planning import followup
from orchestrator.planning.followup import Ground
from orchestrator.planning.plan import expand
from orchestrator.results.location import Location
from orchestrator.spec.trial import Trial


@dataclass(frozen=True, kw_only=True)
class OutOfSample:
    """The spec, and the sizes that it trains anew."""

    text: str
    sizes: tuple[tuple[str, int], ...]
    """(name, parameters), the one nearest to what was predicted first."""


def spec_of_test(results: Location, arm: str, params: float, flops: float, *, num_sizes: int, name: str) -> OutOfSample:
    """The sweep of a results folder again, of one arm at its best learning rate, with a budget on top.

    What is measured of the arm is listed too: with results beside those of the sweep it is taken over, and one report
    shows the laws and the test.

    Args:
        results: of the sweep.
        arm: of which.
        params: the best size at the budget, as predicted.
        flops: the budget.
        num_sizes: how many sizes to train there, those nearest to `params` in logs.
        name: of the new sweep.

    Raises:
        ValueError: nothing can be run at the budget under the constraints of the sweep.
    """
    sweep, source = spec_of(results)
    variants = followup.variants_of(sweep, arm)
    frame = arm_measurements(results, arm, "loss", [])
    rate = best_rate(frame, [rate for variant in variants for rate in variant.training.learning_rate])
    variant = next(v for v in variants if rate in v.training.learning_rate)
    ground = Ground(sweep=sweep, source=source, variant=variant, learning_rate=rate)
    own, seed = ground.trials(), sweep.seeds[0]
    sizes = followup.rungs({trial.size: trial.model for trial in own})
    offered = _offered(ground, sizes, flops, seed)
    if not offered:
        raise ValueError(
            f"nothing can be run at {flops:.3g} FLOPs under the constraints of sweep {sweep.name}; loosen them, or "
            "predict a smaller budget"
        )
    nearest = sorted(offered, key=lambda trial: abs(math.log(trial.params_backbone / params)))[:num_sizes]
    asked = {} if frame is None else measured_cells(own, frame)
    for trial in nearest:
        asked.setdefault((trial.size, seed), {})[flops] = trial.milestones[-1] * trial.flops_per_sample
    names = ", ".join(f"{trial.size} ({trial.params_backbone:,} parameters)" for trial in nearest)
    header = [
        f"Puts a prediction of sweep {sweep.name}, arm {arm}, to the test at {flops:.4g} FLOPs: {names}, where "
        f"{params:.4g} parameters were predicted to be best.",
        f"What {sweep.name} has measured is listed too: with results beside those of {sweep.name} it is taken over, "
        "and nothing is trained twice.",
    ]
    text = spec_text(
        ground,
        sizes,
        asked,
        name=name,
        purpose=f"Does the law hold at {flops:.3g} FLOPs?",
        expect={"target_flops": flops},
        header=header,
    )
    return OutOfSample(text=text, sizes=tuple((trial.size, trial.params_backbone) for trial in nearest))


def _offered(ground: Ground, sizes: list[dict[str, object]], flops: float, seed: int) -> list[Trial]:
    """A trial of every size at the budget that the sweep's constraints allow."""
    spec = ground.spec("offered", "", sizes, {str(size["name"]): [flops] for size in sizes}, [seed])
    return [trial for trial in expand(*followup.sweep_of(spec, ground.source.path)) if trial.milestones]
