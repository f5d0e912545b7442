"""The constraints of a sweep: conditions that its cells must meet; the others are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.planning.cell import Cell
from orchestrator.spec.datasets import dataset_named
from orchestrator.spec.expression import Condition, parse
from orchestrator.spec.source import Location, nearest
from orchestrator.spec.sweep import Sweep

NAMES = (
    "arm", "size", "seed", "width", "depth", "params", "params_total", "batch_size", "learning_rate", "samples",
    "tokens", "flops", "steps", "epochs", "tokens_per_param",
)  # fmt: skip
"""What a condition may name beside the axes."""


class Constraints:
    """The conditions of a sweep, read; what is wrong with one is told to `refuse`, with its place in the spec."""

    def __init__(self, sweep: Sweep, refuse: Callable[[Location, str], None]) -> None:
        self._sweep, self._refuse = sweep, refuse
        self._sound = True
        self._conditions = list(self._read())

    def kept(self, cells: list[Cell]) -> list[Cell]:
        """The cells that meet every condition; it is a problem if none does."""
        if not self._conditions:
            return cells
        left = [0] * len(self._conditions)
        kept = []
        for cell in cells:
            values = self._values(cell)
            met = [self._holds(index, condition, values) for index, condition in self._conditions]
            left = [count + one for count, one in zip(left, met, strict=True)]
            if all(met):
                kept.append(cell)
        if cells and not kept and self._sound:
            alone = "; ".join(
                f"{condition.text!r} alone leaves {count}"
                for (_, condition), count in zip(self._conditions, left, strict=True)
            )
            self._refuse(("constraints",), f"leave none of {len(cells)} cells: {alone}. Loosen one.")
        return kept

    def _read(self) -> Iterator[tuple[int, Condition]]:
        axes = {axis for arm in self._sweep.arms.values() for axis in {**self._sweep.axes, **arm.axes}}
        known = {*NAMES, *(axis.split(".")[-1] for axis in axes), *axes}
        for index, text in enumerate(self._sweep.constraints):
            try:
                condition = parse(text)
            except ValueError as error:
                self._wrong(index, str(error))
                continue
            if unknown := sorted(condition.names - known):
                wanted = f"wanted one of {', '.join(sorted(known))}"
                self._wrong(index, f"{text!r} names {unknown[0]!r}; {wanted}{nearest(unknown[0], known)}")
                continue
            yield index, condition

    def _holds(self, index: int, condition: Condition, values: Mapping[str, Any]) -> bool:
        try:
            return condition.holds(values)
        except ValueError as error:
            told = ", ".join(f"{name} = {values.get(name)!r}" for name in sorted(condition.names))
            self._wrong(index, f"{error}, where {told}")
        except KeyError as error:
            self._wrong(index, f"{condition.text!r} uses {error}, which arm {values['arm']} has not")
        return False

    def _wrong(self, index: int, message: str) -> None:
        self._sound = False
        self._refuse(("constraints", index), message)

    def _values(self, cell: Cell) -> dict[str, Any]:
        """What a condition may name."""
        model, target, config = cell.model, cell.target, cell.model.config
        samples = float(target.samples)
        values: dict[str, Any] = {
            "arm": cell.variant.arm,
            "size": model.name,
            "seed": float(cell.seed),
            "width": float(config.width),
            "depth": float(config.depth),
            "params": float(model.params),
            "params_total": float(model.cost.params_total),
            "batch_size": float(target.batch_size),
            "learning_rate": cell.learning_rate,
            "samples": samples,
            "tokens": samples * model.cost.tokens,
            "flops": samples * model.cost.training_flops,
            "steps": samples / target.batch_size,
            "epochs": dataset_named(self._sweep.dataset).epochs(samples),
            "tokens_per_param": samples * model.cost.tokens / model.params,
        }
        for axis, value in cell.variant.axes.items():
            plain = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            values.setdefault(axis, plain)
            values.setdefault(axis.split(".")[-1], plain)
        return values
