"""What a person sees of a plan. Builds what the CLI prints; prints nothing itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.magnitudes import count, duration, size
from orchestrator.planning.cautions import cautions
from orchestrator.planning.packing import packable
from orchestrator.planning.placement import trial_memory
from orchestrator.planning.plan import Plan
from orchestrator.planning.speeds import speeds
from orchestrator.spec.evaluation_cost import distances
from orchestrator.spec.trial import Distance, Trial

MAX_TRIALS_SHOWN = 24
MAX_GROUPS_SHOWN = 40
MAX_MAP_COLUMNS = 10
MIN_RATES_COMPARED = 3
"""Learning rates of a size that give a best one: MIN_RATES of `analysis.rate_valley`, which a plan does not import."""


def plan_view(plan: Plan, whole: Plan, expected: Sequence[Mapping[str, Any]] = ()) -> RenderableType:
    """What is left to run of a sweep, and what it costs.

    Args:
        plan: what is left.
        whole: the sweep as if nothing were measured yet.
        expected: what `expected_json` gives.
    """
    parts: list[RenderableType] = [Text(plan.sweep.name, style="bold")]
    if plan.sweep.question:
        parts.append(Text(plan.sweep.question))
    parts.append(Text())
    if plan.trials:
        parts += [_trials(plan) if len(plan.trials) <= MAX_TRIALS_SHOWN else _groups(plan), Text()]
    if (drawn := _map(plan, whole)) is not None:
        parts += [drawn, Text()]
    parts.append(_totals(plan, whole))
    if plan.trials:
        parts += [Text(), _devices(plan)]
    if expected:
        parts += [Text(), *_expected(expected, whole)]
    return Group(*parts, *(Text(caution, style="yellow") for caution in cautions(plan)))


# The trials.


def _trials(plan: Plan) -> Table:
    """A row a trial, in the order they run."""
    table = _table("trial", "arm", "size", "params", "lr", "seed", "measured after steps", "FLOPs", "about", left=3)
    for trial in plan.trials:
        table.add_row(
            trial.trial_id[:8],
            trial.arm,
            trial.size,
            count(trial.params_backbone),
            f"{trial.optimizer.learning_rate:g}",
            str(trial.seed),
            _stops(trial),
            f"{plan.flops(trial):.3g}",
            duration(plan.seconds(trial)),
        )
    return table


def _stops(trial: Trial) -> str:
    steps = " ".join(str(milestone // trial.batch_size) for milestone in trial.milestones)
    if trial.trunk is not None:
        return f"{steps}, cooled from {trial.first // trial.batch_size}"
    if not trial.milestones:
        return f"trunk to {trial.last // trial.batch_size}"
    return steps


def _groups(plan: Plan) -> Group:
    """A row an arm and size, longest trial first: of many trials a list says nothing."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault((trial.arm, trial.size), []).append(trial)
    varied = {
        "lr": lambda trials: _span([trial.optimizer.learning_rate for trial in trials]),
        "seeds": lambda trials: str(len({trial.seed for trial in trials})),
        "batch": lambda trials: _span([trial.batch_size for trial in trials]),
        "workers": lambda trials: _span([trial.num_workers for trial in trials]),
    }
    told = {name: {of(trials) for trials in groups.values()} for name, of in varied.items()}
    columns = [name for name, values in told.items() if len(values) > 1]
    table = _table("arm", "size", "params", "trials", *columns, "longest", "FLOPs", "about", left=2)
    for (arm, name), trials in list(groups.items())[:MAX_GROUPS_SHOWN]:
        longest = max(trials, key=lambda trial: trial.last)
        table.add_row(
            arm,
            name,
            count(longest.params_backbone),
            f"{len(trials):,}",
            *(varied[column](trials) for column in columns),
            f"{longest.last // longest.batch_size:,} steps",
            f"{sum(map(plan.flops, trials)):.3g}",
            duration(sum(map(plan.seconds, trials))),
        )
    common = ", ".join(f"{name} {values.pop()}" for name, values in told.items() if len(values) == 1)
    first = plan.trials[0]
    longest_first = f"Longest first: {first.name}, {duration(plan.seconds(first))}. --json lists every trial."
    notes = [Text(f"All with {common}. {longest_first}" if common else longest_first, style="dim")]
    if len(groups) > MAX_GROUPS_SHOWN:
        notes.insert(0, Text(f"... and {len(groups) - MAX_GROUPS_SHOWN:,} more arms and sizes", style="dim"))
    return Group(table, *notes)


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# The map: which sizes are measured at which budgets.


def _map(plan: Plan, whole: Plan) -> Table | None:
    """Sizes by budgets, each with its tokens a parameter; dim where it is measured already, empty where nobody asks.

    None where there is only one of either.
    """
    cells = map_cells(whole)
    columns = sorted({cell["x"] for cell in cells})
    params_of = {cell["size"]: cell["params"] for cell in cells}
    rows = sorted(((params, name) for name, params in params_of.items()), reverse=True)
    if len(columns) < 2 or len(rows) < 2:
        return None
    to_run = {(trial.size, x) for trial in plan.trials for x in _columns_of(trial)}
    ratio = {(cell["size"], cell["x"]): cell["tokens_per_param"] for cell in cells}
    shown = columns if len(columns) <= MAX_MAP_COLUMNS else columns[:: math.ceil(len(columns) / MAX_MAP_COLUMNS)]
    kind = "FLOPs" if cells[0]["in_flops"] else "samples"
    table = Table(box=None, header_style="dim", pad_edge=False, title_style="bold", title_justify="left")
    table.title = f"Tokens a parameter, by size and {kind}"
    table.add_column("size")
    table.add_column("params", justify="right")
    for x in shown:
        table.add_column(f"{x:.3g}", justify="right")
    for params, name in rows:
        row = [Text(name), Text(count(params))]
        for x in shown:
            value = ratio.get((name, x))
            style = "" if (name, x) in to_run else "dim"
            row.append(Text("" if value is None else f"{value:.3g}", style=style))
        table.add_row(*row)
    return table


def map_cells(plan: Plan) -> list[dict[str, Any]]:
    """Every measurement as a point: size, params, samples, flops, tokens_per_param, arm, trial, and its column x."""
    return [
        {
            "arm": trial.arm,
            "size": trial.size,
            "params": trial.params_backbone,
            "samples": milestone,
            "flops": milestone * trial.flops_per_sample,
            "tokens_per_param": milestone * trial.model.tokens / trial.params_backbone,
            "trial": trial.trunk or trial.trial_id,
            "in_flops": budget is not None,
            "x": budget if budget is not None else float(milestone),
        }
        for trial in plan.trials
        for milestone, budget in zip(trial.milestones, trial.budgets, strict=True)
    ]


def _columns_of(trial: Trial) -> Iterator[float]:
    for milestone, budget in zip(trial.milestones, trial.budgets, strict=True):
        yield budget if budget is not None else float(milestone)


# Totals.


def _totals(plan: Plan, whole: Plan) -> Table:
    totals = Table(box=None, show_header=False, pad_edge=False)
    totals.add_column(style="dim")
    totals.add_column()
    for name, text in _total_rows(plan, whole):
        totals.add_row(name, text)
    return totals


def _total_rows(plan: Plan, whole: Plan) -> Iterator[tuple[str, str]]:
    compute = plan.sweep.compute
    measured = f"; {plan.cells_measured:,} are measured already" if plan.cells_measured else ""
    yield "cells", f"{plan.num_cells:,} measurements from {len(plan.trials):,} trials{measured}"
    if not plan.trials:
        return
    saved = whole.flops_separate / whole.flops_planned
    yield "training", f"{plan.flops_planned:.3g} FLOPs; sharing makes the sweep {saved:.2f}x cheaper than a run a cell"
    yield "evaluation", f"{plan.flops_evaluation:.3g} FLOPs ({_share(plan)} of training)"
    if (distance := plan.trials[0].evaluation.distance) is not None:
        yield "distances", _distances(plan, distance)
    gpus = f" + {compute.gpus_per_worker:g} GPU" if compute.gpus_per_worker > 0 else ""
    workers, stage = _span([trial.num_workers for trial in plan.trials]), plan.trials[0].zero_stage
    each = f"{compute.cpus_per_worker:g} CPU{gpus}"
    yield "gangs", f"{compute.gangs} of {workers} x {each}, {compute.precision}, ZeRO-{stage}"
    if compute.packing != "off":
        yield "packs", _packs(plan)
    yield "memory", _memory(plan)
    least = plan.makespan_bound_hours > 0.995 * plan.makespan_hours
    bound = "no order is quicker" if least else f"at least {duration(3600 * plan.makespan_bound_hours)}"
    yield "time", f"about {duration(3600 * plan.makespan_hours)} ({bound}); {plan.gpu_hours:.3g} device hours"
    yield "disk", f"{size(plan.checkpoint_bytes)} checkpoints, {size(plan.results_bytes)} results"


def _packs(plan: Plan) -> str:
    """How many trials are trained together, and what that brings."""
    if not plan.packs:
        return _no_packs(plan)
    sizes = Counter(len(pack.trials) for pack in plan.packs)
    packed = ", ".join(f"{number:,} of {members} trials" for members, number in sorted(sizes.items(), reverse=True))
    alone = len(plan.trials) - sum(len(pack.trials) for pack in plan.packs)
    rest = f", {alone:,} trial{'s' * (alone != 1)} alone" if alone else ""
    before, now = sum(pack.alone for pack in plan.packs), sum(pack.total for pack in plan.packs)
    saved = (before - now) / plan.devices_per_worker / 3600 * (plan.sweep.compute.gpus_per_worker or 1.0)
    unknown = [pack for pack in plan.packs if not pack.measured]
    known = f"; the gain of {len(unknown)} was not measured on {plan.device.name}" if unknown else ""
    return f"{packed}{rest}: {before / now:.2f}x as fast as alone, {saved:.3g} device hours less{known}"


def _no_packs(plan: Plan) -> str:
    """Why there are none where packing is asked for."""
    compute = plan.sweep.compute
    if not any(map(packable, plan.trials)):
        return "none: no trial here can be a member (docs/training.md)"
    if compute.packing != "auto":
        return "none: no two trials are of one shape and end at the same samples"
    if compute.gpus_per_worker and compute.device is None:
        return "none: auto needs to know the GPU; name compute.device"
    return f"none: not measured to pay on {plan.device.name} for such shapes, or a gang would be left without work"


def _distances(plan: Plan, distance: Distance) -> str:
    """By what images are compared, and at how many measurements that is affordable."""
    evaluation = plan.trials[0].evaluation
    where = sum(len(distances(trial)) for trial in plan.trials)
    name = "FID" if distance.encoder == "inception" else f"FD-{distance.encoder}"
    how = f"{distance.images:,} images, {evaluation.sampler_steps} steps of {evaluation.sampler}"
    return f"{name} of {how}, at {where:,} of {sum(len(t.milestones) for t in plan.trials):,} measurements"


def _memory(plan: Plan) -> str:
    """The largest trial's memory and how it was made to fit."""
    on_gpu = plan.sweep.compute.gpus_per_worker > 0
    largest = max(plan.trials, key=lambda trial: trial_memory(trial, on_gpu=on_gpu).total)
    how = [f"micro-batch {largest.micro_batch}"] if largest.micro_steps > 1 else []
    how += ["activation checkpointing"] if largest.activation_checkpointing else []
    how += ["offload"] if largest.offload else []
    ways = f" with {', '.join(how)}" if how else ""
    return f"{size(trial_memory(largest, on_gpu=on_gpu).total)} a worker at most, of size {largest.size}{ways}"


# Devices and gangs.


def _devices(plan: Plan) -> Table:
    """Hours on several devices, by the number of gangs."""
    found = speeds(plan)
    heads = ("1 gang" if number == 1 else f"{number:,} gangs" for number in found[0].hours_by_gangs)
    table = _table("device", "FLOP/s", "device hours", *heads, "", left=1)
    for speed in found:
        notes = [] if speed.measured else ["speed assumed"]
        notes += [] if speed.fits else ["does not fit"]
        table.add_row(
            speed.device,
            f"{speed.flops_per_second:.2e}",
            f"{speed.device_hours:.3g}",
            *(duration(3600 * hours) for hours in speed.hours_by_gangs.values()),
            Text(", ".join(notes), style="dim"),
        )
    return table


# What the plan will tell.


def _expected(expected: Sequence[Mapping[str, Any]], whole: Plan) -> list[RenderableType]:
    """The 95% intervals that the fits of arms are expected to have; of sweeps of learning rates, what they tell."""
    with_law = {interval["arm"] for interval in expected if interval["outcome"] == "expected"}
    rates = {arm: numbers for arm, numbers in _rate_sweeps(whole).items() if arm not in with_law}
    parts: list[RenderableType] = []
    if rates:
        moves = ", and how it moves with size" if any(len(n) > 1 for n in rates.values()) else ""
        about = [f"{arm} {max(n)} rates at {len(n)} size{'' if len(n) == 1 else 's'}" for arm, n in rates.items()]
        parts.append(Text(f"What it tells: the best learning rate of each size{moves} ({', '.join(about)})"))
    others = [interval for interval in expected if interval["arm"] not in rates]
    return [*parts, _intervals(others)] if others else parts


def _rate_sweeps(plan: Plan) -> dict[str, list[int]]:
    """Of the arms that compare learning rates of sizes with one budget each, how many at each: they hold no law."""
    found = {}
    for arm in plan.arms:
        rates: dict[str, set[float]] = {}
        budgets: dict[str, set[int]] = {}
        for trial in plan.trials:
            if trial.arm == arm:
                rates.setdefault(trial.size, set()).add(trial.optimizer.learning_rate)
                budgets.setdefault(trial.size, set()).update(trial.milestones)
        compared = [len(values) for values in rates.values() if len(values) >= MIN_RATES_COMPARED]
        if compared and all(len(values) == 1 for values in budgets.values()):
            found[arm] = compared
    return found


def _intervals(expected: Sequence[Mapping[str, Any]]) -> Group:
    """A row an arm, and why others have none."""
    names = list(dict.fromkeys(interval["name"] for interval in expected if interval["outcome"] == "expected"))
    table = _table("arm", "by", *(EXPECTED_NAMES.get(name, name) for name in names), left=2)
    reasons = []
    for (arm, method), intervals in _by(expected, "arm", "method"):
        found = {interval["name"]: interval for interval in intervals if interval["outcome"] == "expected"}
        if found:
            table.add_row(arm, method, *(_band(found.get(name)) for name in names))
        reasons += [f"{arm} by {method}: {i['reason']}" for i in intervals if i["outcome"] != "expected"][:1]
    head = Text("Expected 95% intervals, if the law and noise in `expect` were true", style="bold")
    return Group(head, table, *(Text(reason, style="yellow") for reason in reasons))


EXPECTED_NAMES = {"N_exponent": "N* exponent", "D_exponent": "D* exponent", "params": "N*", "samples": "D*"}


def _by(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _band(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    low, high = interval["low"], interval["high"]
    if interval["name"] in ("params", "samples"):
        return f"{count(low)} to {count(high)}"
    return f"{interval['truth']:.3g} ± {(high - low) / 2:.2g}"


def _share(plan: Plan) -> str:
    return f"{plan.flops_evaluation / plan.flops_planned:.0%}" if plan.flops_planned else "all"


def _table(*columns: str, left: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=index >= left)
    return table
