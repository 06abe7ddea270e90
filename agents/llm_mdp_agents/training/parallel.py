"""One process or several: what the trainer asks of the group it belongs to. Alone, all of it is nothing.

    torchrun --nproc-per-node 2 -m llm_mdp.cli train …
        every process holds the whole policy (accelerate, DDP)
    torchrun --nproc-per-node 2 -m llm_mdp.cli train … --shard
        every process holds a part of every layer (torch FSDP2)

Each process draws responses to prompts of its own. The batch is then gathered, for it is small, so that the loss, the
critics and the reward models see all of it in every process; only the policy's backward pass is shared out. All
processes begin with the same policy and the same auxiliary models, and call the methods below in the same order.
(`accelerate launch --cpu` starts one process, whatever it is told: use torchrun.)
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llm_mdp.sampling.evidence import Evidence, join

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long a process waits for another: one may still draw long responses when the others are done. torchrun ends all
where one has ended."""


class Parallel:
    """A single process."""

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def prepare(self, policy: Any) -> Callable[..., Tensor]:
        """The policy's `forward`, to be differentiated. Comes before the optimizer is made, for it may replace
        parameters."""
        return policy

    def everyone(self, mine: T) -> list[T]:
        """This object of every process, by rank."""
        return [mine]

    def gather(self, evidence: Evidence | None) -> tuple[Evidence | None, range]:
        """The whole batch, and which of its rows are this process's own. Where a process has none it gives None."""
        parts = self.everyone(evidence)
        rows = [0 if part is None else len(part.response_reward) for part in parts]
        kept = [part for part in parts if part is not None]
        first = sum(rows[: self.rank])
        return join(kept) if kept else None, range(first, first + rows[self.rank])

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Every process's rows, in the order of `gather`."""
        return torch.cat(self.everyone(rows))

    def most(self, number: int) -> int:
        """The largest of every process's numbers."""
        return max(self.everyone(number))

    def accumulate(self, last: bool) -> AbstractContextManager:
        """For one part of a batch, forward and backward: gradients are averaged over the processes after the last part
        only."""
        return nullcontext()

    def on_whole_model(self, policy: Any, function: Callable[[], T]) -> T:
        """Run something while every process holds all weights, so that nobody waits for anybody inside. No gradients by
        the policy."""
        return function()

    def same(self, models: Iterable[nn.Module]) -> None:
        """Give every process what the first one has of models that each trains for itself. They begin alike and see the
        same batches, but kernels that add up in an order of their own let them drift apart."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A gradient or parameter with the parts that other processes hold."""
        return tensor

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's part of a tensor of `whole`, split like another."""
        return whole

    def clip(self, parameters: list[nn.Parameter], most: float) -> float:
        """Shorten the gradient to `most`; returns its length before."""
        return float(self.whole(nn.utils.clip_grad_norm_(parameters, most)))

    def whole_state(self, policy: Any) -> dict[str, Tensor]:
        """The weights, as a single process has them."""
        return policy.state_dict()

    def load_whole_state(self, policy: Any, state: dict[str, Tensor]) -> None:
        """Weights of `whole_state`, of any kind of group."""
        policy.load_state_dict(state)

    def whole_policy(self, policy: Any) -> Any:
        """The policy as a single process has it, to be written to files; all processes ask for it together."""
        return policy

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of the policy's optimizer, as a single process has it."""
        return optimizer.state_dict()

    def load_whole_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """A state of `whole_optimizer_state`, of any kind of group."""
        optimizer.load_state_dict(state)


class Replicated(Parallel):
    """One of several processes that each hold the whole policy; accelerate starts the group, DDP averages the
    gradients.

    Args:
        device: where the policy is, "cpu" or "cuda" (then each process takes one of the machine's GPUs).

    Raises:
        ValueError: without accelerate, or in a process that torchrun did not start.
    """

    root: Any
    """The policy as DDP or FSDP wraps it."""

    def __init__(self, device: str = "cpu"):
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs, gather_object
        except ImportError as error:
            raise ValueError(
                "several processes need accelerate, which is not installed; run pip install 'llm-mdp[train]', or start "
                "without torchrun."
            ) from error
        group = InitProcessGroupKwargs(timeout=PATIENCE)
        asked = torch.device(device)
        self.accelerator = Accelerator(cpu=asked.type == "cpu", mixed_precision="no", kwargs_handlers=[group])
        self._gather = gather_object
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size < 2 or self.size != expected:
            raise ValueError(
                f"WORLD_SIZE is {expected}, but the group has {self.size} processes; start them with torchrun."
            )
        if asked.index is not None and asked.index != self.accelerator.device.index:
            raise ValueError(
                f"the policy is on {device}, but this process of {self.size} has {self.accelerator.device}; put it "
                f"there: policy.to(f\"cuda:{{os.environ['LOCAL_RANK']}}\")."
            )

    def prepare(self, policy: Any) -> Callable[..., Tensor]:
        self.policy, self.root = policy, self.accelerator.prepare_model(_Root(policy))
        if not isinstance(self.root, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"accelerate made a {type(self.root).__name__}, not DDP, of the policy; unset its ACCELERATE_* "
                f"variables."
            )
        return self._forward

    def everyone(self, mine: T) -> list[T]:
        return self._gather([mine])

    def accumulate(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.accelerator.no_sync(self.root)

    @torch.no_grad()
    def same(self, models: Iterable[nn.Module]) -> None:
        for model in models:
            for each in model.parameters():
                if each.requires_grad:
                    # Where the group sends from GPUs, a model on the CPU is sent from there too.
                    sent = each.detach().to(self.accelerator.device).contiguous()
                    torch.distributed.broadcast(sent, 0)
                    each.copy_(sent)

    def _forward(self, *response: Tensor) -> Tensor:
        # FSDP hangs its backward pass on what comes out, and asks for a tensor of its own.
        return self.root(lambda: self.policy(*response).clone())


class Sharded(Replicated):
    """One of several processes that each hold a part of every layer and of its optimizer state (FSDP2); the root layer
    is whatever is in no decoder layer. Reference policies are copies from before, and stay whole; so do the weights
    while responses are drawn.

    Gradients are averaged as DDP does it. Between the parts of a batch they are kept whole, to be sent once.
    """

    def prepare(self, policy: Any) -> Callable[..., Tensor]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # A policy may try its model out once, and all processes have to do it together or before.
        getattr(policy, "linear_head", None)
        mesh = init_device_mesh(self.accelerator.device.type, (self.size,))
        self.shape = deepcopy(policy).to("meta")
        layers = getattr(getattr(policy, "causal_lm", None), "_no_split_modules", None) or ()
        self.policy, self.root = policy, _Root(policy)
        self.shards = [module for module in policy.modules() if type(module).__name__ in layers] + [self.root]
        for module in self.shards:
            fully_shard(module, mesh=mesh)
        return self._forward

    def accumulate(self, last: bool) -> AbstractContextManager:
        self.root.set_requires_gradient_sync(last)
        return nullcontext()

    def on_whole_model(self, policy: Any, function: Callable[[], T]) -> T:
        self.root.set_reshard_after_forward(False)
        for module in self.shards:
            module.unshard()
        # The root's forward comes first, always: FSDP takes the first module that it sees for the root.
        result = self.root(function)
        for module in self.shards:
            module.reshard()
        self.root.set_reshard_after_forward(True)
        self.root.set_reshard_after_forward(False, recurse=False)
        return result

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole

    def whole_state(self, policy: Any) -> dict[str, Tensor]:
        # One tensor at a time and then to the CPU, for no GPU has room for all.
        return {name: self.whole(each).cpu() for name, each in policy.state_dict().items()}

    def load_whole_state(self, policy: Any, state: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(policy, {**state}, options=StateDictOptions(full_state_dict=True))

    def whole_policy(self, policy: Any) -> Any:
        whole = deepcopy(self.shape)
        whole.load_state_dict(self.whole_state(policy), assign=True)
        return whole

    # torch.distributed.checkpoint has functions for these two as well, but they take a step of a fresh optimizer, and
    # name parameters
    # where a single process numbers them.

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        kept = {
            number: {name: self.whole(each).cpu() for name, each in own.items()}
            for number, own in state["state"].items()
        }
        return state | {"state": kept}

    def load_whole_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = {
            number: {name: self.part(each, parameters[number]) if each.dim() else each for name, each in kept.items()}
            for number, kept in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": own})


class _Root(nn.Module):
    """What DDP and FSDP wrap. Its forward runs what it is given, so that responses stay on the CPU whatever the
    policy's device, and so that anything at all can run inside of FSDP's root."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, function: Callable[[], T]) -> T:
        return function()


def parallel_from_environment(shard: bool = False, device: str = "cpu") -> Parallel:
    """The group that torchrun started this process in (WORLD_SIZE of its environment); alone: `Parallel()`.

    Args:
        shard: split the policy over the processes instead of copying it.
        device: of the policy; see `Replicated`. Call this before the policy is made, so that "cuda" is this process's
            GPU.

    Raises:
        ValueError: see `Replicated`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Parallel()
    return Sharded(device) if shard else Replicated(device)
