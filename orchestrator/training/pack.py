"""Trials of one shape trained as one stacked model: the step of `engine.Engine` for many members at once.

Weights, Adam's moments and averages of M members are rows of [M, P] buffers, with P the parameters of one. AdamW is
torch's fused kernel, called for the columns that share their settings, so every member has its own learning rate,
weight decay and epsilon in every parameter group, as µP wants. DeepSpeed knows one model and one learning rate a group,
so it is not used: fp32 is what ZeRO-0 does on one worker, bf16 with fp32 masters what ZeRO-1 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from models.ema import Ema
from models.families import build
from models.objectives import Objective
from models.packed import pack
from models.parameterization import TaggedModule, parameter_groups
from orchestrator.spec.trial import Optimizer, Precision, Trial
from orchestrator.training.engine import MOMENTS
from orchestrator.training.step_graph import StepGraph

Settings = tuple[float, float, float]
"""Learning rate, weight decay and epsilon of a parameter."""
CLIP_EPS = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""


@dataclass(frozen=True)
class _Columns:
    """Parameters that share their settings in every member: columns of the buffers."""

    part: slice
    settings: tuple[Settings, ...]
    """Of each member."""


class Pack:
    """M members under training.

    Args:
        trials: the members: of one model, objective, batch size, precision and betas.
        objective: theirs.
        device: where.
        graph: replay the step as a CUDA graph, on a GPU.
    """

    def __init__(self, trials: Sequence[Trial], objective: Objective, device: torch.device, graph: bool = True) -> None:
        models = [build(trial.model, trial.parameterization, trial.seed) for trial in trials]
        settings = [_settings(model, trial) for model, trial in zip(models, trials, strict=True)]
        self.names = list(settings[0])
        self.optimizers: list[Optimizer] = [trial.optimizer for trial in trials]
        self.precision: Precision = trials[0].precision
        self.device, self._graphed = device, graph
        compiled = trials[0].compiled and device.type == "cuda"
        self._loss: Callable[..., Tensor] = torch.compile(objective.loss, dynamic=False) if compiled else objective.loss
        self._graph: StepGraph | None = None
        self.model = pack(models).to(device)
        self.members = [PackMember(self, row) for row in range(len(trials))]
        self._emas: dict[int, Ema] = {}
        self._shapes = {name: parameter.shape for name, parameter in models[0].named_parameters()}
        self._columns, self._places = _layout(settings, self._shapes)
        shape = (len(trials), sum(map(prod, self._shapes.values())))
        self.masters, self.averages = (torch.zeros(shape, device=device) for _ in range(2))
        self.moments = {name: torch.zeros(shape, device=device) for name in MOMENTS}
        self.steps = torch.zeros(len(trials), device=device)
        for name, parameter in self.model.named_parameters():
            self.masters[:, self._places[name]] = parameter.detach().flatten(1)
        self._bind()

    def step(self, batch: Sequence[Tensor], rates: Sequence[float], spans: Sequence[tuple[int, int]]) -> Tensor:
        """One optimizer step of every member; returns their mean losses [M], not waited for.

        Args:
            batch: images, labels, times and noise, the members' batches one after the other.
            rates: each member's learning rate over its base rate.
            spans: samples seen by each member before and after the step.
        """
        weights = [
            1.0 if before == 0 else 1 - (before / after) ** (self._emas[row].gamma + 1)
            for row, (before, after) in enumerate(spans)
        ]
        if self.device.type != "cuda":
            return self._advance(batch, self._scaled(rates), torch.tensor(weights)[:, None])
        numbers = [*weights, *(lr for row in self._scaled(rates) for lr in row)]
        numbers_there = torch.tensor(numbers, pin_memory=True).to(self.device, non_blocking=True)
        if not self._graphed:
            return self._advance_by(*batch, numbers_there)
        if self._graph is None:
            self._graph = StepGraph(self._advance_by)
        return self._graph(*batch, numbers_there)

    def _scaled(self, rates: Sequence[float]) -> list[list[float]]:
        """The learning rate of each column and member."""
        return [[lr * rate for rate, (lr, _, _) in zip(rates, part.settings, strict=True)] for part in self._columns]

    def _advance_by(self, *inputs: Tensor) -> Tensor:
        """`_advance` by tensors alone, as a graph replays it: a batch, then the numbers of `step`."""
        *batch, numbers = inputs
        num = len(self.members)
        rates = numbers[num:].view(len(self._columns), num)
        return self._advance(batch, [list(row) for row in rates], numbers[:num, None])

    def _advance(self, batch: Sequence[Tensor], rates: Sequence[Sequence[float | Tensor]], weights: Tensor) -> Tensor:
        losses = self._losses(batch)
        gradients = torch.autograd.grad(losses.sum(), list(self.model.parameters()))
        torch._foreach_copy_(self._gradients, list(gradients))
        self._clip()
        self._adamw(rates)
        self.refresh()
        self.averages.lerp_(self.masters, weights)
        return losses.detach()

    def _losses(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean loss of each member [M]."""
        x, y, t, noise = batch
        losses: Tensor = self._loss(self.model, x, y, t, noise)
        return losses.view(len(self.members), -1).mean(1)

    def _clip(self) -> None:
        """Scale each member's gradient down to its own largest norm."""
        limits = [optimizer.gradient_clip for optimizer in self.optimizers]
        if not any(limits):
            return
        norms = torch.linalg.vector_norm(self._gradient, dim=1)
        for row, limit in enumerate(limits):
            if limit is not None:
                self._gradient[row] *= (limit / (norms[row] + CLIP_EPS)).clamp(max=1.0)

    def _adamw(self, rates: Sequence[Sequence[float | Tensor]]) -> None:
        self.steps += 1
        beta1, beta2 = self.optimizers[0].betas
        buffers = [self.masters, self._gradient, *self.moments.values()]
        for columns, own in zip(self._columns, rates, strict=True):
            for row, (lr, (_, decay, eps)) in enumerate(zip(own, columns.settings, strict=True)):
                masters, gradients, first, second = ([buffer[row, columns.part]] for buffer in buffers)
                torch._fused_adamw_(
                    masters, gradients, first, second, [], [self.steps[row]], lr=lr, beta1=beta1, beta2=beta2,
                    weight_decay=decay, eps=eps, amsgrad=False, maximize=False,
                )  # fmt: skip

    # Members.

    def follow(self, row: int, ema: Ema) -> None:
        """Let the pack's steps update a member's average."""
        (average,) = ema.tensors
        self.averages[row] = average
        ema.tensors = [self.averages[row]]
        self._emas[row] = ema

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the members; the others are done."""
        index = torch.tensor(rows, device=self.device)
        self.masters, self.averages, self.steps = self.masters[index], self.averages[index], self.steps[index]
        self.moments = {name: moment[index] for name, moment in self.moments.items()}
        self._columns = [
            _Columns(columns.part, tuple(columns.settings[row] for row in rows)) for columns in self._columns
        ]
        self.members, self.optimizers = [self.members[row] for row in rows], [self.optimizers[row] for row in rows]
        emas = [self._emas[row] for row in rows]
        for row, (member, ema) in enumerate(zip(self.members, emas, strict=True)):
            member.row = row
            ema.tensors = [self.averages[row]]
        self._emas = dict(enumerate(emas))
        for module in self.model.modules():
            if isinstance(multiplier := getattr(module, "multiplier", None), Tensor):
                module.multiplier = multiplier[index]
        self._bind()

    def whole(self, row: Tensor) -> Iterator[Tensor]:
        """The parameters of one member, in the model's order, as parts of one of its rows."""
        for name in self.names:
            yield row[self._places[name]].view(self._shapes[name])

    @torch.no_grad()
    def write(self, row: Tensor, full: Mapping[str, Tensor]) -> None:
        """The reverse of `whole`, from full tensors by name."""
        for name, part in zip(self.names, self.whole(row), strict=True):
            part.copy_(full[name])

    def refresh(self) -> None:
        """Let the model see masters that were written from outside."""
        if self.precision == "bf16":
            self._weights.copy_(self.masters)

    def _bind(self) -> None:
        """Make the model's parameters views of the buffers, and make room for gradients; a graph knew the old ones."""
        self._graph = None
        self._weights = self.masters if self.precision == "fp32" else self.masters.to(torch.bfloat16)
        self._gradient = torch.zeros_like(self.masters)
        self._gradients = []
        for name in self.names:
            parent, _, child = name.rpartition(".")
            shape, place = (len(self.members), *self._shapes[name]), self._places[name]
            setattr(self.model.get_submodule(parent), child, torch.nn.Parameter(self._weights[:, place].view(shape)))
            self._gradients.append(self._gradient[:, place].view(shape))


class PackMember:
    """One member of a pack, as an attempt sees it: its state, in the form that `engine.Engine` has it."""

    def __init__(self, pack: Pack, row: int) -> None:
        self._pack, self.row = pack, row

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the model's order."""
        return self._pack.names

    def masters(self) -> list[Tensor]:
        """The fp32 weights: one flat piece."""
        return [self._pack.masters[self.row]]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Full fp32 tensors in the model's order, from parts laid out as `masters()`."""
        return self._pack.whole(parts[0])

    def take_part(self, parts: Sequence[Tensor], full: Mapping[str, Tensor]) -> None:
        """Write full fp32 tensors, by parameter name, into `parts`; `whole`'s reverse."""
        self._pack.write(parts[0], full)

    def state(self) -> dict[str, Tensor]:
        """Copies of weights, Adam moments and step count as full fp32 tensors on the CPU."""
        rows = {"param": self._pack.masters[self.row]}
        rows |= {name: moment[self.row] for name, moment in self._pack.moments.items()}
        state = {
            f"{kind}/{name}": tensor.to("cpu", copy=True)
            for kind, row in rows.items()
            for name, tensor in zip(self.names, self._pack.whole(row), strict=True)
        }
        state["step"] = self._pack.steps[self.row].long().cpu()
        return state

    def load_state(self, state: dict[str, Tensor], loss: Callable[[], Tensor] | None = None) -> None:
        """Take over what `state()` gave, here or in an engine; `loss` is what an engine would need."""
        rows = {"param": self._pack.masters[self.row]}
        rows |= {name: moment[self.row] for name, moment in self._pack.moments.items()}
        for kind, row in rows.items():
            self._pack.write(row, {name: state[f"{kind}/{name}"] for name in self.names})
        self._pack.steps[self.row] = float(state["step"])
        self._pack.refresh()

    def close(self) -> None:
        """Nothing of its own: the pack ends with its last member."""


def _settings(model: TaggedModule, trial: Trial) -> dict[str, Settings]:
    """Learning rate, weight decay and epsilon of each parameter of a trial, in the model's order."""
    optimizer = trial.optimizer
    groups = parameter_groups(
        model, trial.parameterization, optimizer.learning_rate, optimizer.weight_decay, optimizer.eps
    )
    found = {
        name: (float(group["lr"]), float(group["weight_decay"]), float(group["eps"]))
        for group in groups
        for name in group["names"]
    }
    return {name: found[name] for name, _ in model.named_parameters()}


def _layout(
    settings: Sequence[dict[str, Settings]], shapes: Mapping[str, torch.Size]
) -> tuple[list[_Columns], dict[str, slice]]:
    """Where each parameter lies in a row, those with the same settings side by side."""
    alike: dict[tuple[Settings, ...], list[str]] = {}
    for name in shapes:
        alike.setdefault(tuple(own[name] for own in settings), []).append(name)
    columns, places, start = [], {}, 0
    for key, names in alike.items():
        begin = start
        for name in names:
            places[name] = slice(start, start + prod(shapes[name]))
            start = places[name].stop
        columns.append(_Columns(slice(begin, start), key))
    return columns, places
