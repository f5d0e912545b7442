"""The models of a sweep: every size, listed or given by a rule, as an architecture with its cost."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.config import FAMILIES, preset_fields
from models.configs.base import DATA_FIELDS, ModelConfig
from models.cost import Cost, cost
from orchestrator.spec.datasets import Dataset
from orchestrator.spec.ladder import AspectLadder, DepthLadder, ExpectedOptimum, IsoFlopLadder, Size, WidthLadder
from orchestrator.spec.source import Location, Problem, Source, nearest
from orchestrator.spec.sweep import Models

MAX_SIZES = 10_000
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class SizedModel:
    """A size as an architecture, with its cost."""

    name: str
    config: ModelConfig
    cost: Cost

    @property
    def params(self) -> int:
        """The N of the laws: backbone parameters."""
        return self.cost.params_backbone


@dataclass(frozen=True)
class Ladder:
    """The sizes of one `models` section, smallest first as far as a rule made them, and who is measured where."""

    models: list[SizedModel]
    around: Callable[[float], frozenset[str]] | None = None
    """The sizes of a budget in FLOPs, where they are chosen around its expected optimum; None: all of them."""


class Sizing:
    """Works the sizes of one `models` section out; what cannot be is added to `problems`.

    Args:
        models: the section.
        dataset: gives image size, channels and classes.
        source: where the spec comes from, for files named in it.
        problems: grows.
        at: where the section stands in the spec.
    """

    def __init__(
        self, models: Models, dataset: Dataset, source: Source, problems: list[Problem], at: Location = ("models",)
    ) -> None:
        self._models, self._dataset, self._source = models, dataset, source
        self._problems, self._at = problems, at

    def ladder(self, flops: Sequence[float] | None) -> Ladder:
        """All sizes. `flops` are the sweep's budgets, which the rule `isoflop` needs; None where they are no FLOPs."""
        name = self._models.family
        if name not in FAMILIES:
            message = f"got {name!r}; wanted one of {', '.join(sorted(FAMILIES))}{nearest(name, FAMILIES)}"
            self._problem(("family",), message)
            return Ladder([])
        self._family = FAMILIES[name]
        self._fields = {field.name for field in dataclasses.fields(self._family)}
        self._options = self._family_options()
        rule = self._models.sizes
        if isinstance(rule, list):
            found = [self._listed(index, size) for index, size in enumerate(rule)]
            self._each_once([size.name for size in rule])
            return Ladder([model for model in found if model is not None])
        if isinstance(rule, WidthLadder):
            return Ladder(self._all([(f"w{width}", width, rule.depth) for width in self._widths(rule.widths)]))
        if isinstance(rule, DepthLadder):
            return Ladder(self._all([(f"d{depth}", rule.width, depth) for depth in rule.depths]))
        if isinstance(rule, AspectLadder):
            return Ladder(self._aspect(rule))
        return self._isoflop(rule, flops)

    # Listed sizes.

    def _listed(self, index: int, size: Size) -> SizedModel | None:
        at: Location = ("sizes", index)
        if size.preset is not None:
            try:
                return self._build(size.name, preset_fields(self._family, size.preset), at)
            except ValueError as error:
                self._problem((*at, "preset"), f"size {size.name}: {error}")
                return None
        assert size.width is not None, "the sweep's validation wants a preset, or width and depth"
        assert size.depth is not None, "the sweep's validation wants a preset, or width and depth"
        return self._shaped(size.name, size.width, size.depth, at, size.heads, size.patch)

    def _each_once(self, names: list[str]) -> None:
        for index, name in enumerate(names):
            if name in names[:index]:
                self._problem(("sizes", index), f"got size {name} a second time; wanted each once")

    # Rules.

    def _all(self, shapes: list[tuple[str, int, int]]) -> list[SizedModel]:
        if len(shapes) > MAX_SIZES:
            self._problem(("sizes",), f"gives {len(shapes):,} sizes; wanted at most {MAX_SIZES:,}")
            return []
        found = [self._shaped(name, width, depth, ("sizes",)) for name, width, depth in shapes]
        return [model for model in found if model is not None]

    def _aspect(self, rule: AspectLadder) -> list[SizedModel]:
        step = self._width_step()
        if step is None:
            return []
        if rule.widths is not None:
            widths = self._widths(rule.widths)
        else:
            assert rule.params is not None, "the sweep's validation wants widths or params"
            widths = sorted({self._width_of(params, step, rule.aspect) for params in rule.params})
        return self._all([self._named(width, rule.aspect) for width in widths])

    def _widths(self, widths: list[int]) -> list[int]:
        """Listed widths as they are; those of a rule at the nearest multiples of the head size."""
        step = self._width_step()
        if step is None or not isinstance(self._raw("widths"), dict):
            return widths
        return sorted({max(step, round(width / step) * step) for width in widths})

    def _width_of(self, params: float, step: int, aspect: float) -> int:
        """The width, a multiple of `step`, whose model is nearest to `params` in the logarithm."""
        low, high = 1, 2
        while high * step < MAX_WIDTH and self._params(high * step, aspect) < params:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._params(middle * step, aspect) < params else (low, middle)
        return min(low * step, high * step, key=lambda width: abs(math.log(self._params(width, aspect) / params)))

    def _params(self, width: int, aspect: float | None, depth: int | None = None) -> int:
        name, width, depth = self._named(width, aspect, depth)
        model = self._shaped(name, width, depth, ("sizes",))
        return model.params if model is not None else 1 << 62

    def _named(self, width: int, aspect: float | None, depth: int | None = None) -> tuple[str, int, int]:
        if depth is not None:
            return f"w{width}", width, depth
        assert aspect is not None, "the sweep's validation wants a depth or an aspect"
        deep = max(1, round(width / aspect))
        return f"w{width}d{deep}", width, deep

    def _isoflop(self, rule: IsoFlopLadder, flops: Sequence[float] | None) -> Ladder:
        """A ladder of sizes `ratio` apart in parameters, and the `per_budget` of them nearest to each optimum."""
        if flops is None:
            self._problem(
                ("sizes", "rule"), "chooses sizes by FLOPs; wanted budgets in flops or gpu_hours for all sizes"
            )
            return Ladder([])
        optimum, step = self._optimum(rule.expected), self._width_step()
        if optimum is None or step is None:
            return Ladder([])
        rungs = self._rungs(rule, step, at_least=max(map(optimum, flops)))
        if not rungs:
            return Ladder([])
        logs = [math.log(rung.params) for rung in rungs]

        def around(budget: float) -> frozenset[str]:
            wanted = math.log(optimum(budget))
            nearest_rung = min(range(len(rungs)), key=lambda index: abs(logs[index] - wanted))
            first = max(0, min(nearest_rung - rule.per_budget // 2, len(rungs) - rule.per_budget))
            return frozenset(rung.name for rung in rungs[first : first + rule.per_budget])

        used = frozenset().union(*(around(budget) for budget in flops))
        return Ladder([rung for rung in rungs if rung.name in used], around)

    def _rungs(self, rule: IsoFlopLadder, step: int, at_least: float) -> list[SizedModel]:
        """Rungs from the smallest possible model to `per_budget` // 2 beyond `at_least` parameters."""
        rungs: list[SizedModel] = []
        width, beyond = step, 0
        while beyond <= rule.per_budget // 2 and width <= MAX_WIDTH and len(rungs) < MAX_SIZES:
            name, _, depth = self._named(width, rule.aspect, rule.depth)
            model = self._shaped(name, width, depth, ("sizes",))
            if model is None:
                return []
            rungs.append(model)
            beyond += model.params >= at_least
            width = self._next_width(rule, step, width, model.params * rule.ratio)
        return rungs

    def _next_width(self, rule: IsoFlopLadder, step: int, width: int, wanted: float) -> int:
        """The width above `width` whose parameters are nearest to `wanted`."""
        width += step
        above = width
        while self._params(above, rule.aspect, rule.depth) < wanted and above <= MAX_WIDTH:
            width, above = above, above + step
        distances = {w: abs(math.log(self._params(w, rule.aspect, rule.depth) / wanted)) for w in (width, above)}
        return min(distances, key=lambda candidate: distances[candidate])

    def _optimum(self, expected: ExpectedOptimum) -> Callable[[float], float] | None:
        """N*(C) in backbone parameters."""
        if expected.allocation is None:
            assert expected.params is not None, "the sweep's validation wants params and flops, or a file"
            assert expected.flops is not None, "the sweep's validation wants params and flops, or a file"
            params, flops, power = expected.params, expected.flops, expected.exponent
            return lambda budget: params * (budget / flops) ** power
        at: Location = ("sizes", "expected", "allocation")
        path = self._source.place((*self._at, *at))[0].parent / expected.allocation
        try:
            found = json.loads(path.read_text())
            params = found["params"]
            power, coefficient = float(params["N_exponent"]), float(params["N_coefficient"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            message = f"cannot be used ({what}); wanted a file that `ditlaw fit ... --law isoflop --json` has printed"
            self._problem(at, message)
            return None
        return lambda budget: coefficient * float(budget**power)

    # One model.

    def _shaped(
        self, name: str, width: int, depth: int, at: Location, heads: int | None = None, patch: int | None = None
    ) -> SizedModel | None:
        for key, given in (("heads", heads), ("patch", patch)):
            if given is not None and key not in self._fields:
                self._problem((*at, key), self._foreign(key))
                return None
        shape: dict[str, int | None] = {"width": width, "depth": depth}
        if "heads" in self._fields:
            shape["heads"] = heads or self._heads(name, width, at)
        if "patch" in self._fields:
            shape["patch"] = patch or self._models.patch
            if shape["patch"] is None:
                self._problem(at, f"size {name} has no patch; give `patch` here or beside `sizes`")
        whole = {key: value for key, value in shape.items() if value is not None}
        return self._build(name, whole, at) if len(whole) == len(shape) else None

    def _build(self, name: str, shape: Mapping[str, int], at: Location) -> SizedModel | None:
        data = self._dataset
        facts = {"dataset": data.name, **{key: getattr(data, key) for key in DATA_FIELDS if key != "dataset"}}
        given = {key: value for key, value in facts.items() if key in self._fields}
        if self._family.samples != data.samples:
            others = ", ".join(name for name, family in FAMILIES.items() if family.samples == data.samples)
            message = (
                f"got {self._models.family}, a family of {self._family.samples}, for dataset {data.name}, which holds "
                f"{data.samples}; wanted one of {others}, or another dataset"
            )
            self._problem(("family",), message)
            return None
        try:
            config = self._family(**{**given, **self._options, **shape})
        except ValueError as error:
            option = str(error).split(" ", 1)[0]
            if option in self._options:
                self._problem((option,), str(error).split(" ", 1)[1])
            else:
                self._problem(at, f"size {name}: {error}")
            return None
        return SizedModel(name, config, cost(config))

    def _heads(self, name: str, width: int, at: Location) -> int | None:
        head_dim = self._models.head_dim
        if head_dim is None:
            self._problem(at, f"size {name} has no heads; give `heads` here or `head_dim` beside `sizes`")
            return None
        if width % head_dim:
            step = math.lcm(head_dim, 4)
            below = max(step, width // step * step)
            message = (
                f"got width {width}, which heads of size {head_dim} do not divide; wanted a multiple of "
                f"head_dim and of 4, such as {below} or {below + step}, or another models.head_dim"
            )
            self._problem((*at, "width"), message)
            return None
        return width // head_dim

    def _width_step(self) -> int | None:
        """What the widths of a rule are multiples of."""
        if self._models.head_dim is None:
            self._problem(("sizes",), "a rule for sizes needs `head_dim` beside `sizes`")
            return None
        return math.lcm(self._models.head_dim, 4)

    def _family_options(self) -> dict[str, Any]:
        """The options of the spec that the family has; those that were written and that it has not are problems."""
        given = {key: getattr(self._models, key) for key in self._models.model_fields_set - {"family", "sizes"}}
        with_heads = {"head_dim"} if "heads" in self._fields else set()
        options = {}
        for key, value in given.items():
            if key not in self._fields | with_heads:
                self._problem((key,), self._foreign(key))
            elif value is not None and key not in ("patch", *with_heads):
                options[key] = value
        return options

    def _foreign(self, key: str) -> str:
        """Why there is no such option."""
        why = self._family.refusals.get(key)
        reason = f": {why}" if why else ""
        return f"is not an option of family {self._models.family}{reason}; drop it, or choose another models.family"

    def _raw(self, key: str) -> Any:
        """What the file gives for a key of the rule, before it was worked out."""
        value = self._source.data
        for part in (*self._at, "sizes", key):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _problem(self, location: Location, message: str) -> None:
        problem = Problem((*self._at, *location), message)
        if problem not in self._problems:
            self._problems.append(problem)
