"""Trials of one shape trained as one stacked model: the step of `engine.Engine` for many members at once, or for one.

Weights, Adam's moments and averages of M members lie in flat buffers: parameter after parameter, and of each parameter
[M, ...], so that what a batched product gives lies as the buffers do. Every member has its own learning rate, weight
decay and epsilon in every parameter group, as µP wants. DeepSpeed knows one model and one learning rate a group, so it
is not used: fp32 is what ZeRO-0 does, bf16 with fp32 masters what ZeRO-1 does.

A pack of one can be that of a gang of several workers, each with its share of the batch: gradients are summed, and each
worker steps its share of masters, moments and averages (`training.division`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from models.ema import Ema
from models.objectives import Objective
from models.packed import pack
from models.parameterization import TaggedModule, parameter_groups
from orchestrator.spec.trial import Optimizer, Trial
from orchestrator.training.compilation import compiled
from orchestrator.training.division import division
from orchestrator.training.engine import MOMENTS
from orchestrator.training.flat import Layout
from orchestrator.training.flat_adamw import EagerUpdate, KernelUpdate, Move, Settings, Work
from orchestrator.training.model import training_model
from orchestrator.training.step_graph import StepGraph


class Pack:
    """M members under training.

    Args:
        trials: the members: of one model, objective, batch size, precision and betas.
        objective: theirs.
        device: where; on a GPU steps are compiled if the trials are.
        graph: replay the step as a CUDA graph, on a GPU.
        rank: of the worker in its gang.
        num_workers: of the gang; one, but for a pack of one. Then construction, steps and whole state are collective.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        objective: Objective,
        device: torch.device,
        graph: bool = True,
        rank: int = 0,
        num_workers: int = 1,
    ) -> None:
        models = [training_model(trial) for trial in trials]
        self._settings = [_settings(model, trial) for model, trial in zip(models, trials, strict=True)]
        self.optimizers: list[Optimizer] = [trial.optimizer for trial in trials]
        self._half = trials[0].precision != "fp32"
        self.device, self._graphed = device, graph
        self.compiled = trials[0].compiled and device.type == "cuda"
        self._loss: Callable[..., Tensor] = compiled(objective.loss) if self.compiled else objective.loss
        self._graph: StepGraph | None = None
        self._stacked = len(models) > 1
        self.model = (pack(models) if self._stacked else models[0]).to(device)
        self.members = [PackMember(self, row) for row in range(len(trials))]
        self._emas: dict[int, Ema] = {}
        shapes = {name: parameter.shape for name, parameter in models[0].named_parameters()}
        self.layout = Layout(shapes, len(trials), num_workers)
        self.division = division(self.layout, rank, num_workers)
        self.masters, self.averages = self.division.zeros(device), self.division.zeros(device)
        self.moments = {name: self.division.zeros(device) for name in MOMENTS}
        self.steps = [0] * len(trials)
        for row, member in enumerate(self.members):
            initial = [parameter[row] if self._stacked else parameter for parameter in self.model.parameters()]
            self.division.write(member.masters(), initial)
        self._bind()

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the model's order."""
        return self.layout.names

    def step(self, batch: Sequence[Tensor], rates: Sequence[float], spans: Sequence[tuple[int, int]]) -> Tensor:
        """One optimizer step of every member; returns their mean losses [M], not waited for.

        Args:
            batch: images, labels, times and noise, the members' batches one after the other.
            rates: each member's learning rate over its base rate.
            spans: samples seen by each member before and after the step.
        """
        moves = []
        for row, (rate, (before, after)) in enumerate(zip(rates, spans, strict=True)):
            self.steps[row] += 1
            weight = 1.0 if before == 0 else 1 - (before / after) ** (self._emas[row].gamma + 1)
            moves.append(Move(rate, self.steps[row], weight))
        update = self._update
        if isinstance(update, EagerUpdate):
            return self._advance(batch, partial(update, moves))
        numbers = update.numbers(moves)
        if not self._graphed:
            return self._advance_by(*batch, numbers)
        if self._graph is None:
            self._graph = StepGraph(self._advance_by, with_others=self.division.num_workers > 1)
        return self._graph(*batch, numbers)

    def _advance_by(self, *inputs: Tensor) -> Tensor:
        """`_advance` by tensors alone, as a graph replays it: a batch, then the numbers of the update."""
        *batch, numbers = inputs
        assert isinstance(self._update, KernelUpdate), "CPUs have no graphs"
        return self._advance(batch, partial(self._update, numbers))

    def _advance(self, batch: Sequence[Tensor], update: Callable[[], None]) -> Tensor:
        losses, num_workers = self._losses(batch), self.division.num_workers
        share = losses.sum() / num_workers if num_workers > 1 else losses.sum()  # their sum is the mean over the gang
        # Copying moves 4 of a step's 40 bytes a parameter, in a launch for 64 tensors. Backward adding to views of the
        # buffer would zero it, move 8 and launch once a parameter; reading gradients where autograd has them would want
        # a table of their addresses in every step.
        gradients = torch.autograd.grad(share, self._parameters)
        torch._foreach_copy_(self._gradients, list(gradients))
        self.division.reduce(self._gradient)
        with torch.no_grad():
            update()
        self.division.gather(self._weights)
        return losses.detach()

    def _losses(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean loss of each member [M]."""
        x, y, t, noise = batch
        losses: Tensor = self._loss(self.model, x, y, t, noise)
        return losses.view(len(self.members), -1).mean(1)

    # Members.

    def follow(self, row: int, ema: Ema) -> None:
        """Let the pack's steps update a member's average."""
        own = self.division.parts(self.averages, row)
        torch._foreach_copy_(own, ema.tensors)
        ema.tensors = own
        self._emas[row] = ema

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the members; the others are done."""
        old, self.layout = self.layout, Layout(self.layout.shapes, len(rows))
        self.division = division(self.layout, 0, 1)
        index = torch.tensor(rows, device=self.device)

        def kept(buffer: Tensor) -> Tensor:
            fewer = self.layout.zeros(self.device)
            for view, own in zip(self.layout.views(fewer), old.views(buffer), strict=True):
                torch.index_select(own, 0, index, out=view)
            return fewer

        self.masters, self.averages = kept(self.masters), kept(self.averages)
        self.moments = {name: kept(moment) for name, moment in self.moments.items()}
        self.members, self.optimizers = [self.members[row] for row in rows], [self.optimizers[row] for row in rows]
        self._settings, self.steps = [self._settings[row] for row in rows], [self.steps[row] for row in rows]
        emas = [self._emas[row] for row in rows]
        for row, (member, ema) in enumerate(zip(self.members, emas, strict=True)):
            member.row = row
            ema.tensors = self.layout.rows(self.averages, row)
        self._emas = dict(enumerate(emas))
        for module in self.model.modules():
            if isinstance(multiplier := getattr(module, "multiplier", None), Tensor):
                module.multiplier = multiplier[index]
        self._bind()

    def refresh(self) -> None:
        """Let the model see masters that were written from outside. Collective."""
        if self._half:
            self.division.own(self._weights).copy_(self.masters)
        self.division.gather(self._weights)

    def close(self) -> None:
        """Release the graph, at once: what it holds of the process group keeps that from being left, and its memory is
        the next trial's."""
        self._drop_graph()
        self.members.clear()  # they know the pack, as it them

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.release()
        self._graph = None

    def _bind(self) -> None:
        """Make the model's parameters views of the buffers, and make room for gradients; a graph knew the old ones."""
        self._drop_graph()
        dtype = torch.bfloat16 if self._half else torch.float32
        self._weights, self.masters = self.division.spread(self.masters, dtype)
        on_gpu = self.device.type == "cuda"
        # The kernel widens what it reads; torch's own update wants gradients as wide as the masters.
        self._gradient = torch.zeros_like(self._weights, dtype=dtype if on_gpu else torch.float32)
        self._gradients = self._bound(self._gradient)
        for name, part in zip(self.names, self._bound(self._weights), strict=True):
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, torch.nn.Parameter(part))
        self._parameters = list(self.model.parameters())
        first, second = self.moments.values()
        work = Work(
            settings=self._settings,
            limits=[optimizer.gradient_clip for optimizer in self.optimizers],
            betas=self.optimizers[0].betas,
            division=self.division,
            masters=self.masters,
            weights=self.division.own(self._weights) if self._half else self.masters,
            gradient=self.division.own(self._gradient),
            moments=(first, second),
            averages=self.averages,
        )
        self._update = KernelUpdate(work) if on_gpu else EagerUpdate(work)

    def _bound(self, buffer: Tensor) -> list[Tensor]:
        """Parts of a buffer as the model's parameters have them."""
        return self.layout.views(buffer) if self._stacked else self.layout.rows(buffer, 0)


class PackMember:
    """One member of a pack, as an attempt sees it: its state, in the form that `engine.Engine` has it."""

    def __init__(self, pack: Pack, row: int) -> None:
        self._pack, self.row = pack, row

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the model's order."""
        return self._pack.names

    def masters(self) -> list[Tensor]:
        """The fp32 weights, in the model's order; of a gang this worker's share of them, flat."""
        return self._parts(self._pack.masters)

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Full fp32 tensors in the model's order, from parts laid out as `masters()`. Collective."""
        return self._pack.division.whole(parts)

    def take_part(self, parts: Sequence[Tensor], full: Mapping[str, Tensor]) -> None:
        """Write what this worker keeps of full fp32 tensors, by parameter name, into `parts`; `whole`'s reverse."""
        self._pack.division.write(parts, [full[name] for name in self.names])

    def state(self) -> dict[str, Tensor]:
        """Copies of weights, Adam moments and step count as full fp32 tensors on the CPU. Collective."""
        state = {
            f"{kind}/{name}": tensor.to("cpu", copy=True)
            for kind, parts in self._state().items()
            for name, tensor in zip(self.names, self.whole(parts), strict=True)
        }
        state["step"] = torch.tensor(self._pack.steps[self.row])
        return state

    def load_state(self, state: dict[str, Tensor], loss: Callable[[], Tensor] | None = None) -> None:
        """Take over what `state()` gave, here or in an engine, on any number of workers; `loss` is what an engine would
        need. Collective."""
        for kind, parts in self._state().items():
            self.take_part(parts, {name: state[f"{kind}/{name}"] for name in self.names})
        self._pack.steps[self.row] = int(state["step"])
        self._pack.refresh()

    def close(self) -> None:
        """Nothing of its own: the pack ends with its last member."""

    def _state(self) -> dict[str, list[Tensor]]:
        moments = {name: self._parts(moment) for name, moment in self._pack.moments.items()}
        return {"param": self.masters(), **moments}

    def _parts(self, kept: Tensor) -> list[Tensor]:
        return self._pack.division.parts(kept, self.row)


def _settings(model: TaggedModule, trial: Trial) -> list[Settings]:
    """Learning rate, weight decay and epsilon of each parameter of a trial, in the model's order."""
    optimizer = trial.optimizer
    groups = parameter_groups(
        model, trial.parameterization, optimizer.learning_rate, optimizer.weight_decay, optimizer.eps
    )
    found = {
        name: Settings(float(group["lr"]), float(group["weight_decay"]), float(group["eps"]))
        for group in groups
        for name in group["names"]
    }
    return [found[name] for name, _ in model.named_parameters()]
