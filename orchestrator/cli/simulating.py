"""Commands that try a plan out: `simulate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.refusals import refusing
from orchestrator.cli.sweeps import plan_of

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.scheduling.backend import Node
    from orchestrator.spec.compute import Compute

ABOVE_0 = click.FloatRange(min=0, min_open=True)
FROM_0 = click.FloatRange(min=0)


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--gpus", type=click.IntRange(1, 1_000_000), required=True, help="GPUs of the cluster.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True, help="GPUs of a node.")
@click.option("--cpus-per-gpu", type=ABOVE_0, default=16, show_default=True, help="CPUs of a node for each GPU.")
@click.option("--mtbf-hours", type=ABOVE_0, help="Mean time between failures of one GPU; default: none fails.")
@click.option("--preemptions-per-day", type=FROM_0, default=0.0, help="How often each node is taken away.")
@click.option("--notice-seconds", type=FROM_0, default=0.0, help="Notice before that, to save and leave.")
@click.option("--repair-hours", type=ABOVE_0, default=1.0, show_default=True, help="Until a lost node is back.")
@click.option("--startup-seconds", type=FROM_0, default=30.0, show_default=True, help="What a gang's start takes.")
@click.option("--noise", type=FROM_0, default=0.0, help="Standard deviation of the log of trials' seconds.")
@click.option("--limit", "limits", multiple=True, help="Most GPUs of a sweep at once, as NAME=64; default: max_gpus.")
@click.option("--priority", "priorities", multiple=True, help="Priority of a sweep, as NAME=1; higher goes first.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Draw the schedule here (PNG).")
def simulate(
    specs: tuple[Path, ...],
    gpus: int,
    gpus_per_node: int,
    cpus_per_gpu: float,
    mtbf_hours: float | None,
    preemptions_per_day: float,
    notice_seconds: float,
    repair_hours: float,
    startup_seconds: float,
    noise: float,
    limits: tuple[str, ...],
    priorities: tuple[str, ...],
    seed: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """Run SPECs on a simulated cluster: makespan, utilisation, and what faults cost.

    The scheduler is the one of `ditlaw run`; trials take what `ditlaw plan` estimates. As many gangs run as fit,
    whatever compute.gangs says, and packs are formed for so many. Several SPECs share the cluster.

    \b
    ditlaw simulate sweep.yaml --gpus 4096 --mtbf-hours 50000 --json
    """
    plans = [plan_of(spec) for spec in specs]
    from orchestrator import simulated
    from orchestrator.scheduling import simulation
    from orchestrator.scheduling.state import Limit, Policy
    from orchestrator.scheduling.study import Faults, works_of

    with refusing():
        given = {plan.sweep.name: plan.sweep.compute.max_gpus for plan in plans} | dict(
            _by_sweep("--limit", limits, plans)
        )
        most = {sweep: Limit(gpus=number) for sweep, number in given.items() if number is not None}
        first = _by_sweep("--priority", priorities, plans)
        nodes = _nodes(gpus, gpus_per_node, cpus_per_gpu)
        works = [
            work
            for plan in plans
            for work in works_of(plan, first.get(plan.sweep.name), _widest(plan, nodes, given[plan.sweep.name]))
        ]
        faults = Faults(
            mtbf_hours=mtbf_hours or float("inf"),
            preemptions_per_day=preemptions_per_day,
            notice_seconds=notice_seconds,
            repair_hours=repair_hours,
            noise=noise,
        )
        policy = Policy(startup_seconds=startup_seconds)
        outcome = simulation.simulate(works, nodes, faults=faults, limits=most, policy=policy, seed=seed)
        if out is not None:
            simulated.save_figure(outcome, works, nodes, out)
    if as_json:
        click.echo(json.dumps(simulated.as_json(outcome), indent=2))
        return
    from rich.console import Console

    Console().print(simulated.view(outcome, nodes))


def _widest(plan: Plan, nodes: Sequence[Node], max_gpus: float | None) -> Compute:
    """The compute section of a sweep that asks for as many gangs of one worker as fit."""
    from orchestrator.scheduling.backend import GangShape
    from orchestrator.scheduling.capacity import Cluster

    compute = plan.sweep.compute
    fit = max(1, Cluster.of(nodes).workers(GangShape.of(compute, 1)))
    return compute.model_copy(update={"gangs": fit, "max_gpus": max_gpus})


def _nodes(gpus: int, per_node: int, cpus_per_gpu: float) -> list[Node]:
    """Nodes of `per_node` GPUs; the last one has what is left."""
    from orchestrator.scheduling.backend import Node

    sizes = [per_node] * (gpus // per_node) + ([gpus % per_node] if gpus % per_node else [])
    width = len(str(len(sizes)))
    return [
        Node(name=f"node-{index:0{width}d}", cpus=size * cpus_per_gpu, gpus=size) for index, size in enumerate(sizes)
    ]


def _by_sweep(option: str, given: Sequence[str], plans: Sequence[Plan]) -> Mapping[str, Any]:
    """NAME=NUMBER options by name; raise ValueError for what is not one, or of no sweep here."""
    known: list[str] = [plan.sweep.name for plan in plans]
    found: dict[str, Any] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if name not in known:
            raise ValueError(f"{option} got {text!r}; wanted NAME=NUMBER with a name among {', '.join(known)}")
        try:
            found[name] = float(number) if option == "--limit" else int(number)
        except ValueError:
            raise ValueError(f"{option} got {text!r}; wanted a number after the '='") from None
    return found
