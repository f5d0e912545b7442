"""Whether a cluster could ever hold the gangs of a plan; if not, for which trial, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.planning.plan import Plan
from orchestrator.scheduling.backend import GangShape, Node

Need = tuple[str, str, float]
"""The resource, its key in the spec, and how much of it a worker needs."""


def check_fit(plan: Plan, nodes: Sequence[Node], autoscaler: Node | None = None) -> None:
    """Raise ValueError for the largest trial whose gang the nodes could not hold, even empty.

    Args:
        plan: of which every trial is looked at.
        nodes: with all that they have.
        autoscaler: what the cluster may grow to, taken together; then what is not there yet may come.
    """
    trial = max(plan.trials, key=lambda trial: trial.num_workers)
    shape = GangShape.of(plan.sweep.compute, trial.num_workers)
    needs: list[Need] = [
        ("CPU", "compute.cpus_per_worker", shape.cpus_per_worker),
        ("GPU", "compute.gpus_per_worker", shape.gpus_per_worker),
    ]
    fits = min(_workers(nodes, shape), shape.workers)
    if fits == shape.workers or (autoscaler is not None and _workers([autoscaler], shape) >= shape.workers):
        return
    grown = [autoscaler] if autoscaler is not None else []
    short = [
        need
        for need in needs
        if max(sum(_each(node, need) for node in place) for place in (nodes, grown)) < shape.workers
    ] or needs
    resource, key, each = next((need for need in short if need[2]), needs[0])
    have = ", ".join(f"{_has(node, resource):g}" for node in nodes) or "none"
    grow = f", and may grow to {_has(autoscaler, resource):g} in all" if autoscaler is not None else ""
    what = f"A gang of {fits} such workers would fit: lower compute.workers" if fits else "Lower compute.workers"
    raise ValueError(
        f"trial {trial.name} ({trial.trial_id}) does not fit: a gang needs {each * shape.workers:g} {resource}s "
        f"({shape.workers} workers of {each:g}, each on one node); the cluster's nodes have {have}{grow}. "
        f"{what} or {key} in the spec, or join a larger cluster with --address."
    )


def _workers(nodes: Sequence[Node], shape: GangShape) -> int:
    """Workers that the nodes hold together, each on one node."""
    needs: list[Need] = [("CPU", "", shape.cpus_per_worker), ("GPU", "", shape.gpus_per_worker)]
    return sum(min(_each(node, need) for need in needs if need[2]) for node in nodes)


def _each(node: Node, need: Need) -> int:
    """Workers that a node holds by one resource; as good as endless where they need none of it."""
    resource, _, each = need
    return int(_has(node, resource) / each + 1e-9) if each else 1_000_000


def _has(node: Node, resource: str) -> float:
    return node.gpus if resource == "GPU" else node.cpus
