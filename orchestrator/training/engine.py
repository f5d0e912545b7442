"""The optimizer step through DeepSpeed, and its state as plain tensors. The only file that imports deepspeed.

State goes in and out as full fp32 tensors by parameter name, whatever the ZeRO stage or the number of workers, so a
trial may stop on one gang and go on with another.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from models.cost import REDUCE_BUCKET
from orchestrator.spec.trial import Optimizer, Precision
from orchestrator.training.compilation import allow_many_shapes

MOMENTS = ("exp_avg", "exp_avg_sq")


def join(rank: int, world_size: int, address: str, port: int, use_gpu: bool) -> None:
    """Join the process group of a gang: NCCL with GPUs, gloo without. Ports are opened on the node's address alone."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        # Ray shows a worker only its own devices, so its device is always the first.
        LOCAL_RANK="0",
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if address.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    backend = "nccl" if use_gpu else "gloo"
    store = _rendezvous(rank, world_size, address, port)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    _deepspeed().init_distributed(dist_backend=backend, verbose=False)


def _rendezvous(rank: int, world_size: int, address: str, port: int) -> torch.distributed.Store:
    """The store by which the members find each other. By itself rank 0 would listen on every address of its node."""
    tcp_store: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]
    if rank > 0:
        return tcp_store(address, port, world_size, is_master=False)
    listener = socket.create_server((address, port))
    port = listener.getsockname()[1]
    return tcp_store(
        address, port, world_size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def leave() -> None:
    """Leave the process group; through DeepSpeed, which else remembers it and cannot join another."""
    if torch.distributed.is_initialized():
        _deepspeed().comm.destroy_process_group()


class Engine:
    """A model under training: AdamW steps with DeepSpeed ZeRO 0 to 3, one learning rate and epsilon a parameter group.

    Args:
        module: the model, on its device, in float32; or a module around it, as `LossModule`.
        groups: parameter groups (`params`, `names`, `lr`, `weight_decay`, `eps`, `name`), which name the parameters.
        optimizer: AdamW's settings.
        micro_batch: samples of one forward and backward pass on this worker.
        micro_steps: forward and backward passes of one optimizer step.
        precision: "fp32", or "bf16" arithmetic with fp32 master weights; "fp8" is the module's, and "bf16" here.
        zero_stage: 0 to 3; 0 only with fp32, as DeepSpeed takes a spurious Adam step with bf16 there.
        offload: master weights, Adam moments and the optimizer's step are on the host (Ren et al. 2021, arXiv
            2101.06840); from ZeRO 1 on.
        compiled: run the module through torch.compile; of no effect at ZeRO 3, whose hooks gather weights on the way.

    Raises:
        ValueError: offload at ZeRO 0.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        optimizer: Optimizer,
        *,
        micro_batch: int,
        micro_steps: int = 1,
        precision: Precision,
        zero_stage: int,
        offload: bool = False,
        compiled: bool = False,
    ) -> None:
        assert not (precision != "fp32" and zero_stage == 0), "refused by the sweep's validation"
        if offload and zero_stage == 0:
            raise ValueError("offload with zero_stage 0, which keeps no master weights apart; wanted stage 1, 2 or 3")
        self.zero_stage, self.precision, self.micro_steps = zero_stage, precision, micro_steps
        self._named = _named_in_order(module, groups)
        params = sum(parameter.numel() for parameter in self._named.values())
        self._rates = [float(group["lr"]) for group in groups]
        self._weight_decays = [float(group["weight_decay"]) for group in groups]
        self._epsilons = [float(group["eps"]) for group in groups]
        settings = ("params", "lr", "weight_decay", "eps", "name")
        adamw = _AdamW([{key: group[key] for key in settings} for group in groups], betas=optimizer.betas, fused=True)
        free_of_norm = zero_stage in (1, 2) and not offload and not optimizer.gradient_clip
        config = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": optimizer.gradient_clip or 0.0,
            "zero_optimization": {
                "stage": zero_stage,
                # A bucket is allocated whole, whatever the model's size; DeepSpeed's own takes 1 GB in bf16.
                "reduce_bucket_size": min(REDUCE_BUCKET, params),
                **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
                # Only clipping needs the norm, and the host would wait for it in every step.
                **({"compute_grad_norm": False} if free_of_norm else {}),
            },
            # Else it insists on an AdamW of its own for offload, which it compiles from C++ at start.
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            # A step that is not finite is taken, and found out by its loss: skipping it would hide a divergence.
            "bf16": {"enabled": precision != "fp32", "check_grad_overflow": False},
            "steps_per_print": 2**62,
        }
        self._engine, self._optimizer, _, _ = _deepspeed().initialize(model=module, optimizer=adamw, config=config)
        if compiled and zero_stage < 3:
            allow_many_shapes()
            module.compile(dynamic=False)
        self._check_groups()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The module's forward pass, through the hooks of ZeRO, in the engine's precision."""
        prediction: Tensor = self._engine(*inputs)
        return prediction

    def set_rate(self, scale: float) -> None:
        """Set every group's learning rate to `scale` times its base."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale

    def step(self, loss: Tensor) -> None:
        """Take in the mean loss of a micro-batch; every `micro_steps`-th call takes the optimizer step.

        The step is on the mean over these calls and over the workers. ZeRO 1 to 3 in bf16 also sum the micro-batches'
        gradients in bf16.
        """
        self._engine.backward(loss)
        self._engine.step()

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the model's order."""
        return list(self._named)

    def masters(self) -> list[Tensor]:
        """This worker's part of the fp32 weights: the parameters at ZeRO 0, else flat pieces of them, one a group.

        They are the optimizer's own, so that what follows the weights costs no communication; with offload copies of
        them on the device.
        """
        return [part.to(self._engine.device) for part in self._parts()]

    def _parts(self) -> list[Tensor]:
        """`masters`, where they are."""
        if self.zero_stage == 0:
            return [parameter.detach() for parameter in self._named.values()]
        if self.zero_stage == 3:
            return [flat.detach() for flat in self._optimizer.fp32_partitioned_groups_flat]
        return [flat.detach() for flat in self._optimizer.single_partition_of_fp32_groups]

    def parameters(self) -> list[Tensor]:
        """The full fp32 parameters in the model's order. Collective; not copies where the stage holds them whole."""
        if self.precision == "fp32" and self.zero_stage < 3:
            return [parameter.detach() for parameter in self._named.values()]
        get = _deepspeed().utils.safe_get_full_fp32_param
        return [get(parameter).detach() for parameter in self._named.values()]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Full fp32 tensors in the model's order, one at a time, from parts laid out as `masters()`. Collective.

        The optimizer is not to step until the iterator is at its end.
        """
        if self.zero_stage == 0:
            yield from parts
            return
        get = _deepspeed().utils.safe_get_full_fp32_param
        _exchange(self._parts(), parts)  # DeepSpeed knows how to gather what lies in the place of its masters
        try:
            for parameter in self._named.values():
                yield get(parameter).detach()
        finally:
            _exchange(self._parts(), parts)

    def take_part(self, parts: Sequence[Tensor], full: Mapping[str, Tensor]) -> None:
        """Write this worker's part of full fp32 tensors, by parameter name, into `parts`; `whole`'s reverse."""
        if self.zero_stage == 0:
            torch._foreach_copy_(list(parts), [full[name].to(parts[0].device) for name in self._named])
            return
        set_full = _deepspeed().utils.safe_set_full_fp32_param
        _exchange(self._parts(), parts)
        for name, parameter in self._named.items():
            set_full(parameter, full[name].to(self._engine.device))
        _exchange(self._parts(), parts)

    def state(self) -> dict[str, Tensor]:
        """Copies of weights, Adam moments and step count as full fp32 tensors on the CPU. Collective."""
        self._link_moments()
        state = {f"param/{n}": p.to("cpu", copy=True) for n, p in zip(self._named, self.parameters(), strict=True)}
        for name, parameter in self._named.items():
            for moment in MOMENTS:
                state[f"{moment}/{name}"] = self._moment(parameter, moment).to("cpu", copy=True)
        state["step"] = torch.tensor(self._step_count(), dtype=torch.int64)
        return state

    def load_state(self, state: dict[str, Tensor], loss: Callable[[], Tensor]) -> None:
        """Take over what `state()` gave, on any number of workers. Collective.

        `loss` computes any loss of the model on a micro-batch: ZeRO makes its optimizer state in a first step, which is
        taken at learning rate zero and then overwritten.
        """
        if self.zero_stage > 0:
            self.set_rate(0.0)
            for _ in range(self.micro_steps):
                self.step(loss() * 0.0)
            self._link_moments()
        for name, parameter in self._named.items():
            self._load_parameter(parameter, state[f"param/{name}"], {m: state[f"{m}/{name}"] for m in MOMENTS})
        self._set_step_count(int(state["step"]))
        self.set_rate(1.0)
        self._check_groups()

    def close(self) -> None:
        """Release the model, DeepSpeed's buffers and hooks: the gang's next trial wants the memory."""
        self._engine.destroy()
        device = self._engine.device
        del self._engine, self._optimizer, self._named
        if self.zero_stage == 3:
            _forget_modules()
        if device.type == "cuda":
            gc.collect()  # DeepSpeed's objects refer to each other

    def _load_parameter(self, parameter: nn.Parameter, value: Tensor, moments: dict[str, Tensor]) -> None:
        value = value.to(self._engine.device)
        moments = {name: moment.to(self._engine.device) for name, moment in moments.items()}
        with torch.no_grad():
            if self.zero_stage == 0:
                parameter.copy_(value)
                step = torch.zeros((), dtype=torch.float32, device=value.device)
                self._optimizer.state[parameter] = {"step": step, **{n: m.clone() for n, m in moments.items()}}
                return
            utils = _deepspeed().utils
            utils.safe_set_full_fp32_param(parameter, value)
            for name, moment in moments.items():
                utils.safe_set_full_optimizer_state(parameter, moment, name)
            with self._whole(parameter):
                parameter.copy_(value)

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """A context in which a parameter that ZeRO-3 has partitioned can be written whole."""
        if self.zero_stage < 3:
            return nullcontext()
        context: AbstractContextManager[Any] = _deepspeed().zero.GatheredParameters([parameter], modifier_rank=0)
        return context

    def _moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        if self.zero_stage > 0:
            moment: Tensor = _deepspeed().utils.safe_get_full_optimizer_state(parameter, name)
            return moment
        held: Tensor = self._optimizer.state[parameter][name]
        return held

    def _link_moments(self) -> None:
        """Let every parameter find its Adam moments.

        DeepSpeed's ZeRO 1 and 2 do that after the first step of the first group only, when the other groups have no
        moments yet, so theirs could be neither read nor written.
        """
        if self.zero_stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _steps(self) -> list[Tensor]:
        """The step tensors of the wrapped AdamW."""
        adamw = self._optimizer if self.zero_stage == 0 else self._optimizer.optimizer
        return [held["step"] for held in adamw.state.values() if "step" in held]

    def _step_count(self) -> int:
        counts = {int(step) for step in self._steps()}
        assert len(counts) == 1, f"AdamW's parameters are at different steps: {sorted(counts)}"
        return counts.pop()

    def _set_step_count(self, count: int) -> None:
        for step in self._steps():
            step.fill_(count)

    def _check_groups(self) -> None:
        """DeepSpeed has been seen to give every group the settings of the first; that would void µP silently."""
        groups = self._optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        decays = [float(group["weight_decay"]) for group in groups]
        epsilons = [float(group["eps"]) for group in groups]
        assert rates == self._rates, f"learning rates per group are {rates}; wanted {self._rates}"
        assert decays == self._weight_decays, f"weight decays per group are {decays}; wanted {self._weight_decays}"
        assert epsilons == self._epsilons, f"Adam's epsilons per group are {epsilons}; wanted {self._epsilons}"


class LossModule(nn.Module):
    """A model and its loss as one module, which the compiler sees as a whole.

    Args:
        model: the model.
        loss: of each sample, as `models.objectives.Objective.loss`.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, x: Tensor, y: Tensor, t: Tensor, noise: Tensor, *further: Tensor) -> Tensor:
        """The mean loss of a batch; `further` is what the loss wants beside it of each sample."""
        return self._loss(self.model, x, y, t, noise, *further).mean()


def _named_in_order(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, nn.Parameter]:
    """The groups' parameters by their names there, in the module's order."""
    names = {
        id(parameter): name for group in groups for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    return {names[id(parameter)]: parameter for parameter in module.parameters()}


EXCHANGED = 2**24
"""Elements that change places at a time."""


@torch.no_grad()
def _exchange(ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Swap the contents of tensors, a piece at a time: there may be no room for a copy of all."""
    for one, other in zip(ones, others, strict=True):
        pairs = zip(one.view(-1).split(EXCHANGED), other.view(-1).split(EXCHANGED), strict=True)
        for a, b in pairs:
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


def _forget_modules() -> None:
    """Empty what ZeRO-3 keeps in globals of every model it ever ran: a list, and the cache of a method."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    method = coordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()


class _AdamW(torch.optim.AdamW):
    """torch's, but for what keeps these methods from being compiled: we compile none of them, and the first call of one
    imports the compiler, which takes 4 s of a core at the start of every worker."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)


def _deepspeed() -> Any:
    """DeepSpeed, quiet, and without the shared-memory op that would want a C++ compiler at start."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with _absent("mlflow"):  # for its autotuner, and takes longer to import than all else of it
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _absent(library: str) -> Iterator[None]:
    """What is imported here does without an optional library, if nobody has imported that yet."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]
